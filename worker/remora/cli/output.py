"""How messages are shown: as JSON for programs, as words and tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from remora import wire
from remora.plugin import FailureKind
from remora.v1 import task_pb2

STYLES: Mapping[str, str] = {
    "ACCEPTED": "cyan",
    "SUBMITTING": "cyan",
    "READY": "cyan",
    "DISPATCHED": "cyan",
    "RUNNING": "bold blue",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "UPSTREAM_FAILED": "yellow",
    "CANCELLED": "yellow",
    "RELEASED": "dim",
    "WAITING": "dim",
}
"""Of states of tasks and runs."""

WHO_ACTS: Mapping[FailureKind, str] = {
    FailureKind.INVALID: "the author of the task corrects its definition",
    FailureKind.DENIED: "the operator of the worker corrects credentials or permissions",
    FailureKind.EXHAUSTED: "the owner of the account makes room in its quota",
    FailureKind.TRANSIENT: "nobody; try again",
    FailureKind.EXECUTION: "the owner of the job looks at why it failed",
    FailureKind.TIMEOUT: "the author gives it more time, or the owner makes the job faster",
    FailureKind.INTERNAL: "the developers of Remora or of the plugin; this is a defect",
}


def print_json(value: object) -> None:
    """Print a value, or what :func:`plain` made of a message."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON values, in the words of its proto file.

    Times are RFC 3339, durations seconds, states lack the prefix of their enum, integers are integers, and a field
    that carries JSON is the JSON itself under its name without ``_json``. Fields that are not set are absent.
    """
    return dict(_field(field, value) for field, value in message.ListFields())


def table(*columns: str, rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; the last column takes what room is left."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # What a program reads or a file keeps is not folded to the width of a terminal that is not there.
        console.width = 10_000
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns[:-1]:
        grid.add_column(column, no_wrap=True)
    grid.add_column(columns[-1], overflow="fold")
    for row in rows:
        grid.add_row(*row)
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def state_name(message: Message, field: str = "state") -> str:
    """Return the state of a task or run: ``RUNNING``."""
    descriptor: FieldDescriptor = message.DESCRIPTOR.fields_by_name[field]  # type: ignore[assignment]  # two of one kind
    return _enum_name(descriptor, getattr(message, field))


def state_text(name: str) -> Text:
    """Return the name of a state in its colour."""
    return Text(name.replace("_", " ").lower(), style=STYLES.get(name, ""))


def lasted(begin: Timestamp, end: Timestamp, now: float) -> float | None:
    """Return the seconds between two times, up to now where there is no end, None where there is no beginning."""
    if not begin.seconds:
        return None
    # The other machine's clock may be ahead of ours.
    return max(0.0, (wire.seconds(end) if end.seconds else now) - wire.seconds(begin))


def duration(seconds: float | None) -> str:
    """Write seconds for people: ``4.2s``, ``3m12s``, ``2h05m``."""
    if seconds is None:
        return ""
    if seconds < 10:  # noqa: PLR2004 -- below that, tenths tell something
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def failure_lines(failure: task_pb2.Failure) -> Sequence[str]:
    """Return what failed, who acts, and the facts that are not in the words."""
    known = wire.read_failure(failure)
    code = f"{known.code}: " if known.code else ""
    return [
        f"{code}{known.message}",
        f"who acts: {WHO_ACTS[known.kind]}",
        *(f"{name}: {value}" for name, value in known.details.items() if value not in known.message),
    ]


def _field(field: FieldDescriptor, value: Any) -> tuple[str, Any]:  # noqa: ANN401 -- of any type
    if field.type == FieldDescriptor.TYPE_STRING and field.name.endswith("_json") and not field.is_repeated:
        return field.name.removesuffix("_json"), json.loads(value)
    if _is_map(field):
        return field.name, dict(value)
    if field.is_repeated:
        return field.name, [_value(field, part) for part in value]
    return field.name, _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:  # noqa: ANN401 -- of any type
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Duration):
        return wire.seconds(value)
    if isinstance(value, Message):
        return plain(value)
    return _enum_name(field, value) if field.enum_type is not None else value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _enum_name(field: FieldDescriptor, number: int) -> str:
    """Return the name of a value without its enum's prefix, or the number of one of a later version."""
    enum = field.enum_type
    assert enum is not None, f"{field.full_name} is an enum"
    if number not in enum.values_by_number:
        return str(number)
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum.name).upper()[1:]
    return enum.values_by_number[number].name.removeprefix(f"{prefix}_")
