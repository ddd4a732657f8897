"""What goes wrong on purpose: errors, delays, lost answers, held requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from remora_sagemaker.simulator.model import ANY_OPERATION, require_operation
from remora_sagemaker.simulator.protocol import ApiError

_STATUS: Mapping[str, int] = {"InternalFailure": 500, "InternalServerError": 500, "ServiceUnavailable": 503}


class ConnectionLost(Exception):
    """The connection is to be reset instead of answered."""


class Fault(BaseModel):
    """Something that goes wrong with a request. Several effects come in the order: latency, hold, error or reset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str = ANY_OPERATION
    """The operation that is hit, or ``*``."""
    contains: str = ""
    """Only requests whose body contains this text are hit."""
    times: Annotated[int, Field(ge=1)] | None = 1
    """How many requests are hit; None: all, until the faults are cleared."""
    when: Literal["before", "after"] = "before"
    """Before the operation takes effect, or after it did: then the answer is lost or late."""
    latency: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Real seconds that the request waits."""
    hold: str = ""
    """The request waits until this name is released."""
    error: str = ""
    """Code of the error that is answered, for example ``ThrottlingException``."""
    message: str = ""
    """Of the error."""
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    """HTTP status of the error; the default goes by the code, and is 400 for most."""
    reset: bool = False
    """The connection is reset and nothing is answered."""

    @field_validator("operation")
    @classmethod
    def _is_known(cls, operation: str) -> str:
        require_operation(operation)
        return operation

    @model_validator(mode="after")
    def _has_effect(self) -> Fault:
        if not (self.latency or self.hold or self.error or self.reset):
            raise ValueError("a fault has at least one of: latency, hold, error, reset")
        if self.error and self.reset:
            raise ValueError("a fault has an error or a reset, not both")
        return self


@dataclass(slots=True)
class _Armed:
    fault: Fault
    left: float


class Faults:
    """The faults that are waiting for a request, and the requests that are held."""

    def __init__(self) -> None:
        """Start with none."""
        self._armed: list[_Armed] = []
        self._holds: dict[str, asyncio.Future[bool]] = {}
        self._waiting = Counter[str]()
        self._arrival = asyncio.Event()
        self.served = Counter[str]()
        """How many requests were hit, by operation."""

    def add(self, *faults: Fault) -> None:
        """Arm faults. Of those that fit a request, the one that was armed first hits it, alone."""
        self._armed.extend(_Armed(fault, float("inf") if fault.times is None else fault.times) for fault in faults)

    def clear(self) -> None:
        """Disarm all and let every held request go."""
        self._armed.clear()
        for name in list(self._holds):
            self.release(name)

    def reset(self) -> None:
        """Disarm all, cut off every held request, and forget what was served."""
        self._armed.clear()
        self.served.clear()
        for name in list(self._holds):
            self._end_hold(name, goes_on=False)

    @property
    def armed(self) -> Sequence[Fault]:
        """The faults that are still waiting, with the number of times left."""
        return [
            each.fault if each.fault.times is None else each.fault.model_copy(update={"times": int(each.left)})
            for each in self._armed
        ]

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many requests are held, by name of the hold."""
        return +self._waiting

    def pick(self, operation: str, body: bytes) -> Fault | None:
        """Take the fault that hits a request."""
        for armed in self._armed:
            fault = armed.fault
            if fault.operation in {ANY_OPERATION, operation} and fault.contains.encode() in body:
                armed.left -= 1
                if armed.left <= 0:
                    self._armed.remove(armed)
                self.served[operation] += 1
                return fault
        return None

    async def inflict(self, fault: Fault) -> None:
        """Let a request suffer.

        Raises:
            ApiError: what the fault says.
            ConnectionLost: the fault is a reset.
        """
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.hold:
            await self._hold(fault.hold)
        if fault.reset:
            raise ConnectionLost
        if fault.error:
            status = fault.status or _STATUS.get(fault.error, 400)
            raise ApiError(fault.error, fault.message or "This error was injected.", status=status)

    def release(self, name: str) -> int:
        """Let the requests go that are held under a name, and return how many they are."""
        self._end_hold(name, goes_on=True)
        return self._waiting[name]

    def _end_hold(self, name: str, *, goes_on: bool) -> None:
        hold = self._holds.pop(name, None)
        if hold is not None:
            hold.set_result(goes_on)

    async def held(self, name: str) -> None:
        """Wait until a request is held under a name."""
        while not self._waiting[name]:
            await self._arrival.wait()

    async def _hold(self, name: str) -> None:
        hold = self._holds.setdefault(name, asyncio.get_running_loop().create_future())
        self._waiting[name] += 1
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()
        try:
            # Other requests may wait for the same hold: the end of one of them is not its end.
            if not await asyncio.shield(hold):
                raise ConnectionLost
        finally:
            self._waiting[name] -= 1
