"""The task record and its legal moves. Pure: every function takes a record and gives the next one.

::

    (new) ──► ACCEPTED ──► SUBMITTING ──► RUNNING ──► SUCCEEDED | FAILED | CANCELLED
      │          ▲   │          │  │          │
      │          └───┼──refused─┘  └─failed───┼──► FAILED
      │              └── stopped before it    └──► RELEASED (another worker has it)
      ├──► FAILED (born invalid)    existed ──► CANCELLED | FAILED/TIMEOUT
      ├──► CANCELLED (tombstone: cancelled before it was seen)
      └──► SUBMITTING (adopted: an earlier holder has created its job)

ACCEPTED means that no remote job exists, SUBMITTING that one may. A stop is a wish beside the state: only knowing
that no job exists, or seeing that it ended, makes a task CANCELLED.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import JsonValue

from remora.errors import IllegalTransition
from remora.plugin import Failure, FailureKind, JobState, Observation, TaskDefinition, TaskKey

MAX_JSON_BYTES = 256 * 1024
"""Upper bound of parameters and of outputs, as UTF-8."""


class TaskState(StrEnum):
    """Where a task is. See the drawing above."""

    ACCEPTED = "ACCEPTED"
    SUBMITTING = "SUBMITTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    RELEASED = "RELEASED"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the task here."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.RELEASED})


class Step(StrEnum):
    """What the engine does next for a task."""

    SUBMIT = "SUBMIT"
    STOP = "STOP"
    OBSERVE = "OBSERVE"
    NOTHING = "NOTHING"


class StopCause(StrEnum):
    """Why a task was asked to end."""

    CANCEL = "CANCEL"
    TIMEOUT = "TIMEOUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """The wish that a task ends."""

    cause: StopCause
    reason: str
    requested_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A definition handed to this worker by a door."""

    definition: TaskDefinition
    door: str
    """Which door it came through, and to which it is reported."""
    fencing_token: int = 0
    """Above 1 an earlier holder may have created the job; 0 is a person's."""
    handle: str | None = None
    """The handle, as JSON text, that an earlier holder reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """A whole snapshot of a task, without its parameters, which never change and stay in the journal."""

    key: TaskKey
    door: str
    state: TaskState
    sequence: int
    """Grows by one with every change, from 1."""
    created_at: float
    """Seconds since the epoch, as all times here."""
    updated_at: float
    task_type: str = ""
    """Empty for a tombstone."""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout: float | None = None
    fencing_token: int = 0
    detail: str = ""
    handle: str = ""
    """JSON text; empty before it was prepared."""
    outputs: str = ""
    """JSON text; empty while there are none."""
    failure: Failure | None = None
    stop: Stop | None = None
    started_at: float | None = None
    finished_at: float | None = None
    log_cursor: str = ""
    """Where to read on in the remote job's own log."""

    @property
    def deadline(self) -> float | None:
        """When the timeout passes, in seconds since the epoch."""
        return None if self.timeout is None else self.created_at + self.timeout


def next_step(record: TaskRecord) -> Step:
    """Decide what is to be done now. A job that may exist is found before it is stopped."""
    if record.state in (TaskState.ACCEPTED, TaskState.SUBMITTING):
        return Step.SUBMIT
    if record.state is TaskState.RUNNING:
        return Step.OBSERVE if record.stop is None else Step.STOP
    return Step.NOTHING


def accepted(assignment: Assignment, handle: str, now: float) -> TaskRecord:
    """Return the first record of a task whose job is named and may now be created."""
    return replace(_born(assignment, now), state=TaskState.ACCEPTED, handle=handle)


def adopted(assignment: Assignment, handle: str, now: float) -> TaskRecord:
    """Return the first record of a task whose job an earlier holder may have created."""
    return replace(_born(assignment, now), state=TaskState.SUBMITTING, handle=handle, detail="looking for its job")


def born_failed(assignment: Assignment, failure: Failure, now: float) -> TaskRecord:
    """Return the first and last record of a task that cannot work."""
    return replace(_born(assignment, now), state=TaskState.FAILED, failure=failure, finished_at=now, detail="refused")


def tombstone(key: TaskKey, door: str, stop: Stop, *, fencing_token: int) -> TaskRecord:
    """Return the record of a task that was cancelled before it was seen."""
    now = stop.requested_at
    return TaskRecord(
        key=key,
        door=door,
        state=TaskState.CANCELLED,
        sequence=1,
        created_at=now,
        updated_at=now,
        finished_at=now,
        stop=stop,
        fencing_token=fencing_token,
        detail="cancelled before it was dispatched",
    )


def reassigned(record: TaskRecord, assignment: Assignment, handle: str, now: float) -> TaskRecord:
    """Hold the same task under a higher token. One that was released is ours again: its job is found by its name.

    The same record where the token is not higher, so that a dispatch that was late or repeated takes nothing back.
    """
    if assignment.fencing_token <= record.fencing_token:
        return record
    base = replace(record, door=assignment.door, fencing_token=assignment.fencing_token)
    if record.state is not TaskState.RELEASED:
        return _next(base, now)
    return _next(base, now, state=TaskState.SUBMITTING, handle=handle, finished_at=None, detail="taken back")


