"""What a worker does for its doors: accept, cancel, tell; and what it does by itself: recover, time out, forget.

The journal is the truth and the ledger its unfinished part; the driver creates and stops jobs, the observers follow
them. The engine joins these.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from remora import task as moves
from remora.door import Assignment, ChangePage, DoorNotes, LogChunk, TaskFilter, TaskPage
from remora.driver import Driver
from remora.errors import Fenced, StorageUnavailable, TaskConflict, TaskNotFound, WorkerDraining, WorkerFull
from remora.journal import Journal
from remora.ledger import Ledger, Move
from remora.metrics import Metrics
from remora.observer import Observer
from remora.pace import Timetable, completed, wait_for
from remora.plugin import Clock, Failure, JobState, LogSource, Observation, TaskDefinition, TaskKey
from remora.registry import AnyHandler, Registry, classify, parse
from remora.task import Stop, StopCause, TaskRecord, TaskState
from remora.tasklog import TaskLogs

log = structlog.get_logger(__name__)

_HOUSEKEEPING = 600.0
"""Seconds between deletions of what is past its retention, and between tries of a timeout that the disk refused."""
_LOG_PAGES = 100
"""Of a job's own log at one look; while it runs, the rest comes with the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How much, and how long in seconds."""

    capacity: int = 10_000
    """Unfinished tasks."""
    submit_concurrency: int = 16
    """Of each task type."""
    drain: float = 20.0
    """Wait for calls under way when the worker stops."""
    capacity_wait: float = 24 * 3600.0
    """Wait for a quota or capacity before a task fails."""
    retention: float = 7 * 24 * 3600.0
    """Keep ended tasks."""


