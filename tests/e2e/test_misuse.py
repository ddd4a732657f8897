"""What a tired operator does to a worker, and what it says."""

from __future__ import annotations

import resource
import socket
import sqlite3
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from remora.v1 import task_pb2

MINIMAL = "resource.aws.region=us-east-1\nworker.plugins=sagemaker\n"


def start(directory, text, *arguments):
    """Start a worker that cannot start; return its exit code and what it said."""
    config = directory / "common.properties"
    config.write_text(text)
    command = [sys.executable, "-m", "remora", "worker", "--config", str(config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=directory, check=False)
    return done.returncode, done.stderr


def test_every_problem_of_a_configuration_is_named_at_once(tmp_path):
    code, said = start(
        tmp_path,
        "resource.aws.access.key.id=<YOUR AWS ACCESS KEY>\nworker.capasity=5\n"
        f"worker.drain.seconds=soon\nworker.doors=grcp\n{MINIMAL}",
    )
    assert code == 3
    assert "resource.aws.access.key.id" in said
    assert "<YOUR AWS ACCESS KEY>" in said
    assert "worker.capasity is not a known key. Did you mean worker.capacity?" in said
    assert "worker.drain.seconds" in said
    assert "worker.doors: grcp is not installed" in said
    assert "Traceback" not in said


def test_a_missing_file_is_named(tmp_path):
    command = [sys.executable, "-m", "remora", "worker", "--config", "nowhere.properties"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "nowhere.properties: there is no such file" in done.stderr


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    code, said = start(tmp_path, f"{MINIMAL}worker.data.dir={tmp_path / 'file' / 'data'}\n")
    assert code == 3
    assert str(tmp_path / "file" / "data") in said
    assert "Traceback" not in said


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path, world):
    worker = world.worker(world.simulator())
    worker.stop()
    journal = tmp_path / "worker-data" / "journal.db"
    with sqlite3.connect(journal) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, said = start(tmp_path, f"{MINIMAL}worker.data.dir={tmp_path / 'worker-data'}\n")
    assert code == 3
    assert "newer version" in said
    assert str(journal) in said


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, said = start(tmp_path, f"{MINIMAL}worker.data.dir=data\ndoor.grpc.address={address}\n")
    assert code == 3
    assert address in said
    assert "door.grpc.address" in said
    assert "Traceback" not in said


def test_a_second_worker_on_the_same_directory_is_refused(tmp_path, world):
    world.worker(world.simulator())
    code, said = start(tmp_path, f"{MINIMAL}worker.data.dir={tmp_path / 'worker-data'}\n")
    assert code == 3
    assert "in use by another process" in said


def test_a_full_disk_refuses_tasks_and_the_worker_stays_up(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    worker.dispatch("before")
    worker.until("before", task_pb2.TASK_STATE_RUNNING)
    # A limit on the size of files stands for a full disk: writing beyond it fails in the same way.
    _, hard = resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE, (1, hard))
    with pytest.raises(grpc.RpcError) as refused:
        worker.dispatch("during", PipelineExecutionDescription="x" * 3000)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _reason(refused.value) == "STORAGE_UNAVAILABLE"
    assert worker.get("before").state == task_pb2.TASK_STATE_RUNNING
    resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE, (hard, hard))
    worker.dispatch("after")
    worker.until("after", task_pb2.TASK_STATE_RUNNING)
    simulator.advance(10_000)
    worker.until("before", task_pb2.TASK_STATE_SUCCEEDED)
    assert len(simulator.executions()) == 2


def test_garbage_on_the_port_does_no_harm(world):
    worker = world.worker(world.simulator())
    host, _, port = worker.address.rpartition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(garbage)
    assert worker.dispatch("t").state == task_pb2.TASK_STATE_ACCEPTED


@pytest.mark.parametrize("number", [15, 2])
def test_a_signal_stops_the_worker_cleanly_and_leaves_the_execution_running(world, number):
    simulator = world.simulator()
    worker = world.worker(simulator)
    worker.dispatch("t")
    worker.until("t", task_pb2.TASK_STATE_RUNNING)
    assert worker.stop(number) == 0
    assert "Traceback" not in worker.text()
    assert [execution["status"] for execution in simulator.executions()] == ["Executing"]


def _reason(error):
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return None
