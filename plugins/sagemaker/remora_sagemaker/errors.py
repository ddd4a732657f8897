"""Who has to act on an error of AWS or of its SDK: one table of codes, one of exception classes.

Messages are made for people and never carry a secret: text that may hold one (a signature's canonical request, the
output of a credential process, a proxy's address) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from remora.plugin import Failure, FailureKind

from remora_sagemaker.budget import OutOfBudgetError

_MAX_MESSAGE = 2000


class ClosedError(Exception):
    """The plugin is being closed; nothing was sent."""


class UnexpectedAnswerError(Exception):
    """The service's answer lacks what every answer of its kind has."""


THROTTLING = frozenset({
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
})  # fmt: skip
"""Codes that mean "too fast": the rate gives way."""

_SIGNATURE = "check that access key and secret belong together, and the machine's clock"
_EXPIRED = "the session token has expired: configure a fresh one, or credentials that renew themselves"
_KEYS = "the credentials are not valid: replace the access key, or renew what issues it"

KINDS: Mapping[str, FailureKind] = {
    **dict.fromkeys(THROTTLING, FailureKind.TRANSIENT),
    # Nobody has to act.
    "ConflictException": FailureKind.TRANSIENT,
    "InternalError": FailureKind.TRANSIENT,
    "InternalFailure": FailureKind.TRANSIENT,
    "InternalServerError": FailureKind.TRANSIENT,
    "InternalServerException": FailureKind.TRANSIENT,
    "InternalServiceException": FailureKind.TRANSIENT,
    "RequestTimeout": FailureKind.TRANSIENT,
    "RequestTimeoutException": FailureKind.TRANSIENT,
    "ServiceUnavailable": FailureKind.TRANSIENT,
    "ServiceUnavailableException": FailureKind.TRANSIENT,
    "IDPCommunicationError": FailureKind.TRANSIENT,
    # The owner of the account.
    "LimitExceededException": FailureKind.EXHAUSTED,
    "ResourceLimitExceeded": FailureKind.EXHAUSTED,
    "ServiceQuotaExceededException": FailureKind.EXHAUSTED,
    # The operator.
    "AccessDenied": FailureKind.DENIED,
    "AccessDeniedException": FailureKind.DENIED,
    "AuthFailure": FailureKind.DENIED,
    "ExpiredToken": FailureKind.DENIED,
    "ExpiredTokenException": FailureKind.DENIED,
    "IncompleteSignature": FailureKind.DENIED,
    "IncompleteSignatureException": FailureKind.DENIED,
    "InvalidAccessKeyId": FailureKind.DENIED,
    "InvalidClientTokenId": FailureKind.DENIED,
    "InvalidIdentityToken": FailureKind.DENIED,
    "InvalidSignatureException": FailureKind.DENIED,
    "MissingAuthenticationToken": FailureKind.DENIED,
    "MissingAuthenticationTokenException": FailureKind.DENIED,
    "NotAuthorized": FailureKind.DENIED,
    "OptInRequired": FailureKind.DENIED,
    "RegionDisabledException": FailureKind.DENIED,
    "RequestExpired": FailureKind.DENIED,
    "RequestTimeTooSkewed": FailureKind.DENIED,
    "SignatureDoesNotMatch": FailureKind.DENIED,
    "UnauthorizedOperation": FailureKind.DENIED,
    "UnknownOperationException": FailureKind.DENIED,
    "UnrecognizedClientException": FailureKind.DENIED,
    # The author of the task.
    "InvalidParameterCombination": FailureKind.INVALID,
    "InvalidParameterValue": FailureKind.INVALID,
    "InvalidParameterValueException": FailureKind.INVALID,
    "MalformedInput": FailureKind.INVALID,
    "MissingParameter": FailureKind.INVALID,
    "ResourceAlreadyExists": FailureKind.INVALID,
    "ResourceInUse": FailureKind.INVALID,
    "ResourceNotFound": FailureKind.INVALID,
    "ResourceNotFoundException": FailureKind.INVALID,
    "SerializationException": FailureKind.INVALID,
    "ValidationError": FailureKind.INVALID,
    "ValidationException": FailureKind.INVALID,
}
"""Codes of AWS. A code that is not here goes by its HTTP status: 5xx, 408 and 429 are transient, others invalid."""