def submitting(record: TaskRecord, now: float) -> TaskRecord:
    """From here on the remote job may exist."""
    _require(record, TaskState.ACCEPTED, TaskState.SUBMITTING)
    return _next(record, now, state=TaskState.SUBMITTING, detail="creating the job")


def refused(record: TaskRecord, detail: str, now: float) -> TaskRecord:
    """The service said that it created nothing, and may create it later."""
    _require(record, TaskState.SUBMITTING)
    if record.stop is not None:
        return _stopped(record, record.stop, None, now)
    return _next(record, now, state=TaskState.ACCEPTED, detail=detail)


def running(record: TaskRecord, handle: str, now: float) -> TaskRecord:
    """The remote job exists."""
    _require(record, TaskState.SUBMITTING)
    detail = "started" if record.stop is None else record.detail
    return _next(record, now, state=TaskState.RUNNING, handle=handle, started_at=now, detail=detail)


def noted(record: TaskRecord, detail: str, now: float) -> TaskRecord:
    """Something worth saying, no move. The same record where it says so already."""
    return record if record.detail == detail else _next(record, now, detail=detail)


def stop_wished(record: TaskRecord, stop: Stop) -> TaskRecord:
    """Wish an end. Where no job exists that is the end; the first wish stands, and a final task is left alone."""
    if record.state.final or record.stop is not None:
        return record
    if record.state is TaskState.ACCEPTED:
        return _stopped(record, stop, None, stop.requested_at)
    return _next(record, stop.requested_at, stop=stop, detail=f"stopping: {stop.reason}")


def observed(record: TaskRecord, observation: Observation[Any], *, handle: str, now: float) -> TaskRecord:
    """Take what was seen of the remote job. The same record where nothing changed."""
    _require(record, TaskState.RUNNING)
    detail = observation.detail or record.detail
    if observation.state is JobState.RUNNING:
        if record.stop is not None:
            detail = f"stopping: {record.stop.reason}"
        if (detail, handle) == (record.detail, record.handle):
            return record
        return _next(record, now, detail=detail, handle=handle)
    base = replace(record, handle=handle, detail=detail, outputs=_text(observation.outputs))
    if observation.state is JobState.SUCCEEDED:
        return _next(base, now, state=TaskState.SUCCEEDED, finished_at=now)
    if observation.state is JobState.STOPPED and record.stop is not None:
        return _stopped(base, record.stop, observation.failure, now)
    failure = observation.failure or Failure(kind=FailureKind.EXECUTION, code=observation.state, message=detail)
    return _next(base, now, state=TaskState.FAILED, failure=failure, finished_at=now)


def log_read(record: TaskRecord, cursor: str, now: float) -> TaskRecord:
    """The remote job's own log was read up to here."""
    return record if record.log_cursor == cursor else _next(record, now, log_cursor=cursor)


def failed(record: TaskRecord, failure: Failure, now: float) -> TaskRecord:
    """The task cannot succeed."""
    if record.state.final:
        msg = f"{record.key} is {record.state} and cannot fail"
        raise IllegalTransition(msg)
    return _next(record, now, state=TaskState.FAILED, failure=failure, finished_at=now, detail=failure.message)


def released(record: TaskRecord, now: float) -> TaskRecord:
    """Another worker has the task. The remote job goes on; what has ended here stays as it is."""
    if record.state.final:
        return record
    return _next(record, now, state=TaskState.RELEASED, finished_at=now, detail="another worker has it")


def _born(assignment: Assignment, now: float) -> TaskRecord:
    definition = assignment.definition
    return TaskRecord(
        key=definition.key,
        door=assignment.door,
        state=TaskState.ACCEPTED,
        sequence=1,
        created_at=now,
        updated_at=now,
        task_type=definition.task_type,
        name=definition.name or definition.key.task_id,
        labels=definition.labels,
        timeout=definition.timeout,
        fencing_token=assignment.fencing_token,
        detail="accepted",
    )


def _stopped(record: TaskRecord, stop: Stop, seen: Failure | None, now: float) -> TaskRecord:
    if stop.cause is StopCause.CANCEL:
        detail = f"cancelled: {stop.reason}"
        return _next(record, now, state=TaskState.CANCELLED, stop=stop, finished_at=now, detail=detail)
    failure = Failure(
        kind=FailureKind.TIMEOUT,
        code="Timeout",
        message=stop.reason,
        details=seen.details if seen else {},
    )
    return _next(record, now, state=TaskState.FAILED, stop=stop, failure=failure, finished_at=now, detail=stop.reason)


def _next(record: TaskRecord, now: float, **changes: object) -> TaskRecord:
    return replace(record, sequence=record.sequence + 1, updated_at=now, **changes)  # type: ignore[arg-type]  # field names are checked by replace


def _require(record: TaskRecord, *states: TaskState) -> None:
    if record.state not in states:
        msg = f"{record.key} is {record.state}, not {' or '.join(states)}"
        raise IllegalTransition(msg)


def _text(outputs: Mapping[str, JsonValue] | None) -> str:
    if outputs is None:
        return ""
    try:
        text = json.dumps(outputs, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        problem = f"the outputs are not JSON: {error}"
    else:
        if size <= MAX_JSON_BYTES:
            return text
        problem = f"the outputs have {size} bytes, more than the {MAX_JSON_BYTES} that are kept"
    # The job did what it should: that stands, and what it produced can be found by its handle.
    return json.dumps({"error": problem})
