"""The logs of attempts: sent by one worker after another, read as one text.

A worker counts bytes in its own log of the attempt; the file here holds what all of them sent, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from remora.errors import Fenced, InvalidRequest, StorageUnavailable
from remora.pace import wait_for
from remora.plugin import Clock, TaskKey
from remora.scheduler import state
from remora.scheduler.runs import Runs
from remora.tasklog import TaskLogs

_LAST_LINES = 2.0
"""Seconds after its end for the last lines of a task to come: logs and reports travel side by side."""
_HOUSEKEEPING = 600.0
"""Seconds between deletions of what is past its retention."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPage:
    """A piece of the log of an attempt."""

    text: str
    next_offset: int
    done: bool
    attempt: int
    """0 where there was none yet."""


class RunLogs:
    """The logs of all runs."""

    def __init__(self, runs: Runs, files: TaskLogs, clock: Clock) -> None:
        """Take the files, which somebody else closes."""
        self._runs = runs
        self._files = files
        self._clock = clock

    def wake(self) -> None:
        """Let those who wait look again: the server stops."""
        self._files.grew.notify()

    async def append(self, key: TaskKey, worker_id: str, offset: int, text: str) -> int:
        """Append to a log if it ends at the worker's offset; return where it ends.

        Holds the turn, so that no log grows while its task is handed to another worker.

        Raises:
            Fenced: another worker has the task, or nobody knows it.
            StorageUnavailable: the disk refuses.
        """
        async with self._runs.turn:
            run = await self._runs.find(state.names_of(key.task_id)[0])
            attempt = None if run is None else state.attempt_of(run, key)
            if attempt is None or attempt.worker_id != worker_id:
                raise Fenced(f"{key} belongs to another worker now, or is unknown")
            base = attempt.log_base
            try:
                end = await (self._files.append_at(key, base + offset, text) if text else self._files.size(key))
            except OSError as error:
                raise StorageUnavailable(f"the log of {key} cannot be written: {error.strerror}") from error
            return end - base

    async def read(self, run_id: str, name: str, attempt: int, *, offset: int, limit: int, wait: float) -> LogPage:
        """Return a piece of the log of an attempt, 0 being the latest, as soon as there is one or the time is over.

        Raises:
            RunNotFound: there is no such run.
            InvalidRequest: the run has no such task or attempt.
        """
        deadline = self._clock.monotonic() + wait
        while True:
            grew, changed = self._files.grew.listen(), self._runs.changed.listen()
            page = await self._page(run_id, name, attempt, offset=offset, limit=limit)
            left = deadline - self._clock.monotonic()
            if page.text or page.done or left <= 0 or self._runs.closed:
                return page
            # Until it has begun a log does not grow.
            await wait_for(grew if page.attempt else changed, min(left, _LAST_LINES), self._clock)

    async def size(self, key: TaskKey) -> int:
        """Return the bytes of the log of an attempt."""
        return await self._files.size(key)

    async def forget(self, retention: float) -> None:
        """Delete runs and their logs so many seconds after their end, for ever."""
        while True:
            try:
                while forgotten := await self._runs.forget(self._clock.now() - retention):
                    await self._files.remove([key for run in forgotten for key in run.attempt_keys()])
            except (StorageUnavailable, OSError) as error:
                log.error("runs_not_forgotten", error=str(error))  # noqa: TRY400 -- no defect
            await self._clock.sleep(_HOUSEKEEPING)

    async def _page(self, run_id: str, name: str, attempt: int, *, offset: int, limit: int) -> LogPage:
        run = await self._runs.get(run_id)
        node = run.nodes.get(name)
        if node is None:
            raise InvalidRequest({"task_name": f"the run has no task {name!r}"}, reason="REQUEST_INVALID")
        number = attempt or len(node.attempts)
        if number > len(node.attempts):
            raise InvalidRequest({"attempt": f"the task has had {len(node.attempts)}"}, reason="REQUEST_INVALID")
        if number == 0:
            return LogPage(text="", next_offset=0, done=node.state.final, attempt=0)
        key = run.key(name, number)
        text, end = await self._files.read(key, offset=offset, limit=limit)
        ended_at = node.attempts[number - 1].ended_at
        complete = ended_at is not None and self._clock.now() >= ended_at + _LAST_LINES
        return LogPage(text=text, next_offset=end, done=complete and end >= await self._files.size(key), attempt=number)
