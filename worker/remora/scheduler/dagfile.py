"""DAG files: workflows in the YAML dialect of pydolphinscheduler.

::

    workflow:
      name: train
      param: {bucket: my-bucket}
    tasks:
      - name: train
        task_type: SageMaker
        sagemaker_request_json: {PipelineName: TrainPipeline}
      - name: register
        task_type: SageMaker
        deps: [train]
        sagemaker_request_json: $FILE{"register.json"}

:func:`load` reads a file where it lies, with the files and the environment it refers to, and :func:`parse` reads text
that needs neither. Both name all mistakes they find, each by its path and line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeVar

from pydantic import AliasChoices, BaseModel, JsonValue, ValidationError

from remora.errors import InvalidRequest
from remora.scheduler import document as documents
from remora.scheduler import placeholders
from remora.scheduler.document import Document, MalformedDocument
from remora.scheduler.fields import (
    IGNORED_IN_TASK,
    IGNORED_IN_WORKFLOW,
    REFUSED_IN_TASK,
    REFUSED_TASK_TYPES,
    Property,
    TaskFields,
    WorkflowFields,
)
from remora.scheduler.parameters import BUILT_INS, REQUEST, zone
from remora.scheduler.workflow import DEFAULT_GROUP, TaskSpec, Workflow

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1024 * 1024
"""Upper bound of a DAG file with the files it refers to, as UTF-8."""
MAX_TASKS = 1000

_ENV = re.compile(r"\$ENV\{([^{}]*)\}")
_FILE = re.compile(r"\$FILE\{\"([^\"]*)\"\}\s*")
_REFUSED_REFERENCES: Mapping[str, str] = {
    "$WORKFLOW{": "$WORKFLOW is not supported: a workflow cannot refer to another",
    "${CONFIG.": "${CONFIG.…} is not supported: there is no configuration of pydolphinscheduler; use $ENV{NAME}",
    "$ENV{": "$ENV is expanded where the file lies: submit the file with `remora run` or `remora submit`",
    "$FILE{": "$FILE is expanded where the file lies: submit the file with `remora run` or `remora submit`",
}
_MESSAGES: Mapping[str, str] = {
    "missing": "is missing",
    "list_type": "must be a list, for example [a, b]",
    "model_type": "must be a mapping such as {prop: name, value: text}",
}
"""For pydantic's errors whose own words are for programmers."""


def load(path: Path, environment: Mapping[str, str]) -> tuple[Workflow, str]:
    """Read a DAG file, with the files beside it (``$FILE{"x.json"}``) and the variables (``$ENV{X}``) it names.

    Returns the workflow and the text from which :func:`parse` makes the same one. Blocks on the disk.

    Raises:
        InvalidRequest: with every mistake by its path.
    """
    text = _file_text(path, str(path))
    document = _document(text)
    mistakes = _Mistakes(document)

    def expanded(value: str, at: documents.Path) -> str:
        try:
            return _expanded(value, path.parent, environment)
        except ValueError as error:
            mistakes.add(at, str(error))
            return value

    value = _map_texts(document.value, expanded)
    mistakes.check()
    if value != document.value:
        text = json.dumps(value, ensure_ascii=False, indent=1)
        document = Document(value=value, lines=document.lines)
    return _workflow(document), text


def parse(text: str) -> Workflow:
    """Read the text of a DAG file that needs nothing beside it.

    Raises:
        InvalidRequest: with every mistake by its path.
    """
    return _workflow(_document(text))


class _Mistakes:
    """What is wrong with a document, by path."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: dict[str, str] = {}

    def add(self, path: documents.Path, message: str) -> None:
        self._found.setdefault(documents.text_of(path) or "document", _at(self._document.line(path), message))

    def check(self) -> None:
        if self._found:
            raise InvalidRequest(self._found, reason="WORKFLOW_INVALID")


class _Notes:
    """What is ignored: once for each reason, with the lines."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._lines: dict[str, list[str]] = {}

    def add(self, path: documents.Path, message: str) -> None:
        self._lines.setdefault(message, []).append(str(self._document.line(path)))

    def texts(self) -> tuple[str, ...]:
        return tuple(f"line {', '.join(lines)}: {message}" for message, lines in self._lines.items())


# Reading -----------------------------------------------------------------------------------------------------------


def _document(text: str) -> Document:
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InvalidRequest({"document": f"has more than {MAX_BYTES} bytes"}, reason="WORKFLOW_INVALID")
    try:
        return documents.read(text)
    except MalformedDocument as error:
        path = documents.text_of(error.path) or "document"
        raise InvalidRequest({path: _at(error.line, str(error))}, reason="WORKFLOW_INVALID") from None


def _at(line: int | None, message: str) -> str:
    return message if line is None else f"line {line}: {message}"


def _file_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = "there is no such file"
    except UnicodeDecodeError:
        problem = "is not UTF-8; save the file as UTF-8"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    raise InvalidRequest({name: problem}, reason="WORKFLOW_INVALID")


