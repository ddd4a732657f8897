"""The control of a running simulation: HTTP under ``/_sim/``, JSON in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from remora_sagemaker.simulator.faults import Fault

if TYPE_CHECKING:
    from remora_sagemaker.simulator.execution import Execution
    from remora_sagemaker.simulator.server import Simulator

MAX_WAIT = 60.0
"""Seconds that a request may wait for a hold to be reached."""


class _ClockChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    advance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    frozen: bool | None = None


class _Release(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hold: str


class _Quota(BaseModel):
    model_config = ConfigDict(extra="forbid")

    executions: Annotated[int, Field(ge=0)] | None


_FAULTS = TypeAdapter[list[Fault] | Fault](list[Fault] | Fault)
_LIMITS = TypeAdapter[dict[str, float | None]](dict[str, float | None])

Handler = Callable[[web.Request], Awaitable[Any]]


def add_control_routes(app: web.Application, simulator: Simulator) -> None:
    """Add the routes of the control to a server."""
    control = _Control(simulator)
    for method, path, handler in (
        ("GET", "health", control.health),
        ("GET", "clock", control.clock),
        ("POST", "clock", control.change_clock),
        ("GET", "faults", control.faults),
        ("POST", "faults", control.add_faults),
        ("DELETE", "faults", control.clear_faults),
        ("POST", "release", control.release),
        ("GET", "holds/{name}", control.wait_for_hold),
        ("GET", "limits", control.limits),
        ("POST", "limits", control.set_limits),
        ("POST", "quota", control.set_quota),
        ("GET", "executions", control.executions),
        ("GET", "calls", control.calls),
        ("POST", "reset", control.reset),
    ):
        app.router.add_route(method, f"/_sim/{path}", _json(handler))
    app.router.add_route("*", "/_sim{rest:.*}", _unknown)


def _json(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def respond(request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response(await handler(request))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            lines = [": ".join((".".join(map(str, each["loc"])), each["msg"])).removeprefix(": ") for each in problems]
            return web.json_response({"error": "; ".join(lines)}, status=400)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        except TimeoutError:
            return web.json_response({"error": "nothing happened in that time"}, status=408)

    return respond


async def _unknown(request: web.Request) -> web.StreamResponse:
    problem = f"there is no {request.method} {request.path}; see pydoc remora_sagemaker.simulator"
    return web.json_response({"error": problem}, status=404)


class _Control:
    """What each route does."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def health(self, _: web.Request) -> object:
        return {"status": "ok", "region": self._simulator.account.region, "account": self._simulator.account.account}

    async def clock(self, _: web.Request) -> object:
        clock = self._simulator.clock
        return {"now": clock.now(), "speed": clock.speed, "frozen": clock.frozen}

    async def change_clock(self, request: web.Request) -> object:
        change = _ClockChange.model_validate_json(await request.read())
        clock = self._simulator.clock
        clock.advance(change.advance)
        if change.speed is not None:
            clock.set_speed(change.speed)
        if change.frozen is not None:
            clock.freeze(change.frozen)
        return await self.clock(request)

    async def faults(self, _: web.Request) -> object:
        return {"faults": [fault.model_dump(mode="json") for fault in self._simulator.faults.armed]}

    async def add_faults(self, request: web.Request) -> object:
        faults = _FAULTS.validate_json(await request.read())
        self._simulator.faults.add(*(faults if isinstance(faults, list) else [faults]))
        return await self.faults(request)

    async def clear_faults(self, request: web.Request) -> object:
        self._simulator.faults.clear()
        return await self.faults(request)

    async def release(self, request: web.Request) -> object:
        wanted = _Release.model_validate_json(await request.read())
        return {"released": self._simulator.faults.release(wanted.hold)}

    async def wait_for_hold(self, request: web.Request) -> object:
        name = request.match_info["name"]
        wait = min(float(request.query.get("timeout", "10")), MAX_WAIT)
        async with asyncio.timeout(wait):
            await self._simulator.faults.held(name)
        return {"waiting": self._simulator.faults.waiting.get(name, 0)}

    async def limits(self, _: web.Request) -> object:
        return {"limits": self._simulator.limits.rates}

    async def set_limits(self, request: web.Request) -> object:
        self._simulator.limits.set(_LIMITS.validate_json(await request.read()))
        return await self.limits(request)

    async def set_quota(self, request: web.Request) -> object:
        quota = _Quota.model_validate_json(await request.read())
        self._simulator.executions.quota = quota.executions
        return quota.model_dump()

    async def executions(self, _: web.Request) -> object:
        now = self._simulator.clock.now()
        return {"executions": [_shown(execution, now) for execution in self._simulator.executions]}

    async def calls(self, _: web.Request) -> object:
        simulator = self._simulator
        return {
            "calls": simulator.calls,
            "faults": simulator.faults.served,
            "throttled": simulator.limits.refused,
            "waiting": simulator.faults.waiting,
        }

    async def reset(self, _: web.Request) -> object:
        self._simulator.reset()
        return {}


def _shown(execution: Execution, now: float) -> dict[str, object]:
    return {
        "arn": execution.arn,
        "pipeline": execution.pipeline.name,
        "token": execution.token,
        "status": execution.status(now),
        "created_at": execution.created_at,
        "parameters": execution.values,
        "replays": execution.replays,
        "retries": len(execution.runs) - 1,
        "stopped": execution.timeline.stopped_at <= now,
    }
