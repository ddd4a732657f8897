"""The numbers that Remora promises, measured on this machine: ``make bench``.

Each benchmark starts a real worker process and talks to it over loopback, so that client and worker share the
machine as a scheduler and a worker would. What is printed is measured; a goal that is missed is said, and nothing
fails: machines differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from remora.v1 import task_pb2, worker_service_pb2, worker_service_pb2_grpc

_PARAMETER_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One measured number and what it should be."""

    name: str
    value: float
    unit: str
    goal: float
    higher_is_better: bool = False

    def __str__(self) -> str:
        met = self.value >= self.goal if self.higher_is_better else self.value <= self.goal
        sign = ">=" if self.higher_is_better else "<="
        verdict = "met" if met else "MISSED"
        return f"{self.name:<58} {self.value:>10.1f} {self.unit:<8} goal {sign} {self.goal:g}: {verdict}"


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--tasks", default=10_000, help="How many tasks to dispatch, and to hold.")
def main(names: tuple[str, ...], tasks: int) -> None:
    """Run the benchmarks of these names, or all."""
    for name, benchmark in _BENCHMARKS.items():
        if not names or name in names:
            with tempfile.TemporaryDirectory(prefix="remora-bench-") as directory:
                for result in benchmark(Path(directory), tasks):
                    click.echo(result)


def dispatch(directory: Path, tasks: int) -> Iterator[Result]:
    """Durable dispatch of 4 KB tasks by 64 callers. Meanwhile executions are started, at the default rate."""
    with _simulator(directory) as url, _worker(directory, _sagemaker(url), "sagemaker") as (address, _):
        seconds, latencies = uvloop.run(_dispatch(address, "SAGEMAKER", _request(), tasks, 64))
    yield Result(
        name="dispatch, 4 KB, 64 callers, synchronous=FULL", value=tasks / seconds, unit="tasks/s", goal=3000,
        higher_is_better=True,
    )  # fmt: skip
    yield Result(name="  latency of a dispatch, 99 %", value=_percentile(latencies, 99) * 1e3, unit="ms", goal=100)


def start(directory: Path, tasks: int) -> Iterator[Result]:
    """From acceptance to a pipeline execution that is known to exist, one task after the other."""
    count = min(tasks, 200)
    with _simulator(directory) as url, _worker(directory, _sagemaker(url, 1000), "sagemaker") as (address, _):
        uvloop.run(_dispatch(address, "SAGEMAKER", _request(), count, 1))
        snapshots = uvloop.run(_running(address, count))
    waits = [_seconds(task.started_at) - _seconds(task.created_at) for task in snapshots]
    yield Result(
        name="accept to start of an execution, median", value=statistics.median(waits) * 1e3, unit="ms", goal=20
    )


def memory(directory: Path, tasks: int) -> Iterator[Result]:
    """A worker that follows 10,000 running pipeline executions."""
    # So that 10,000 are started in a minute; all else keeps to the default rate.
    with _simulator(directory) as url, _worker(directory, _sagemaker(url, 1000), "sagemaker") as (address, process):
        uvloop.run(_dispatch(address, "SAGEMAKER", _request(), tasks, 64))
        uvloop.run(_running(address, tasks))
        before, at = _cpu(process.pid), time.monotonic()
        sweeps = _calls(url, "ListPipelineExecutions")
        while _calls(url, "ListPipelineExecutions") < sweeps + tasks // 100:
            pass
        busy = (_cpu(process.pid) - before) / (time.monotonic() - at)
        yield Result(name=f"memory with {tasks} running executions", value=_memory(process.pid), unit="MB", goal=150)
        yield Result(name="  processor while following them", value=busy * 100, unit="% core", goal=50)


def startup(directory: Path, tasks: int) -> Iterator[Result]:
    """From the start of the process to SERVING."""
    del tasks
    with _simulator(directory) as url:
        times: list[float] = []
        for _ in range(5):
            began = time.monotonic()
            with _worker(directory, _sagemaker(url), "sagemaker"):
                times.append(time.monotonic() - began)
    yield Result(name="start-up to ready, median of 5", value=statistics.median(times), unit="s", goal=1.5)


