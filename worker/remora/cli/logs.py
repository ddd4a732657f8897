"""``remora logs``: the log of a task, from a worker or, for a task of a run, from the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import click

from remora import wire
from remora.cli.client import CALL_SECONDS, WAIT_SECONDS, Patience, Server, connect, find_key, remark
from remora.cli.options import examples, server_options
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1 import workflow_service_pb2 as workflow_pb
from remora.v1.worker_service_pb2_grpc import WorkerServiceStub
from remora.v1.workflow_service_pb2_grpc import WorkflowServiceStub

if TYPE_CHECKING:
    from remora.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub
    from remora.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

_PAGE_BYTES = 512 * 1024


class Page(Protocol):
    """What both services answer."""

    @property
    def text(self) -> str:
        """Whole lines."""
        ...

    @property
    def next_offset(self) -> int:
        """The byte after the text."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing follows."""
        ...


@click.command(epilog=examples("remora logs nightly-7 --follow", "remora logs --run train-and-register-1 train"))
@click.argument("task")
@click.option("--attempt", type=click.IntRange(1), help="Which attempt.  [default: the latest]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--run", help="TASK is the name of a task of this run; ask the scheduler.")
@server_options("worker", "scheduler")
def logs(*, worker: Server, scheduler: Server, task: str, attempt: int | None, follow: bool, run: str | None) -> None:
    """Show the log of a task: what the worker did, each step of the job, and why it failed."""
    if run is None:
        asyncio.run(_of_worker(worker, task, attempt, follow=follow))
    else:
        asyncio.run(_of_run(scheduler, run, task, attempt, follow=follow))


async def read_log(
    patience: Patience, read: Callable[[int, float], Awaitable[Page]], write: Callable[[str], None], *, follow: bool
) -> None:
    """Read a log by a call that takes an offset and the seconds to wait, to its present end or until it is done."""
    offset = 0
    while True:
        page = await patience.call(read, offset, WAIT_SECONDS if follow else 0.0)
        if page.text:
            write(page.text)
        if page.done or not (follow or page.text):
            return
        offset = page.next_offset


async def print_log(
    server: Server, stub: WorkerServiceAsyncStub, key: task_pb2.TaskKey, *, follow: bool, to_error: bool = False
) -> None:
    """Print the log of a task."""

    async def read(offset: int, wait: float) -> Page:
        request = pb.ReadTaskLogsRequest(key=key, offset=offset, max_bytes=_PAGE_BYTES, wait=wire.duration(wait))
        return await stub.ReadTaskLogs(request, timeout=wait + CALL_SECONDS)

    await read_log(Patience(server, remark), read, lambda text: click.echo(text, nl=False, err=to_error), follow=follow)


def workflow_log(
    stub: WorkflowServiceAsyncStub, run: str, task: str, attempt: int | None
) -> Callable[[int, float], Awaitable[Page]]:
    """Return the call that reads the log of a task of a run. Without an attempt it stays with the first one found."""

    async def read(offset: int, wait: float) -> Page:
        nonlocal attempt
        request = workflow_pb.ReadWorkflowTaskLogsRequest(
            run_id=run,
            task_name=task,
            attempt=attempt or 0,
            offset=offset,
            max_bytes=_PAGE_BYTES,
            wait=wire.duration(wait),
        )
        answer = await stub.ReadWorkflowTaskLogs(request, timeout=wait + CALL_SECONDS)
        attempt = answer.attempt or attempt
        return answer

    return read


async def _of_worker(worker: Server, task_id: str, attempt: int | None, *, follow: bool) -> None:
    async with connect(worker) as channel:
        stub = WorkerServiceStub(channel)
        await print_log(worker, stub, await find_key(stub, task_id, attempt), follow=follow)


async def _of_run(scheduler: Server, run: str, task: str, attempt: int | None, *, follow: bool) -> None:
    async with connect(scheduler) as channel:
        read = workflow_log(WorkflowServiceStub(channel), run, task, attempt)
        await read_log(Patience(scheduler, remark), read, lambda text: click.echo(text, nl=False), follow=follow)
