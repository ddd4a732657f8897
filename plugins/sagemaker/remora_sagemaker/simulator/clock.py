"""The simulator's time: real time, sped up, stopped, or moved ahead by hand."""

from __future__ import annotations

import time
from collections.abc import Callable


class SimulatedClock:
    """A clock that runs at any speed. Moving it needs no waiting, and nothing waits for it."""

    def __init__(
        self,
        *,
        speed: float = 1.0,
        frozen: bool = False,
        start: float | None = None,
        source: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at so many seconds since the epoch (default: now), passing `speed` seconds in each of `source`."""
        self._source = source
        self._speed = _checked(speed)
        self._frozen = frozen
        self._simulated = time.time() if start is None else start
        self._real = source()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        if self._frozen:
            return self._simulated
        return self._simulated + (self._source() - self._real) * self._speed

    @property
    def speed(self) -> float:
        """Simulated seconds in a real one."""
        return self._speed

    @property
    def frozen(self) -> bool:
        """Whether time only moves when it is advanced."""
        return self._frozen

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once. Raises ValueError for a negative number: time does not go back."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"the clock cannot be advanced by {seconds} seconds")
        self._simulated += seconds

    def set_speed(self, speed: float) -> None:
        """Pass so many simulated seconds in a real one from now on. Raises ValueError unless above 0."""
        speed = _checked(speed)
        self._rebase()
        self._speed = speed

    def freeze(self, frozen: bool = True) -> None:  # noqa: FBT001, FBT002 -- reads as freeze(False)
        """Stop the clock, or let it run on from where it is."""
        self._rebase()
        self._frozen = frozen

    def _rebase(self) -> None:
        real = self._source()
        if not self._frozen:
            self._simulated += (real - self._real) * self._speed
        self._real = real


def _checked(speed: float) -> float:
    if not 0 < speed < float("inf"):
        raise ValueError(f"the speed of the clock must be above 0, not {speed}")
    return speed
