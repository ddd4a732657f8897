"""Takes the next step of each task: creates its job, finds it again, or stops it.

What the step is, :func:`remora.task.next_step` decides. Steps of one task type run a few at a time; one that did not
work is repeated with back-off, for as long as it may still work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from structlog.contextvars import bound_contextvars

from remora import task as moves
from remora.errors import StorageUnavailable
from remora.journal import Journal
from remora.lane import Lane
from remora.ledger import Ledger, Move
from remora.metrics import Metrics
from remora.pace import Backoff, Timetable
from remora.plugin import Clock, Failure, FailureKind, TaskKey
from remora.registry import AnyHandler, Registry, classify, parse
from remora.task import Step, TaskRecord, TaskState, next_step

log = structlog.get_logger(__name__)

_REPEAT = Backoff(initial=1.0, maximum=60.0)
_UNDECIDED = frozenset({FailureKind.EXHAUSTED, FailureKind.DENIED})
"""These refuse one call, and say nothing of an earlier one whose outcome is unknown."""


class Driver:
    """The lanes of all task types."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        *,
        capacity_wait: float,
        observe: Callable[[TaskRecord], None],
    ) -> None:
        """Take how long to wait for capacity, in seconds, and who follows a job that runs."""
        self._ledger = ledger
        self._journal = journal
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._capacity_wait = capacity_wait
        self._observe = observe
        self._repeats = Timetable[TaskKey](clock)
        self._tries: dict[TaskKey, int] = {}
        self._lanes = {name: Lane(self._drive) for name in registry.handlers}
        ledger.on_final.append(self._forget)

    def start(self, group: asyncio.TaskGroup, concurrency: int) -> list[asyncio.Task[None]]:
        """Begin, with so many steps of each task type at a time."""
        loops = [group.create_task(self._repeat(), name="repeat steps")]
        for name, lane in self._lanes.items():
            loops += lane.start(group, f"drive {name}", concurrency)
        return loops

    async def finish(self, seconds: float) -> None:
        """Begin nothing more; wait so long for the steps under way."""
        await asyncio.gather(*(lane.finish(seconds, self._clock) for lane in self._lanes.values()))

    def go_on(self, record: TaskRecord) -> None:
        """See to it that the next step of a task is taken."""
        step = next_step(record)
        if record.task_type not in self._lanes:
            return  # its plugin is not installed; a worker that has it goes on
        if step in (Step.SUBMIT, Step.STOP):
            self._lanes[record.task_type].put(record.key, urgent=step is Step.STOP)
        elif step is Step.OBSERVE:
            self._observe(record)

    async def _drive(self, key: TaskKey) -> None:
        record = self._ledger.get(key)
        if record is None:
            return
        handler = self._registry.handlers[record.task_type]
        with bound_contextvars(task_id=key.task_id, attempt=key.attempt, task_type=record.task_type):
            try:
                if next_step(record) is Step.SUBMIT:
                    await self._submit(record, handler)
                elif next_step(record) is Step.STOP:
                    await self._stop(record, handler)
            except StorageUnavailable as error:
                log.error("storage_unavailable", error=str(error))  # noqa: TRY400 -- no defect
                self._repeats.set(key, self._next_delay(key))
            except Exception:
                # A defect with one task must not take the others down.
                log.exception("step_failed")
                self._repeats.set(key, _REPEAT.maximum)

    async def _submit(self, record: TaskRecord, handler: AnyHandler) -> None:
        key = record.key
        # An earlier try whose outcome is unknown may have created the job.
        doubtful = record.state is TaskState.SUBMITTING
        if not doubtful:
            if key not in self._tries:
                await self._ledger.say(key, f"accepted {record.task_type} task {record.name}, attempt {key.attempt}")
            if await self._ledger.change(key, moves.submitting) is None:
                return
        definition = await self._journal.definition(key)
        assert definition is not None, "only a tombstone has none, and that is final"
        try:
            parameters = parse(handler, definition.parameters)
            prepared = handler.handle.model_validate_json(record.handle)
            handle = await handler.submit(definition, parameters, prepared)
        except Exception as error:  # noqa: BLE001 -- a plugin may raise anything; it is classified
            await self._submit_failed(record, handler, error, doubtful=doubtful)
            return
        text = handle.model_dump_json()
        self._tries.pop(key, None)
        self._metrics.submit_seconds.labels(record.task_type).observe(self._clock.now() - record.created_at)
        names = handle.model_dump(mode="json", exclude_defaults=True).items()
        await self._ledger.say(key, f"the job exists: {', '.join(f'{name}={value}' for name, value in names)}")
        started = await self._ledger.change(key, lambda current, now: moves.running(current, text, now))
        if started is not None:
            self.go_on(started)

    async def _submit_failed(
        self, record: TaskRecord, handler: AnyHandler, error: Exception, *, doubtful: bool
    ) -> None:
        key = record.key
        failure = self._classify(handler, error)
        delay = self._next_delay(key, at_least=failure.retry_after or 0.0)
        again = f"again in {delay:.0f} s: {failure.message}"
        waits = failure.kind is FailureKind.TRANSIENT or (doubtful and failure.kind in _UNDECIDED)
        has_time = self._clock.now() - record.created_at < self._capacity_wait
        if failure.kind is FailureKind.EXHAUSTED and not doubtful and has_time:
            move: Move = lambda current, now: moves.refused(current, again, now)  # noqa: E731 -- one of three
        elif waits:
            move = lambda current, now: moves.noted(current, again, now)  # noqa: E731
        else:
            await self._ledger.say(key, f"failed: {failure.message}", level="ERROR")
            await self._ledger.change(key, lambda current, now: moves.failed(current, failure, now))
            return
        await self._ledger.say(key, again, level="WARN")
        if (current := await self._ledger.change(key, move)) is not None and not current.state.final:
            self._repeats.set(key, delay)

    async def _stop(self, record: TaskRecord, handler: AnyHandler) -> None:
        """Ask the job to stop; asked again until an observation shows its end."""
        key = record.key
        try:
            await handler.cancel(handler.handle.model_validate_json(record.handle))
        except Exception as error:  # noqa: BLE001 -- a stop is repeated whatever the service says
            failure = self._classify(handler, error)
            delay = self._next_delay(key, at_least=failure.retry_after or 0.0)
            await self._ledger.say(key, f"not stopped yet, again in {delay:.0f} s: {failure.message}", level="WARN")
        else:
            # The job may take minutes to end; ask again only in case the service forgot.
            delay = _REPEAT.maximum
            await self._ledger.say(key, "asked the job to stop")
        if (current := self._ledger.get(key)) is not None:
            self._observe(current)
            self._repeats.set(key, delay)

    def _classify(self, handler: AnyHandler, error: Exception) -> Failure:
        failure = classify(handler, error)
        self._metrics.errors.labels(handler.task_type, failure.kind).inc()
        return failure

    def _next_delay(self, key: TaskKey, *, at_least: float = 0.0) -> float:
        tries = self._tries[key] = self._tries.get(key, -1) + 1
        return _REPEAT.delay(tries, at_least=at_least)

    async def _repeat(self) -> None:
        while True:
            for key in await self._repeats.take():
                if (record := self._ledger.get(key)) is not None:
                    self.go_on(record)

    def _forget(self, record: TaskRecord) -> None:
        self._tries.pop(record.key, None)
        self._repeats.discard(record.key)
