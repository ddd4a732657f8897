"""The behaviour suite on the example plugin: the contract is not SageMaker in disguise."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from remora.plugin import JobState
from remora.testing import HandlerContract, ManualClock, Workbench
from remora_example import ExampleHandler, ExamplePlugin, ExampleSettings


class ExampleBench(Workbench):
    secrets = ("hunter2",)
    known_errors = (PermissionError(13, "Permission denied", "jobs"), OSError(28, "No space left on device"))

    def __init__(self, directory, stack):
        self._settings = ExampleSettings.model_validate({"plugin.example.directory": directory})
        self._clock = ManualClock()
        self._stack = stack
        self.handler: ExampleHandler

    def parameters(self, end):
        return json.dumps({"seconds": 3600, "fail": "as told" if end is JobState.FAILED else ""})

    async def finish(self):
        await self._clock.advance(3600)

    async def jobs(self):
        names = await asyncio.to_thread(lambda: [path.name for path in self._settings.directory.iterdir()])
        return sum("." not in name for name in names)

    async def vanish(self, handle):
        await asyncio.to_thread((self._settings.directory / handle.job).unlink)

    async def restart(self):
        [self.handler] = await self._stack.enter_async_context(ExamplePlugin().open(self._settings, self._clock))


class TestExampleHandler(HandlerContract):
    @pytest.fixture
    async def bench(self, tmp_path):
        async with contextlib.AsyncExitStack() as stack:
            bench = ExampleBench(tmp_path / "jobs", stack)
            await bench.restart()
            yield bench
