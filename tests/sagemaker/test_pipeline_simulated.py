"""The real handler with the real SDK, over HTTP, on simulated pipelines."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from remora.pace import SystemClock
from remora.plugin import FailureKind, JobState, TaskDefinition, TaskKey
from remora_sagemaker.plugin import SageMakerPlugin
from remora_sagemaker.simulator import Fault
from structlog.testing import capture_logs

FAILING = {"SimFailStep": "Train", "SimFailReason": "AlgorithmError: the disk is full"}


@pytest.fixture
async def handler(simulated_settings):
    async with SageMakerPlugin().open(simulated_settings, SystemClock()) as (opened,):
        yield opened


@pytest.fixture
def define(handler):
    """Return a definition, its parameters and its handle, before anything was started."""

    def make(task_id="task-1", *, pipeline="Abalone", policy=None, **parameters):
        given = [{"Name": name, "Value": value} for name, value in parameters.items()]
        content = {"sagemakerRequestJson": json.dumps({"PipelineName": pipeline, "PipelineParameters": given})}
        if policy:
            content["completedWithFailures"] = policy
        task = TaskDefinition(
            key=TaskKey(task_id=task_id, attempt=1), task_type="SAGEMAKER", parameters=json.dumps(content)
        )
        parsed = handler.parameters.model_validate_json(task.parameters)
        return task, parsed, handler.prepare(task, parsed)

    return make


@pytest.fixture
def start(handler, define):
    async def begin(*arguments, **parameters):
        return await handler.submit(*define(*arguments, **parameters))

    return begin


@pytest.fixture
def follow(handler, simulated):
    """Look every few simulated seconds until the end; return the last observation and the whole log."""

    async def look(handle, *, seconds=5.0):
        log: list[str] = []
        for _ in range(50):
            (seen,) = await handler.observe([handle])
            log += seen.log
            handle = seen.handle or handle
            if seen.state is not JobState.RUNNING:
                return seen, log
            simulated.clock.advance(seconds)
        raise AssertionError("it does not end")

    return look


async def test_a_pipeline_runs_to_success_and_says_each_step_once(start, follow):
    seen, log = await follow(await start())

    assert seen.state is JobState.SUCCEEDED
    said = [line.split(" (")[0] for line in log]
    assert said == [
        "pipeline execution: Executing",
        "step Prepare: Starting",
        "step Prepare: Executing",
        "step Prepare: Succeeded after 10s",
        "step Train: Starting",
        "step Train: Executing",
        "step Train: Succeeded after 10s",
        "pipeline execution: Succeeded",
    ]
    steps = seen.outputs["steps"]
    assert steps["Train"]["artifacts"]["modelArtifacts"].startswith("s3://")
    assert steps["Prepare"]["metadata"]["ProcessingJob"]["Arn"].startswith("arn:aws:sagemaker:")


async def test_a_failing_step_is_explained_down_to_its_job(start, follow):
    seen, log = await follow(await start(**FAILING))

    assert seen.state is JobState.FAILED
    assert seen.failure.kind is FailureKind.EXECUTION
    assert "Step Train failed" in seen.failure.message
    assert "AlgorithmError: the disk is full" in seen.failure.message
    assert seen.failure.details["jobReason"] == "AlgorithmError: the disk is full"
    assert ":training-job/" in seen.failure.details["jobArn"]
    assert any(line.startswith("step Train: Failed after 10s") for line in log)


async def test_a_stop_is_seen_through(handler, start, follow, simulated):
    handle = await start()
    await handler.cancel(handle)
    await handler.cancel(handle)

    (stopping,) = await handler.observe([handle])
    seen, log = await follow(handle, seconds=1)
    await handler.cancel(handle)

    assert (stopping.state, stopping.detail.split(":")[0]) == (JobState.RUNNING, "Stopping")
    assert seen.state is JobState.STOPPED
    assert seen.failure.code == "PipelineExecutionStopped"
    assert log[-1] == "pipeline execution: Stopped"
    assert simulated.calls["StopPipelineExecution"] == 3


@pytest.mark.parametrize(
    ("policy", "state"), [("fail", JobState.FAILED), ("succeed", JobState.SUCCEEDED), (None, JobState.FAILED)]
)
async def test_completed_with_failures_is_what_the_task_says(start, follow, policy, state):
    seen, _ = await follow(await start(policy=policy, SimStatus="CompletedWithFailures", **FAILING))

    assert seen.state is state
    assert seen.detail == "CompletedWithFailures: Train"


async def test_an_unknown_status_never_ends_a_task(handler, start, simulated):
    handle = await start(SimStatus="Hibernating")
    simulated.clock.advance(100)

    with capture_logs() as logs:
        for _ in range(3):
            (seen,) = await handler.observe([handle])
            handle = seen.handle or handle

    assert (seen.state, handle.status) == (JobState.RUNNING, "Hibernating")
    assert [entry["event"] for entry in logs] == ["unknown_execution_status"]


@pytest.mark.parametrize(
    "fault",
    [
        {"reset": True, "when": "after"},
        {"reset": True, "when": "before"},
        {"error": "InternalFailure", "when": "after"},
        {"error": "ThrottlingException"},
        {"error": "ServiceUnavailable"},
    ],
)
async def test_whatever_becomes_of_the_answer_there_is_one_execution(handler, define, simulated, fault):
    simulated.faults.add(Fault(operation="StartPipelineExecution", **fault))
    task, parameters, handle = define()

    with pytest.raises((ClientError, BotoCoreError)) as caught:
        await handler.submit(task, parameters, handle)
    assert handler.classify(caught.value).kind is FailureKind.TRANSIENT
    started = await handler.submit(task, parameters, handle)

    (execution,) = simulated.executions
    assert execution.arn == started.execution_arn
    assert execution.token == handle.token


async def test_a_quota_that_is_used_up_is_waited_for(handler, define, start, simulated):
    simulated.executions.quota = 1
    await start("first")

    with pytest.raises(ClientError) as caught:
        await start("second")

    failure = handler.classify(caught.value)
    assert (failure.kind, failure.code) == (FailureKind.EXHAUSTED, "ResourceLimitExceeded")
    simulated.clock.advance(100)
    assert (await start("second")).execution_arn


async def test_a_pipeline_that_does_not_exist_is_the_authors_business(handler, start):
    with pytest.raises(ClientError) as caught:
        await start(pipeline="Abalony")

    failure = handler.classify(caught.value)
    assert (failure.kind, failure.code) == (FailureKind.INVALID, "ResourceNotFound")
    assert "us-east-1" in failure.message


async def test_the_same_task_with_another_request_is_refused_and_not_run_twice(handler, start, simulated):
    await start("task-1", SimStepSeconds="1")

    with pytest.raises(ClientError) as caught:
        await start("task-1", SimStepSeconds="2")

    failure = handler.classify(caught.value)
    assert failure.kind is FailureKind.INVALID
    assert "Use a new task id" in failure.message
    assert len(list(simulated.executions)) == 1


@pytest.mark.parametrize("operation", ["DescribePipelineExecution", "ListPipelineExecutionSteps"])
async def test_throttled_looks_end_nothing_and_are_made_again(handler, start, follow, simulated, operation):
    handle = await start(SimStepSeconds="1")
    simulated.clock.advance(60)
    simulated.faults.add(Fault(operation=operation, error="ThrottlingException"))

    assert await handler.observe([handle]) == [None]
    seen, _ = await follow(handle)

    assert simulated.faults.served == {operation: 1}
    assert seen.state is JobState.SUCCEEDED


async def test_three_hundred_executions_take_a_handful_of_calls(handler, start, simulated):
    handles = await asyncio.gather(*(start(f"task-{number}", SimStepSeconds="1000") for number in range(300)))
    simulated.clock.advance(5)
    simulated.calls.clear()

    answers = await handler.observe(handles)

    assert {answer.state for answer in answers} == {JobState.RUNNING}
    assert simulated.calls["ListPipelineExecutions"] == 3
    assert simulated.calls["DescribePipelineExecution"] == 0


async def test_a_handle_goes_on_with_another_worker(start, follow, simulated_settings):
    handle = await start()

    async with SageMakerPlugin().open(simulated_settings, SystemClock()) as (other,):
        (seen,) = await other.observe([other.handle.model_validate_json(handle.model_dump_json())])
    assert seen.state is JobState.RUNNING
    assert (await follow(seen.handle))[0].state is JobState.SUCCEEDED


async def test_no_secret_is_logged(start, follow, handler, simulated, caplog):
    caplog.set_level(logging.INFO)
    simulated.faults.add(Fault(operation="ListPipelineExecutionSteps", error="AccessDeniedException", message="no"))
    with capture_logs() as logs:
        handle = await start(**FAILING)
        await follow(handle)
        await handler.cancel(handle)

    assert [entry["event"] for entry in logs] == ["steps_not_read"]
    text = str(logs) + caplog.text
    assert "very-secret" not in text
    assert "AKIASECRETID" not in text