HINTS: Mapping[str, str] = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "IncompleteSignature": _SIGNATURE,
    "IncompleteSignatureException": _SIGNATURE,
    "InvalidAccessKeyId": _KEYS,
    "InvalidClientTokenId": _KEYS,
    "InvalidSignatureException": _SIGNATURE,
    "OptInRequired": "the account is not signed up for this: its owner has to enable the service or the region",
    "RegionDisabledException": "the region is disabled in the account: its owner has to enable it",
    "RequestExpired": _SIGNATURE,
    "RequestTimeTooSkewed": _SIGNATURE,
    "ResourceLimitExceeded": "a quota of the account is used up: wait for others to end, or ask AWS to raise it",
    "ResourceNotFound": "check the name, the region and the account",
    "SignatureDoesNotMatch": _SIGNATURE,
    "UnknownOperationException": "the endpoint does not know this operation: check the plugin's endpoint",
    "UnrecognizedClientException": _KEYS,
}
"""What to do, by code."""

_UNSPEAKABLE = frozenset({
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
})  # fmt: skip
"""Codes whose text repeats the signed request, with the session token in it."""


class _Verdict(NamedTuple):
    kind: FailureKind
    message: str


_UNREACHABLE = "AWS could not be reached; the worker asks again"
_SDK_CONFIGURATION = "the AWS configuration of the worker is wrong; run `remora check`"

EXCEPTIONS: Mapping[type[Exception], _Verdict] = {
    ClosedError: _Verdict(FailureKind.TRANSIENT, "the worker is stopping; nothing was sent"),
    OutOfBudgetError: _Verdict(FailureKind.TRANSIENT, "the rate budget is used up; the worker asks again"),
    UnexpectedAnswerError: _Verdict(FailureKind.TRANSIENT, "AWS gave an incomplete answer; the worker asks again"),
    ResponseParserError: _Verdict(
        FailureKind.TRANSIENT,
        "the answer was not AWS's: is a proxy in between, or the plugin's endpoint wrong? The worker asks again",
    ),
    sdk.ConnectionError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.HTTPClientError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.IncompleteReadError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.CapacityNotAvailableError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.ChecksumError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.FlexibleChecksumError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    ConnectionError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    TimeoutError: _Verdict(FailureKind.TRANSIENT, _UNREACHABLE),
    sdk.CredentialRetrievalError: _Verdict(
        FailureKind.TRANSIENT,
        "credentials could not be fetched; the worker asks again. If it lasts, check what issues them",
    ),
    sdk.MetadataRetrievalError: _Verdict(
        FailureKind.TRANSIENT,
        "the instance's or container's metadata service did not give credentials; the worker asks again",
    ),
    sdk.NoCredentialsError: _Verdict(
        FailureKind.DENIED,
        "no AWS credentials were found: set plugin.sagemaker.access.key.id and .secret, or give the machine a role",
    ),
    sdk.PartialCredentialsError: _Verdict(FailureKind.DENIED, "the AWS credentials lack a half: give key and secret"),
    sdk.NoAuthTokenError: _Verdict(FailureKind.DENIED, "no AWS token was found: log in, or configure access keys"),
    sdk.LoginError: _Verdict(FailureKind.DENIED, "the AWS login has expired: log in again, or configure a role"),
    sdk.SSOError: _Verdict(FailureKind.DENIED, "the AWS SSO login has expired: log in again, or configure a role"),
    sdk.TokenRetrievalError: _Verdict(FailureKind.DENIED, "no AWS token could be fetched: log in, or configure a role"),
    sdk.RefreshWithMFAUnsupportedError: _Verdict(
        FailureKind.DENIED, "the AWS profile asks for an MFA code, which a worker cannot give: configure a role"
    ),
    sdk.NoRegionError: _Verdict(FailureKind.DENIED, "no AWS region is configured: set plugin.sagemaker.region"),
    sdk.BaseEndpointResolverError: _Verdict(FailureKind.DENIED, "there is no endpoint for the configured AWS region"),
    sdk.EndpointProviderError: _Verdict(FailureKind.DENIED, "there is no endpoint for the configured AWS region"),
    sdk.InvalidRegionError: _Verdict(FailureKind.DENIED, "the configured AWS region is not the name of a region"),
    sdk.UnknownRegionError: _Verdict(FailureKind.DENIED, "the configured AWS region is not the name of a region"),
    sdk.ServiceNotInRegionError: _Verdict(FailureKind.DENIED, "SageMaker does not exist in the configured AWS region"),
    sdk.ProfileNotFound: _Verdict(FailureKind.DENIED, "the AWS profile that is configured does not exist"),
    sdk.ConfigNotFound: _Verdict(FailureKind.DENIED, "the AWS configuration file does not exist"),
    sdk.ConfigParseError: _Verdict(FailureKind.DENIED, "the AWS configuration file is malformed"),
    sdk.InvalidConfigError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidEndpointConfigurationError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidIMDSEndpointError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidIMDSEndpointModeError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidProxiesConfigError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidDefaultsMode: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidRetryConfigurationError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidRetryModeError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.InvalidSTSRegionalEndpointsConfigError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.MissingDependencyException: _Verdict(
        FailureKind.DENIED, "the AWS configuration needs a Python package that is not installed, such as awscrt"
    ),
    sdk.UnknownCredentialError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.UnknownTokenProviderError: _Verdict(FailureKind.DENIED, _SDK_CONFIGURATION),
    sdk.ParamValidationError: _Verdict(FailureKind.INVALID, "the request does not fit the AWS SDK's model"),
    sdk.ValidationError: _Verdict(FailureKind.INVALID, "the request does not fit the AWS SDK's model"),
    sdk.InvalidHostLabelError: _Verdict(FailureKind.INVALID, "the request does not fit the AWS SDK's model"),
}
"""The nearest class in an exception's ancestry decides. What is not here is a defect."""


