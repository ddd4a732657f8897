"""AWS by botocore: threads, clients, rates, times. Calls go to the simulated over HTTP."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import threading

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, NoCredentialsError
from remora_sagemaker.aws import BotoAws, Target
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.errors import ClosedError
from remora_sagemaker.settings import SageMakerSettings
from remora_sagemaker.simulator import Fault

KEYS = {"plugin.sagemaker.access.key.id": "AKIATEST", "plugin.sagemaker.access.key.secret": "secret"}


@pytest.fixture
async def connect(clock):
    opened = []

    async def open_aws(**properties):
        settings = SageMakerSettings.model_validate({**KEYS, "plugin.sagemaker.region": "us-east-1", **properties})
        opened.append(await asyncio.to_thread(BotoAws, settings, clock))
        return opened[-1]

    yield open_aws
    for aws in opened:
        await aws.close()


@pytest.fixture
def target(simulated_url):
    return Target(region="us-east-1", endpoint=simulated_url)


async def test_answers_are_parsed_with_times_in_utc(connect, target):
    aws = await connect()

    answer = await aws.call(target, "ListPipelines", {"MaxResults": 1})

    created = answer["PipelineSummaries"][0]["CreationTime"]
    assert created == dt.datetime.fromtimestamp(1_750_000_000.25, dt.UTC)
    assert created.tzinfo is dt.UTC


async def test_calls_run_in_threads_of_a_bounded_pool_with_the_callers_context(connect, target, monkeypatch):
    aws = await connect(**{"plugin.sagemaker.threads": "2"})
    task_id = contextvars.ContextVar("task_id", default="none")
    seen: set[tuple[str, str]] = set()
    real_call = BotoAws._call

    def spy(self, *arguments):
        seen.add((threading.current_thread().name, task_id.get()))
        return real_call(self, *arguments)

    monkeypatch.setattr(BotoAws, "_call", spy)

    async def call(number):
        task_id.set(f"task {number}")
        await aws.call(target, "ListPipelines", {})

    await asyncio.gather(*(asyncio.create_task(call(number), name=f"call {number}") for number in range(6)))

    assert {name for name, _ in seen} <= {"sagemaker_0", "sagemaker_1"}
    assert {task for _, task in seen} == {f"task {number}" for number in range(6)}


async def test_one_client_serves_a_target(connect, target, monkeypatch):
    aws = await connect()
    made = []
    create = aws._session.create_client
    monkeypatch.setattr(aws._session, "create_client", lambda *a, **k: made.append(k["region_name"]) or create(*a, **k))

    await asyncio.gather(*(aws.call(target, "ListPipelines", {}) for _ in range(5)))
    await aws.call(Target(region="eu-west-1", endpoint=target.endpoint), "ListPipelines", {})

    assert made == ["us-east-1", "eu-west-1"]


async def test_the_rate_is_kept_for_each_operation(connect, target, clock, simulated):
    aws = await connect(**{"plugin.sagemaker.rate.default": "2", "plugin.sagemaker.rate.operations": "ListPipelines=1"})

    await aws.call(target, "ListPipelines", {}, until=0)
    with pytest.raises(OutOfBudgetError):
        await aws.call(target, "ListPipelines", {}, until=0)
    arn = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/abalone/execution/none"
    for _ in range(2):
        with pytest.raises(ClientError, match="ResourceNotFound"):
            await aws.call(target, "DescribePipelineExecution", {"PipelineExecutionArn": arn}, until=0)

    await clock.advance(1)
    await aws.call(target, "ListPipelines", {}, until=0)
    assert simulated.calls["ListPipelines"] == 2


async def test_throttling_is_not_repeated_by_the_sdk_and_slows_down(connect, target, simulated):
    aws = await connect()
    simulated.faults.add(Fault(operation="ListPipelines", error="ThrottlingException", times=1))

    with pytest.raises(ClientError, match="ThrottlingException"):
        await aws.call(target, "ListPipelines", {})

    assert simulated.calls["ListPipelines"] == 1
    assert aws._budget(target, "ListPipelines").rate == 5


async def test_a_lost_answer_is_not_repeated_by_the_sdk(connect, target, simulated):
    aws = await connect()
    simulated.faults.add(Fault(operation="ListPipelines", reset=True, when="after"))

    with pytest.raises(ConnectionClosedError):
        await aws.call(target, "ListPipelines", {})

    assert simulated.calls["ListPipelines"] == 1


async def test_credentials_that_come_later_are_found(connect, target, monkeypatch):
    aws = await connect(**dict.fromkeys(KEYS, None))

    with pytest.raises(NoCredentialsError):
        await aws.call(target, "ListPipelines", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIALATER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert (await aws.call(target, "ListPipelines", {}))["PipelineSummaries"]


async def test_after_closing_nothing_is_sent(connect, target, simulated):
    aws = await connect()
    await aws.close()

    with pytest.raises(ClosedError):
        await aws.call(target, "ListPipelines", {})
    assert simulated.calls.total() == 0


async def test_the_region_comes_from_the_settings_or_from_the_aws_configuration(connect, monkeypatch):
    assert (await connect()).default_region == "us-east-1"
    assert (await connect(**{"plugin.sagemaker.region": None})).default_region is None
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert (await connect(**{"plugin.sagemaker.region": None})).default_region == "eu-north-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert (await connect(**{"plugin.sagemaker.region": None})).default_region == "ap-south-1"


async def test_the_user_agent_is_ours_and_constant(connect, target, monkeypatch):
    aws = await connect()
    headers = []
    aws._session.register("before-send", lambda request, **_: headers.append(request.headers["User-Agent"]))

    await aws.call(target, "ListPipelines", {})

    assert headers == [aws._config.user_agent.encode()]
    assert headers[0].startswith(b"remora-sagemaker")
