"""Who has to act on which error."""

from __future__ import annotations

import inspect

import pytest
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from remora.plugin import FailureKind
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.children import CHILD_KINDS
from remora_sagemaker.errors import (
    EXCEPTIONS,
    HINTS,
    KINDS,
    THROTTLING,
    ClosedError,
    UnexpectedAnswerError,
    classify,
    code_of,
    is_throttling,
)

DEFECTS = {
    # What only wrong code of ours, or another service than ours, can bring about.
    "BotoCoreError",
    "ApiVersionNotFoundError",
    "AwsChunkedWrapperError",
    "DataNotFoundError",
    "InvalidChecksumConfigError",
    "InvalidDNSNameError",
    "InvalidEndpointDiscoveryConfigurationError",
    "InvalidExpressionError",
    "InvalidS3AddressingStyleError",
    "InvalidS3UsEast1RegionalEndpointConfigError",
    "MD5UnavailableError",
    "MissingParametersError",
    "MissingServiceIdError",
    "OperationNotPageableError",
    "PaginationError",
    "StubAssertionError",
    "StubResponseError",
    "UnStubbedResponseError",
    "UndefinedModelAttributeError",
    "UnknownClientMethodError",
    "UnknownServiceError",
    "UnknownServiceStyle",
    "UnknownSignatureVersionError",
    "UnseekableStreamError",
    "UnsupportedOutpostResourceError",
    "UnsupportedS3AccesspointConfigurationError",
    "UnsupportedS3ArnError",
    "UnsupportedS3ConfigurationError",
    "UnsupportedS3ControlArnError",
    "UnsupportedS3ControlConfigurationError",
    "UnsupportedServiceProtocolsError",
    "UnsupportedSignatureVersionError",
    "WaiterConfigError",
    "WaiterError",
}

OPERATIONS = [
    "StartPipelineExecution",
    "DescribePipelineExecution",
    "ListPipelineExecutions",
    "ListPipelineExecutionSteps",
    "StopPipelineExecution",
    "ListPipelines",
    *(kind.operation for kind in CHILD_KINDS.values()),
]


def sdk_exceptions():
    for name, cls in vars(sdk).items():
        if inspect.isclass(cls) and issubclass(cls, Exception) and not issubclass(cls, Warning | sdk.ClientError):
            yield pytest.param(cls, id=name)


@pytest.mark.parametrize("cls", list(sdk_exceptions()))
def test_every_exception_of_the_sdk_is_classified_or_known_to_be_a_defect(cls):
    classified = any(parent in EXCEPTIONS for parent in cls.__mro__)

    assert classified != (cls.__name__ in DEFECTS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_error_that_the_model_declares_for_a_call_of_ours_is_classified(model, operation):
    for shape in model.operation_model(operation).error_shapes:
        assert shape.metadata.get("error", {}).get("code", shape.name) in KINDS


def test_every_hint_belongs_to_a_classified_code():
    assert set(HINTS) <= set(KINDS)
    assert set(KINDS) >= THROTTLING


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ThrottlingException", FailureKind.TRANSIENT),
        ("InternalFailure", FailureKind.TRANSIENT),
        ("ConflictException", FailureKind.TRANSIENT),
        ("ResourceLimitExceeded", FailureKind.EXHAUSTED),
        ("AccessDeniedException", FailureKind.DENIED),
        ("ExpiredTokenException", FailureKind.DENIED),
        ("UnrecognizedClientException", FailureKind.DENIED),
        ("ResourceNotFound", FailureKind.INVALID),
        ("ValidationException", FailureKind.INVALID),
    ],
)
def test_a_code_of_aws_says_who_has_to_act(refusal, code, kind):
    failure = classify(refusal(code, "because", operation="StartPipelineExecution"))

    assert failure is not None
    assert (failure.kind, failure.code) == (kind, code)
    assert "StartPipelineExecution" in failure.message
    assert "because" in failure.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailureKind.INVALID),
        (404, FailureKind.INVALID),
        (408, FailureKind.TRANSIENT),
        (429, FailureKind.TRANSIENT),
        (500, FailureKind.TRANSIENT),
        (503, FailureKind.TRANSIENT),
    ],
)
def test_an_unknown_code_goes_by_its_http_status(refusal, status, kind):
    failure = classify(refusal("BrandNewException", "news", HTTPStatusCode=status))

    assert failure is not None
    assert (failure.kind, failure.code) == (kind, "BrandNewException")