class Engine:
    """The :class:`remora.door.TaskService` of a worker."""

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        logs: TaskLogs,
        clock: Clock,
        metrics: Metrics,
        settings: EngineSettings,
    ) -> None:
        """Use :meth:`open`."""
        self._journal = journal
        self._registry = registry
        self._logs = logs
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._ledger = Ledger(journal, logs, clock, metrics)
        self._observers = {name: Observer(handler, self, clock, metrics) for name, handler in registry.handlers.items()}
        self._log_sources: Mapping[str, LogSource[Any]] = {
            name: handler for name, handler in registry.handlers.items() if isinstance(handler, LogSource)
        }
        self._driver = Driver(
            self._ledger,
            journal,
            registry,
            clock,
            metrics,
            capacity_wait=settings.capacity_wait,
            observe=lambda record: self._observers[record.task_type].watch(record, soon=True),
        )
        self._deadlines = Timetable[TaskKey](clock)
        self._ledger.on_final.append(self._ended)
        self._found: set[TaskKey] = set()
        """Jobs that ran at the start and were not looked at since."""
        self._arriving = 0
        self._draining = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        journal: Journal,
        registry: Registry,
        logs: TaskLogs,
        clock: Clock,
        *,
        metrics: Metrics | None = None,
        settings: EngineSettings | None = None,
    ) -> AsyncGenerator[Engine]:
        """Go on with every unfinished task; on exit finish the calls under way within the budget.

        A loop that dies cancels the block and is raised as an ExceptionGroup; what the block raises stays as it is.
        Remote jobs go on without the engine.
        """
        engine = cls(journal, registry, logs, clock, metrics or Metrics(), settings or EngineSettings())
        await engine._recover()
        raised: Exception | None = None
        async with asyncio.TaskGroup() as group:
            loops = engine._driver.start(group, engine._settings.submit_concurrency)
            loops += [
                group.create_task(engine._expire(), name="time tasks out"),
                group.create_task(engine._forget(), name="forget tasks"),
            ]
            for name, observer in engine._observers.items():
                loops += [
                    group.create_task(observer.run(), name=f"observe {name}"),
                    group.create_task(observer.listen(), name=f"listen {name}"),
                ]
            try:
                yield engine
            except Exception as error:  # noqa: BLE001 -- raised below, where the task group cannot wrap it
                raised = error
            finally:
                engine.drain("the worker stops")
                await engine._driver.finish(engine._settings.drain)
                for loop in loops:
                    loop.cancel()
        if raised is not None:
            raise raised

    # For doors: see remora.door.TaskService.

    async def accept(self, assignment: Assignment) -> TaskRecord:
        """Take a task; it is on disk when this returns. A caller who goes leaves no task that nobody drives."""
        return await completed(self._accept(assignment))

    async def _accept(self, assignment: Assignment) -> TaskRecord:
        key = assignment.definition.key
        full = len(self._ledger) + self._arriving >= self._settings.capacity
        unknown = assignment.definition.task_type not in self._registry.handlers
        # A repeated dispatch is answered even by a worker that takes nothing new.
        if self._ledger.get(key) or ((full or unknown or self._draining) and await self._journal.get(key)):
            return await self._accept_again(assignment)
        if self._draining:
            raise WorkerDraining("the worker is stopping and takes no new tasks")
        if full:
            raise WorkerFull(f"the worker holds {len(self._ledger)} tasks, all that worker.capacity allows")
        record = self._born(assignment, self._registry.handler(assignment.definition.task_type))
        self._arriving += 1
        try:
            taken = await self._ledger.insert(record, assignment.definition)
        finally:
            self._arriving -= 1
        if taken is not record:
            return await self._accept_again(assignment)
        self._metrics.accepted.labels(record.task_type).inc()
        if record.failure is not None:
            await self._ledger.say(key, f"refused: {record.failure.message}", level="ERROR")
        self._resume(record)
        return record

    async def cancel(self, key: TaskKey, *, door: str, fencing_token: int, reason: str) -> TaskRecord:
        """Wish an end; the wish is on disk when this returns, and is carried out even if the caller goes."""
        return await completed(self._cancel(key, door, fencing_token, reason))

    async def _cancel(self, key: TaskKey, door: str, fencing_token: int, reason: str) -> TaskRecord:
        stop = Stop(cause=StopCause.CANCEL, reason=reason or "no reason given", requested_at=self._clock.now())
        record = self._ledger.get(key) or await self._journal.get(key)
        if record is None:
            record = await self._ledger.insert(moves.tombstone(key, door, stop, fencing_token=fencing_token), None)
        _refuse_stale(record, fencing_token)
        return await self._stop(key, stop, fencing_token=fencing_token) or await self.get(key)

    async def release(self, key: TaskKey, *, fencing_token: int) -> None:
        """Stop following a task that another worker holds under a higher token than this."""

        def let_go(record: TaskRecord, now: float) -> TaskRecord:
            return moves.released(record, now) if record.fencing_token <= fencing_token else record

        record = self._ledger.get(key)
        if record is not None and record.fencing_token <= fencing_token:
            await self._ledger.say(key, "another worker has this task now; its job goes on")
            await self._ledger.change(key, let_go)

    async def get(self, key: TaskKey) -> TaskRecord:
        """Return the record, or raise TaskNotFound."""
        record = self._ledger.get(key) or await self._journal.get(key)
        if record is None:
            raise TaskNotFound(f"{key}: never seen here, or past its retention")
        return record

    async def definition(self, key: TaskKey) -> TaskDefinition | None:
        """Return what was accepted, None for a tombstone, or raise TaskNotFound."""
        await self.get(key)
        return await self._journal.definition(key)

    async def list(self, chosen: TaskFilter, *, limit: int, token: str = "") -> TaskPage:
        """Return a page of records."""
        return await self._journal.list(chosen, limit=limit, token=token)

    async def changes(self, after: int, *, door: str = "", limit: int = 100, wait: float = 0.0) -> ChangePage:
        """Return every record that changed after a position; waits so many seconds for the first one."""
        return await self._journal.changes(after, door=door, limit=limit, wait=wait)

    @property
    def journal_id(self) -> str:
        """Names the journal that positions belong to."""
        return self._journal.id

    async def read_log(self, key: TaskKey, *, offset: int, limit: int) -> LogChunk:
        """Return a piece of a task's log, or raise TaskNotFound."""
        # The state first: a task that was final before the log is read writes nothing after.
        final = (await self.get(key)).state.final
        text, end = await self._logs.read(key, offset=offset, limit=limit)
        # A last line that was torn by a crash is never shown, and must not keep the reader.
        return LogChunk(text=text, next_offset=end, done=final and (not text or end >= await self._logs.size(key)))

    async def wait_log(self, key: TaskKey, *, offset: int, seconds: float) -> None:
        """Return when the log is longer than the offset, or the task has ended, or the time is over."""
        deadline = self._clock.monotonic() + seconds
        while True:
            grew = self._logs.grew.listen()
            if (await self.get(key)).state.final or await self._logs.size(key) > offset:
                return
            if not await wait_for(grew, deadline - self._clock.monotonic(), self._clock):
                return

    def notes(self, door: str) -> DoorNotes:
        """Return a door's own durable notes."""
        return _Notes(self._journal, door)

    @property
    def active(self) -> int:
        """How many unfinished tasks the worker holds."""
        return len(self._ledger)

    @property
    def draining(self) -> bool:
        """Whether the worker takes no more tasks."""
        return self._draining

    def drain(self, reason: str) -> None:
        """Take no more tasks from now on."""
        if not self._draining:
            self._draining = True
            log.info("draining", reason=reason, active=len(self._ledger))

    # For observers: see remora.observer.Follower.

    def record(self, key: TaskKey) -> TaskRecord | None:
        """Return an unfinished task as it is on disk, or None."""
        return self._ledger.get(key)

    async def seen(self, key: TaskKey, observation: Observation[Any]) -> None:
        """Take what a job showed."""
        record = self._ledger.get(key)
        if record is None or record.state is not TaskState.RUNNING:
            return
        handle = record.handle if observation.handle is None else observation.handle.model_dump_json()
        # Lines first: who sees a final state must find the whole log.
        if key in self._found:
            self._found.discard(key)
            await self._ledger.say(key, "the worker was started again and goes on following the job")
        await self._ledger.say(key, *observation.log)
        if source := self._log_sources.get(record.task_type):
            await self._copy_job_log(record, source, handle, last=observation.state is not JobState.RUNNING)
        if observation.state is not JobState.RUNNING:
            expected = observation.state is JobState.SUCCEEDED or record.stop is not None
            level = "INFO" if expected else "ERROR"
            await self._ledger.say(key, _epitaph(record, observation, self._clock.now()), level=level)
        await self._ledger.change(
            key, lambda current, now: moves.observed(current, observation, handle=handle, now=now)
        )

    async def unseen(self, key: TaskKey, failure: Failure) -> None:
        """Take why a job could not be looked at."""
        detail = f"cannot see the job: {failure.message}"
        record = self._ledger.get(key)
        if record is not None and record.detail != detail:
            await self._ledger.say(key, detail, level="WARN")
            await self._ledger.change(key, lambda current, now: moves.noted(current, detail, now))

    # The rest is the engine's own.

    def _born(self, assignment: Assignment, handler: AnyHandler) -> TaskRecord:
        """Parse and name; what cannot work is born failed."""
        definition, now = assignment.definition, self._clock.now()
        try:
            handle = handler.prepare(definition, parse(handler, definition.parameters)).model_dump_json()
        except Exception as error:  # noqa: BLE001 -- a plugin may raise anything; asked again it would raise it again
            return moves.born_failed(assignment, classify(handler, error), now)
        known = _known_handle(handler, assignment)
        if assignment.fencing_token > 1 or known not in (None, handle):
            # An earlier holder may have created the job, whether it told of it or not.
            return moves.adopted(assignment, known or handle, now)
        return moves.accepted(assignment, handle, now)

    async def _accept_again(self, assignment: Assignment) -> TaskRecord:
        """Answer a dispatch of a key that is known."""
        record = await self.get(assignment.definition.key)
        known = await self._journal.definition(record.key)
        if known is None:
            return record  # cancelled before it was seen, and so it stays
        if replace(known, name=assignment.definition.name) != assignment.definition:
            raise TaskConflict(f"{record.key} is known with another definition; use a new task id or attempt")
        _refuse_stale(record, assignment.fencing_token)
        if record.fencing_token >= assignment.fencing_token:
            return record
        handle = _known_handle(self._registry.handler(record.task_type), assignment) or record.handle

        def take(current: TaskRecord, now: float) -> TaskRecord:
            _refuse_stale(current, assignment.fencing_token)
            return moves.reassigned(current, assignment, handle, now)

        taken = await self._ledger.change(record.key, take, finished=True)
        assert taken is not None, "it is on disk"
        self._resume(taken)
        return taken

    async def _stop(self, key: TaskKey, stop: Stop, *, fencing_token: int = 0) -> TaskRecord | None:
        def wish(record: TaskRecord, _: float) -> TaskRecord:
            _refuse_stale(record, fencing_token)
            return moves.stop_wished(record, stop)

        before = self._ledger.get(key)
        if before is not None and before.stop is None:
            # The line first: who sees a final state must find the whole log.
            await self._ledger.say(key, f"stop requested ({stop.cause.lower()}): {stop.reason}", level="WARN")
        after = await self._ledger.change(key, wish)
        if after is not None and after.stop is stop:
            self._driver.go_on(after)
        return after

    def _resume(self, record: TaskRecord) -> None:
        """Set out what a task that is unfinished needs from now on."""
        if record.deadline is not None and not record.state.final:
            self._deadlines.set(record.key, record.deadline - self._clock.now())
        self._driver.go_on(record)

    def _ended(self, record: TaskRecord) -> None:
        self._deadlines.discard(record.key)
        self._found.discard(record.key)
        if observer := self._observers.get(record.task_type):
            observer.forget(record.key)

    async def _copy_job_log(self, record: TaskRecord, source: LogSource[Any], handle: str, *, last: bool) -> None:
        """Append the job's own lines from where the journal says; `last` if nobody will look again."""
        handler = self._registry.handlers[record.task_type]
        cursor = record.log_cursor
        for _ in range(_LOG_PAGES):
            try:
                page = await source.read_logs(handler.handle.model_validate_json(handle), cursor)
            except Exception as error:  # noqa: BLE001 -- a log that cannot be read must not hide the state
                log.warning("job_log_not_read", task_id=record.key.task_id, error=repr(error))
                return
            cursor = page.cursor
            await self._ledger.say(record.key, *page.lines)
            await self._ledger.change(record.key, _read_to(cursor))
            if page.done or not page.lines:
                return
        if last:
            await self._ledger.say(record.key, "the job's own log goes on; the rest of it was not copied", level="WARN")

    async def _recover(self) -> None:
        for record in await self._journal.unfinished():
            if record.task_type not in self._registry.handlers:
                log.error("task_without_plugin", task_id=record.key.task_id, task_type=record.task_type)
            if record.state is TaskState.RUNNING:
                self._found.add(record.key)
            self._ledger.hold(record)
            self._resume(record)
        log.info("recovered", active=len(self._ledger))

    async def _expire(self) -> None:
        while True:
            for key in await self._deadlines.take():
                record = self._ledger.get(key)
                if record is None:
                    continue
                reason = f"the task did not end within its timeout of {record.timeout:g} s"
                stop = Stop(cause=StopCause.TIMEOUT, reason=reason, requested_at=self._clock.now())
                try:
                    await self._stop(key, stop)
                except StorageUnavailable as error:
                    log.error("storage_unavailable", error=str(error), task_id=key.task_id)  # noqa: TRY400 -- no defect
                    self._deadlines.set(key, _HOUSEKEEPING)

    async def _forget(self) -> None:
        while True:
            try:
                forgotten = await self._journal.forget(self._clock.now() - self._settings.retention)
                await self._logs.remove(forgotten)
            except (StorageUnavailable, OSError) as error:
                log.error("tasks_not_forgotten", error=str(error))  # noqa: TRY400 -- no defect
                forgotten = ()
            if not forgotten:
                await self._clock.sleep(_HOUSEKEEPING)


