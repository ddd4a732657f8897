"""``remora demo``: a scheduler, a worker and a simulated SageMaker as processes of this machine, for half a minute."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import remora
from remora.cli.client import CALL_SECONDS, Server, connect
from remora.cli.follow import View, watch
from remora.cli.group import ExitCode, Failed
from remora.cli.options import examples
from remora.cli.output import state_name, table
from remora.cli.processes import Program, Programs
from remora.cli.views import LinesView, TableView, summary
from remora.pace import SystemClock
from remora.scheduler import load
from remora.v1 import workflow_service_pb2 as pb
from remora.v1.workflow_service_pb2_grpc import WorkflowServiceStub

_RUN = "demo"
_PROPERTIES = """\
# Written by `remora demo`. The keys are not secret: the simulator does not look at them.
resource.aws.access.key.id=AKIDEXAMPLE
resource.aws.secret.access.key=not-a-secret
resource.aws.region=us-east-1
aws.sagemaker.endpoint={simulator}
plugin.sagemaker.poll.initial.seconds=0.3
plugin.sagemaker.poll.maximum.seconds=0.5
plugin.sagemaker.rate.default=50
worker.id=demo-worker
worker.plugins=sagemaker
worker.doors=grpc, scheduler
worker.data.dir={directory}/worker-data
worker.log.format=json
door.grpc.address=127.0.0.1:0
door.scheduler.address={scheduler}
door.scheduler.retry.initial.seconds=0.2
scheduler.address=127.0.0.1:0
scheduler.data.dir={directory}/scheduler-data
"""


@click.command(epilog=examples("remora demo", "remora demo --speed 5 --no-kill --keep"))
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, help="Of the simulator's time.")
@click.option("--kill/--no-kill", default=True, help="Kill the worker in the middle, and start it again.")
@click.option("--keep", is_flag=True, help="Keep the directory with logs, journals and properties.")
@click.option(
    "--examples",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with train_and_register.yaml and pipelines.  [default: of the source checkout]",
)
def demo(*, speed: float, kill: bool, keep: bool, folder: Path | None) -> None:
    """Run a workflow that trains and registers a model on a simulated SageMaker. Needs no AWS account.

    Starts simulator, scheduler and worker as processes on this machine, runs examples/train_and_register.yaml, kills
    the worker in the middle and starts it again, counts the executions, and stops everything.
    """
    folder = folder or Path(remora.__file__).parents[2] / "examples"
    _require(folder)
    with contextlib.ExitStack() as stack:
        directory = Path(
            tempfile.mkdtemp(prefix="remora-demo-")
            if keep
            else stack.enter_context(
                tempfile.TemporaryDirectory(prefix="remora-demo-", dir=_memory(), ignore_cleanup_errors=True)
            )
        )
        console = Console()
        opening = "starting a simulator of SageMaker, a scheduler and a worker"
        view: TableView | LinesView = TableView(console, opening) if console.is_terminal else LinesView(click.echo)
        stack.enter_context(view)
        stage = _Stage(directory, folder, view, kill=kill)
        try:
            run, executions = asyncio.run(stage.play(speed))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            if keep:
                view.say(f"logs, journals and properties are in {directory}")
    if not _conclude(run, executions, killed=stage.killed):
        raise click.exceptions.Exit(ExitCode.FAILED)


class _Stage:
    """Where the demo is played. A view like the one it wraps, that looks for the moment to kill the worker."""

    def __init__(self, directory: Path, folder: Path, view: View, *, kill: bool) -> None:
        self.killed = False
        self._directory = directory
        self._folder = folder
        _, self._workflow = load(folder / "train_and_register.yaml", {})
        self._view = view
        self._kill = kill
        self._clock = SystemClock()
        self._in_the_middle = asyncio.Event()

    def show(self, run: pb.WorkflowRun) -> None:
        """Show the run."""
        self._view.show(run)
        states = [task.state for task in run.tasks]
        if pb.WORKFLOW_TASK_STATE_SUCCEEDED in states and pb.WORKFLOW_TASK_STATE_RUNNING in states:
            self._in_the_middle.set()

    def log(self, task: str, text: str) -> None:
        """Show lines of a task's log."""
        self._view.log(task, text)

    def say(self, text: str) -> None:
        """Show a remark."""
        self._view.say(text)

    async def play(self, speed: float) -> tuple[pb.WorkflowRun, Sequence[dict[str, Any]]]:
        """Return the run as it ended, and the executions that the simulator counted."""
        with _cancelled_by_signals():
            async with Programs.open(self._directory, _environment()) as programs:
                simulator = await self._start_simulator(programs, speed)
                scheduler = await self._start_scheduler(programs, simulator)
                worker = await programs.start("worker", *self._remora("worker"))
                address = await worker.said(_listening, self._clock)
                self.say(f"simulator on {simulator}, scheduler on {scheduler.address}, worker on {address}")
                killing = asyncio.create_task(self._kill_in_the_middle(programs, worker), name="kill the worker")
                try:
                    run = await self._run(scheduler)
                finally:
                    killing.cancel()
                return run, await asyncio.to_thread(_executions, simulator)

    async def _start_simulator(self, programs: Programs, speed: float) -> str:
        command = [sys.executable, "-m", "remora_sagemaker.simulator", "--port", "0", "--speed", str(speed)]
        simulator = await programs.start("simulator", *command, "--pipelines", str(self._folder / "pipelines"))
        return await simulator.said(_ready, self._clock)

    async def _start_scheduler(self, programs: Programs, simulator: str) -> Server:
        # The worker's file names the scheduler's port, which is known when that listens.
        await asyncio.to_thread(self._configure, simulator, "127.0.0.1:0")
        scheduler = await programs.start("scheduler", *self._remora("scheduler"))
        address = await scheduler.said(_listening, self._clock)
        await asyncio.to_thread(self._configure, simulator, address)
        return Server(kind="scheduler", address=address)

    def _configure(self, simulator: str, scheduler: str) -> None:
        text = _PROPERTIES.format(simulator=simulator, scheduler=scheduler, directory=self._directory)
        (self._directory / "common.properties").write_text(text, encoding="utf-8")

    def _remora(self, command: str) -> Sequence[str]:
        return [sys.executable, "-m", "remora", command, "--config", str(self._directory / "common.properties")]

    async def _run(self, scheduler: Server) -> pb.WorkflowRun:
        async with connect(scheduler) as channel:
            stub = WorkflowServiceStub(channel)
            request = pb.SubmitWorkflowRequest(workflow_yaml=self._workflow, run_id=_RUN)
            await stub.SubmitWorkflow(request, timeout=CALL_SECONDS)
            return await watch(scheduler, stub, _RUN, self, logs=True)

    async def _kill_in_the_middle(self, programs: Programs, worker: Program) -> None:
        if not self._kill:
            return
        await self._in_the_middle.wait()
        self.say(f"kill -9 {worker.pid}: the worker dies while executions run; SageMaker does not notice")
        await worker.kill()
        self.killed = True
        await programs.restart(worker)
        await worker.said(_listening, self._clock)
        self.say("the worker is back and goes on from its journal")


