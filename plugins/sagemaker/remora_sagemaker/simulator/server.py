"""The simulator as a server: SageMaker's API on one port, and the control of the simulation beside it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web

from remora_sagemaker.simulator.clock import SimulatedClock
from remora_sagemaker.simulator.control import add_control_routes
from remora_sagemaker.simulator.executions import Executions
from remora_sagemaker.simulator.faults import ConnectionLost, Faults
from remora_sagemaker.simulator.jobs import Jobs
from remora_sagemaker.simulator.limits import Limits
from remora_sagemaker.simulator.naming import Account, short_id
from remora_sagemaker.simulator.pipelines import Pipelines
from remora_sagemaker.simulator.protocol import CONTENT_TYPE, ApiError, Operation, Protocol
from remora_sagemaker.simulator.shapes import JsonObject
from remora_sagemaker.simulator.steps import Steps

MAX_BODY = 8 * 1024 * 1024
"""Bytes of a request: a pipeline definition may have 1 MiB, and each of its characters a JSON escape."""

SHUTDOWN = 0.1
"""Seconds that requests in progress get when the server closes; held ones are cut off then."""

_TOO_LARGE = ApiError("RequestEntityTooLargeException", f"The request has more than {MAX_BODY} bytes.", status=413)
_DEFECT = ApiError("InternalFailure", "The simulator failed; its log says why.", status=500)

log = structlog.get_logger(__name__)


class Simulator:
    """A SageMaker account in memory. See the package's docstring for how to use it."""

    def __init__(
        self, *, account: Account | None = None, clock: SimulatedClock | None = None, latency: float = 0.0
    ) -> None:
        """Start with an empty account.

        Args:
            account: Region and number.
            clock: The simulation's time; default: real time.
            latency: Real seconds that every request takes.
        """
        self.account = account or Account()
        self.clock = clock or SimulatedClock()
        self.faults = Faults()
        self.limits = Limits(self.clock)
        self.pipelines = Pipelines(self.account, self.clock)
        self.executions = Executions(self.pipelines, self.clock)
        self.calls = Counter[str]()
        """How many requests came, by operation."""
        self._jobs = Jobs(self.account, self.executions, self.clock)
        self._steps = Steps(self.account, self.executions, self.clock)
        self._latency = latency
        self._initial: dict[str, str] = {}
        self._protocol = Protocol(
            {
                **self.pipelines.handlers(),
                **self.executions.handlers(),
                **self._steps.handlers(),
                **self._jobs.handlers(),
            }
        )

    @property
    def operations(self) -> frozenset[str]:
        """Names of the operations that are simulated."""
        return self._protocol.operations

    def create_pipeline(self, name: str, definition: str | Mapping[str, Any]) -> str:
        """Create a pipeline that is there from the start, also after a reset, and return its ARN.

        Raises:
            ApiError: SageMaker would not take the name or the definition.
        """
        text = definition if isinstance(definition, str) else json.dumps(definition)
        arn = self._create_pipeline(name, text)
        self._initial[name] = text
        return arn

    def invoke(self, operation: str, request: JsonObject) -> JsonObject:
        """Carry out an operation as a request over HTTP would, without faults and limits.

        Raises:
            ApiError: what SageMaker would answer.
        """
        found = self._protocol.operation(f"SageMaker.{operation}")
        answer: JsonObject = json.loads(self._carry_out(found, json.dumps(request).encode()))
        return answer

    def reset(self) -> None:
        """Go back to the start: the initial pipelines, no executions, no faults, no limits. Time goes on."""
        self._steps.clear()
        self.executions.clear()
        self.executions.quota = None
        self.pipelines.clear()
        self.faults.reset()
        self.limits.clear()
        self.limits.refused.clear()
        self.calls.clear()
        for name, text in self._initial.items():
            self._create_pipeline(name, text)

    @asynccontextmanager
    async def serve(self, *, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str]:
        """Serve on an address (port 0: any that is free) and yield the URL.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application(client_max_size=MAX_BODY)
        add_control_routes(app, self)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def _create_pipeline(self, name: str, text: str) -> str:
        request = {
            "PipelineName": name,
            "PipelineDefinition": text,
            "RoleArn": f"arn:aws:iam::{self.account.account}:role/SimulatedSageMakerRole",
            "ClientRequestToken": short_id("initial pipeline", name, length=32),
        }
        return str(self.invoke("CreatePipeline", request)["PipelineArn"])

    def _carry_out(self, operation: Operation, body: bytes) -> bytes:
        return self._protocol.encode(operation, operation.handler(self._protocol.decode(operation, body)))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        target = request.headers.get("X-Amz-Target", "")
        try:
            answer, status = await self._answer(target, await request.read()), 200
        except ApiError as error:
            answer, status = error.body(), error.status
        except web.HTTPRequestEntityTooLarge:
            answer, status = _TOO_LARGE.body(), _TOO_LARGE.status
        except ConnectionLost:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        except Exception:
            log.exception("the simulator failed", target=target)
            answer, status = _DEFECT.body(), _DEFECT.status
        headers = {"Content-Type": CONTENT_TYPE, "x-amzn-RequestId": str(uuid.uuid4())}
        return web.Response(body=answer, status=status, headers=headers)

    async def _answer(self, target: str, body: bytes) -> bytes:
        operation = self._protocol.operation(target)
        self.calls[operation.name] += 1
        if self._latency:
            await asyncio.sleep(self._latency)
        fault = self.faults.pick(operation.name, body)
        if fault is not None and fault.when == "before":
            await self.faults.inflict(fault)
        self.limits.take(operation.name)
        if fault is None or fault.when == "before":
            return self._carry_out(operation, body)
        try:
            return self._carry_out(operation, body)
        finally:
            await self.faults.inflict(fault)
