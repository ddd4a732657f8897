"""Following an execution to its end, and telling of it."""

from __future__ import annotations

import datetime as dt

import pytest
from remora.plugin import Failure, FailureKind, JobState, Observation
from remora_sagemaker.status import CompletedWithFailures
from structlog.testing import capture_logs

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
TRAINING = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/pipelines-x1-Train-abc"


def step(name, status, **others):
    return {"StepName": name, "StepStatus": status, **others}


def training_step(status="Failed", **others):
    times = {"StartTime": NOON, "EndTime": NOON + dt.timedelta(minutes=3, seconds=12)}
    return step("Train", status, Metadata={"TrainingJob": {"Arn": TRAINING}}, **times, **others)


@pytest.fixture
def world(aws):
    """Answer for one execution: its status, steps and training job."""

    def make(status, *steps, reason=None, job=None, **description):
        execution = {"PipelineExecutionStatus": status, **({"FailureReason": reason} if reason else {})}
        aws.on("DescribePipelineExecution", execution | description)
        aws.on("ListPipelineExecutionSteps", {"PipelineExecutionSteps": list(steps)})
        aws.on("DescribeTrainingJob", job or {})

    return make


async def observe_one(handler, handle):
    (answer,) = await handler.observe([handle])
    assert isinstance(answer, Observation)
    return answer


async def test_nothing_to_look_at_costs_nothing(handler, aws):
    assert await handler.observe([]) == []
    assert not aws.requests


async def test_one_execution_costs_one_describe_and_its_steps(handler, aws, world, running):
    world("Executing", training_step("Executing"))

    seen = await observe_one(handler, running())

    assert seen.state is JobState.RUNNING
    assert seen.detail == "Executing: Train"
    assert seen.log == [
        "pipeline execution: Executing",
        "step Train: Executing (TrainingJob pipelines-x1-Train-abc)",
    ]
    assert seen.handle is not None
    assert (seen.handle.status, seen.handle.steps) == ("Executing", {"Train": "Executing"})
    assert {operation: len(requests) for operation, requests in aws.requests.items()} == {
        "DescribePipelineExecution": 1,
        "ListPipelineExecutionSteps": 1,
    }


async def test_what_did_not_change_is_not_said_again(handler, world, running):
    world("Executing", training_step("Executing"))
    first = await observe_one(handler, running())
    assert first.handle is not None
    restarted = type(first.handle).model_validate_json(first.handle.model_dump_json())

    second = await observe_one(handler, restarted)

    assert (second.handle, list(second.log)) == (None, [])
    assert second.detail == first.detail


async def test_a_step_that_ended_is_said_with_its_duration(handler, world, running):
    world("Executing", training_step("Succeeded"), step("Register", "Starting"))

    seen = await observe_one(handler, running(status="Executing", steps={"Train": "Executing"}))

    assert seen.log == [
        "step Train: Succeeded after 3m12s (TrainingJob pipelines-x1-Train-abc)",
        "step Register: Starting",
    ]
    assert seen.detail == "Executing: Register (1 step done)"


async def test_a_token_of_the_user_is_mentioned_once(handler, world, running):
    world("Executing")

    first = await observe_one(handler, running(token_mixed=True))
    assert "ClientRequestToken" in first.log[0]
    second = await observe_one(handler, first.handle)
    assert list(second.log) == []


async def test_success_gives_outputs_with_steps_and_artifacts(handler, world, running, arn_of):
    job = {"ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/model.tar.gz"}}
    world("Succeeded", training_step("Succeeded"), job=job)

    seen = await observe_one(handler, running(status="Executing"))

    assert seen.state is JobState.SUCCEEDED
    assert seen.failure is None
    assert seen.detail == "Succeeded"
    assert seen.log[-1] == "pipeline execution: Succeeded"
    assert seen.outputs == {
        "pipelineExecutionArn": arn_of("x1"),
        "status": "Succeeded",
        "steps": {
            "Train": {
                "status": "Succeeded",
                "startTime": "2026-01-01T12:00:00+00:00",
                "endTime": "2026-01-01T12:03:12+00:00",
                "metadata": {"TrainingJob": {"Arn": TRAINING}},
                "artifacts": {"modelArtifacts": "s3://bucket/model.tar.gz"},
            }
        },
    }


