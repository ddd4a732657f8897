"""``remora run`` and ``runs``: DAG files on the embedded scheduler."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import secrets
import sys
from pathlib import Path

import click
from rich.console import Console

from remora.cli.client import CALL_SECONDS, Server, connect, remark
from remora.cli.follow import View, watch
from remora.cli.group import ExitCode
from remora.cli.options import PairType, examples, json_option, server_options
from remora.cli.output import duration, lasted, plain, print_json, state_name, state_text, table
from remora.cli.views import LinesView, TableView, summary
from remora.pace import SystemClock
from remora.scheduler import load
from remora.v1 import workflow_service_pb2 as pb
from remora.v1.workflow_service_pb2_grpc import WorkflowServiceStub


@click.command(
    epilog=examples(
        "remora run examples/train_and_register.yaml -p run_date=2026-11-20",
        "remora run nightly.yaml --detach",
        "remora run --attach nightly-20261120-031500-9f3a1c22",
    )
)
@click.argument("dag", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-p", "--parameter", "parameters", type=PairType(), multiple=True, help="A start parameter.")
@click.option("--run-id", help="Name of the run: the same one again gives the same run.  [default: a new one]")
@click.option("--attach", metavar="RUN", help="Follow a run that was started before.")
@click.option("--detach", is_flag=True, help="Start the run and leave it alone.")
@click.option("--logs/--no-logs", default=True, show_default=True, help="Show the logs of the tasks, too.")
@json_option
@server_options("scheduler")
def run(
    *,
    scheduler: Server,
    dag: Path | None,
    parameters: tuple[tuple[str, str], ...],
    run_id: str | None,
    attach: str | None,
    detach: bool,
    logs: bool,
    as_json: bool,
) -> None:
    """Run the DAG file on the scheduler and follow it to its end. Exits with 0 only if every task succeeded.

    Ctrl-C leaves the run alone. With --json the run is printed at the end, and what happens goes to the standard
    error output.
    """
    if (dag is None) == (attach is None):
        raise click.UsageError("Give either a DAG file or --attach.")
    if attach is not None and (run_id or detach or parameters):
        raise click.UsageError("--attach follows a run that is there; --run-id, --detach and -p start one.")
    chosen = attach or run_id or _new_run_id(dag)
    request = None
    if dag is not None:
        request = pb.SubmitWorkflowRequest(workflow_yaml=_text(dag), parameters=dict(parameters), run_id=chosen)
    if detach and request is not None:
        started = asyncio.run(_submit(scheduler, request))
        print_json(plain(started)) if as_json else click.echo(started.run_id)
        return
    try:
        with _view(to_error=as_json) as view:
            ended = asyncio.run(_follow(scheduler, chosen, request, view, logs=logs))
    except KeyboardInterrupt:
        _say_how_to_go_on(chosen, scheduler)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    _conclude(ended, as_json=as_json)


@click.command(epilog=examples("remora runs --json | jq -r '.[] | select(.state == \"FAILED\") | .run_id'"))
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@json_option
@server_options("scheduler")
def runs(*, scheduler: Server, limit: int, as_json: bool) -> None:
    """List the runs of the scheduler, newest first."""
    found = asyncio.run(_runs(scheduler, limit))
    if as_json:
        print_json([plain(each) for each in found])
    elif not found:
        click.echo("no runs")
    else:
        now = SystemClock().now()
        table(
            *("RUN", "WORKFLOW", "STATE", "TASKS", "DURATION", "BEGAN"),
            rows=[
                (
                    each.run_id,
                    each.name,
                    state_text(state_name(each)),
                    f"{sum(task.HasField('finished_at') for task in each.tasks)}/{len(each.tasks)}",
                    duration(lasted(each.created_at, each.finished_at, now)),
                    each.created_at.ToDatetime(dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                )
                for each in found
            ],
        )


async def _submit(scheduler: Server, request: pb.SubmitWorkflowRequest) -> pb.WorkflowRun:
    async with connect(scheduler) as channel:
        return (await WorkflowServiceStub(channel).SubmitWorkflow(request, timeout=CALL_SECONDS)).run


async def _follow(
    scheduler: Server, run_id: str, request: pb.SubmitWorkflowRequest | None, view: View, *, logs: bool
) -> pb.WorkflowRun:
    async with connect(scheduler) as channel:
        stub = WorkflowServiceStub(channel)
        if request is not None:
            await stub.SubmitWorkflow(request, timeout=CALL_SECONDS)
        return await watch(scheduler, stub, run_id, view, logs=logs)


async def _runs(scheduler: Server, limit: int) -> list[pb.WorkflowRun]:
    async with connect(scheduler) as channel:
        request = pb.ListWorkflowRunsRequest(page_size=limit)
        return list((await WorkflowServiceStub(channel).ListWorkflowRuns(request, timeout=CALL_SECONDS)).runs)


def _conclude(ended: pb.WorkflowRun, *, as_json: bool) -> None:
    if as_json:
        print_json(plain(ended))
    for line in summary(ended):
        click.echo(line, err=as_json)
    if ended.state != pb.WORKFLOW_RUN_STATE_SUCCEEDED:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _view(*, to_error: bool) -> LinesView | TableView:
    console = Console(stderr=to_error)
    if console.is_terminal:
        return TableView(console, "waiting for the scheduler")
    return LinesView(lambda text: click.echo(text, err=to_error))


def _text(dag: Path) -> str:
    """Return a DAG with all that it takes from where it lies. Raises InvalidRequest for one that cannot be run."""
    if str(dag) == "-":
        return sys.stdin.read()
    workflow, text = load(dag, os.environ)
    for note in workflow.notes:
        remark(f"note: {dag}: {note}")
    return text


def _new_run_id(dag: Path | None) -> str:
    """Return a name chosen here, so that a repeated call after a lost answer starts nothing."""
    stem = re.sub(r"[^a-z0-9]+", "-", dag.stem.lower() if dag else "").strip("-")[:64] or "run"
    return f"{stem}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def _say_how_to_go_on(run_id: str, scheduler: Server) -> None:
    where = scheduler.option
    remark(
        f"\nThe run goes on without you.\n"
        f"  follow it again:  remora run --attach {run_id}{where}\n"
        f"  cancel it:        remora cancel --run {run_id}{where}"
    )
