"""Time and rates: the system's clock, back-off, token buckets, wake-ups. Plugins may use it too.

Nothing here reads the time behind the caller's back: a :class:`~remora.plugin.Clock` is passed in.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from remora.plugin import Clock

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SystemClock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: the n-th delay is a random part of min(maximum, initial * factor**n).

    Full jitter spreads a crowd of callers best (Exponential Backoff And Jitter, AWS Architecture Blog, 2015). A
    floor of a tenth keeps a lone caller from repeating at once.
    """

    initial: float = 1.0
    """Seconds."""
    maximum: float = 60.0
    """Seconds."""
    factor: float = 2.0

    def delay(
        self, retries: int, *, at_least: float = 0.0, uniform: Callable[[float, float], float] = random.uniform
    ) -> float:
        """Return the seconds to wait after so many failures in a row (0 for the first), never below `at_least`."""
        ceiling = min(self.maximum, self.initial * self.factor ** min(retries, 64))
        return max(at_least, uniform(ceiling / 10, ceiling))


class TokenBucket:
    """A rate that callers share: so many calls a second, some at once, less after throttling.

    Callers are served in the order in which they came. Throttling halves the rate, down to a hundredth of what was
    configured; each call that went well gives back a hundredth (additive increase, multiplicative decrease).
    """

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        """Take calls a second, above 0, and calls at once; less than one call at once counts as one."""
        self._configured = rate
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock.monotonic()
        self._turn = asyncio.Lock()

    @property
    def rate(self) -> float:
        """Calls a second at this moment."""
        return self._rate

    async def acquire(self) -> None:
        """Wait for a token and take it."""
        async with self._turn:
            while not self._take():
                await self._clock.sleep((1.0 - self._tokens) / self._rate)

    def try_acquire(self) -> bool:
        """Take a token if there is one and nobody waits."""
        return not self._turn.locked() and self._take()

    def throttled(self) -> None:
        """Slow down: the service refused a call."""
        self._fill()
        self._tokens = min(self._tokens, 0.0)
        self._rate = max(self._rate / 2, self._configured / 100)

    def succeeded(self) -> None:
        """Speed up a little, to the configured rate at most."""
        self._rate = min(self._configured, self._rate + self._configured / 100)

    def _take(self) -> bool:
        self._fill()
        # The sum of many small refills may stop a hair short of a whole token.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self) -> None:
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now


class Signal:
    """A wake-up for any number of waiters.

    Take :meth:`listen` before you look and wait for it after: a notification in between is not lost.
    """

    def __init__(self) -> None:
        """Start silent."""
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everybody who listens."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def listen(self) -> asyncio.Event:
        """Return what the next notification sets."""
        return self._event


class Timetable(Generic[K]):
    """Keys and when they are due. Each key stands in it once; setting it again moves it."""

    def __init__(self, clock: Clock) -> None:
        """Start empty. Times are those of ``clock.monotonic()``."""
        self._clock = clock
        self._due: dict[K, float] = {}
        # Entries that were moved or removed stay in the heap until they come up.
        self._heap: list[tuple[float, int, K]] = []
        self._count = itertools.count()
        self._sooner = Signal()

    def set(self, key: K, delay: float) -> None:
        """Make a key due so many seconds from now."""
        due = self._clock.monotonic() + delay
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._count), key))
        if self._heap[0][2] == key:
            self._sooner.notify()

    def discard(self, key: K) -> None:
        """Take a key out."""
        self._due.pop(key, None)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def __len__(self) -> int:
        return len(self._due)

    async def take(self, limit: int = 1000, *, ahead: float = 0.0) -> list[K]:
        """Wait until a key is due; take it and others that are due by so many seconds from now, soonest first."""
        while True:
            sooner = self._sooner.listen()
            self._tidy()
            if not self._heap:
                await sooner.wait()
                continue
            left = self._heap[0][0] - self._clock.monotonic()
            if left <= 0:
                return self._pop(limit, self._clock.monotonic() + ahead)
            await wait_for(sooner, left, self._clock)

    def _pop(self, limit: int, until: float) -> list[K]:
        taken: list[K] = []
        while len(taken) < limit and self._heap and self._heap[0][0] <= until:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            taken.append(key)
            self._tidy()
        return taken

    def _tidy(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)


async def completed(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end what must not stop half way, even when the caller is cancelled; then tell the caller."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to hear it
        raise


async def wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> bool:
    """Wait until the event is set or the time is over; return whether it is set."""
    if seconds <= 0 or event.is_set():
        return event.is_set()
    waiting = asyncio.ensure_future(event.wait())
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        sleeping.cancel()
        await asyncio.gather(waiting, sleeping, return_exceptions=True)
    return event.is_set()
