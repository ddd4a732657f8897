"""Configuration: one ``.properties`` file in DolphinScheduler's grammar, overlaid by the environment.

Every setting is a field of a frozen pydantic model; the field's ``validation_alias`` is the full property key, or
several, best first. ``worker.data.dir`` is overlaid by ``REMORA_WORKER_DATA_DIR``. Empty values count as absent.

Keys under Remora's own prefixes that no model knows are errors that name the nearest known key; other keys are left
alone, because the file may be shared with DolphinScheduler.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import javaproperties
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from remora.errors import ConfigurationError

DEFAULT_PATH = Path("config/common.properties")
OWN_PREFIXES = ("worker.", "plugin.", "door.", "scheduler.")

_ENVIRONMENT_PREFIX = "REMORA_"
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_")
_PLACEHOLDER = re.compile(r"<[^<>]*>")

M = TypeVar("M", bound=BaseModel)


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise ValueError(f"{wrong[0].strip()!r} is not of the form name=value")
    return {name.strip(): text.strip() for name, _, text in pairs}


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""A list written as ``a, b``."""
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]
"""A mapping written as ``a=1, b=2``."""


class Selection(BaseModel):
    """What runs. Apart from the rest, so that a mistake there does not hide one here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    doors: Names = Field(default=("grpc",), validation_alias="worker.doors")
    plugins: Names | None = Field(default=None, validation_alias="worker.plugins")
    """None is every plugin that is installed."""


class WorkerSettings(Selection):
    """The worker's own settings."""

    worker_id: str = Field(
        default_factory=socket.gethostname, validation_alias="worker.id", min_length=1, max_length=256
    )
    data_dir: Path = Field(default=Path("remora-data"), validation_alias="worker.data.dir")
    labels: Pairs = Field(default_factory=dict, validation_alias="worker.labels")
    capacity: int = Field(default=10_000, ge=1, validation_alias="worker.capacity")
    """Unfinished tasks."""
    submit_concurrency: int = Field(default=16, ge=1, le=256, validation_alias="worker.submit.concurrency")
    """Calls of one task type that create or stop jobs at the same time."""
    drain_seconds: float = Field(default=20.0, ge=0, validation_alias="worker.drain.seconds")
    """How long a stopping worker waits for calls under way."""
    retention_days: float = Field(default=7.0, gt=0, validation_alias="worker.retention.days")
    """How long ended tasks and their logs are kept."""
    capacity_wait_hours: float = Field(default=24.0, gt=0, validation_alias="worker.capacity.wait.hours")
    """How long a task waits for a quota or capacity of the service before it fails."""
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", validation_alias="worker.log.level")
    log_format: Literal["auto", "json", "console"] = Field(default="auto", validation_alias="worker.log.format")
    metrics_address: str = Field(default="", validation_alias="worker.metrics.address")
    """host:port of the Prometheus endpoint; empty is none."""


