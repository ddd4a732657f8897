"""What is installed: plugins and doors by entry point, and the handlers of the plugins that are open."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import structlog
from pydantic import AliasChoices, BaseModel, ValidationError

from remora.door import Door, TaskTypeInfo
from remora.errors import ConfigurationError, UnknownTaskType
from remora.plugin import Clock, Failure, FailureKind, InvalidTask, Plugin, TaskHandler

log = structlog.get_logger(__name__)

AnyHandler = TaskHandler[Any, Any]
T = TypeVar("T")


def installed_plugins(names: Sequence[str] | None = None) -> Mapping[str, Plugin]:
    """Return the plugins of these names, or all that are installed.

    Raises:
        ConfigurationError: one is not installed or cannot be imported.
    """
    return _load("remora.plugins", Plugin, names, "worker.plugins")  # type: ignore[type-abstract]  # only for isinstance


def installed_doors(names: Sequence[str] | None = None) -> Mapping[str, Door]:
    """Return the doors of these names, or all that are installed. Raises as :func:`installed_plugins`."""
    return _load("remora.doors", Door, names, "worker.doors")  # type: ignore[type-abstract]  # only for isinstance


class Registry:
    """The handlers of the open plugins, by task type."""

    def __init__(self, handlers: Iterable[AnyHandler]) -> None:
        """Take handlers. Raises ConfigurationError if two claim one task type."""
        self.handlers: dict[str, AnyHandler] = {}
        for handler in handlers:
            other = self.handlers.setdefault(handler.task_type, handler)
            if other is not handler:
                raise ConfigurationError(
                    f"the task type {handler.task_type} is claimed by {type(other).__module__} and by "
                    f"{type(handler).__module__}. Choose one with worker.plugins."
                )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, plugins: Mapping[str, tuple[Plugin, BaseModel]], clock: Clock) -> AsyncGenerator[Registry]:
        """Open plugins with their settings; close them on exit, in reverse order.

        Raises:
            ConfigurationError: one cannot work with its settings.
        """
        async with contextlib.AsyncExitStack() as stack:
            handlers: list[AnyHandler] = []
            for name, (plugin, settings) in plugins.items():
                try:
                    handlers += await stack.enter_async_context(plugin.open(settings, clock))
                except (OSError, ValueError) as error:
                    raise ConfigurationError(f"plugin {name}: {error}") from error
            yield cls(handlers)

    def handler(self, task_type: str) -> AnyHandler:
        """Return the handler of a task type, or raise UnknownTaskType with those that there are."""
        try:
            return self.handlers[task_type]
        except KeyError:
            there = ", ".join(sorted(self.handlers)) or "none"
            raise UnknownTaskType(f"no plugin runs tasks of type {task_type!r}; this worker has: {there}") from None

    def task_types(self) -> Sequence[TaskTypeInfo]:
        """Return what can be run, by name."""
        return [
            TaskTypeInfo(
                name=handler.task_type,
                title=handler.title,
                schema=json.dumps(handler.parameters.model_json_schema(), sort_keys=True),
                permissions=tuple(handler.permissions),
            )
            for _, handler in sorted(self.handlers.items())
        ]


def parse(handler: AnyHandler, parameters: str) -> Any:  # noqa: ANN401 -- the handler's own model
    """Return the parameters as the handler's model.

    Raises:
        InvalidTask: with a message for the path of every wrong field, and the nearest known name of unknown ones.
    """
    try:
        return handler.parameters.model_validate_json(parameters)
    except ValidationError as error:
        known = _field_names(handler.parameters)
        raise InvalidTask(
            {_path(part["loc"]): _message(part, known) for part in error.errors(include_url=False, include_input=False)}
        ) from None


def classify(handler: AnyHandler, error: Exception) -> Failure:
    """Return who has to act on what a handler raised. What the handler cannot explain is a defect of its plugin."""
    if isinstance(error, InvalidTask):
        return Failure(
            kind=FailureKind.INVALID, code="InvalidParameters", message=str(error), details=dict(error.violations)
        )
    try:
        failure = handler.classify(error)
    except Exception:
        log.exception("classify_failed", task_type=handler.task_type)
        failure = None
    if failure is None:
        log.error("plugin_defect", task_type=handler.task_type, exc_info=error)
        message = f"{type(error).__name__} in the {handler.task_type} plugin; the traceback is in the worker's log"
        failure = Failure(kind=FailureKind.INTERNAL, code=type(error).__name__, message=message)
    return failure


def _load(group: str, kind: type[T], names: Sequence[str] | None, key: str) -> Mapping[str, T]:
    found = {point.name: point for point in entry_points(group=group)}
    missing = [name for name in names or () if name not in found]
    if missing:
        there = ", ".join(sorted(found)) or "none"
        raise ConfigurationError(f"{key}: {', '.join(missing)} is not installed; there is: {there}.")
    return {name: _make(found[name], kind) for name in (sorted(found) if names is None else names)}


def _make(point: EntryPoint, kind: type[T]) -> T:
    origin = point.dist.name if point.dist else "an unknown distribution"
    try:
        made = point.load()()
    except Exception as error:
        raise ConfigurationError(
            f"{point.group} {point.name} of {origin} ({point.value}) cannot be loaded: {error!r}. "
            "Repair the installation, or leave it out."
        ) from error
    if not isinstance(made, kind):
        raise ConfigurationError(f"{point.group} {point.name} of {origin} ({point.value}) is no {kind.__name__}.")
    return made


def _field_names(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias or name
        names.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [str(alias)])
    return names


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "parameters"


def _message(part: Any, known: Iterable[str]) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    message = str(part["msg"]).removeprefix("Value error, ")
    if part["type"] == "extra_forbidden":
        # The names of a model inside are not known here, and a name that fits elsewhere misleads.
        close = difflib.get_close_matches(str(part["loc"][0]), known, n=1) if len(part["loc"]) == 1 else []
        message = "is not a known field" + (f"; did you mean {close[0]}?" if close else "")
    return message