class _Notes:
    """The notes of one door."""

    def __init__(self, journal: Journal, door: str) -> None:
        self._journal = journal
        self._door = door

    async def read_all(self) -> Mapping[TaskKey, str]:
        return await self._journal.read_notes(self._door)

    async def write(self, notes: Mapping[TaskKey, str]) -> None:
        await self._journal.write_notes(self._door, notes)


def _refuse_stale(record: TaskRecord, fencing_token: int) -> None:
    if 0 < fencing_token < record.fencing_token:
        raise Fenced(f"{record.key} is held under token {record.fencing_token}, which is higher than {fencing_token}")


def _known_handle(handler: AnyHandler, assignment: Assignment) -> str | None:
    """Return the handle of an earlier holder, if it is one of this handler's."""
    if not assignment.handle:
        return None
    try:
        return str(handler.handle.model_validate_json(assignment.handle).model_dump_json())
    except ValueError as error:
        log.warning("handle_not_understood", task_id=assignment.definition.key.task_id, error=str(error))
        return None


def _read_to(cursor: str) -> Move:
    return lambda current, now: moves.log_read(current, cursor, now)


def _epitaph(record: TaskRecord, observation: Observation[Any], now: float) -> str:
    reason = f": {observation.failure.message}" if observation.failure else ""
    return f"the job ended {observation.state} after {now - (record.started_at or record.created_at):.0f} s{reason}"