async def test_failure_names_the_step_its_reason_and_that_of_its_job(handler, world, running, arn_of):
    world(
        "Failed",
        training_step(FailureReason="ClientError: the job failed"),
        step("Evaluate", "Stopped"),
        reason="Step failure: One or multiple steps failed.",
        job={"FailureReason": "AlgorithmError: out of\nmemory"},
    )

    seen = await observe_one(handler, running())

    assert seen.state is JobState.FAILED
    assert seen.detail == "Failed: Train"
    failure = seen.failure
    assert failure is not None
    assert (failure.kind, failure.code) == (FailureKind.EXECUTION, "PipelineExecutionFailed")
    assert failure.message == (
        "Pipeline Abalone failed. Step Train failed: ClientError: the job failed (TrainingJob "
        "pipelines-x1-Train-abc: AlgorithmError: out of memory)."
    )
    assert failure.details == {
        "executionArn": arn_of("x1"),
        "status": "Failed",
        "step": "Train",
        "reason": "ClientError: the job failed",
        "jobArn": TRAINING,
        "jobReason": "AlgorithmError: out of memory",
    }
    assert seen.outputs is not None


async def test_a_job_that_does_not_let_itself_be_looked_at_hides_nothing_else(handler, aws, world, running, refusal):
    world("Failed", training_step(FailureReason="broke"))
    aws.on("DescribeTrainingJob", refusal("AccessDeniedException", operation="DescribeTrainingJob"))

    seen = await observe_one(handler, running())

    assert seen.failure is not None
    assert "Step Train failed: broke (TrainingJob pipelines-x1-Train-abc)." in seen.failure.message
    assert "jobReason" not in seen.failure.details


async def test_who_stopped_an_execution_is_told(handler, world, running):
    who = "arn:aws:iam::123456789012:user/anna"
    world("Stopped", step("Train", "Stopped"), LastModifiedBy={"IamIdentity": {"Arn": who}})

    seen = await observe_one(handler, running(status="Stopping"))

    assert seen.state is JobState.STOPPED
    assert seen.failure is not None
    assert seen.failure.code == "PipelineExecutionStopped"
    assert seen.failure.message == f"Pipeline Abalone was stopped by {who}."
    assert seen.failure.details["stoppedBy"] == who


async def test_stopping_is_still_moving(handler, world, running):
    world("Stopping", step("Train", "Stopping"))

    seen = await observe_one(handler, running(status="Executing"))

    assert (seen.state, seen.detail) == (JobState.RUNNING, "Stopping: Train")


async def test_completed_with_failures_fails_unless_the_task_says_otherwise(handler, world, running):
    world("CompletedWithFailures", training_step(FailureReason="broke"), step("Other", "Succeeded"))

    strict = await observe_one(handler, running())
    lenient = await observe_one(handler, running(completed_with_failures=CompletedWithFailures.SUCCEED))

    assert strict.state is JobState.FAILED
    assert strict.failure is not None
    assert strict.failure.code == "PipelineExecutionCompletedWithFailures"
    assert 'set completedWithFailures to "succeed"' in strict.failure.message.lower().replace(
        "completedwithfailures", "completedWithFailures"
    )
    assert (lenient.state, lenient.failure) == (JobState.SUCCEEDED, None)
    assert lenient.detail == "CompletedWithFailures: Train"
    assert any("step Train: Failed" in line for line in lenient.log)


async def test_an_unknown_status_is_moving_and_is_logged_once(handler, aws, world, running):
    world("Executing", step("Train", "Dreaming"))
    aws.on("DescribePipelineExecution", lambda _: {"PipelineExecutionStatus": "Rebooting"})

    with capture_logs() as logs:
        first = await observe_one(handler, running("x1"))
        await observe_one(handler, running("x2"))

    assert first.state is JobState.RUNNING
    assert first.detail == "Rebooting: Train"
    assert [entry["status"] for entry in logs if entry["event"] == "unknown_execution_status"] == ["Rebooting"]


@pytest.mark.parametrize("code", ["ResourceNotFound", "ResourceNotFoundException"])
async def test_an_execution_that_is_gone_has_failed(handler, aws, running, refusal, arn_of, code):
    aws.on("DescribePipelineExecution", refusal(code))

    seen = await observe_one(handler, running())

    assert seen.state is JobState.FAILED
    assert seen.failure is not None
    assert seen.failure.code == code
    assert arn_of("x1") in seen.failure.message


@pytest.mark.parametrize(
    ("code", "kind"), [("AccessDeniedException", FailureKind.DENIED), ("InternalFailure", FailureKind.TRANSIENT)]
)
async def test_what_cannot_be_looked_at_does_not_end(handler, aws, running, refusal, code, kind):
    aws.on("DescribePipelineExecution", refusal(code))

    (answer,) = await handler.observe([running()])

    assert isinstance(answer, Failure)
    assert (answer.kind, answer.code) == (kind, code)


