"""How an execution ended: what it produced, or which step failed and why."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from remora.plugin import Failure, FailureKind, JobState, Observation

from remora_sagemaker.aws import Aws, Target
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.children import Child, read_child
from remora_sagemaker.executions import Execution
from remora_sagemaker.handle import PipelineHandle
from remora_sagemaker.status import COMPLETED_WITH_FAILURES, CompletedWithFailures
from remora_sagemaker.steps import Step, enumeration, one_line
from remora_sagemaker.validation import is_list, is_object

MAX_OUTPUT_BYTES = 250 * 1024
"""A little below what the worker keeps."""
_MAX_CHILDREN = 50
"""Jobs looked at for one execution at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """All that is known of an execution that has ended."""

    handle: PipelineHandle
    state: JobState
    execution: Execution
    steps: Sequence[Step]
    children: Mapping[str, Child | None]
    """By ARN; None where a job has nothing to say."""
    unread: str = ""
    """Why the steps are not known."""

    @property
    def failed(self) -> Sequence[Step]:
        """The steps that failed."""
        return [step for step in self.steps if step.state is JobState.FAILED]


async def read_children(
    aws: Aws, target: Target, steps: Sequence[Step], until: float, known: Mapping[str, Child | None]
) -> Mapping[str, Child | None]:
    """Look at the jobs of steps that ended, failed ones first, as many as there is time for.

    Returns those known and those read; one that is not there yet must be asked for another time.
    """
    wanted = [arn for arn in child_arns(steps) if arn not in known]
    found = await asyncio.gather(*(read_child(aws, target, arn, until) for arn in wanted), return_exceptions=True)
    children = dict(known)
    for arn, child in zip(wanted, found, strict=True):
        if isinstance(child, OutOfBudgetError):
            continue
        if isinstance(child, BaseException):
            raise child
        children[arn] = child
    return children


def child_arns(steps: Sequence[Step]) -> Sequence[str]:
    """Return the jobs worth looking at, failed ones first."""
    ended = [step for step in steps if step.state in (JobState.FAILED, JobState.SUCCEEDED) and not step.cached_from]
    ended.sort(key=lambda step: step.state is not JobState.FAILED)
    return list(dict.fromkeys(step.identity for step in ended if step.identity.startswith("arn:")))[:_MAX_CHILDREN]


def final_observation(end: End, log: Sequence[str]) -> Observation[PipelineHandle]:
    """Put an end into words and values."""
    status = end.execution.status
    failed = enumeration([step.name for step in end.failed])
    return Observation(
        state=end.state,
        detail=f"{status}: {failed}" if failed else status,
        handle=end.handle,
        log=log,
        outputs=outputs(end),
        failure=_failure(end),
    )


def outputs(end: End) -> Mapping[str, JsonValue]:
    """Return what the execution produced, as much of it as may be kept."""
    produced: dict[str, Any] = {
        "pipelineExecutionArn": end.handle.execution_arn,
        "status": end.execution.status,
        "steps": {step.name: _step_output(step, end.children.get(step.identity)) for step in end.steps},
    }
    if end.unread:
        produced["stepsUnavailable"] = end.unread
    if _size(produced) <= MAX_OUTPUT_BYTES:
        return produced
    steps = produced["steps"]
    for fields in (("status", "artifacts", "failureReason"), ("status",)):
        produced["steps"] = {
            name: {field: step[field] for field in fields if field in step} for name, step in steps.items()
        }
        produced["truncated"] = (
            f"too large: of each step only {', '.join(fields)} {'is' if len(fields) == 1 else 'are'} kept"
        )
        if _size(produced) <= MAX_OUTPUT_BYTES:
            return produced
    produced["steps"] = {}
    produced["truncated"] = f"too large: none of the {len(steps)} steps is kept"
    return produced


def _failure(end: End) -> Failure | None:
    if end.state is JobState.SUCCEEDED:
        return None
    details = {"executionArn": end.handle.execution_arn, "status": end.execution.status}
    if end.failed:
        first = end.failed[0]
        details |= {"step": first.name, "reason": one_line(first.reason)}
        if first.identity:
            details["jobArn"] = first.identity
        if (child := end.children.get(first.identity)) and child.reason:
            details["jobReason"] = one_line(child.reason)
        if len(end.failed) > 1:
            details["failedSteps"] = ", ".join(step.name for step in end.failed)
    if end.state is JobState.STOPPED and end.execution.changed_by:
        details["stoppedBy"] = end.execution.changed_by
    return Failure(
        kind=FailureKind.EXECUTION,
        code=f"PipelineExecution{end.execution.status}",
        message=_message(end),
        details={name: value for name, value in details.items() if value},
    )


def _message(end: End) -> str:
    parts = [_opening(end)]
    parts += [_why(step, end.children.get(step.identity)) for step in end.failed[:3]]
    if len(end.failed) > 3:  # noqa: PLR2004 -- those just named
        parts.append(f"{len(end.failed) - 3} more steps failed")
    reason = one_line(end.execution.reason)
    if reason and not (end.failed and reason.startswith("Step failure")) and not any(reason in part for part in parts):
        parts.append(f"SageMaker says: {reason}")
    if end.unread:
        parts.append(f"its steps could not be read: {end.unread}")
    if end.execution.status == COMPLETED_WITH_FAILURES:
        parts.append(f'set completedWithFailures to "{CompletedWithFailures.SUCCEED}" to accept such an end')
    return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in parts)


def _opening(end: End) -> str:
    pipeline = f"pipeline {end.handle.pipeline}"
    if end.state is JobState.STOPPED:
        who = f" by {end.execution.changed_by}" if end.execution.changed_by else ""
        return f"{pipeline} was stopped{who}"
    if end.execution.status == COMPLETED_WITH_FAILURES:
        return f"{pipeline} completed with failures"
    return f"{pipeline} failed"


def _why(step: Step, child: Child | None) -> str:
    text = f"step {step.name} failed"
    reason = one_line(step.reason)
    if reason:
        text += f": {reason}"
    if child is not None and child.reason and one_line(child.reason) not in reason:
        return f"{text} ({step.child}: {one_line(child.reason)})"
    return f"{text} ({step.child})" if step.identity else text


def _step_output(step: Step, child: Child | None) -> dict[str, Any]:
    known = {
        "status": step.status,
        "startTime": step.started_at,
        "endTime": step.ended_at,
        "attempts": step.attempt if step.attempt > 1 else None,
        "failureReason": step.reason,
        "jobFailureReason": child.reason if child else None,
        "cachedFrom": step.cached_from,
        "metadata": step.metadata,
        "artifacts": child.artifacts if child and step.state is JobState.SUCCEEDED else None,
    }
    return {name: _json(value) for name, value in known.items() if value}


def _json(value: Any) -> Any:  # noqa: ANN401 -- what the SDK gives, to what JSON has
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if is_object(value):
        return {name: _json(member) for name, member in value.items()}
    return [_json(item) for item in value] if is_list(value) else value


def _size(value: Mapping[str, Any]) -> int:
    # As ASCII with spaces, the longest way to write it.
    return len(json.dumps(value))
