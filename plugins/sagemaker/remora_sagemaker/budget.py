"""The rate at which one operation of AWS may be called, shared by everybody who calls it."""

from __future__ import annotations

import asyncio

from remora.pace import TokenBucket
from remora.plugin import Clock


class OutOfBudgetError(Exception):
    """The caller's patience ended before its turn came. Nothing was sent."""


class Budget:
    """A token bucket whose callers are served in turn and may stop waiting.

    AWS throttles each operation of an account and region on its own, and publishes few of the limits: the rate is
    configured, and gives way when AWS refuses a call.
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        """Take calls a second. As many as fit into one second may be made at once."""
        self._bucket = TokenBucket(rate, max(1.0, rate), clock)
        self._clock = clock
        self._turn = asyncio.Lock()
        self.throttled = self._bucket.throttled
        self.succeeded = self._bucket.succeeded

    @property
    def rate(self) -> float:
        """Calls a second at this moment."""
        return self._bucket.rate

    async def spend(self, until: float) -> None:
        """Wait for one's turn, but not beyond a monotonic time; a time that has passed means now or never.

        Raises:
            OutOfBudgetError: the turn did not come in time.
        """
        if self._turn.locked() and until <= self._clock.monotonic():
            raise OutOfBudgetError
        async with self._turn:
            while not self._bucket.try_acquire():
                left = until - self._clock.monotonic()
                if left <= 0:
                    raise OutOfBudgetError
                await self._clock.sleep(min(left, 1.0 / self._bucket.rate))