def classify(error: BaseException) -> Failure | None:
    """Say who has to act, or None for an error that only a defect explains."""
    if isinstance(error, sdk.ClientError):
        return _classify_answer(error)
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        message = "the TLS certificate of the AWS endpoint is not trusted: check the endpoint and AWS_CA_BUNDLE"
        return Failure(kind=FailureKind.DENIED, code="SSLError", message=message)
    for cls in type(error).__mro__:
        verdict = EXCEPTIONS.get(cls)
        if verdict is not None:
            name = type(error).__name__
            return Failure(kind=verdict.kind, code=name, message=f"{verdict.message} ({name})")
    return None


def code_of(error: BaseException) -> str:
    """Return AWS's code of an error, or ""."""
    return str(_error(error).get("Code", "")) if isinstance(error, sdk.ClientError) else ""


def is_throttling(error: BaseException) -> bool:
    """Whether AWS said "too fast"."""
    return isinstance(error, sdk.ClientError) and (code_of(error) in THROTTLING or _status(error) == 429)  # noqa: PLR2004 -- HTTP's number


def _classify_answer(error: sdk.ClientError) -> Failure:
    code = code_of(error)
    said = "" if code in _UNSPEAKABLE else str(_error(error).get("Message", "")).strip()
    kind = KINDS.get(code) or _kind_by_status(_status(error))
    details: dict[str, str] = {"operation": error.operation_name}
    if code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation"):
        message = _denied(error.operation_name, said, details)
    elif code == "ConflictException" and re.search(r"token|idempot", said, re.IGNORECASE):
        kind = FailureKind.INVALID
        message = (
            f"{error.operation_name}: another task with the same id and attempt was started in this account with "
            f"another request. Use a new task id. AWS said: {said}"
        )
    else:
        hint = HINTS.get(code, "")
        message = ": ".join(part for part in (error.operation_name, code, said) if part) + (
            f" -- {hint}" if hint else ""
        )
    return Failure(
        kind=kind,
        code=code,
        message=_shortened(message),
        details=details,
        retry_after=_retry_after(error),
    )


def _denied(operation: str, said: str, details: dict[str, str]) -> str:
    service = "sts" if operation in ("AssumeRole", "GetCallerIdentity") else "sagemaker"
    action = _found(r"perform:\s*([\w-]+:\w+)", said) or f"{service}:{operation}"
    resource = _found(r"on resource:\s*(\S+)", said)
    principal = _found(r"User:\s*(\S+)", said)
    details |= {
        name: value for name, value in (("action", action), ("resource", resource), ("principal", principal)) if value
    }
    who = principal or "the worker's identity"
    where = f" on {resource}" if resource else ""
    return (
        f"AWS does not allow {action}{where} to {who}: allow it in the identity's policy. AWS said: {said or 'nothing'}"
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1).rstrip(".,") if match else ""


def _kind_by_status(status: int) -> FailureKind:
    return FailureKind.TRANSIENT if status >= 500 or status in (0, 408, 429) else FailureKind.INVALID  # noqa: PLR2004 -- HTTP's numbers


def _error(error: sdk.ClientError) -> Mapping[str, Any]:
    return error.response.get("Error", {})


def _metadata(error: sdk.ClientError) -> Mapping[str, Any]:
    return error.response.get("ResponseMetadata", {})


def _status(error: sdk.ClientError) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def _retry_after(error: sdk.ClientError) -> float | None:
    value = str(_metadata(error).get("HTTPHeaders", {}).get("retry-after", ""))
    return float(value) if value.isdecimal() else None


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " ..."
