"""Who the worker is at AWS: one botocore session from the settings, and the credentials it signs with."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import botocore
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
    InstanceMetadataProvider,
)
from botocore.utils import InstanceMetadataFetcher, parse_timestamp

from remora_sagemaker.settings import CredentialsProvider, SageMakerSettings

if TYPE_CHECKING:
    from botocore.session import Session

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0


def make_session(settings: SageMakerSettings) -> Session:
    """Return the session with which every client is made. Reads files; calls nobody."""
    session = _new_session()
    if settings.credentials_provider is CredentialsProvider.INSTANCE_PROFILE:
        provider = InstanceMetadataProvider(InstanceMetadataFetcher(user_agent=user_agent()))
        session.register_component("credential_provider", CredentialResolver([provider]))
    elif (
        settings.credentials_provider is not CredentialsProvider.DEFAULT_CHAIN
        and settings.access_key_id is not None
        and settings.access_key_secret is not None
    ):
        token = settings.session_token
        session.set_credentials(
            settings.access_key_id.get_secret_value(),
            settings.access_key_secret.get_secret_value(),
            token.get_secret_value() if token else None,
        )
    return session


def assume_role(source: Session, role_arn: str, settings: SageMakerSettings, region: str) -> Session:
    """Return a session that signs with a role's credentials, fetched at first use and renewed before they expire."""
    session = _new_session(source)
    provider = _RoleProvider(source, role_arn, settings, region)
    session.register_component("credential_provider", CredentialResolver([provider]))
    return session


def client_config(threads: int) -> Config:
    """Return how clients call: every call once, because the worker repeats within its budget."""
    return Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=threads,
        tcp_keepalive=True,
        # The SDK builds its own string anew for each call, which takes a tenth of the call's CPU time.
        user_agent=user_agent(),
    )


def user_agent() -> str:
    """Return how the worker names itself to AWS."""
    return f"remora-sagemaker botocore/{botocore.__version__}"


def _new_session(source: Session | None = None) -> Session:
    session = botocore.session.get_session()
    if source is not None:
        # The parsed service models live in the loader: shared, they are read once.
        session.register_component("data_loader", source.get_component("data_loader"))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_utc)
    return session


def _utc(value: Any) -> dt.datetime:  # noqa: ANN401 -- a number or text, as the service likes
    # Most of the time to parse a page goes into the SDK's local time zone otherwise.
    if isinstance(value, (int, float)):
        return dt.datetime.fromtimestamp(value, dt.UTC)
    return parse_timestamp(value).astimezone(dt.UTC)


class _RoleProvider(CredentialProvider):
    METHOD = "remora-assume-role"

    def __init__(self, source: Session, role_arn: str, settings: SageMakerSettings, region: str) -> None:
        super().__init__()
        self._source = source
        self._role_arn = role_arn
        self._settings = settings
        self._region = region

    def load(self) -> DeferredRefreshableCredentials | None:
        credentials = self._source.get_credentials()
        if credentials is None:
            return None
        arguments = {"RoleSessionName": self._settings.role_session_name}
        if self._settings.role_external_id is not None:
            arguments["ExternalId"] = self._settings.role_external_id.get_secret_value()
        create: Callable[..., Any] = partial(
            self._source.create_client,
            region_name=self._region,
            endpoint_url=self._settings.sts_endpoint,
            config=client_config(1),
        )
        fetcher = AssumeRoleCredentialFetcher(create, credentials, self._role_arn, extra_args=arguments)
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)