def _require(folder: Path) -> None:
    if not (folder / "train_and_register.yaml").is_file():
        raise Failed(
            f"{folder}: there is no train_and_register.yaml. The demo's workflow and pipelines are part of the source "
            "checkout: run `make demo` there, or name their directory with --examples."
        )
    if importlib.util.find_spec("remora_sagemaker") is None or importlib.util.find_spec("aiohttp") is None:
        raise Failed("the demo needs the simulator: install remora-sagemaker[simulator].")


@contextlib.contextmanager
def _cancelled_by_signals() -> Generator[None]:
    """Let the first signal cancel this task; later ones must not disturb it while it stops its processes."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "it runs in a task"
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def cancel() -> None:
        if not task.cancelling():
            task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _environment() -> dict[str, str]:
    """Return ours without what would lead the programs elsewhere: to AWS, to a proxy, to other properties."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REMORA_", "AWS_"))}
    return kept | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }


def _ready(line: str) -> str | None:
    match = re.fullmatch(r"simulator ready on (\S+)", line)
    return match[1] if match else None


def _listening(line: str) -> str | None:
    """Return the address in the log line of a server that listens."""
    if not line.startswith("{"):
        return None
    entry: dict[str, Any] = json.loads(line)
    return str(entry["address"]) if entry.get("event") == "listening" else None


def _executions(simulator: str) -> Sequence[dict[str, Any]]:
    """Ask the simulator which executions there are. Blocks."""
    connection = http.client.HTTPConnection(simulator.removeprefix("http://"), timeout=CALL_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/_sim/executions")
        found: list[dict[str, Any]] = json.load(connection.getresponse())["executions"]
        return found


def _conclude(run: pb.WorkflowRun, executions: Sequence[dict[str, Any]], *, killed: bool) -> bool:
    """Print what happened and tell whether it is what was promised."""
    click.echo()
    table(
        *("PIPELINE", "STATUS", "EXECUTION"),
        rows=[(each["pipeline"], each["status"], each["arn"].rpartition("/")[2]) for each in executions],
    )
    for line in summary(run):
        click.echo(line)
    attempts = sum(task.attempt for task in run.tasks)
    if len(executions) != attempts:
        click.echo(
            f"SageMaker counted {len(executions)} executions for {attempts} attempts: that must not be", err=True
        )
        return False
    although = ", although the worker was killed in the middle" if killed else ""
    click.echo(f"SageMaker counted {len(executions)} executions: exactly one for each attempt{although}")
    return state_name(run) == "SUCCEEDED"


def _memory() -> str | None:
    """Return a directory in memory, if there is one: what a demonstration writes need not wait for a busy disk."""
    directory = "/dev/shm"  # noqa: S108 -- in it a directory of our own is made, safely
    return directory if os.access(directory, os.W_OK) else None
