"""Steps, jobs and ends put into words and values."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from remora.plugin import JobState
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.children import CHILD_KINDS, Child, pick, read_child
from remora_sagemaker.executions import Execution
from remora_sagemaker.outcome import MAX_OUTPUT_BYTES, End, final_observation, outputs
from remora_sagemaker.steps import Step, changes, duration, enumeration, marks, one_line, parse_step, progress

ARN = "arn:aws:sagemaker:eu-west-1:123456789012"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def make_step(name, status="Failed", **others):
    return Step(**{"name": name, "status": status, "metadata": {}, **others})


def make_end(handle, *steps, status="Failed", children=None, state=JobState.FAILED):
    execution = Execution(status=status)
    return End(handle=handle, state=state, execution=execution, steps=steps, children=children or {})


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        ({"StepName": "A", "StepStatus": "Starting"}, "step A: Starting"),
        (
            {"StepName": "A", "StepStatus": "Succeeded", "StartTime": NOON, "EndTime": NOON},
            "step A: Succeeded after 0s",
        ),
        (
            {"StepName": "A", "StepStatus": "Executing", "AttemptCount": 2, "StartTime": NOON},
            "step A: Executing (attempt 2)",
        ),
        (
            {"StepName": "Ok", "StepStatus": "Succeeded", "Metadata": {"Condition": {"Outcome": "False"}}},
            "step Ok: Succeeded (Condition False)",
        ),
        (
            {"StepName": "A", "StepStatus": "Succeeded", "CacheHitResult": {"SourcePipelineExecutionArn": f"{ARN}:x"}},
            f"step A: Succeeded (result of {ARN}:x)",
        ),
        (
            {"StepName": "A", "StepStatus": "Failed", "FailureReason": "line 1\n\tline 2"},
            "step A: Failed: line 1 line 2",
        ),
        (
            {
                "StepName": "R",
                "StepStatus": "Succeeded",
                "Metadata": {"RegisterModel": {"Arn": f"{ARN}:model-package/g/3"}},
            },
            "step R: Succeeded (RegisterModel g/3)",
        ),
        (
            {"StepName": "A", "StepStatus": "Executing", "IterationContext": {"ParentStepName": "Each", "Index": 4}},
            "step Each[4].A: Executing",
        ),
        ({"StepName": "A", "StepStatus": "Dreaming", "Metadata": {}}, "step A: Dreaming"),
    ],
)  # fmt: skip
def test_a_step_is_one_line(shown, line):
    assert str(parse_step(shown)) == line


def test_a_new_attempt_at_a_step_is_a_change():
    first = make_step("A", "Executing")
    second = make_step("A", "Executing", attempt=2)

    assert list(changes(marks([first]), [first])) == []
    assert list(changes(marks([first]), [second])) == ["step A: Executing (attempt 2)"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "Executing"),
        ({"A": "Executing"}, "Executing: A"),
        ({"A": "Succeeded", "B": "Executing (attempt 2)"}, "Executing: B (1 step done)"),
        ({"A": "Succeeded", "B": "Failed"}, "Executing (2 steps done)"),
        (dict.fromkeys("ABCDE", "Starting"), "Executing: A, B, C and 2 more"),
    ],
)
def test_progress_fits_on_a_line(table, text):
    assert progress("Executing", table) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (192, "3m12s"), (3600, "1h00m"), (90_000, "25h00m")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_small_words():
    assert enumeration(["a"]) == "a"
    assert enumeration([]) == ""
    assert one_line(" a\n b ") == "a b"


def test_values_are_picked_by_path_also_from_lists():
    answer = {"A": {"B": [{"C": 1}, {"D": 2}, {"C": 3}]}, "E": None}

    assert pick(answer, "A.B.C") == [1, 3]
    assert pick(answer, "E.F") is None
    assert pick(answer, "X.Y") is None


@pytest.mark.parametrize("resource", list(CHILD_KINDS))
async def test_every_kind_of_job_is_looked_at_by_its_name(aws, model, resource):
    kind = CHILD_KINDS[resource]
    members = model.operation_model(kind.operation).output_shape.members
    aws.on(kind.operation, {reason: "broke" for reason in kind.reasons if reason in members})

    child = await read_child(aws, None, f"{ARN}:{resource}/name-1", until=0)

    assert aws.requests[kind.operation] == [{kind.name: "name-1"}]
    assert child is not None
    assert child.reason.startswith("broke")


@pytest.mark.parametrize(
    "arn", [f"{ARN}:model-package/group/3", f"{ARN}:training-job/", "arn:aws:lambda:eu-west-1:123456789012:function:f"]
)
async def test_what_is_no_job_is_not_looked_at(aws, arn):
    assert await read_child(aws, None, arn, until=0) is None
    assert not aws.requests


async def test_a_throttled_look_at_a_job_is_made_another_time(aws, refusal):
    aws.on("DescribeTrainingJob", refusal("ThrottlingException", operation="DescribeTrainingJob"))

    with pytest.raises(OutOfBudgetError):
        await read_child(aws, None, f"{ARN}:training-job/name-1", until=0)


async def test_a_defect_while_looking_at_a_job_is_not_hidden(aws):
    aws.on("DescribeTrainingJob", KeyError("defect"))

    with pytest.raises(KeyError):
        await read_child(aws, None, f"{ARN}:training-job/name-1", until=0)


def test_several_failed_steps_are_all_named(running):
    steps = [make_step(name, reason=f"because {name}") for name in "ABCDE"]

    failure = final_observation(make_end(running(), *steps), []).failure

    assert failure is not None
    assert "Step A failed: because A. Step B failed: because B. Step C failed: because C." in failure.message
    assert "2 more steps failed" in failure.message
    assert failure.details["failedSteps"] == "A, B, C, D, E"
    assert final_observation(make_end(running(), *steps), []).detail == "Failed: A, B, C and 2 more"


def test_a_reason_that_repeats_the_jobs_own_is_said_once(running):
    arn = f"{ARN}:training-job/t"
    step = make_step("A", reason="ClientError: out of memory", identity=arn, kind="TrainingJob")
    end = make_end(running(), step, children={arn: Child(reason="out of memory", artifacts={})})

    failure = final_observation(end, []).failure

    assert failure is not None
    assert failure.message.count("out of memory") == 1


def test_outputs_that_are_too_large_say_what_was_left_out(running):
    large = [make_step(f"S{n}", "Succeeded", metadata={"Lambda": {"OutputParameters": "x" * 5000}}) for n in range(100)]
    larger = [make_step(f"S{n}", "Failed", reason="é" * 1000) for n in range(1000)]
    largest = [make_step(f"S{n}" + "x" * 300, "Succeeded") for n in range(1000)]

    small = outputs(make_end(running(), *large[:3]))
    without_metadata = outputs(make_end(running(), *large))
    only_status = outputs(make_end(running(), *larger))
    nothing = outputs(make_end(running(), *largest))

    assert "truncated" not in small
    assert without_metadata["steps"]["S0"] == {"status": "Succeeded"}
    assert without_metadata["truncated"] == "too large: of each step only status, artifacts, failureReason are kept"
    assert only_status["steps"]["S0"] == {"status": "Failed"}
    assert only_status["truncated"] == "too large: of each step only status is kept"
    assert nothing["steps"] == {}
    assert nothing["truncated"] == "too large: none of the 1000 steps is kept"
    for produced in (small, without_metadata, only_status, nothing):
        assert len(json.dumps(produced)) <= MAX_OUTPUT_BYTES
