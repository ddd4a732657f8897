"""``remora cancel``: stops a task of a worker, or a whole run of the scheduler."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from remora import wire
from remora.cli.client import CALL_SECONDS, WAIT_SECONDS, Patience, Server, connect, find_key, has_ended, remark
from remora.cli.follow import follow_run
from remora.cli.group import ExitCode, Failed
from remora.cli.options import examples, json_option, server_options
from remora.cli.output import plain, print_json, state_name
from remora.errors import TaskNotFound
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1 import workflow_service_pb2 as workflow_pb
from remora.v1.worker_service_pb2_grpc import WorkerServiceStub
from remora.v1.workflow_service_pb2_grpc import WorkflowServiceStub

if TYPE_CHECKING:
    from remora.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub
    from remora.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

_RUNNING = workflow_pb.WORKFLOW_RUN_STATE_RUNNING


@click.command(
    epilog=examples('remora cancel nightly-7 --reason "wrong data" --wait', "remora cancel --run train-and-register-1")
)
@click.argument("task_id", required=False)
@click.option("--run", help="Cancel every task of this run; ask the scheduler.")
@click.option(
    "--attempt", type=click.IntRange(1), help="Which attempt; one never seen cannot start later.  [default: the latest]"
)
@click.option("--reason", default="cancelled on the command line", show_default=True, help="For the task's log.")
@click.option("--wait", is_flag=True, help="Wait until the stop is confirmed.")
@json_option
@server_options("worker", "scheduler")
def cancel(
    *,
    worker: Server,
    scheduler: Server,
    task_id: str | None,
    run: str | None,
    attempt: int | None,
    reason: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Stop a task, or with --run all tasks of a run. The worker asks SageMaker until the stop is confirmed."""
    if (task_id is None) == (run is None):
        raise click.UsageError("Give either TASK_ID or --run.")
    if task_id is not None:
        task = asyncio.run(_cancel_task(worker, task_id, attempt, reason, wait=wait))
        shown, name, wanted = plain(task), state_name(task), task.state == task_pb2.TASK_STATE_CANCELLED
        ended = has_ended(task)
    else:
        answer = asyncio.run(_cancel_run(scheduler, run or "", reason, wait=wait))
        shown, name = plain(answer), state_name(answer)
        wanted, ended = answer.state == workflow_pb.WORKFLOW_RUN_STATE_CANCELLED, answer.state != _RUNNING
    if as_json:
        print_json(shown)
    elif ended:
        click.echo(f"it ended {name}")
    else:
        click.echo(f"it is {name} and will be stopped; --wait waits for that")
    if ended and not wanted:
        raise Failed("it had ended before it could be stopped", code=ExitCode.FAILED)


async def _cancel_task(worker: Server, task_id: str, attempt: int | None, reason: str, *, wait: bool) -> task_pb2.Task:
    async with connect(worker) as channel:
        stub = WorkerServiceStub(channel)
        try:
            key = await find_key(stub, task_id, attempt)
        except TaskNotFound as error:
            raise TaskNotFound(f"{error}; with --attempt it is cancelled before it comes") from None
        request = pb.CancelTaskRequest(key=key, reason=reason)
        task = (await stub.CancelTask(request, timeout=CALL_SECONDS)).task
        return await _ended_task(worker, stub, task) if wait else task


async def _ended_task(worker: Server, stub: WorkerServiceAsyncStub, task: task_pb2.Task) -> task_pb2.Task:
    """Wait by following what changes from now on."""
    patience = Patience(worker, remark)
    request = pb.ReadTaskLogsRequest(key=task.key, wait=wire.duration(WAIT_SECONDS), max_bytes=512 * 1024)
    while not has_ended(task):
        page = await patience.call(stub.ReadTaskLogs, request, timeout=WAIT_SECONDS + CALL_SECONDS)
        request.offset = page.next_offset
        get = pb.GetTaskRequest(key=task.key)
        task = (await patience.call(stub.GetTask, get, timeout=CALL_SECONDS)).task
    return task


async def _cancel_run(scheduler: Server, run_id: str, reason: str, *, wait: bool) -> workflow_pb.WorkflowRun:
    async with connect(scheduler) as channel:
        stub = WorkflowServiceStub(channel)
        request = workflow_pb.CancelWorkflowRunRequest(run_id=run_id, reason=reason)
        run = (await stub.CancelWorkflowRun(request, timeout=CALL_SECONDS)).run
        return await _ended_run(scheduler, stub, run) if wait else run


async def _ended_run(
    scheduler: Server, stub: WorkflowServiceAsyncStub, run: workflow_pb.WorkflowRun
) -> workflow_pb.WorkflowRun:
    async for later in follow_run(Patience(scheduler, remark), stub, run.run_id):
        run = later
    return run
