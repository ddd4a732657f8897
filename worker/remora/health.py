"""``grpc.health.v1`` for a server of ours, whose readiness comes and goes while it lives.

=============  =====================================================================================
``""``         SERVING while the process answers, as ``liveness``: an orchestrator must not kill a worker that drains
``liveness``   the same
``readiness``  SERVING while new work is taken; NOT_SERVING while draining and stopping
each service   as ``readiness``, for clients that choose a server by its health
=============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from remora.pace import Signal
from remora.plugin import Clock

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING)
_NOT_SERVING = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
_UNKNOWN = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)


class HealthServicer:
    """Answers from a question that it asks anew each time.

    grpc_health's own servicer keeps a status that must be set, lacks List, and holds up the stop of a server for as
    long as anybody watches.
    """

    def __init__(self, services: Iterable[str], ready: Callable[[], bool]) -> None:
        self._following = frozenset(("readiness", *services))
        self._ready = ready
        self._shown = False
        self._stopping = False
        self._changed = Signal()

    async def follow(self, clock: Clock) -> None:
        """Look once a second, for those who watch, for ever."""
        while True:
            if self._is_ready() is not self._shown:
                self._shown = not self._shown
                self._changed.notify()
            await clock.sleep(1.0)

    def stop(self) -> None:
        """Be ready no more; tell those who watch, and let them go."""
        self._stopping = True
        self._changed.notify()

    async def Check(self, request: HealthCheckRequest, context: _Context) -> HealthCheckResponse:  # noqa: N802 -- gRPC's name
        """Return the status of one name."""
        status = self._status(request.service)
        if status is _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return status

    async def List(self, request: HealthListRequest, context: _Context) -> HealthListResponse:  # noqa: N802
        """Return the status of every name."""
        del request, context
        return HealthListResponse(
            statuses={name: self._status(name) for name in ("", "liveness", *sorted(self._following))}
        )

    async def Watch(self, request: HealthCheckRequest, context: _Context) -> AsyncGenerator[HealthCheckResponse]:  # noqa: N802
        """Yield the status of one name, now and when it changes."""
        del context
        shown: HealthCheckResponse | None = None
        while True:
            changed = self._changed.listen()
            status = self._status(request.service)
            if status is not shown:
                shown = status
                yield status
            if self._stopping:
                return
            await changed.wait()

    def _is_ready(self) -> bool:
        return self._ready() and not self._stopping

    def _status(self, name: str) -> HealthCheckResponse:
        if name in ("", "liveness"):
            return _SERVING
        if name not in self._following:
            return _UNKNOWN
        return _SERVING if self._is_ready() else _NOT_SERVING
