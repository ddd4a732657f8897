"""One pipeline execution: what was asked of it, and how it stands at a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from remora_sagemaker.simulator.expressions import UNKNOWN, Lookup
from remora_sagemaker.simulator.naming import short_id
from remora_sagemaker.simulator.parameters import Value
from remora_sagemaker.simulator.scenario import Scenario
from remora_sagemaker.simulator.shapes import JsonObject, Unmodelled
from remora_sagemaker.simulator.timeline import CallbackAnswer, Plan, Run, StepRun, Timeline, play

if TYPE_CHECKING:
    from remora_sagemaker.simulator.pipelines import Pipeline, Version

FAILURE_REASON = "Step failure: One or multiple steps failed."
"""What SageMaker says of every execution of which a step failed; the steps have the reasons."""


@dataclass(kw_only=True, slots=True, eq=False)
class Execution:
    """One execution and everything that was asked of it."""

    id: str
    arn: str
    pipeline: Pipeline
    sequence: int
    created_at: float
    modified_at: float
    request: JsonObject
    """The start."""
    version: Version
    values: Mapping[str, Value]
    """Of the parameters."""
    parameters_key: str
    """The same for executions with the same values."""
    scenario: Scenario
    plan: Plan
    runs: tuple[Run, ...]
    reused_from: Execution | None
    """The execution whose results are used again."""
    updates: JsonObject = field(default_factory=dict[str, Any])
    """What UpdatePipelineExecution changed."""
    answers: dict[tuple[str, int], CallbackAnswer] = field(default_factory=dict[tuple[str, int], CallbackAnswer])
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    """The operation that each ClientRequestToken was used for, besides the start."""
    replays: int = 0
    """How often the start came again with the same token."""
    _timeline: Timeline | None = None

    @property
    def token(self) -> str:
        """The ClientRequestToken of the start."""
        return str(self.request["ClientRequestToken"])

    @property
    def shown(self) -> JsonObject:
        """The request of the start with what was changed since."""
        return {**self.request, **self.updates} if self.updates else self.request

    @property
    def timeline(self) -> Timeline:
        """Its course, past and future."""
        if self._timeline is None:
            self._timeline = play(self.plan, self.runs, self.answers)
        return self._timeline

    def change(self, now: float, *, runs: tuple[Run, ...] | None = None) -> None:
        """Take note of a request that changes the course."""
        self.runs = self.runs if runs is None else runs
        self.modified_at = now
        self._timeline = None

    @property
    def display_name(self) -> str:
        """The name for people; the service makes one up if the request has none."""
        generated = f"execution-{int(self.created_at * 1000)}"
        return str(self.shown.get("PipelineExecutionDisplayName", generated))

    def last_modified(self, now: float) -> float:
        """Return the LastModifiedTime: the latest request or change of a step."""
        moments = [moment for step in self.timeline.steps for moment in (step.start, step.end) if moment <= now]
        if self.timeline.end <= now:
            moments.append(self.timeline.end)
        return max(self.modified_at, *moments, self.created_at)

    def status(self, now: float) -> str:
        """Return the PipelineExecutionStatus."""
        status = self.timeline.status(now)
        return Unmodelled(status) if self.plan.status and self.timeline.is_over(now) else status

    def failure_reason(self, now: float) -> str:
        """Return the FailureReason, or "" while there is none."""
        return FAILURE_REASON if self.status(now) == "Failed" else ""

    def callback_token(self, step_run: StepRun) -> str:
        """Return the token that answers a callback step."""
        return short_id(self.arn, step_run.step.name, step_run.attempt, "callback", length=10)

    def lookup(self, reference: str) -> object:
        """Return the value of a reference to a parameter or to the execution."""
        return execution_lookup(self.pipeline, self.arn, self.created_at, self.values)(reference)


def execution_lookup(pipeline: Pipeline, arn: str, created_at: float, values: Mapping[str, Value]) -> Lookup:
    """Return what knows the parameters of an execution and the execution itself, and nothing of its steps."""

    def look(reference: str) -> object:
        kind, _, name = reference.partition(".")
        if kind == "Parameters":
            return values.get(name, UNKNOWN)
        facts = {
            "Execution.PipelineName": pipeline.name,
            "Execution.PipelineArn": pipeline.arn,
            "Execution.PipelineExecutionArn": arn,
            "Execution.PipelineExecutionId": arn.rpartition("/")[2],
            "Execution.StartDateTime": datetime.fromtimestamp(created_at, UTC).isoformat(),
        }
        return facts.get(reference, UNKNOWN)

    return look
