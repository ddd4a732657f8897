"""The unfinished tasks as they are on disk, and the one way to change a task.

A change is a pure move from :mod:`remora.task`, a durable write, then this memory: one at a time for each key, and
never half done, even when the caller is cancelled. A write that fails leaves both as they were.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import structlog

from remora.journal import Journal
from remora.metrics import Metrics
from remora.pace import completed
from remora.plugin import Clock, TaskDefinition, TaskKey
from remora.task import TaskRecord
from remora.tasklog import TaskLogs

log = structlog.get_logger(__name__)

Move = Callable[[TaskRecord, float], TaskRecord]
"""Takes a record and the time; gives the next record, or the same one for no change."""


class Ledger:
    """Unfinished tasks by key."""

    def __init__(self, journal: Journal, logs: TaskLogs, clock: Clock, metrics: Metrics) -> None:
        """Start empty; :meth:`hold` what the journal has."""
        self._journal = journal
        self._logs = logs
        self._clock = clock
        self._metrics = metrics
        self._live: dict[TaskKey, TaskRecord] = {}
        self._locks: weakref.WeakValueDictionary[TaskKey, asyncio.Lock] = weakref.WeakValueDictionary()
        self.on_final: list[Callable[[TaskRecord], None]] = []
        """Called with each task that reaches a final state."""

    def __len__(self) -> int:
        return len(self._live)

    def get(self, key: TaskKey) -> TaskRecord | None:
        """Return an unfinished task, or None."""
        return self._live.get(key)

    def hold(self, record: TaskRecord) -> None:
        """Remember an unfinished task that is on disk."""
        self._live[record.key] = record
        self._metrics.active.set(len(self._live))

    async def insert(self, record: TaskRecord, definition: TaskDefinition | None) -> TaskRecord:
        """Write a new task; return it, or the one that has its key already.

        Raises:
            StorageUnavailable: nothing was written.
        """
        # Under the lock, because who finds the task on disk already must not find it missing here.
        async with self._locks.setdefault(record.key, asyncio.Lock()):
            written = await self._journal.insert(record, definition)
            if written is record:
                if record.state.final:
                    self._tell_end(record)
                else:
                    self.hold(record)
            return written

    async def change(self, key: TaskKey, move: Move, *, finished: bool = False) -> TaskRecord | None:
        """Move a task; return it as it is then. None if it is not unfinished; with `finished` those move too.

        Raises:
            StorageUnavailable: nothing was changed.
        """
        before = self._live.get(key)
        if key not in self._locks:
            if before is None and not finished:
                return None
            if before is not None and move(before, self._clock.now()) is before:
                return before  # nothing to write, as mostly when a job was looked at
        return await completed(self._change(key, move, finished=finished))

    async def say(self, key: TaskKey, *lines: str, level: str = "INFO") -> None:
        """Write to the task's log. A disk that refuses a line must not stop the task."""
        if not lines:
            return
        try:
            await self._logs.append(key, lines, level=level)
        except OSError as error:
            # With the lines, so that they are in the worker's own log at least.
            log.error("task_log_not_written", task_id=key.task_id, error=str(error), lines=lines)  # noqa: TRY400 -- no defect

    async def _change(self, key: TaskKey, move: Move, *, finished: bool) -> TaskRecord | None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            before = self._live.get(key)
            if before is None and finished:
                before = await self._journal.get(key)
            if before is None:
                return None
            after = move(before, self._clock.now())
            if after is not before:
                await self._journal.update(after)
                self._remember(before, after)
            return after

    def _remember(self, before: TaskRecord, after: TaskRecord) -> None:
        if not after.state.final:
            self.hold(after)
            return
        self._live.pop(after.key, None)
        self._metrics.active.set(len(self._live))
        if before.state.final:
            return
        self._tell_end(after)
        for forget in self.on_final:
            forget(after)
        self._logs.grew.notify()  # who follows the log learns that nothing follows

    def _tell_end(self, after: TaskRecord) -> None:
        self._metrics.finished.labels(after.task_type, after.state).inc()
        log.info(
            "task_finished",
            task_id=after.key.task_id,
            attempt=after.key.attempt,
            state=after.state,
            detail=after.failure.message if after.failure else after.detail,
        )
