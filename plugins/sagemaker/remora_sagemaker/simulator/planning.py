"""What is to be done in an execution: the definition, narrowed by its parameters and its scenario."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from remora_sagemaker.simulator.conditions import all_hold
from remora_sagemaker.simulator.definition import Definition, Step
from remora_sagemaker.simulator.expressions import Lookup
from remora_sagemaker.simulator.scenario import Scenario
from remora_sagemaker.simulator.timeline import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What came before an execution, as far as it matters to it."""

    goes: int = 0
    """How often the pipeline was started with the same parameters."""
    succeeded: Collection[str] = ()
    """The steps that succeeded in the latest of these executions."""


def make_plan(
    definition: Definition, scenario: Scenario, lookup: Lookup, *, selected: Collection[str], history: History
) -> Plan:
    """Settle what an execution will do.

    Args:
        definition: The pipeline.
        scenario: What the request wants to happen.
        lookup: Knows the parameters.
        selected: Names of the only steps to run (selective execution); empty for all.
        history: What came before.

    Raises:
        ValueError: the scenario or the selection names no step of the pipeline, or a condition compares what
            cannot be compared.
    """
    names = {step.name for step in definition.steps}
    for name in sorted({*selected, scenario.fail_step} - {""}):
        if name not in names:
            raise ValueError(f"The pipeline has no step '{name}'; it has {', '.join(sorted(names))}.")
    outcomes = {step.name: _outcome(step, scenario, lookup) for step in definition.steps if step.type == "Condition"}
    steps = [step for step in _reached(definition.steps, outcomes) if not selected or step.name in selected]
    return Plan(
        steps=tuple(steps),
        step_seconds=scenario.step_seconds,
        stop_seconds=scenario.stop_seconds,
        status=scenario.status,
        fail_step=scenario.fail_step,
        failing_runs=math.inf if scenario.fail_times is None else scenario.fail_times - history.goes,
        outcomes=outcomes,
        reused=frozenset(step.name for step in steps if step.cached and step.name in history.succeeded),
    )


def _outcome(step: Step, scenario: Scenario, lookup: Lookup) -> bool:
    try:
        outcome = all_hold(step.conditions, lookup)
    except TypeError as error:
        raise ValueError(f"The condition of step '{step.name}' cannot be evaluated: {error}.") from None
    return scenario.condition != "False" if outcome is None else outcome


def _reached(steps: Sequence[Step], outcomes: Mapping[str, bool]) -> Sequence[Step]:
    """Return the steps that run when all goes well: not the untaken side of a condition, nor what waits for it."""
    reached: dict[str, Step] = {}
    for step in steps:
        taken = step.branch is None or outcomes[step.branch.condition] is step.branch.outcome
        if taken and step.depends_on <= reached.keys():
            reached[step.name] = step
    return list(reached.values())
