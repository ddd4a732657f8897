"""``remora submit``, ``get`` and ``list``: the tasks of a worker."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import click

from remora import wire
from remora.cli.client import CALL_SECONDS, Server, connect, find_key, pages, remark
from remora.cli.group import ExitCode
from remora.cli.logs import print_log
from remora.cli.options import DurationType, PairType, examples, json_option, server_options
from remora.cli.output import duration, failure_lines, lasted, plain, print_json, state_name, state_text, table
from remora.pace import SystemClock
from remora.task import TaskState
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1.worker_service_pb2_grpc import WorkerServiceStub

SAGEMAKER = "SAGEMAKER"
REQUEST = "sagemakerRequestJson"
_REQUEST_SPELLINGS = (REQUEST, "SagemakerRequestJson", "sagemaker_request_json")


@click.command(
    epilog=examples(
        "remora submit SAGEMAKER --request start.json --wait",
        'remora submit SAGEMAKER --request \'{"PipelineName": "AbalonePipeline"}\' --task-id nightly-7',
        "remora submit SAGEMAKER parameters.json --timeout 6h",
    )
)
@click.argument("task_type", metavar="TYPE")
@click.argument("parameters", required=False)
@click.option("--request", help=f"A StartPipelineExecution request to be wrapped into {REQUEST}: JSON, a file, or -.")
@click.option("--task-id", help="Name of the task: the same one again gives the same task.  [default: a new one]")
@click.option("--attempt", type=click.IntRange(1), default=1, show_default=True, help="Which attempt at the task.")
@click.option("--timeout", type=DurationType(), help="How long the task may take, for example 6h.  [default: for ever]")
@click.option("--name", default="", help="A name for people.")
@click.option("-l", "--label", "labels", type=PairType(), multiple=True, help="Kept and shown with the task.")
@click.option("--wait", is_flag=True, help="Follow its log to its end; exit with 0 only if it succeeded.")
@json_option
@server_options("worker")
def submit(  # noqa: PLR0913 -- options
    *,
    worker: Server,
    task_type: str,
    parameters: str | None,
    request: str | None,
    task_id: str | None,
    attempt: int,
    timeout: float | None,
    name: str,
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Hand a task of a TYPE to a worker. PARAMETERS is a JSON object, a file that has one, or - for the input."""
    definition = task_pb2.TaskDefinition(
        key=task_pb2.TaskKey(task_id=task_id or f"cli-{uuid.uuid4()}", attempt=attempt),
        task_type=task_type,
        name=name,
        parameters_json=_parameters(task_type, parameters, request),
        timeout=None if timeout is None else wire.duration(timeout),
        labels=dict(labels),
    )
    try:
        task = asyncio.run(_submit(worker, definition, wait=wait, to_error=as_json))
    except KeyboardInterrupt:
        _say_how_to_go_on(definition.key.task_id, worker)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        print_json(plain(task))
    else:
        _print_outcome(task) if wait else _print_task(task)
        if wait:
            took = duration(lasted(task.created_at, task.finished_at, SystemClock().now()))
            click.echo(f"task {task.key.task_id}: {state_name(task)} after {took}")
    if state_name(task) != TaskState.SUCCEEDED and (wait or state_name(task) == TaskState.FAILED):
        raise click.exceptions.Exit(ExitCode.FAILED)


@click.command(epilog=examples("remora get nightly-7", "remora get nightly-7 --json | jq .outputs.steps"))
@click.argument("task_id")
@click.option("--attempt", type=click.IntRange(1), help="Which attempt.  [default: the latest]")
@click.option("--definition", is_flag=True, help="Show what was asked for, too.")
@json_option
@server_options("worker")
def get(*, worker: Server, task_id: str, attempt: int | None, definition: bool, as_json: bool) -> None:
    """Show a task: its state, what it produced, or why it failed and who has to act."""
    answer = asyncio.run(_get(worker, task_id, attempt, definition=definition))
    if as_json:
        shown = plain(answer.task)
        if definition:
            shown["definition"] = plain(answer.definition)
        print_json(shown)
        return
    _print_task(answer.task)
    if answer.HasField("definition"):
        click.echo("definition:")
        print_json(plain(answer.definition))


