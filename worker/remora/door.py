"""The contract between the worker and its scheduler doors.

A door is how one kind of scheduler reaches the worker: it translates that scheduler's messages into the calls below
and what happened back into messages. It holds no task state in memory that the journal does not have. The gRPC
server and the session of the embedded scheduler are doors like any other and use nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from remora.plugin import Clock, TaskDefinition, TaskKey
from remora.task import Assignment, TaskRecord, TaskState

__all__ = [
    "Assignment",
    "ChangePage",
    "Clock",
    "Door",
    "DoorNotes",
    "LogChunk",
    "TaskDefinition",
    "TaskFilter",
    "TaskKey",
    "TaskPage",
    "TaskRecord",
    "TaskService",
    "TaskState",
    "TaskTypeInfo",
    "WorkerInfo",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskTypeInfo:
    """One kind of task that the worker can run."""

    name: str
    title: str
    schema: str
    """JSON Schema of the parameters, as JSON text."""
    permissions: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerInfo:
    """What the worker is. Constant while it runs."""

    worker_id: str
    instance_id: str
    """New with every start of the process."""
    version: str
    capacity: int
    """How many unfinished tasks it takes."""
    task_types: Sequence[TaskTypeInfo]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFilter:
    """Chooses tasks; each empty field chooses all."""

    states: frozenset[TaskState] = frozenset()
    task_type: str = ""
    task_id_prefix: str = ""
    door: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPage:
    """A page of records, oldest acceptance first."""

    records: Sequence[TaskRecord]
    next_token: str
    """For the next page; empty: this was the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangePage:
    """Records in the order of their latest change."""

    records: Sequence[TaskRecord]
    position: int
    """To go on from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogChunk:
    """A piece of a task's log."""

    text: str
    """Whole lines; a line longer than the limit comes in pieces."""
    next_offset: int
    """The byte after the text."""
    done: bool
    """True when the task has ended and nothing follows."""


class DoorNotes(Protocol):
    """A door's own durable notes, one short text per task. Gone when the task is forgotten."""

    async def read_all(self) -> Mapping[TaskKey, str]:
        """Return every note of this door."""
        ...

    async def write(self, notes: Mapping[TaskKey, str]) -> None:
        """Make the notes durable in one commit. A note for a task that is gone is dropped."""
        ...


class TaskService(Protocol):
    """What the engine offers every door. What was begun is ended, even when the caller is cancelled."""

    async def accept(self, assignment: Assignment) -> TaskRecord:
        """Take a task; it is on disk when this returns. The same key again gives the same record.

        Parameters that cannot work give a record in state FAILED.

        Raises:
            InvalidRequest: the assignment itself is malformed.
            UnknownTaskType: no handler.
            TaskConflict: the key is taken by another definition.
            Fenced: the token is lower than the one known.
            WorkerFull, WorkerDraining, StorageUnavailable: nothing was taken.
        """
        ...

    async def cancel(self, key: TaskKey, *, door: str, fencing_token: int, reason: str) -> TaskRecord:
        """Wish an end; the wish is on disk when this returns. Token 0 is a person's and is never fenced.

        Raises:
            InvalidRequest: the key is malformed.
            Fenced: the token is lower than the one known.
            StorageUnavailable: nothing was changed.
        """
        ...

    async def release(self, key: TaskKey, *, fencing_token: int) -> None:
        """Stop following a task that another worker holds under a higher token than this. Its job goes on."""
        ...

    async def get(self, key: TaskKey) -> TaskRecord:
        """Return the record, or raise TaskNotFound."""
        ...

    async def definition(self, key: TaskKey) -> TaskDefinition | None:
        """Return what was accepted, None for a tombstone, or raise TaskNotFound."""
        ...

    async def list(self, chosen: TaskFilter, *, limit: int, token: str = "") -> TaskPage:
        """Return a page of records. Raises InvalidRequest for a token that is not one of ours."""
        ...

    async def changes(self, after: int, *, door: str = "", limit: int = 100, wait: float = 0.0) -> ChangePage:
        """Return every record that changed after a position, whole; waits so many seconds for the first one.

        Positions count the changes of the journal from 1. Only the latest state of each record is kept, so
        intermediate ones may be skipped.
        """
        ...

    @property
    def journal_id(self) -> str:
        """Names the journal that positions belong to; another after the data directory was lost."""
        ...

    async def read_log(self, key: TaskKey, *, offset: int, limit: int) -> LogChunk:
        """Return a piece of a task's log, or raise TaskNotFound."""
        ...

    async def wait_log(self, key: TaskKey, *, offset: int, seconds: float) -> None:
        """Return when the log is longer than the offset, or the task has ended, or the time is over."""
        ...

    def notes(self, door: str) -> DoorNotes:
        """Return a door's own durable notes."""
        ...

    @property
    def active(self) -> int:
        """How many unfinished tasks the worker holds."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the worker takes no more tasks."""
        ...

    def drain(self, reason: str) -> None:
        """Take no more tasks from now on. What runs goes on."""
        ...


class Door(ABC):
    """What an entry point in the group ``remora.doors`` names: settings, and a way in while it is open."""

    name: ClassVar[str]
    """Its properties are ``door.<name>.*``; it runs if ``worker.doors`` lists it."""
    settings: type[BaseModel]
    """As :attr:`remora.plugin.Plugin.settings`."""

    @abstractmethod
    def open(
        self,
        settings: Any,  # noqa: ANN401 -- the door's own model
        tasks: TaskService,
        worker: WorkerInfo,
        clock: Clock,
    ) -> AbstractAsyncContextManager[None]:
        """Begin to serve on entry, stop on exit.

        A door that can no longer do its work raises out of the context manager's body by ending its own task group;
        that stops the worker.
        """
