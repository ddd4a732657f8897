"""The parameters of one task of a run: what its placeholders stand for.

From the lowest priority to the highest, as in DolphinScheduler: built-in names, the workflow's global parameters, what
tasks before it put out under a name (``direct: OUT``), its own local parameters, start parameters. A name that none of
these has may be a path in the outputs of a task before it: ``${train.pipelineExecutionArn}``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from pydantic import JsonValue

from remora.scheduler.placeholders import Expander, Layer, UnresolvableText, as_text
from remora.scheduler.workflow import TaskSpec, Workflow

BUILT_INS = frozenset(
    {
        "system.biz.date",
        "system.biz.curdate",
        "system.datetime",
        "system.task.instance.id",
        "system.task.definition.name",
        "system.workflow.instance.id",
        "system.workflow.definition.name",
    }
)
"""Names that DolphinScheduler defines and that have a meaning here."""

REQUEST = "sagemakerRequestJson"
"""The parameter that is JSON text itself."""


def expanded(
    workflow: Workflow,
    task: TaskSpec,
    *,
    run_id: str,
    task_id: str,
    created_at: float,
    start: Mapping[str, str],
    outputs: Mapping[str, JsonValue],
) -> str:
    """Return the parameters of a task as a JSON object, with everything filled in that is known.

    Takes the start parameters and what the tasks before it put out, by name.

    Raises:
        UnresolvableText: parameters name each other in a circle, or a task put out no such thing.
    """
    now = datetime.fromtimestamp(created_at, zone(workflow.timezone))
    named: dict[str, tuple[str, str]] = {}
    for before in workflow.ancestors(task.name):
        for name, path in before.outputs.items():
            named.setdefault(name, (before.name, path))  # the nearest task has the word
    layers = [
        Layer(values=start),
        Layer(values=task.inputs),
        Layer(values=_found(named, outputs), literal=True),
        Layer(values=workflow.parameters),
        Layer(values=_built_in(workflow, task, run_id=run_id, task_id=task_id, now=now), literal=True),
    ]

    def output(name: str) -> str | None:
        found = named.get(name) or workflow.output_named(name)
        return None if found is None else as_text(_required(outputs, *found))

    expander = Expander(layers, now, output)
    values = {
        name: expander.expand(value, is_json=True)
        if name == REQUEST and isinstance(value, str)
        else expander.expand_value(value)
        for name, value in task.parameters.items()
    }
    return json.dumps(values, ensure_ascii=False)


def check_circles(workflow: Workflow, start: Mapping[str, str]) -> None:
    """Raise UnresolvableText where parameters name each other in a circle, whatever tasks put out."""
    now = datetime.fromtimestamp(0, UTC)
    for task in workflow.tasks.values():
        layers = [Layer(values=start), Layer(values=task.inputs), Layer(values=workflow.parameters)]
        expander = Expander(layers, now)
        for name in {**workflow.parameters, **task.inputs, **start}:
            expander.expand(f"${{{name}}}")


def zone(name: str) -> tzinfo:
    """Return a time zone. UTC needs no data on the disk. Raises ValueError for one that this machine does not know."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, no name of a zone, or a directory of zones
        raise ValueError(f"{name!r} is not a time zone that this machine knows, such as Europe/Berlin") from None


def value_at(value: JsonValue, path: str) -> JsonValue:
    """Return what a path such as ``steps.Train.arns.0`` leads to. Raises LookupError where it leads nowhere."""
    for part in path.split("."):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)]
        else:
            raise LookupError(part)
    return value


def _built_in(workflow: Workflow, task: TaskSpec, *, run_id: str, task_id: str, now: datetime) -> Mapping[str, str]:
    return {
        "system.biz.date": f"{now - timedelta(days=1):%Y%m%d}",
        "system.biz.curdate": f"{now:%Y%m%d}",
        "system.datetime": f"{now:%Y%m%d%H%M%S}",
        "system.task.instance.id": task_id,
        "system.task.definition.name": task.name,
        "system.workflow.instance.id": run_id,
        "system.workflow.definition.name": workflow.name,
    }


def _found(named: Mapping[str, tuple[str, str]], outputs: Mapping[str, JsonValue]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for name, (task, path) in named.items():
        with contextlib.suppress(LookupError):
            values[name] = as_text(value_at(outputs[task], path))
    return values


def _required(outputs: Mapping[str, JsonValue], task: str, path: str) -> JsonValue:
    try:
        return value_at(outputs[task], path)
    except LookupError:
        reported = outputs.get(task)
        names = ", ".join(reported) if isinstance(reported, dict) and reported else "nothing"
        raise UnresolvableText(f"${{{task}.{path}}}: the task {task} put out no {path}; it put out {names}") from None
