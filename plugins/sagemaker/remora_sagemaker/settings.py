"""The properties of the SageMaker plugin: where AWS is, who we are there, how often we ask.

The names are DolphinScheduler's where it has one: ``resource.aws.*`` of its ``common.properties`` and
``aws.sagemaker.*`` of its newer ``aws.yaml``. ``plugin.sagemaker.*`` wins over both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from remora_sagemaker.status import CompletedWithFailures
from remora_sagemaker.validation import is_object

ACCESS_KEY_ID = ("plugin.sagemaker.access.key.id", "aws.sagemaker.access.key.id", "resource.aws.access.key.id")
ACCESS_KEY_SECRET = (
    "plugin.sagemaker.access.key.secret",
    "aws.sagemaker.access.key.secret",
    "resource.aws.secret.access.key",
)
REGION = ("plugin.sagemaker.region", "aws.sagemaker.region", "resource.aws.region")
ENDPOINT = ("plugin.sagemaker.endpoint", "aws.sagemaker.endpoint")
PROVIDER_TYPE = "aws.sagemaker.credentials.provider.type"
SESSION_TOKEN = "plugin.sagemaker.session.token"  # noqa: S105 -- the name of a property, not a secret
RATES = "plugin.sagemaker.rate.operations"

_PLACEHOLDER = re.compile(r"\s*<[^<>]*>\s*")


class CredentialsProvider(StrEnum):
    """Where credentials come from: DolphinScheduler's two, and the SDK's own chain."""

    STATIC = "AWSStaticCredentialsProvider"
    INSTANCE_PROFILE = "InstanceProfileCredentialsProvider"
    DEFAULT_CHAIN = "DefaultAWSCredentialsProviderChain"


def _parse_rates(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [pair.split("=") for pair in value.split(",") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004 -- a name and a rate
        msg = f"{RATES} must look like ListPipelineExecutions=5, DescribePipelineExecution=20"
        raise ValueError(msg)
    return {name.strip(): rate.strip() for name, rate in pairs}


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SageMakerSettings(BaseModel):
    """Settings of the plugin. Without keys the SDK's default chain finds credentials, without a region its region."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, str_strip_whitespace=True)

    access_key_id: SecretStr | None = Field(None, validation_alias=AliasChoices(*ACCESS_KEY_ID))
    access_key_secret: SecretStr | None = Field(None, validation_alias=AliasChoices(*ACCESS_KEY_SECRET))
    session_token: SecretStr | None = Field(None, validation_alias=AliasChoices(SESSION_TOKEN))
    credentials_provider: CredentialsProvider | None = Field(None, validation_alias=AliasChoices(PROVIDER_TYPE))
    region: str | None = Field(None, pattern=r"^[a-z0-9-]{1,63}$", validation_alias=AliasChoices(*REGION))
    endpoint: str | None = Field(None, pattern=r"^https?://[^\s@]+$", validation_alias=AliasChoices(*ENDPOINT))
    """URL that replaces SageMaker's own, for a private link or the simulator."""
    role_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$",
        validation_alias=AliasChoices("plugin.sagemaker.role.arn"),
    )
    """Role to assume for every call."""
    role_external_id: SecretStr | None = Field(None, validation_alias=AliasChoices("plugin.sagemaker.role.external.id"))
    role_session_name: str = Field(
        "remora",
        pattern=r"^[\w+=,.@-]{2,64}$",
        validation_alias=AliasChoices("plugin.sagemaker.role.session.name"),
    )
    sts_endpoint: str | None = Field(
        None, pattern=r"^https?://[^\s@]+$", validation_alias=AliasChoices("plugin.sagemaker.sts.endpoint")
    )
    poll_initial: Seconds = Field(5.0, validation_alias=AliasChoices("plugin.sagemaker.poll.initial.seconds"))
    poll_maximum: Seconds = Field(60.0, validation_alias=AliasChoices("plugin.sagemaker.poll.maximum.seconds"))
    threads: int = Field(16, ge=1, le=256, validation_alias=AliasChoices("plugin.sagemaker.threads"))
    """Calls in flight at once; also the size of the connection pool."""
    rate: Rate = Field(10.0, validation_alias=AliasChoices("plugin.sagemaker.rate.default"))
    """Calls a second of each operation, per account and region."""
    rates: Annotated[Mapping[str, Rate], BeforeValidator(_parse_rates)] = Field(
        default_factory=dict[str, float], validation_alias=AliasChoices(RATES)
    )
    """Other rates, by operation."""
    completed_with_failures: CompletedWithFailures = Field(
        CompletedWithFailures.FAIL, validation_alias=AliasChoices("plugin.sagemaker.completed.with.failures")
    )
    """What the status of this name means for tasks that do not say it themselves."""

    @model_validator(mode="before")
    @classmethod
    def _no_placeholders(cls, data: object) -> object:
        if is_object(data):
            left = [_property(name) for name, value in data.items() if _is_placeholder(value)]
            if left:
                msg = f"{', '.join(left)}: still a placeholder; put in a value, or remove it for the AWS default chain"
                raise ValueError(msg)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.access_key_id is None) != (self.access_key_secret is None):
            present, missing = ACCESS_KEY_ID, ACCESS_KEY_SECRET
            if self.access_key_id is None:
                present, missing = missing, present
            msg = f"{' or '.join(present)} is set without {' or '.join(missing)}: set both, or neither"
            raise ValueError(msg)
        if self.credentials_provider is CredentialsProvider.STATIC and self.access_key_id is None:
            msg = (
                f"{PROVIDER_TYPE} is {CredentialsProvider.STATIC}, but there is no access key: set {ACCESS_KEY_ID[1]} "
                f"and {ACCESS_KEY_SECRET[1]}, or remove {PROVIDER_TYPE} to use the AWS default chain"
            )
            raise ValueError(msg)
        if self.session_token is not None and self.access_key_id is None:
            msg = f"{SESSION_TOKEN} needs {ACCESS_KEY_ID[0]} and {ACCESS_KEY_SECRET[0]}"
            raise ValueError(msg)
        if self.poll_maximum < self.poll_initial:
            msg = "plugin.sagemaker.poll.maximum.seconds is below plugin.sagemaker.poll.initial.seconds"
            raise ValueError(msg)
        return self


def _property(name: object) -> str:
    """Return the property behind the name of a field; a property stays itself."""
    field = SageMakerSettings.model_fields.get(str(name))
    alias = field.validation_alias if field else None
    return " or ".join(map(str, alias.choices)) if isinstance(alias, AliasChoices) else str(name)


def _is_placeholder(value: object) -> bool:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return isinstance(text, str) and _PLACEHOLDER.fullmatch(text) is not None