class Properties:
    """The keys and values of the file and the environment, before models make sense of them."""

    def __init__(self, values: Mapping[str, str], environment: Mapping[str, str], origin: str) -> None:
        """Take the file's values, the environment, and the file's name for messages."""
        self._values = values
        self._environment = environment
        self._origin = origin

    @classmethod
    def load(cls, path: Path | None, environment: Mapping[str, str] = os.environ) -> Properties:
        """Read a file; with None the default one, which may be absent.

        Raises:
            ConfigurationError: the file is named and absent, cannot be read, or is malformed.
        """
        chosen = path or DEFAULT_PATH
        if path is None and not chosen.exists():
            return cls({}, environment, str(chosen))
        try:
            text = chosen.read_text(encoding="utf-8-sig")  # some editors put a mark in front
        except FileNotFoundError:
            raise ConfigurationError(f"{chosen}: there is no such file. Name another with --config.") from None
        except OSError as error:
            raise ConfigurationError(f"{chosen}: cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise ConfigurationError(f"{chosen}, line {line}: is not UTF-8. Save the file as UTF-8.") from None
        try:
            return cls(javaproperties.loads(text), environment, str(chosen))
        except javaproperties.InvalidUEscapeError as error:
            line = text[: text.index(error.escape)].count("\n") + 1
            raise ConfigurationError(
                f"{chosen}, line {line}: {error.escape} is not an escape: \\u takes four hexadecimal digits. "
                "Write a backslash as two."
            ) from None

    def settings(self, model: type[M]) -> M:
        """Make a model of the values of its keys.

        Raises:
            ConfigurationError: with every wrong value, each with its key and where it came from.
        """
        found: dict[str, str] = {}
        origins: dict[str, str] = {}
        problems: list[str] = []
        keys = _keys(model)
        for field, choices in keys.items():
            for key in choices:
                value, origin = self._lookup(key)
                if not value:
                    continue
                if _PLACEHOLDER.fullmatch(value):
                    problems.append(
                        f"{origin}: {key} is still the placeholder {value}. Put in your value, or remove it."
                    )
                    continue
                found[field], origins[field] = value, f"{origin}: {key}"
                break
        try:
            settings = model.model_validate(found, by_name=True, by_alias=False)
        except ValidationError as error:
            absent = {field: f"{self._origin}: {choices[0]}" for field, choices in keys.items() if choices}
            wrong = [
                f"{(absent | origins).get(str(part['loc'][0])) if part['loc'] else self._origin}: {_said(part)}"
                for part in error.errors(include_url=False, include_input=False)
                # Beside placeholders, what is missing or does not go together may only wait for them.
                if not problems or (part["loc"] and part["type"] != "missing")
            ]
            raise ConfigurationError(*problems, *wrong) from None
        if problems:
            raise ConfigurationError(*problems)
        return settings

    def check_unknown(self, models: Iterable[type[BaseModel]], prefixes: Sequence[str] = ()) -> None:
        """Refuse keys of ours that no model knows.

        Raises:
            ConfigurationError: with every unknown key and the nearest known one.
        """
        known = {key for model in models for keys in _keys(model).values() for key in keys}
        problems = [
            f"{self._origin}: {key} is not a known key.{_nearest(key, known)}"
            for key in self._values
            if key not in known and key.startswith((*OWN_PREFIXES, *prefixes))
        ]
        variables = {_variable(key): key for key in known}
        problems += [
            f"environment: {name} is not a known variable.{_nearest(name, variables)}"
            for name, value in self._environment.items()
            if name.startswith(_ENVIRONMENT_PREFIX)
            and name not in variables
            and name not in _OTHER_VARIABLES
            and not _is_service_link(name, value)
        ]
        if problems:
            raise ConfigurationError(*problems)

    def _lookup(self, key: str) -> tuple[str, str]:
        variable = _variable(key)
        if value := self._environment.get(variable, "").strip():
            return value, f"environment variable {variable}"
        return self._values.get(key, "").strip(), self._origin


_OTHER_VARIABLES = frozenset({"REMORA_CONFIG", "REMORA_WORKER", "REMORA_SCHEDULER", "REMORA_TOKEN"})
"""Variables of the command line, which are no properties."""


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set the variable, as it does for a Service whose name begins with remora."""
    return _SERVICE_LINK.search(name) is not None or (name.endswith("_PORT") and "://" in value)


def _variable(key: str) -> str:
    return _ENVIRONMENT_PREFIX + re.sub(r"[^A-Z0-9]", "_", key.upper())


def _keys(model: type[BaseModel]) -> Mapping[str, Sequence[str]]:
    """Return the property keys of each field, best first."""
    keys: dict[str, Sequence[str]] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        choices: Sequence[Any] = alias.choices if isinstance(alias, AliasChoices) else [alias]
        keys[name] = [choice for choice in choices if isinstance(choice, str)]
    return keys


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else " Remove it, or install the plugin or door that it belongs to."


def _said(part: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    message = str(part["msg"]).removeprefix("Value error, ")
    return message if message.endswith(".") else f"{message}."