_BENCHMARKS: dict[str, Callable[[Path, int], Iterator[Result]]] = {
    "dispatch": dispatch,
    "start": start,
    "memory": memory,
    "startup": startup,
}


async def _dispatch(
    address: str, task_type: str, parameters: str, tasks: int, callers: int
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    numbers = iter(range(tasks))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)

        async def caller() -> None:
            for number in numbers:
                definition = task_pb2.TaskDefinition(
                    key=task_pb2.TaskKey(task_id=f"bench-{number}", attempt=1),
                    task_type=task_type,
                    parameters_json=parameters,
                )
                assignment = task_pb2.Assignment(definition=definition, fencing_token=1)
                began = time.perf_counter()
                await stub.DispatchTask(worker_service_pb2.DispatchTaskRequest(assignment=assignment))
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - began, latencies


async def _running(address: str, count: int) -> list[task_pb2.Task]:
    """Follow the worker until so many tasks run."""
    latest: dict[str, task_pb2.Task] = {}
    cursor = ""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        while sum(task.state == task_pb2.TASK_STATE_RUNNING for task in latest.values()) < count:
            request = worker_service_pb2.WatchTasksRequest(cursor=cursor, page_size=1000)
            request.wait.FromSeconds(10)
            answer = await stub.WatchTasks(request)
            cursor = answer.cursor
            latest |= {task.key.task_id: task for task in answer.tasks}
    return list(latest.values())


@contextlib.contextmanager
def _worker(directory: Path, properties: str, plugin: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    address = f"127.0.0.1:{_free_port()}"
    config = directory / "worker.properties"
    config.write_text(
        f"worker.data.dir={directory / f'data-{time.monotonic_ns()}'}\nworker.plugins={plugin}\nworker.doors=grpc\n"
        f"worker.capacity=1000000\nworker.log.level=warning\ndoor.grpc.address={address}\n{properties}"
    )
    with subprocess.Popen([sys.executable, "-m", "remora", "worker", "--config", str(config)]) as process:
        try:
            with grpc.insecure_channel(address, options=[("grpc.initial_reconnect_backoff_ms", 20)]) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest(service="readiness")
                stub.Check(request, timeout=30, wait_for_ready=True)
            yield address, process
        finally:
            process.terminate()


@contextlib.contextmanager
def _simulator(directory: Path) -> Iterator[str]:
    pipelines = directory / "pipelines"
    pipelines.mkdir()
    steps = [{"Name": "Fit", "Type": "Training", "Arguments": {}}]
    declared = [{"Name": f"Parameter{number}", "Type": "String"} for number in range(8)]
    definition = {"Version": "2020-12-01", "Parameters": declared, "Steps": steps}
    (pipelines / "Train.json").write_text(json.dumps(definition))
    command = [sys.executable, "-m", "remora_sagemaker.simulator", "--port", "0", "--pipelines", str(pipelines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _sagemaker(url: str, starts: int = 10) -> str:
    """Return properties for the simulator, with so many starts a second; 10 is the default."""
    return (
        "resource.aws.access.key.id=AKIDEXAMPLE\nresource.aws.secret.access.key=none\nresource.aws.region=us-east-1\n"
        f"aws.sagemaker.endpoint={url}\nplugin.sagemaker.rate.operations=StartPipelineExecution={starts}\n"
    )


def _request() -> str:
    request = {
        "PipelineName": "Train",
        "PipelineExecutionDescription": "x" * 3000,
        "PipelineParameters": [
            {"Name": "SimStepSeconds", "Value": "100000"},
            *({"Name": f"Parameter{number}", "Value": "x" * 40} for number in range(8)),
        ],
    }
    parameters = {"sagemakerRequestJson": json.dumps(request)}
    assert len(json.dumps(parameters)) > _PARAMETER_BYTES * 0.9
    return json.dumps(parameters)


def _calls(url: str, operation: str) -> int:
    with urllib.request.urlopen(f"{url}/_sim/calls") as answer:
        return int(json.load(answer)["calls"].get(operation, 0))


def _memory(pid: int) -> float:
    """Resident memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu(pid: int) -> float:
    """Processor seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def _seconds(stamp: object) -> float:
    return stamp.ToNanoseconds() / 1e9


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
