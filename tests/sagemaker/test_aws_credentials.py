"""Who the worker is at AWS. STS is moto's, SageMaker is the simulator."""

from __future__ import annotations

import asyncio
import datetime as dt

import botocore.credentials
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from remora.plugin import FailureKind
from remora_sagemaker import credentials
from remora_sagemaker.aws import BotoAws, Target
from remora_sagemaker.errors import classify
from remora_sagemaker.settings import SageMakerSettings

ROLE = "arn:aws:iam::111122223333:role/pipelines"
KEYS = {
    "plugin.sagemaker.region": "eu-west-1",
    "plugin.sagemaker.access.key.id": "AKIATEST",
    "plugin.sagemaker.access.key.secret": "very-secret-key",
}


def make(**properties):
    return credentials.make_session(SageMakerSettings.model_validate(properties))


@pytest.fixture(scope="module")
def sts():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_keys_of_the_settings_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env")

    given = make(**KEYS, **{"plugin.sagemaker.session.token": "token"}).get_credentials()
    chain = make().get_credentials()

    assert given is not None
    assert (given.access_key, given.secret_key, given.token) == ("AKIATEST", "very-secret-key", "token")
    assert chain is not None
    assert chain.access_key == "AKIAENV"


@pytest.mark.parametrize("provider", ["DefaultAWSCredentialsProviderChain", "InstanceProfileCredentialsProvider"])
def test_the_provider_type_wins_over_keys(provider):
    session = make(**KEYS, **{"aws.sagemaker.credentials.provider.type": provider})

    # There is neither a chain nor a metadata service in a test.
    assert session.get_credentials() is None


def test_the_instance_profile_is_asked_by_its_own_provider(monkeypatch):
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    metadata = {"access_key": "AKIAROLE", "secret_key": "s", "token": "t", "expiry_time": expires, "role_name": "r"}
    monkeypatch.setattr(
        credentials.InstanceMetadataFetcher, "retrieve_iam_role_credentials", lambda _: metadata, raising=True
    )

    found = make(**{"aws.sagemaker.credentials.provider.type": "InstanceProfileCredentialsProvider"}).get_credentials()

    assert found is not None
    assert found.access_key == "AKIAROLE"
    assert found.method == "iam-role"


def test_times_are_utc_whether_numbers_or_text():
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)

    assert credentials._utc(noon.timestamp()) == noon
    assert credentials._utc("2026-01-01T13:00:00+01:00") == noon
    assert credentials._utc("2026-01-01T13:00:00+01:00").tzinfo is dt.UTC


def test_sessions_of_roles_share_the_parsed_service_models():
    settings = SageMakerSettings.model_validate(KEYS)
    source = credentials.make_session(settings)
    role = credentials.assume_role(source, ROLE, settings, "eu-west-1")

    assert role.get_component("data_loader") is source.get_component("data_loader")


async def test_a_role_is_assumed_once_and_used_for_every_call(sts, clock, simulated_url):
    settings = SageMakerSettings.model_validate(
        {
            **KEYS,
            "plugin.sagemaker.role.arn": ROLE,
            "plugin.sagemaker.role.external.id": "very-secret-id",
            "plugin.sagemaker.role.session.name": "worker-1",
            "plugin.sagemaker.sts.endpoint": sts,
        }
    )
    target = Target(region="eu-west-1", role_arn=ROLE, endpoint=simulated_url)
    aws = await asyncio.to_thread(BotoAws, settings, clock)
    signed_by: list[str] = []
    role_session = await asyncio.to_thread(aws._session_of, target)
    role_session.register(
        "before-send.sagemaker",
        lambda request, **_: signed_by.append(request.headers["Authorization"].decode().split("Credential=")[1]),
    )
    try:
        for _ in range(3):
            await aws.call(target, "ListPipelines", {})
        identity = await aws.caller_identity(target)
        own = await aws.caller_identity(Target(region="eu-west-1"))
    finally:
        await aws.close()

    assert len({key.split("/")[0] for key in signed_by}) == 1
    assert not signed_by[0].startswith("AKIATEST")
    assert identity == "arn:aws:sts::111122223333:assumed-role/pipelines/worker-1"
    assert "assumed-role" not in own


def test_credentials_of_a_role_are_renewed_before_they_expire(sts, monkeypatch):
    settings = SageMakerSettings.model_validate({**KEYS, "plugin.sagemaker.sts.endpoint": sts})
    role = credentials.assume_role(credentials.make_session(settings), ROLE, settings, "eu-west-1")
    found = role.get_credentials()
    assert found is not None

    first = found.get_frozen_credentials()
    again = found.get_frozen_credentials()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=59)
    found._time_fetcher = lambda: later
    monkeypatch.setattr(botocore.credentials, "_local_now", lambda: later)
    renewed = found.get_frozen_credentials()

    assert first == again
    assert first.access_key.startswith("ASIA")
    assert renewed.access_key.startswith("ASIA")
    assert renewed != first


async def test_a_role_that_may_not_be_assumed_is_told_by_the_name_of_the_permission(clock):
    refusal = (
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::123456789012:user/worker is not "
        f"authorized to perform: sts:AssumeRole on resource: {ROLE}</Message></Error></ErrorResponse>"
    )

    async def refuse(_):
        return web.Response(text=refusal, status=403, content_type="text/xml")

    app = web.Application()
    app.router.add_post("/", refuse)
    async with TestServer(app) as server:
        settings = SageMakerSettings.model_validate({**KEYS, "plugin.sagemaker.sts.endpoint": str(server.make_url(""))})
        aws = await asyncio.to_thread(BotoAws, settings, clock)
        try:
            with pytest.raises(ClientError) as caught:
                await aws.call(Target(region="eu-west-1", role_arn=ROLE), "ListPipelines", {})
        finally:
            await aws.close()

    failure = classify(caught.value)
    assert failure is not None
    assert failure.kind is FailureKind.DENIED
    assert f"AWS does not allow sts:AssumeRole on {ROLE} to arn:aws:iam::123456789012:user/worker" in failure.message
