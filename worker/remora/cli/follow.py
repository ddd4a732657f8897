"""Follows a run of a workflow, and the logs of its tasks, until both have ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Protocol

import grpc.aio

from remora import wire
from remora.cli.client import CALL_SECONDS, WAIT_SECONDS, Patience, Server
from remora.cli.logs import read_log, workflow_log
from remora.v1 import workflow_service_pb2 as pb

if TYPE_CHECKING:
    from remora.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

_LAST_LINES_SECONDS = 5.0
"""How long the end of the logs may come after the end of the run."""


class View(Protocol):
    """What is shown to whom; see :mod:`remora.cli.views`."""

    def show(self, run: pb.WorkflowRun) -> None:
        """Show how the run is now."""
        ...

    def log(self, task: str, text: str) -> None:
        """Show lines of the log of a task."""
        ...

    def say(self, text: str) -> None:
        """Show a remark of the command itself."""
        ...


async def watch(
    scheduler: Server, stub: WorkflowServiceAsyncStub, run_id: str, view: View, *, logs: bool
) -> pb.WorkflowRun:
    """Show a run until it has ended, and return it. The scheduler may be away for any time in between."""
    latest = pb.WorkflowRun()
    async with _log_followers(scheduler, stub, view) as followers:
        async for latest in follow_run(Patience(scheduler, view.say), stub, run_id):
            view.show(latest)
            if logs:
                followers.look_at(latest)
    return latest


async def follow_run(patience: Patience, stub: WorkflowServiceAsyncStub, run_id: str) -> AsyncIterator[pb.WorkflowRun]:
    """Yield a run whenever it has changed, to its end."""
    request = pb.GetWorkflowRunRequest(run_id=run_id)
    while True:
        seconds = wire.seconds(request.wait) + CALL_SECONDS
        run = (await patience.call(stub.GetWorkflowRun, request, timeout=seconds)).run
        if run.version > request.after_version:
            yield run
        if run.state != pb.WORKFLOW_RUN_STATE_RUNNING:
            return
        request.after_version = run.version
        request.wait.CopyFrom(wire.duration(WAIT_SECONDS))


class _LogFollowers:
    """One follower for each attempt at each task."""

    def __init__(self, scheduler: Server, stub: WorkflowServiceAsyncStub, view: View) -> None:
        self._scheduler = scheduler
        self._stub = stub
        self._view = view
        self.tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    def look_at(self, run: pb.WorkflowRun) -> None:
        """Begin with attempts that are new."""
        for task in run.tasks:
            for attempt in range(1, task.attempt + 1):
                if (task.name, attempt) not in self.tasks:
                    following = self._follow(run.run_id, task.name, attempt)
                    self.tasks[task.name, attempt] = asyncio.create_task(
                        following, name=f"log of {task.name}#{attempt}"
                    )

    async def _follow(self, run_id: str, task: str, attempt: int) -> None:
        # That the scheduler is away is said by the one who follows the run.
        patience = Patience(self._scheduler, lambda _: None, met=True)
        read = workflow_log(self._stub, run_id, task, attempt)
        try:
            await read_log(patience, read, lambda text: self._view.log(task, text), follow=True)
        except grpc.aio.AioRpcError as error:
            self._view.say(f"the log of {task} cannot be read: {error.details()}")


@contextlib.asynccontextmanager
async def _log_followers(
    scheduler: Server, stub: WorkflowServiceAsyncStub, view: View
) -> AsyncGenerator[_LogFollowers]:
    followers = _LogFollowers(scheduler, stub, view)
    try:
        yield followers
        if followers.tasks:
            await asyncio.wait(followers.tasks.values(), timeout=_LAST_LINES_SECONDS)
    finally:
        for task in followers.tasks.values():
            task.cancel()
        await asyncio.gather(*followers.tasks.values(), return_exceptions=True)