def _expanded(text: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Raise ValueError for what is not there."""
    if text.startswith("$FILE"):
        match = _FILE.fullmatch(text)
        if match is None:
            raise ValueError('a file is named as $FILE{"name.json"}, with nothing after it')
        try:
            text = _file_text(folder / match[1], match[1])
        except InvalidRequest as error:
            raise ValueError(str(error)) from None

    def variable(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise ValueError(f"{match[0]}: there is no such environment variable; set it")
        if not _is_text(environment[match[1]]):
            raise ValueError(f"{match[0]}: the environment variable is not UTF-8")
        return environment[match[1]]

    return _ENV.sub(variable, text)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _map_texts(value: JsonValue, change: Callable[[str, documents.Path], str], path: documents.Path = ()) -> JsonValue:
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, list):
        return [_map_texts(part, change, (*path, index)) for index, part in enumerate(value)]
    if isinstance(value, dict):
        return {name: _map_texts(part, change, (*path, name)) for name, part in value.items()}
    return value


# From fields to a workflow -----------------------------------------------------------------------------------------


def _workflow(document: Document) -> Workflow:
    mistakes, notes = _Mistakes(document), _Notes(document)
    head_value, task_values = _parts(document, mistakes)
    mistakes.check()
    _map_texts(document.value, lambda text, path: _check_references(text, path, mistakes))
    head = _fields(WorkflowFields, head_value, ("workflow",), mistakes, notes, ignored=IGNORED_IN_WORKFLOW)
    bodies = [
        _fields(TaskFields, value, ("tasks", index), mistakes, notes, ignored=IGNORED_IN_TASK, refused=REFUSED_IN_TASK)
        for index, value in enumerate(task_values)
    ]
    mistakes.check()
    assert head is not None
    entries = [body for body in bodies if body is not None]
    positions: dict[str, int] = {}
    for index, entry in enumerate(entries):
        if positions.setdefault(entry.name, index) != index:
            mistakes.add(("tasks", index, "name"), f"there is a task named {entry.name!r} already; choose another name")
    workflow = Workflow(
        name=head.name,
        parameters=_values(head.param),
        tasks={
            entry.name: _task(entry, head, ("tasks", index), mistakes, notes) for index, entry in enumerate(entries)
        },
        timezone=_timezone(head.timezone or "UTC", mistakes),
    )
    _check_graph(workflow, positions, mistakes)
    mistakes.check()
    for name, index in positions.items():
        _check_placeholders(workflow, workflow.tasks[name], ("tasks", index), mistakes, notes)
    mistakes.check()
    return replace(workflow, notes=notes.texts())


def _parts(document: Document, mistakes: _Mistakes) -> tuple[JsonValue, list[JsonValue]]:
    """Return what stands under `workflow` and `tasks`."""
    value = document.value
    if not isinstance(value, dict):
        problem = "is empty" if value is None else "is not a mapping"
        mistakes.add((), f"{problem}; a DAG file has `workflow:` with a name, and a list under `tasks:`")
        return None, []
    for name in value:
        if name not in {"workflow", "tasks"}:
            mistakes.add((name,), f"is not a part of a DAG file.{_nearest(name, ('workflow', 'tasks'))}")
    tasks = value.get("tasks")
    if "workflow" not in value:
        mistakes.add((), "has no `workflow:` with a name")
    if not isinstance(tasks, list) or not tasks:
        mistakes.add(("tasks",), "must be a list of at least one task")
        return None, []
    if len(tasks) > MAX_TASKS:
        mistakes.add(("tasks",), f"has {len(tasks)} tasks; at most {MAX_TASKS} are allowed")
    return value.get("workflow"), tasks


def _check_references(text: str, path: documents.Path, mistakes: _Mistakes) -> str:
    for beginning, message in _REFUSED_REFERENCES.items():
        if beginning in text:
            mistakes.add(path, message)
    return text


def _fields(
    model: type[M],
    value: JsonValue,
    path: documents.Path,
    mistakes: _Mistakes,
    notes: _Notes,
    *,
    ignored: Mapping[str, str],
    refused: Mapping[str, str] | None = None,
) -> M | None:
    """Make a model of a mapping; where that does not work, add why."""
    if not isinstance(value, dict):
        mistakes.add(path, "must be a mapping of fields")
        return None
    refused = refused or {}
    for name, part in value.items():
        if name in ignored:
            notes.add((*path, name), f"{name} is ignored: {ignored[name]}")
        elif name in refused and part:
            mistakes.add((*path, name), f"{refused[name]}; remove it")
    own = {name: part for name, part in value.items() if name not in ignored and name not in refused}
    try:
        return model.model_validate(own)
    except ValidationError as error:
        for wrong in error.errors(include_url=False, include_input=False):
            at = (*path, *wrong["loc"])
            if wrong["type"] == "extra_forbidden":
                known = [*_names(model), *ignored] if len(at) == len(path) + 1 else Property.model_fields
                mistakes.add(at, f"is not a known field.{_nearest(str(at[-1]), known)}")
            else:
                mistakes.add(at, _MESSAGES.get(wrong["type"]) or wrong["msg"].removeprefix("Value error, "))
        return None


def _names(model: type[BaseModel]) -> Iterable[str]:
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        yield from (str(choice) for choice in alias.choices) if isinstance(alias, AliasChoices) else [name]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def _task(
    entry: TaskFields, head: WorkflowFields, path: documents.Path, mistakes: _Mistakes, notes: _Notes
) -> TaskSpec:
    task_type = entry.task_type.upper()
    if task_type in REFUSED_TASK_TYPES:
        mistakes.add(
            (*path, "task_type"), f"{entry.task_type} tasks are run by DolphinScheduler itself, not by workers"
        )
    parameters = dict(entry.params)
    requests = [parameters.pop(name) for name in ("sagemaker_request_json", REQUEST) if name in parameters]
    if entry.sagemaker_request_json is not None:
        requests.append(entry.sagemaker_request_json)
    if len(requests) > 1:
        mistakes.add((*path, "sagemaker_request_json"), "is there twice: once as a field and once under params")
    if requests:
        parameters[REQUEST] = _request_text(requests[0])
    if task_type == "SAGEMAKER" and not parameters:
        mistakes.add(path, "a SageMaker task needs sagemaker_request_json")
    local = [*entry.local_params, *entry.input_params]
    timeout = entry.timeout if entry.timeout_flag == "OPEN" else None
    if timeout and entry.timeout_notify_strategy == "WARN":
        notes.add((*path, "timeout"), "timeout is ignored: its strategy is WARN, and there are no alerts")
        timeout = None
    outputs = [*(part for part in entry.local_params if part.direct == "OUT"), *entry.output_params]
    return TaskSpec(
        name=entry.name,
        task_type=task_type,
        depends_on=tuple(dict.fromkeys(entry.deps)),
        parameters=parameters,
        inputs=_values(part for part in local if part.direct == "IN"),
        outputs={name: value or name for name, value in _values(outputs).items()},
        max_attempts=1 + entry.fail_retry_times,
        retry_interval=60.0 * entry.fail_retry_interval,
        delay=60.0 * entry.delay_time,
        timeout=60.0 * timeout if timeout else None,
        worker_group=entry.worker_group or head.worker_group or DEFAULT_GROUP,
        skipped=entry.flag == "NO",
    )


def _request_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(properties: Iterable[Property]) -> Mapping[str, str]:
    return {part.prop: placeholders.as_text(part.value) for part in properties}


def _timezone(name: str, mistakes: _Mistakes) -> str:
    try:
        zone(name)
    except ValueError as error:
        mistakes.add(("workflow", "timezone"), str(error))
    return name


# What only the whole shows -----------------------------------------------------------------------------------------


def _check_graph(workflow: Workflow, positions: Mapping[str, int], mistakes: _Mistakes) -> None:
    known = True
    for name, task in workflow.tasks.items():
        for index, dep in enumerate(task.depends_on):
            if dep not in workflow.tasks:
                at = ("tasks", positions[name], "deps", index)
                mistakes.add(at, f"there is no task {dep!r}.{_nearest(dep, workflow.tasks)}")
                known = False
    if not known:
        return
    try:
        TopologicalSorter({task.name: task.depends_on for task in workflow.tasks.values()}).prepare()
    except CycleError as error:
        circle: Sequence[str] = error.args[1]
        first = ("tasks", positions[circle[-1]], "deps")
        mistakes.add(first, f"the tasks wait for each other in a circle: {' -> '.join(circle)}")


def _check_placeholders(
    workflow: Workflow, task: TaskSpec, path: documents.Path, mistakes: _Mistakes, notes: _Notes
) -> None:
    """Find outputs of tasks that have not run yet when this one does, and time expressions that nobody expands."""
    before = {part.name: part for part in workflow.ancestors(task.name)}
    known = {
        *BUILT_INS,
        *workflow.parameters,
        *task.inputs,
        *(name for part in before.values() for name in part.outputs),
    }
    now = datetime.fromtimestamp(0, UTC)

    def check(text: str, _: documents.Path) -> str:
        for name in placeholders.names(text):
            output = None if name in known else workflow.output_named(name)
            if output is not None and output[0] not in before:
                which = "itself" if output[0] == task.name else f"{output[0]!r}; add that to its deps"
                mistakes.add(path, f"{task.name!r} uses ${{{name}}} and does not come after {which}")
        for expression in placeholders.unsupported_times(text, now):
            notes.add(path, f"{expression} is left as it is: only formats and whole days are expanded here")
        return text

    _map_texts(dict(task.parameters), check)
    _map_texts(dict(task.inputs), check)