def test_a_missing_permission_is_named_with_who_lacks_it_and_where(refusal):
    failure = classify(
        refusal(
            "AccessDeniedException",
            "User: arn:aws:sts::123456789012:assumed-role/worker/remora is not authorized to perform: "
            "sagemaker:StartPipelineExecution on resource: arn:aws:sagemaker:eu-west-1:123456789012:pipeline/abalone "
            "because no identity-based policy allows the sagemaker:StartPipelineExecution action",
            operation="StartPipelineExecution",
        )
    )

    assert failure is not None
    assert failure.message.startswith(
        "AWS does not allow sagemaker:StartPipelineExecution on "
        "arn:aws:sagemaker:eu-west-1:123456789012:pipeline/abalone to "
        "arn:aws:sts::123456789012:assumed-role/worker/remora: allow it"
    )
    assert failure.details["action"] == "sagemaker:StartPipelineExecution"
    assert failure.details["principal"] == "arn:aws:sts::123456789012:assumed-role/worker/remora"


@pytest.mark.parametrize(
    ("operation", "action"), [("ListPipelines", "sagemaker:ListPipelines"), ("AssumeRole", "sts:AssumeRole")]
)
def test_a_denial_without_words_still_names_the_action(refusal, operation, action):
    failure = classify(refusal("AccessDenied", operation=operation))

    assert failure is not None
    assert f"AWS does not allow {action} to the worker's identity" in failure.message


def test_a_token_taken_by_another_request_is_the_authors_business(refusal):
    failure = classify(refusal("ConflictException", "ClientRequestToken was used with other parameters"))

    assert failure is not None
    assert failure.kind is FailureKind.INVALID
    assert "Use a new task id" in failure.message


def test_the_time_that_aws_asks_to_wait_is_passed_on(refusal):
    asked = classify(refusal("ThrottlingException", HTTPHeaders={"retry-after": "7"}))
    silent = classify(refusal("ThrottlingException", HTTPHeaders={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}))

    assert asked is not None
    assert asked.retry_after == 7
    assert silent is not None
    assert silent.retry_after is None


def test_throttling_is_told_by_code_and_by_http_status(refusal):
    assert is_throttling(refusal("ThrottlingException"))
    assert is_throttling(refusal("Odd", HTTPStatusCode=429))
    assert not is_throttling(refusal("ValidationException"))
    assert not is_throttling(TimeoutError())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sdk.EndpointConnectionError(endpoint_url="https://api"), FailureKind.TRANSIENT),
        (sdk.ReadTimeoutError(endpoint_url="https://api"), FailureKind.TRANSIENT),
        (sdk.ConnectionClosedError(endpoint_url="https://api"), FailureKind.TRANSIENT),
        (ConnectionResetError(), FailureKind.TRANSIENT),
        (TimeoutError(), FailureKind.TRANSIENT),
        (ResponseParserError("<html>"), FailureKind.TRANSIENT),
        (ClosedError(), FailureKind.TRANSIENT),
        (OutOfBudgetError(), FailureKind.TRANSIENT),
        (UnexpectedAnswerError(), FailureKind.TRANSIENT),
        (sdk.NoCredentialsError(), FailureKind.DENIED),
        (sdk.ProfileNotFound(profile="x"), FailureKind.DENIED),
        (sdk.SSLError(endpoint_url="https://api", error="EOF occurred"), FailureKind.TRANSIENT),
        (sdk.SSLError(endpoint_url="https://api", error="[SSL: CERTIFICATE_VERIFY_FAILED]"), FailureKind.DENIED),
        (sdk.ParamValidationError(report="x"), FailureKind.INVALID),
    ],
)
def test_an_error_of_the_sdk_says_who_has_to_act(error, kind):
    failure = classify(error)

    assert failure is not None
    assert failure.kind is kind
    assert failure.message


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), sdk.BotoCoreError(), ValueError("x")])
def test_a_defect_is_not_explained_away(error):
    assert classify(error) is None
    assert code_of(error) == ""


@pytest.mark.parametrize(
    "error",
    [
        sdk.ProxyConnectionError(proxy_url="http://user:hunter2@proxy", error="x"),
        sdk.CredentialRetrievalError(provider="custom-process", error_msg="hunter2"),
        sdk.InvalidConfigError(error_msg="hunter2"),
        sdk.ParamValidationError(report="value: hunter2"),
        ResponseParserError("body: hunter2"),
    ],
)
def test_text_of_the_sdk_that_may_hold_a_secret_is_left_out(error):
    assert "hunter2" not in str(classify(error))


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature"])
def test_the_signed_request_is_not_repeated(refusal, code):
    failure = classify(refusal(code, "The Canonical String ... x-amz-security-token:hunter2"))

    assert failure is not None
    assert failure.kind is FailureKind.DENIED
    assert "hunter2" not in str(failure)
    assert "secret belong together" in failure.message


def test_a_message_of_any_length_stays_readable(refusal):
    failure = classify(refusal("ValidationException", "x" * 100_000))

    assert failure is not None
    assert len(failure.message) < 2100
