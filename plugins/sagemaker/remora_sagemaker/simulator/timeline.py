"""What happens in an execution, and when: a pure function of what was asked for.

Nothing runs. :func:`play` works out the whole course of an execution, past and future, from the definition and the
requests that were made of it (start, stop, retries, answers to callbacks). How the execution stands is then a
comparison of that :class:`Timeline` with the clock. The course changes only when another request is made.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from remora_sagemaker.simulator.definition import Step

INSTANT = frozenset({"Condition", "Fail"})
"""Types of steps that take no time."""

STARTING = 0.1
"""The part of a step's time in which it is ``Starting`` and its job does not exist yet."""


class Outcome(StrEnum):
    """How a step ends."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be done in an execution. Settled when it starts."""

    steps: Sequence[Step]
    """Those that will run if nothing fails, in an order that respects their dependencies."""
    step_seconds: float
    stop_seconds: float
    status: str
    """The status at the end if nobody stops it; empty: as the steps say."""
    fail_step: str
    failing_runs: float
    """In how many runs, from the first, that step fails; may be infinite."""
    outcomes: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """What the conditions come to, by name of the step."""
    reused: frozenset[str] = frozenset()
    """Steps that take no time because an earlier result is used again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One go at an execution: from its start or a retry to its end or a stop."""

    started_at: float
    parallelism: float
    """How many steps may run at once; may be infinite."""
    stopped_at: float = math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackAnswer:
    """What a callback step was told."""

    at: float
    succeeded: bool
    reason: str = ""
    outputs: Sequence[Mapping[str, str]] = ()


Answers = Mapping[tuple[str, int], CallbackAnswer]
"""By name of the step and attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRun:
    """One step in the course of an execution."""

    step: Step
    attempt: int
    """1 for the first."""
    start: float
    end: float
    """Infinite while a callback step was not answered."""
    outcome: Outcome
    reason: str = ""
    """What a callback step was told."""

    def status(self, now: float, stopped_at: float) -> str:
        """Return the StepStatus."""
        if now >= self.end:
            return self.outcome.value
        if now >= stopped_at:
            return "Stopping"
        if self.has_job(now):
            return "Executing"
        return "Starting"

    def has_job(self, now: float) -> bool:
        """Whether the step's job exists yet."""
        return now >= self.end or self.end == math.inf or now >= self.start + (self.end - self.start) * STARTING


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The course of an execution, past and future."""

    steps: Sequence[StepRun]
    """In the order in which they start; only the latest attempt at each."""
    superseded: Sequence[StepRun]
    """The attempts that a retry did again."""
    stopped_at: float
    """When it was asked to stop; infinite if never."""
    end: float
    """When it ends; infinite while a callback step was not answered."""
    final_status: str

    def status(self, now: float) -> str:
        """Return the PipelineExecutionStatus."""
        if now >= self.end:
            return self.final_status
        return "Stopping" if now >= self.stopped_at else "Executing"

    def is_over(self, now: float) -> bool:
        """Whether the execution has ended."""
        return now >= self.end

    def visible(self, now: float) -> Sequence[StepRun]:
        """Return the steps that have started."""
        return [step for step in self.steps if step.start <= now]


def play(plan: Plan, runs: Sequence[Run], answers: Answers) -> Timeline:
    """Work out the course of an execution.

    A retry keeps the steps that succeeded and does the others again. When a step fails, those that are running go on
    to their end and no other starts.
    """
    attempts: dict[str, int] = {}
    played: list[StepRun] = []
    superseded: list[StepRun] = []
    for index, run in enumerate(runs):
        superseded += [step for step in played if step.outcome is not Outcome.SUCCEEDED]
        kept = [step for step in played if step.outcome is Outcome.SUCCEEDED]
        fails = plan.fail_step if index < plan.failing_runs else ""
        played = _Course(plan=plan, run=run, fails=fails, answers=answers, attempts=attempts, kept=kept).play()
    run = runs[-1]
    end = max([run.started_at, *(step.end for step in played)])
    if run.stopped_at < math.inf:
        end = max(end, run.stopped_at + plan.stop_seconds)
        status = Outcome.STOPPED.value
    elif plan.status:
        status = plan.status
    else:
        failed = any(step.outcome is Outcome.FAILED for step in played)
        status = Outcome.FAILED.value if failed else Outcome.SUCCEEDED.value
    return Timeline(
        steps=tuple(sorted(played, key=lambda step: step.start)),
        superseded=tuple(superseded),
        stopped_at=run.stopped_at,
        end=end,
        final_status=status,
    )


class _Course:
    """One run, played from its start to its end."""

    def __init__(
        self,
        *,
        plan: Plan,
        run: Run,
        fails: str,
        answers: Answers,
        attempts: dict[str, int],
        kept: Sequence[StepRun],
    ) -> None:
        self._plan = plan
        self._run = run
        self._fails = fails
        self._answers = answers
        self._attempts = attempts
        self._done = {step.step.name: step for step in kept}
        self._running: list[tuple[float, str, StepRun]] = []

    def play(self) -> list[StepRun]:
        names = {step.name for step in self._plan.steps}
        waiting = [step for step in self._plan.steps if step.name not in self._done]
        now = self._run.started_at
        broken = False
        while True:
            if not broken and now <= self._run.stopped_at:
                waiting = self._start(waiting, names, now)
            if not self._running:
                return list(self._done.values())
            now = self._running[0][0]
            while self._running and self._running[0][0] == now:
                _, name, ended = heapq.heappop(self._running)
                self._done[name] = ended
                broken = broken or ended.outcome is not Outcome.SUCCEEDED

    def _start(self, waiting: Sequence[Step], names: set[str], now: float) -> list[Step]:
        """Start what can start, and return what cannot."""
        left: list[Step] = []
        for step in waiting:
            ready = all(name in self._done for name in step.depends_on & names)
            if ready and len(self._running) < self._run.parallelism:
                started = self._step(step, now)
                heapq.heappush(self._running, (started.end, step.name, started))
            else:
                left.append(step)
        return left

    def _step(self, step: Step, start: float) -> StepRun:
        attempt = self._attempts[step.name] = self._attempts.get(step.name, 0) + 1
        outcome, reason = Outcome.SUCCEEDED, ""
        if step.type == "Callback":
            # A callback is waited for even when the execution is stopped (StopPipelineExecution, "Callback Step").
            answer = self._answers.get((step.name, attempt))
            end = answer.at if answer else math.inf
            if answer and not answer.succeeded:
                outcome, reason = Outcome.FAILED, answer.reason
        else:
            instant = step.type in INSTANT or step.name in self._plan.reused
            end = start if instant else start + self._plan.step_seconds
            if end > self._run.stopped_at:
                end, outcome = self._run.stopped_at + self._plan.stop_seconds, Outcome.STOPPED
        if outcome is Outcome.SUCCEEDED and (step.type == "Fail" or step.name == self._fails):
            outcome = Outcome.FAILED
        return StepRun(step=step, attempt=attempt, start=start, end=end, outcome=outcome, reason=reason)
