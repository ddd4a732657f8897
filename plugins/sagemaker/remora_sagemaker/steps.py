"""The steps of a pipeline execution: read, compared with what was seen before, and put into words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remora.plugin import JobState

from remora_sagemaker.aws import Aws, Target
from remora_sagemaker.status import STEP_STATES

PAGE = 100
"""Steps or executions in an answer, SageMaker's maximum."""

_IDENTITY = ("Arn", "CheckJobArn", "HubContentArn", "JobRunId", "StepId", "QueryExecutionId", "Outcome")
"""Fields of a step's metadata that say what it made, most telling first."""
_NAMED = 3
"""How many steps a line names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step as SageMaker shows it."""

    name: str
    """Unique in the execution: a step of a loop carries the loop's name and its index."""
    status: str
    attempt: int = 1
    reason: str = ""
    """Why it failed."""
    kind: str = ""
    """What it is, by its metadata: TrainingJob, RegisterModel, Condition, ..."""
    identity: str = ""
    """The ARN or id of what it made; the outcome of a condition."""
    metadata: Mapping[str, Any]
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    cached_from: str = ""
    """The execution whose result was taken over."""

    @property
    def state(self) -> JobState:
        """What its status means; an unknown one is running."""
        return STEP_STATES.get(self.status, JobState.RUNNING)

    @property
    def mark(self) -> str:
        """What the handle remembers of it, to see a change."""
        return self.status if self.attempt <= 1 else f"{self.status} (attempt {self.attempt})"

    @property
    def child(self) -> str:
        """What it made, for people: ``TrainingJob pipelines-abc-Train-xyz``."""
        resource = self.identity.rpartition(":")[2] if self.identity.startswith("arn:") else self.identity
        name = resource.partition("/")[2] or resource
        return f"{self.kind} {name}".strip()

    def __str__(self) -> str:
        ended = self.state is not JobState.RUNNING
        text = f"step {self.name}: {self.mark}"
        if ended and self.started_at and self.ended_at:
            text += f" after {duration((self.ended_at - self.started_at).total_seconds())}"
        if self.cached_from:
            text += f" (result of {self.cached_from})"
        elif self.identity:
            text += f" ({self.child})"
        return f"{text}: {one_line(self.reason)}" if self.reason else text


async def read_steps(
    aws: Aws, target: Target, execution_arn: str, until: float, *, begin: float | None = None
) -> Sequence[Step]:
    """Return the steps that have begun, in that order.

    Waits for its share of the rate until a monotonic time; for the first page until `begin`, if given. Raises as
    :meth:`Aws.call`.
    """
    request: dict[str, Any] = {"PipelineExecutionArn": execution_arn, "MaxResults": PAGE, "SortOrder": "Ascending"}
    steps: list[Step] = []
    patience = until if begin is None else begin
    while True:
        answer = await aws.call(target, "ListPipelineExecutionSteps", request, until=patience)
        patience = until
        steps += map(parse_step, answer.get("PipelineExecutionSteps", ()))
        if not answer.get("NextToken"):
            return steps
        request = {**request, "NextToken": answer["NextToken"]}


def parse_step(shown: Mapping[str, Any]) -> Step:
    """Make sense of a PipelineExecutionStep."""
    metadata: dict[str, Any] = shown.get("Metadata") or {}
    cache_hit: dict[str, Any] = shown.get("CacheHitResult") or {}
    kind = next(iter(metadata), "")
    made: dict[str, Any] = metadata.get(kind) or {}
    return Step(
        name=_name(shown),
        status=shown.get("StepStatus", ""),
        attempt=shown.get("AttemptCount") or 1,
        reason=shown.get("FailureReason", ""),
        kind=kind,
        identity=next((str(made[field]) for field in _IDENTITY if made.get(field)), ""),
        metadata=metadata,
        started_at=shown.get("StartTime"),
        ended_at=shown.get("EndTime"),
        cached_from=cache_hit.get("SourcePipelineExecutionArn", ""),
    )


def changes(before: Mapping[str, str], steps: Sequence[Step]) -> Sequence[str]:
    """Return a line for each step that is not as it was."""
    return [str(step) for step in steps if before.get(step.name) != step.mark]


def marks(steps: Sequence[Step]) -> dict[str, str]:
    """Return what the handle remembers of steps."""
    return {step.name: step.mark for step in steps}


def progress(status: str, table: Mapping[str, str]) -> str:
    """Say in a few words where an execution is: ``Executing: Train (2 steps done)``."""
    moving = [name for name, mark in table.items() if _moving(mark)]
    done = len(table) - len(moving)
    text = f"{status}: {enumeration(moving)}" if moving else status
    return f"{text} ({done} step{'s' * (done != 1)} done)" if done else text


def enumeration(names: Sequence[str]) -> str:
    """Join names, the first few of them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """Write seconds as ``3m12s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def one_line(text: str) -> str:
    """Put a text of any shape on one line."""
    return " ".join(text.split())


def _name(shown: Mapping[str, Any]) -> str:
    name = str(shown.get("StepName", ""))
    loop: dict[str, Any] = shown.get("IterationContext") or {}
    if loop.get("ParentStepName"):
        return f"{loop['ParentStepName']}[{loop.get('Index', 0)}].{name}"
    return name


def _moving(mark: str) -> bool:
    return STEP_STATES.get(mark.split(" ", 1)[0], JobState.RUNNING) is JobState.RUNNING
