"""The behaviour that the worker expects of every handler, on pipelines in the simulator."""

from __future__ import annotations

import contextlib
import json

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from remora.plugin import JobState
from remora.testing import HandlerContract, ManualClock, Workbench
from remora_sagemaker.plugin import SageMakerPlugin


class PipelineBench(Workbench):
    secrets = ("AKIASECRETID", "very-secret-key", "very-secret-token")
    known_errors = (
        ClientError({"Error": {"Code": "AccessDeniedException", "Message": ""}}, "StartPipelineExecution"),
        EndpointConnectionError(endpoint_url="https://api"),
        NoCredentialsError(),
    )

    def __init__(self, simulator, settings, stack):
        self._simulator = simulator
        self._settings = settings
        self._clock = ManualClock()
        self._stack = stack

    def parameters(self, end):
        fail = [{"Name": "SimFailStep", "Value": "Train"}] if end is JobState.FAILED else []
        return json.dumps({"sagemakerRequestJson": {"PipelineName": "Abalone", "PipelineParameters": fail}})

    async def finish(self):
        self._simulator.clock.advance(3600)

    async def jobs(self):
        return len(list(self._simulator.executions))

    async def vanish(self, handle):
        execution = self._simulator.executions._executions.pop(handle.execution_arn)
        execution.pipeline.executions.remove(execution)

    async def restart(self):
        [self.handler] = await self._stack.enter_async_context(SageMakerPlugin().open(self._settings, self._clock))

    async def wait(self):
        await self._clock.advance(1)


class TestPipelineHandler(HandlerContract):
    @pytest.fixture
    async def bench(self, simulated, simulated_settings):
        async with contextlib.AsyncExitStack() as stack:
            bench = PipelineBench(simulated, simulated_settings, stack)
            await bench.restart()
            yield bench
