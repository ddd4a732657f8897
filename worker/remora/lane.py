"""A queue of keys, each driven by one of a few named tasks: stops before submissions, no key twice at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

import structlog

from remora.pace import wait_for
from remora.plugin import Clock, TaskKey

log = structlog.get_logger(__name__)


class Lane:
    """The calls of one task type that create and stop jobs."""

    def __init__(self, drive: Callable[[TaskKey], Awaitable[None]]) -> None:
        """Take what is to be done with each key."""
        self._drive = drive
        self._queue: asyncio.PriorityQueue[tuple[int, int, TaskKey]] = asyncio.PriorityQueue()
        self._count = itertools.count()
        self._waiting: set[TaskKey] = set()
        self._driven: set[TaskKey] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def put(self, key: TaskKey, *, urgent: bool = False) -> None:
        """Drive a key as soon as there is room; once, however often it is put before that."""
        if urgent or key not in self._waiting:
            self._waiting.add(key)
            self._queue.put_nowait((0 if urgent else 1, next(self._count), key))

    def start(self, group: asyncio.TaskGroup, name: str, concurrency: int) -> Sequence[asyncio.Task[None]]:
        """Begin to drive so many keys at a time."""
        return [group.create_task(self._run(), name=f"{name} {number}") for number in range(1, concurrency + 1)]

    async def finish(self, seconds: float, clock: Clock) -> None:
        """Begin nothing more; wait so long for what is under way."""
        self._closed = True
        if not await wait_for(self._idle, seconds, clock):
            log.warning("calls_under_way_abandoned", tasks=[str(key) for key in self._driven])

    async def _run(self) -> None:
        while True:
            _, _, key = await self._queue.get()
            if self._closed or key not in self._waiting:
                continue
            if key in self._driven:
                continue  # it stays waiting, and is put again when its driver is done
            self._waiting.discard(key)
            self._driven.add(key)
            self._idle.clear()
            try:
                await self._drive(key)
            finally:
                self._driven.discard(key)
                if not self._driven:
                    self._idle.set()
            if key in self._waiting:
                self._waiting.discard(key)
                self.put(key, urgent=True)
