"""Throttling: how many requests a second the simulated service takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from remora_sagemaker.simulator.model import ANY_OPERATION, require_operation
from remora_sagemaker.simulator.protocol import ApiError

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock


class Limits:
    """Token buckets by operation: so many requests in a simulated second, and a second's worth at once."""

    def __init__(self, clock: SimulatedClock) -> None:
        """Start without limits."""
        self._clock = clock
        self._rates: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self._filled_at: dict[str, float] = {}
        self.refused = Counter[str]()
        """How many requests were refused, by operation."""

    @property
    def rates(self) -> Mapping[str, float]:
        """Requests a second, by operation."""
        return dict(self._rates)

    def set(self, rates: Mapping[str, float | None]) -> None:
        """Set the rate of some operations; None lifts the limit. ``*`` is one bucket for all operations.

        Raises:
            ValueError: SageMaker has no such operation, or the rate is not above 0. Nothing was changed.
        """
        for operation, rate in rates.items():
            require_operation(operation)
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"the rate of {operation} must be above 0, not {rate}")
        for operation, rate in rates.items():
            self._rates.pop(operation, None)
            if rate is not None:
                self._rates[operation] = rate
                self._tokens[operation] = max(1.0, rate)
                self._filled_at[operation] = self._clock.now()

    def clear(self) -> None:
        """Lift all limits."""
        self._rates.clear()

    def take(self, operation: str) -> None:
        """Take a token for a request, or raise ApiError: ThrottlingException."""
        if not self._rates:
            return
        for bucket in (operation, ANY_OPERATION):
            if bucket in self._rates and not self._take(bucket):
                self.refused[operation] += 1
                raise ApiError("ThrottlingException", "Rate exceeded")

    def _take(self, bucket: str) -> bool:
        now, rate = self._clock.now(), self._rates[bucket]
        filled = self._tokens[bucket] + (now - self._filled_at[bucket]) * rate
        self._filled_at[bucket] = now
        self._tokens[bucket] = min(max(1.0, rate), filled)
        # The sum of many small refills may stop a hair short of a whole token.
        if self._tokens[bucket] < 1 - 1e-9:
            return False
        self._tokens[bucket] -= 1
        return True
