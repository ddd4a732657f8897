"""Test doubles and a behaviour suite for authors of plugins and doors."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class ManualClock:
    """A clock that stands still until it is told to advance.

    ``await clock.advance(5)`` wakes every sleeper that is due, in order of time, and lets each run until it waits
    for something else.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        """Start at so many seconds since the epoch."""
        self._now = now
        self._started = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now - self._started

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by so many seconds."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    @property
    def sleepers(self) -> int:
        """How many wait."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, due)
            if not future.done():
                future.set_result(None)
            await settle()
        self._now = end


async def settle(rounds: int = 20) -> None:
    """Let every task that is ready run until it waits. Does not wait for threads."""
    for _ in range(rounds):
        await asyncio.sleep(0)
