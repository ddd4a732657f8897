"""What SageMaker's statuses mean. A test holds these tables to botocore's service model."""

from __future__ import annotations

from enum import StrEnum

from remora.plugin import JobState


class CompletedWithFailures(StrEnum):
    """What it means that an execution completed although some of its steps failed."""

    FAIL = "fail"
    SUCCEED = "succeed"


COMPLETED_WITH_FAILURES = "CompletedWithFailures"

EXECUTION_STATES = {
    "Executing": JobState.RUNNING,
    "Stopping": JobState.RUNNING,
    "Stopped": JobState.STOPPED,
    "Failed": JobState.FAILED,
    "Succeeded": JobState.SUCCEEDED,
    COMPLETED_WITH_FAILURES: JobState.FAILED,
}
"""PipelineExecutionStatus. CompletedWithFailures is up to the task; failure unless it says otherwise."""

STEP_STATES = {
    "Starting": JobState.RUNNING,
    "Executing": JobState.RUNNING,
    "Stopping": JobState.RUNNING,
    "Stopped": JobState.STOPPED,
    "Failed": JobState.FAILED,
    "Succeeded": JobState.SUCCEEDED,
}
"""StepStatus."""


def is_final(status: str) -> bool:
    """Whether an execution with this status has ended. One that this version does not know has not."""
    return EXECUTION_STATES.get(status, JobState.RUNNING) is not JobState.RUNNING


def execution_state(status: str, policy: CompletedWithFailures) -> JobState | None:
    """Return what the status of an execution means, or None for one that this version does not know."""
    if status == COMPLETED_WITH_FAILURES and policy is CompletedWithFailures.SUCCEED:
        return JobState.SUCCEEDED
    return EXECUTION_STATES.get(status)
