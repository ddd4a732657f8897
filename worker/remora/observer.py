"""Follows the remote jobs of one handler: one loop that batches, paces and is nudged.

A job is looked at every ``polling.initial`` seconds while it is young, and less often with its age, down to every
``polling.maximum`` seconds. Jobs that are due at about the same time are looked at together. What is seen goes to the
engine; what could not be seen never ends a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import structlog
from pydantic import BaseModel

from remora.metrics import Metrics
from remora.pace import Backoff, Timetable
from remora.plugin import Clock, EventSource, Failure, Observation, Polling, TaskHandler, TaskKey
from remora.registry import classify
from remora.task import Step, TaskRecord, next_step

log = structlog.get_logger(__name__)

_AGE_SHARE = 0.1
"""A job of ten minutes is looked at every minute, if polling allows."""


class Follower(Protocol):
    """Whom an observer tells what it sees: the engine."""

    def record(self, key: TaskKey) -> TaskRecord | None:
        """Return an unfinished task, or None."""
        ...

    async def seen(self, key: TaskKey, observation: Observation[Any]) -> None:
        """Take what a job showed."""
        ...

    async def unseen(self, key: TaskKey, failure: Failure) -> None:
        """Take why a job could not be looked at."""
        ...


class Observer:
    """The loop of one handler."""

    def __init__(self, handler: TaskHandler[Any, Any], follower: Follower, clock: Clock, metrics: Metrics) -> None:
        """Follow nothing yet."""
        self._handler = handler
        self._follower = follower
        self._clock = clock
        self._metrics = metrics
        self._due = Timetable[TaskKey](clock)
        self._failures = 0
        self._backoff = Backoff(initial=handler.polling.initial, maximum=max(60.0, handler.polling.maximum))
        self._source: EventSource[Any] | None = handler if isinstance(handler, EventSource) else None
        # How it names jobs, both ways.
        self._keys: dict[str, TaskKey] = {}
        self._jobs: dict[TaskKey, str] = {}

    def watch(self, record: TaskRecord, *, soon: bool = False) -> None:
        """Look at a task's job from now on; `soon` is at once."""
        self._due.set(record.key, 0.0 if soon else interval(self._handler.polling, self._age(record)))
        if self._source is not None and (handle := self._handle(record)) is not None:
            self._name(record.key, self._source, handle)

    def forget(self, key: TaskKey) -> None:
        """Look no more."""
        self._due.discard(key)
        self._keys.pop(self._jobs.pop(key, ""), None)

    async def run(self) -> None:
        """Look, for ever."""
        ahead = self._handler.polling.initial / 4
        while True:
            keys = await self._due.take(self._handler.polling.batch, ahead=ahead)
            records = [record for key in keys if (record := self._follower.record(key)) and _observable(record)]
            subjects = [(record, handle) for record in records if (handle := self._handle(record)) is not None]
            if subjects:
                await self._look(*zip(*subjects, strict=True))

    async def listen(self) -> None:
        """Look at once where the handler hears that something changed, for ever."""
        if self._source is None:
            return
        while True:
            try:
                async for job in self._source.changes():
                    key = self._keys.get(job)
                    # Also while it is being looked at: that look may have come before the change.
                    if key is not None and self._follower.record(key) is not None:
                        self._due.set(key, 0.0)
            except Exception as error:  # noqa: BLE001 -- the slow look goes on whatever an event source does
                log.warning("event_source_failed", task_type=self._handler.task_type, error=repr(error))
            await self._clock.sleep(self._backoff.maximum)

    async def _look(self, records: Sequence[TaskRecord], handles: Sequence[BaseModel]) -> None:
        started = self._clock.monotonic()
        try:
            answers = await self._handler.observe(handles)
            if len(answers) != len(records):
                raise RuntimeError(f"observe() gave {len(answers)} answers for {len(records)} handles")  # noqa: TRY301 -- a defect like any other
        except Exception as error:  # noqa: BLE001 -- a look that fails must not end the following
            await self._look_failed(records, error)
            return
        self._failures = 0
        self._metrics.observe_seconds.labels(self._handler.task_type).observe(self._clock.monotonic() - started)
        # Each is journalled on its own; together they share commits.
        await asyncio.gather(*(self._tell(record, answer) for record, answer in zip(records, answers, strict=True)))

    async def _look_failed(self, records: Sequence[TaskRecord], error: Exception) -> None:
        failure = classify(self._handler, error)
        self._metrics.errors.labels(self._handler.task_type, failure.kind).inc()
        delay = self._backoff.delay(self._failures, at_least=failure.retry_after or 0.0)
        self._failures += 1
        log.warning(
            "observe_delayed", task_type=self._handler.task_type, code=failure.code, reason=failure.message, delay=delay
        )
        for record in records:
            self._due.set(record.key, delay)
        await asyncio.gather(*(self._tell(record, failure) for record in records))

    async def _tell(self, record: TaskRecord, answer: Observation[Any] | Failure | None) -> None:
        try:
            if isinstance(answer, Failure):
                await self._follower.unseen(record.key, answer)
            elif answer is not None:
                await self._follower.seen(record.key, answer)
        except Exception:
            # The disk is full, or there is a defect: the job is looked at again, and nothing is lost.
            log.exception("observation_not_taken", task_id=record.key.task_id, attempt=record.key.attempt)
        current = self._follower.record(record.key)
        if current is None or not _observable(current) or record.key in self._due:
            return
        if answer is None:
            self._due.set(record.key, self._handler.polling.initial)  # it had no turn, whatever its age
        else:
            self.watch(current)

    def _name(self, key: TaskKey, source: EventSource[Any], handle: BaseModel) -> None:
        try:
            job = source.job_id(handle)
        except Exception:
            log.exception("job_without_id", task_type=self._handler.task_type)  # the slow look goes on
            return
        self._keys.pop(self._jobs.get(key, ""), None)
        self._jobs[key] = job
        if job:
            self._keys[job] = key

    def _handle(self, record: TaskRecord) -> BaseModel | None:
        try:
            handle: BaseModel = self._handler.handle.model_validate_json(record.handle)
        except ValueError as error:
            # Written by another version of the plugin; one that understands it will go on.
            log.error("handle_not_understood", task_id=record.key.task_id, error=str(error))  # noqa: TRY400 -- no defect here
            return None
        return handle

    def _age(self, record: TaskRecord) -> float:
        if record.stop is not None:
            return 0.0
        return self._clock.now() - (record.started_at or record.created_at)


def interval(polling: Polling, age: float) -> float:
    """Return the seconds until the next look at a job of an age in seconds."""
    return min(polling.maximum, max(polling.initial, age * _AGE_SHARE))


def _observable(record: TaskRecord) -> bool:
    return next_step(record) in (Step.OBSERVE, Step.STOP)
