"""Real processes on loopback: a simulator, a scheduler and workers that can be killed at any instant."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from remora.v1 import (
    task_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

_PATIENCE = 60.0
"""Seconds until a test that waits for another process gives up."""

_PIPELINES = {
    "Train": [
        {"Name": "Prepare", "Type": "Processing", "Arguments": {}},
        {"Name": "Fit", "Type": "Training", "Arguments": {}, "DependsOn": ["Prepare"]},
    ],
}


def eventually(look: Callable[[], Any], what: str) -> Any:
    """Look until there is something; each look is a call to another process, which paces it."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
    raise AssertionError(f"in vain waited {_PATIENCE:g} s for {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A program under test, its output in a file."""

    def __init__(self, directory: Path, name: str, *command: str, **environment: str) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **environment},
            )

    def kill(self) -> None:
        """Let it die without a chance to say anything."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, number: int = signal.SIGTERM, within: float = 30.0) -> int:
        """Ask it to stop; return its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(within)

    def pause(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.resume()
            self.kill()

    def text(self) -> str:
        return self.log.read_text()


class Simulator(Process):
    """The simulated SageMaker, with its control interface."""

    def __init__(self, directory: Path) -> None:
        pipelines = directory / "pipelines"
        pipelines.mkdir()
        for name, steps in _PIPELINES.items():
            (pipelines / f"{name}.json").write_text(json.dumps({"Version": "2020-12-01", "Steps": steps}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            directory,
            "simulator",
            "remora_sagemaker.simulator",
            *("--port", str(self.port)),
            *("--pipelines", str(pipelines)),
        )
        eventually(lambda: "simulator ready" in self.text() or self.popen.poll() is not None, "the simulator")
        assert self.popen.poll() is None, self.text()

    def control(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_sim/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=40) as answer:
            return json.load(answer)

    def begin(self, speed: float) -> None:
        """Forget what was before."""
        self.control("reset", method="POST")
        self.control("clock", {"speed": speed})

    def advance(self, seconds: float) -> None:
        self.control("clock", {"advance": seconds})

    def executions(self) -> list[dict[str, Any]]:
        return self.control("executions")["executions"]

    def hold(self, operation: str, when: str) -> None:
        """Let the next call of an operation wait; `after` it took effect, or `before`."""
        self.control("faults", [{"operation": operation, "hold": "gate", "when": when, "times": 1}])

    def until_held(self) -> None:
        self.control("holds/gate?timeout=30")

    def release(self) -> None:
        self.control("release", {"hold": "gate"})


class Served(Process):
    """A process with a gRPC port."""

    address: str

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address, options=[("grpc.initial_reconnect_backoff_ms", 50)])

    def until_ready(self) -> None:
        with self.channel() as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def ready() -> bool:
                assert self.popen.poll() is None, self.text()
                try:
                    request = health_pb2.HealthCheckRequest(service="readiness")
                    answer = health.Check(request, timeout=1, wait_for_ready=True)
                except grpc.RpcError:
                    return False
                return answer.status == health_pb2.HealthCheckResponse.SERVING

            eventually(ready, f"{self.name} to be ready")


class Scheduler(Served):
    """The embedded scheduler."""

    def __init__(self, directory: Path, port: int, lease: float = 2.0) -> None:
        self.address = f"127.0.0.1:{port}"
        config = directory / "scheduler.properties"
        config.write_text(
            f"scheduler.address={self.address}\n"
            f"scheduler.data.dir={directory / 'scheduler-data'}\n"
            f"scheduler.lease.seconds={lease}\n"
        )
        super().__init__(directory, "scheduler", "remora", "scheduler", "--config", str(config))
        self.until_ready()

    def submit(self, text: str, run_id: str, **parameters: str) -> None:
        with self.channel() as channel:
            workflow_service_pb2_grpc.WorkflowServiceStub(channel).SubmitWorkflow(
                workflow_service_pb2.SubmitWorkflowRequest(workflow_yaml=text, run_id=run_id, parameters=parameters),
                timeout=10,
            )

    def run(self, run_id: str) -> workflow_service_pb2.WorkflowRun:
        with self.channel() as channel:
            return (
                workflow_service_pb2_grpc.WorkflowServiceStub(channel)
                .GetWorkflowRun(
                    workflow_service_pb2.GetWorkflowRunRequest(run_id=run_id), timeout=10, wait_for_ready=True
                )
                .run
            )

    def log(self, run_id: str, task: str) -> str:
        with self.channel() as channel:
            return (
                workflow_service_pb2_grpc.WorkflowServiceStub(channel)
                .ReadWorkflowTaskLogs(
                    workflow_service_pb2.ReadWorkflowTaskLogsRequest(run_id=run_id, task_name=task, max_bytes=500_000),
                    timeout=10,
                )
                .text
            )


class Worker(Served):
    """A worker; started again with the same data directory it is the same worker."""

    def __init__(
        self,
        directory: Path,
        simulator: Simulator,
        *,
        name: str = "worker",
        scheduler: Scheduler | None = None,
        port: int = 0,
    ) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._again = (directory, simulator, name, scheduler)
        config = directory / f"{name}.properties"
        config.write_text(
            "resource.aws.access.key.id=AKIDEXAMPLE\n"
            "resource.aws.secret.access.key=not-a-secret\n"
            "resource.aws.region=us-east-1\n"
            f"aws.sagemaker.endpoint={simulator.url}\n"
            "plugin.sagemaker.poll.initial.seconds=0.1\n"
            "plugin.sagemaker.poll.maximum.seconds=0.2\n"
            "plugin.sagemaker.rate.default=200\n"
            "worker.plugins=sagemaker\n"
            f"worker.id={name}\n"
            f"worker.data.dir={directory / f'{name}-data'}\n"
            f"worker.doors={'grpc,scheduler' if scheduler else 'grpc'}\n"
            f"door.grpc.address={self.address}\n"
            + (f"door.scheduler.address={scheduler.address}\n" if scheduler else "")
        )
        super().__init__(directory, name, "remora", "worker", "--config", str(config))
        self.until_ready()

    def again(self) -> Worker:
        """Start it anew where it was."""
        directory, simulator, name, scheduler = self._again
        return Worker(directory, simulator, name=name, scheduler=scheduler, port=self.port)

    def dispatch(self, task_id: str, token: int = 1, timeout: float = 0, **request: Any) -> task_pb2.Task:
        parameters = {"sagemakerRequestJson": json.dumps({"PipelineName": "Train", **request})}
        definition = task_pb2.TaskDefinition(
            key=task_pb2.TaskKey(task_id=task_id, attempt=1),
            task_type="SAGEMAKER",
            parameters_json=json.dumps(parameters),
        )
        if timeout:
            definition.timeout.FromMilliseconds(int(timeout * 1000))
        assignment = task_pb2.Assignment(definition=definition, fencing_token=token)
        with self.channel() as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            request_message = worker_service_pb2.DispatchTaskRequest(assignment=assignment)
            return stub.DispatchTask(request_message, timeout=10).task

    def cancel(self, task_id: str) -> task_pb2.Task:
        key = task_pb2.TaskKey(task_id=task_id, attempt=1)
        with self.channel() as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            return stub.CancelTask(worker_service_pb2.CancelTaskRequest(key=key, reason="test"), timeout=10).task

    def get(self, task_id: str) -> task_pb2.Task:
        with self.channel() as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            request = worker_service_pb2.GetTaskRequest(key=task_pb2.TaskKey(task_id=task_id, attempt=1))
            return stub.GetTask(request, timeout=10, wait_for_ready=True).task

    def until(self, task_id: str, *states: int) -> task_pb2.Task:
        def look() -> task_pb2.Task | None:
            assert self.popen.poll() is None, self.text()
            task = self.get(task_id)
            return task if task.state in states else None

        return eventually(look, f"{task_id} to be {[task_pb2.TaskState.Name(state) for state in states]}")

    def task_log(self, task_id: str) -> str:
        with self.channel() as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            request = worker_service_pb2.ReadTaskLogsRequest(key=task_pb2.TaskKey(task_id=task_id, attempt=1))
            return stub.ReadTaskLogs(request, timeout=10).text


class World:
    """What a test starts; all of it ends with the test."""

    def __init__(self, directory: Path, simulator: Simulator) -> None:
        self.directory = directory
        self._simulator = simulator
        self._processes: list[Process] = []

    def simulator(self, speed: float = 1.0) -> Simulator:
        self._simulator.begin(speed)
        return self._simulator

    def scheduler(self, port: int = 0, lease: float = 2.0) -> Scheduler:
        return self._keep(Scheduler(self.directory, port or free_port(), lease))

    def worker(self, simulator: Simulator, **options: Any) -> Worker:
        return self._keep(Worker(self.directory, simulator, **options))

    def again(self, worker: Worker) -> Worker:
        return self._keep(worker.again())

    def _keep(self, process: Any) -> Any:
        self._processes.append(process)
        return process

    def eventually(self, look: Callable[[], Any], what: str) -> Any:
        return eventually(look, what)

    def end(self) -> None:
        for process in self._processes:
            process.end()


@pytest.fixture(scope="session")
def _simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One process for all tests: it is reset before each."""
    simulator = Simulator(tmp_path_factory.mktemp("simulator"))
    try:
        yield simulator
    finally:
        simulator.end()


@pytest.fixture
def world(tmp_path: Path, _simulator: Simulator) -> Iterator[World]:
    world = World(tmp_path, _simulator)
    try:
        yield world
    finally:
        world.end()