@click.command(
    "list", epilog=examples("remora list", "remora list --state RUNNING --state ACCEPTED --limit 1000 --json")
)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in TaskState], case_sensitive=False),
    help="Only this state; may be repeated.",
)
@click.option("--type", "task_type", default="", help="Only this task type.")
@click.option("--prefix", default="", help="Only task ids that begin so.")
@click.option("-n", "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option
@server_options("worker")
def list_tasks(
    *, worker: Server, states: tuple[str, ...], task_type: str, prefix: str, limit: int, as_json: bool
) -> None:
    """List the tasks of a worker, oldest first."""
    request = pb.ListTasksRequest(
        states=[task_pb2.TaskState.Value(f"TASK_STATE_{state.upper()}") for state in states],
        task_type=task_type,
        task_id_prefix=prefix,
    )
    tasks, more = asyncio.run(_list(worker, request, limit))
    if as_json:
        print_json([plain(task) for task in tasks])
    elif not tasks:
        click.echo("no tasks")
    else:
        now = SystemClock().now()
        table(
            *("TASK", "ATTEMPT", "TYPE", "STATE", "DURATION", "NOW"),
            rows=[
                (
                    task.key.task_id,
                    str(task.key.attempt),
                    task.task_type,
                    state_text(state_name(task)),
                    duration(lasted(task.created_at, task.finished_at, now)),
                    task.failure.message or task.detail,
                )
                for task in tasks
            ],
        )
    if more:
        click.echo(f"there are more than {limit}; ask for them with --limit", err=True)


async def _submit(worker: Server, definition: task_pb2.TaskDefinition, *, wait: bool, to_error: bool) -> task_pb2.Task:
    async with connect(worker) as channel:
        stub = WorkerServiceStub(channel)
        request = pb.DispatchTaskRequest(assignment=task_pb2.Assignment(definition=definition))
        task = (await stub.DispatchTask(request, timeout=CALL_SECONDS)).task
        if not wait:
            return task
        click.echo(f"task {task.key.task_id}", err=True)
        await print_log(worker, stub, task.key, follow=True, to_error=to_error)
        return (await stub.GetTask(pb.GetTaskRequest(key=task.key), timeout=CALL_SECONDS)).task


async def _get(worker: Server, task_id: str, attempt: int | None, *, definition: bool) -> pb.GetTaskResponse:
    async with connect(worker) as channel:
        stub = WorkerServiceStub(channel)
        key = await find_key(stub, task_id, attempt)
        return await stub.GetTask(pb.GetTaskRequest(key=key, include_definition=definition), timeout=CALL_SECONDS)


async def _list(worker: Server, request: pb.ListTasksRequest, limit: int) -> tuple[list[task_pb2.Task], bool]:
    tasks: list[task_pb2.Task] = []
    request.page_size = min(limit, 1000)
    async with connect(worker) as channel:
        async for task in pages(WorkerServiceStub(channel), request):
            if len(tasks) == limit:
                return tasks, True
            tasks.append(task)
    return tasks, False


def _say_how_to_go_on(task_id: str, worker: Server) -> None:
    where = worker.option
    remark(
        f"\nThe task goes on without you.\n"
        f"  follow it again:  remora logs {task_id} --follow{where}\n"
        f"  cancel it:        remora cancel {task_id}{where}"
    )


def _parameters(task_type: str, parameters: str | None, request: str | None) -> str:
    """Return the parameters of the task as JSON text."""
    if (parameters is None) == (request is None):
        raise click.UsageError("Give either PARAMETERS or --request.")
    if request is not None:
        if task_type != SAGEMAKER:
            raise click.UsageError(f"--request is for tasks of type {SAGEMAKER}; give PARAMETERS.")
        _object(request_text := _text(request), "--request")
        return json.dumps({REQUEST: request_text})
    text = _text(parameters or "")
    content = _object(text, "PARAMETERS")
    if task_type == SAGEMAKER and not any(name in content for name in _REQUEST_SPELLINGS):
        raise click.UsageError(
            f'PARAMETERS has no {REQUEST}. Write {{"{REQUEST}": "<the request as JSON text>"}}; if it is the request '
            "of StartPipelineExecution itself, give it as --request."
        )
    return text


def _text(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    if source.lstrip().startswith("{"):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(
            f"{source}: cannot be read: {error.strerror}. Give a file, - or a JSON object."
        ) from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{source}: is not UTF-8.") from None


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(
            f"{what} is not JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{what} is not a JSON object.")
    return value  # pyright: ignore[reportUnknownVariableType]  # from JSON


def _print_task(task: task_pb2.Task) -> None:
    now = SystemClock().now()
    facts = {
        "task": task.key.task_id,
        "name": task.name if task.name != task.key.task_id else "",
        "attempt": str(task.key.attempt),
        "type": task.task_type,
        "state": state_name(task),
        "now": task.detail,
        "duration": duration(lasted(task.created_at, task.finished_at, now)),
        "stop": task.stop.reason if task.HasField("stop") else "",
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(task.labels.items())),
        "handle": task.handle_json,
    }
    for name, value in facts.items():
        if value:
            click.echo(f"{name + ':':<10}{value}")
    _print_outcome(task)


def _print_outcome(task: task_pb2.Task) -> None:
    if task.outputs_json:
        click.echo("outputs:")
        print_json(json.loads(task.outputs_json))
    if task.HasField("failure"):
        for line in failure_lines(task.failure):
            click.echo(line)