async def test_one_handle_does_not_spoil_the_others(handler, aws, running, refusal, arn_of):
    def describe(request):
        if request["PipelineExecutionArn"] == arn_of("bad", "b"):
            raise refusal("AccessDeniedException")
        if request["PipelineExecutionArn"] == arn_of("worse", "c"):
            raise KeyError("defect")
        return {"PipelineExecutionStatus": "Executing"}

    aws.on("DescribePipelineExecution", describe)
    aws.on("ListPipelineExecutionSteps", {"PipelineExecutionSteps": []})

    with capture_logs() as logs:
        answers = await handler.observe(
            [
                running("bad", pipeline="B"),
                running("good", pipeline="A"),
                running("worse", pipeline="C"),
                running("never", execution_arn=""),
            ]
        )

    assert [getattr(answer, "kind", None) or answer.state for answer in answers] == [
        FailureKind.DENIED,
        JobState.RUNNING,
        FailureKind.INTERNAL,
        FailureKind.INTERNAL,
    ]
    assert "defect" not in str(answers[2])
    assert [entry["event"] for entry in logs] == ["observation_failed"]


@pytest.mark.parametrize("operation", ["ListPipelineExecutionSteps", "DescribeTrainingJob"])
async def test_an_end_waits_for_the_budget_to_tell_the_whole_story(handler, aws, world, running, operation):
    world("Failed", training_step())
    aws.allowed[operation] = 0

    assert await handler.observe([running()]) == [None]
    del aws.allowed[operation]
    assert (await observe_one(handler, running())).state is JobState.FAILED


async def test_many_jobs_on_a_small_budget_are_read_over_several_rounds(handler, aws, world, running):
    jobs = [f"{TRAINING}{number}" for number in range(5)]
    steps = [step(f"S{number}", "Succeeded", Metadata={"TrainingJob": {"Arn": arn}}) for number, arn in enumerate(jobs)]
    world("Succeeded", *steps, job={"ModelArtifacts": {"S3ModelArtifacts": "s3://bucket/model"}})
    answers = []

    for _ in range(3):
        aws.allowed["DescribeTrainingJob"] = 2
        answers += await handler.observe([running()])

    assert answers[:2] == [None, None]
    assert len(aws.requests["DescribeTrainingJob"]) == 5
    assert all("artifacts" in each for each in answers[2].outputs["steps"].values())


async def test_throttled_looks_are_no_news(handler, aws, running, refusal):
    aws.on("DescribePipelineExecution", refusal("ThrottlingException"))

    assert await handler.observe([running()]) == [None]


async def test_an_end_does_not_wait_for_a_permission(handler, aws, world, running, refusal):
    world("Failed", reason="it broke")
    aws.on("ListPipelineExecutionSteps", refusal("AccessDeniedException", operation="ListPipelineExecutionSteps"))

    seen = await observe_one(handler, running(steps={"Train": "Executing"}))

    assert seen.state is JobState.FAILED
    assert seen.failure is not None
    assert "SageMaker says: it broke" in seen.failure.message
    assert (
        "Its steps could not be read: AWS does not allow sagemaker:ListPipelineExecutionSteps" in seen.failure.message
    )
    assert seen.outputs is not None
    assert "stepsUnavailable" in seen.outputs


async def test_steps_that_cannot_be_read_while_it_runs_are_logged_once(handler, aws, world, running, refusal):
    world("Executing")
    aws.on("ListPipelineExecutionSteps", refusal("AccessDeniedException", operation="ListPipelineExecutionSteps"))

    with capture_logs() as logs:
        first = await observe_one(handler, running("x1"))
        await observe_one(handler, running("x2"))

    assert (first.state, first.detail) == (JobState.RUNNING, "Executing")
    assert [entry["event"] for entry in logs] == ["steps_not_read"]


async def test_throttled_steps_are_read_another_time_without_a_word(handler, aws, world, running, refusal):
    world("Executing")
    aws.on("ListPipelineExecutionSteps", refusal("ThrottlingException", operation="ListPipelineExecutionSteps"))

    with capture_logs() as logs:
        seen = await observe_one(handler, running())

    assert (seen.state, logs) == (JobState.RUNNING, [])


async def test_all_pages_of_the_steps_are_read(handler, aws, world, running):
    world("Executing")
    aws.on(
        "ListPipelineExecutionSteps",
        {"PipelineExecutionSteps": [step("A", "Succeeded")], "NextToken": "more"},
        {"PipelineExecutionSteps": [], "NextToken": "even more"},
        {"PipelineExecutionSteps": [step("B", "Executing")]},
    )

    seen = await observe_one(handler, running())

    assert seen.detail == "Executing: B (1 step done)"
    tokens = [request.get("NextToken") for request in aws.requests["ListPipelineExecutionSteps"]]
    assert tokens == [None, "more", "even more"]


async def test_executions_of_several_regions_are_asked_for_where_they_are(handler, aws, world, running):
    world("Executing")

    await handler.observe([running("a"), running("b", region="us-east-1")])

    assert {target.region for target in aws.targets} == {"eu-west-1", "us-east-1"}
    assert not aws.requests["ListPipelineExecutions"]
