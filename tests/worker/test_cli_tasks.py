# ruff: noqa: N802 -- the names of the methods are gRPC's
"""submit, get, list, logs, cancel and health, against a worker that answers as it is told, over a real channel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from remora import wire
from remora.cli import cli
from remora.cli.client import Patience, Server
from remora.cli.group import ExitCode
from remora.errors import InvalidRequest, TaskNotFound, WorkerFull
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1 import worker_service_pb2_grpc as pb_grpc

REQUEST = '{"PipelineName": "P"}'


class FakeWorker(pb_grpc.WorkerServiceServicer, health_pb2_grpc.HealthServicer):
    """Keeps tasks in memory. A dispatched one is given the state `ends`, with the lines of `log`."""

    def __init__(self):
        self.tasks = {}
        self.requests = []
        self.ends = task_pb2.TASK_STATE_SUCCEEDED
        self.log = ["one\n", "two\n"]
        self.error = None
        self.asked = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self.health = health_pb2.HealthCheckResponse.SERVING

    def add(self, task_id, attempt=1, state=task_pb2.TASK_STATE_RUNNING, **fields):
        key = task_pb2.TaskKey(task_id=task_id, attempt=attempt)
        task = task_pb2.Task(key=key, state=state, task_type="EXAMPLE", created_at=Timestamp(seconds=1), **fields)
        self.tasks[task_id, attempt] = task
        return task

    def DispatchTask(self, request, context):
        self._begin(request, context)
        key = request.assignment.definition.key
        task = self.add(key.task_id, key.attempt, self.ends, name=request.assignment.definition.name)
        if self.ends == task_pb2.TASK_STATE_FAILED:
            task.failure.message = "the job failed"
        return pb.DispatchTaskResponse(task=task)

    def CancelTask(self, request, context):
        self._begin(request, context)
        task = self.tasks[request.key.task_id, request.key.attempt]
        task.stop.reason = request.reason
        return pb.CancelTaskResponse(task=task)

    def GetTask(self, request, context):
        self._begin(request, context)
        task = self.tasks[request.key.task_id, request.key.attempt]
        definition = task_pb2.TaskDefinition(key=request.key, parameters_json='{"seconds":1}')
        return pb.GetTaskResponse(task=task, definition=definition if request.include_definition else None)

    def ListTasks(self, request, context):
        self._begin(request, context)
        found = [task for (task_id, _), task in self.tasks.items() if task_id.startswith(request.task_id_prefix)]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return pb.ListTasksResponse(tasks=found[start:end], next_page_token=str(end) if end < len(found) else "")

    def ReadTaskLogs(self, request, context):
        self._begin(request, context)
        self.asked.set()
        self.hold.wait(10)
        text = "".join(self.log).encode()
        line = text[request.offset :].split(b"\n")[0]
        end = request.offset + len(line) + 1
        if end >= len(text):
            for task in self.tasks.values():
                if task.HasField("stop"):
                    task.state = self.ends
        return pb.ReadTaskLogsResponse(text=(line + b"\n").decode(), next_offset=end, done=end >= len(text))

    def Check(self, request, context):
        if request.service not in ("", "readiness"):
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self.health)

    def _begin(self, request, context):
        self.requests.append((request, dict(context.invocation_metadata())))
        if self.error is not None:
            context.abort_with_status(rpc_status.to_status(wire.status_of(self.error)))


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    """The loggers of this process are not the command line's."""
    monkeypatch.setattr("remora.log.configure", lambda *_: None)


@pytest.fixture
def fake():
    return FakeWorker()


@pytest.fixture
def address(fake):
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_WorkerServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def remora(address, monkeypatch):
    monkeypatch.setenv("REMORA_WORKER", address)
    monkeypatch.setenv("REMORA_SCHEDULER", address)
    return lambda *arguments, **options: CliRunner().invoke(cli, arguments, **options)


def parameters(fake):
    return json.loads(fake.requests[0][0].assignment.definition.parameters_json)


def test_submit_hands_over_a_json_object_as_it_is(remora, fake):
    text = '{"sagemakerRequestJson": "{}",   "n": 1}'
    options = ("--task-id", "t", "--attempt", "2", "--timeout", "15m", "--name", "people's", "-l", "team=a")
    result = remora("submit", "SAGEMAKER", text, *options)
    assert result.exit_code == 0
    assert "SUCCEEDED" in result.stdout
    definition = fake.requests[0][0].assignment.definition
    assert definition.parameters_json == text
    assert definition.key == task_pb2.TaskKey(task_id="t", attempt=2)
    assert (definition.task_type, definition.name) == ("SAGEMAKER", "people's")
    assert definition.timeout.seconds == 900
    assert definition.labels == {"team": "a"}


def test_submit_without_an_id_makes_a_new_one_each_time(remora, fake):
    remora("submit", "EXAMPLE", "{}")
    remora("submit", "EXAMPLE", "{}")
    assert len(fake.tasks) == 2


def test_submit_reads_a_file_and_the_input(remora, fake, tmp_path):
    (tmp_path / "p.json").write_text('{"from": "file"}')
    remora("submit", "EXAMPLE", str(tmp_path / "p.json"))
    assert parameters(fake) == {"from": "file"}
    fake.requests.clear()
    remora("submit", "EXAMPLE", "-", input='{"from": "input"}')
    assert parameters(fake) == {"from": "input"}


def test_a_request_is_wrapped_as_dolphinscheduler_writes_it(remora, fake):
    assert remora("submit", "SAGEMAKER", "--request", REQUEST).exit_code == 0
    assert parameters(fake) == {"sagemakerRequestJson": REQUEST}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("SAGEMAKER", REQUEST), "give it as --request"),
        (("SAGEMAKER",), "either PARAMETERS or --request"),
        (("SAGEMAKER", "{}", "--request", "{}"), "either PARAMETERS or --request"),
        (("EXAMPLE", "--request", "{}"), "is for tasks of type SAGEMAKER"),
        (("EXAMPLE", "{"), "PARAMETERS is not JSON at line 1, column 2"),
        (("SAGEMAKER", "--request", "{"), "--request is not JSON"),
        (("EXAMPLE", "nowhere.json"), "nowhere.json: cannot be read: No such file or directory"),
    ],
)
def test_submit_says_what_to_write_instead(remora, fake, arguments, said):
    result = remora("submit", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.stderr.split())
    assert not fake.requests


def test_a_list_is_no_parameters(remora, tmp_path):
    (tmp_path / "p.json").write_text("[]")
    result = remora("submit", "EXAMPLE", str(tmp_path / "p.json"))
    assert result.exit_code == ExitCode.USAGE
    assert "not a JSON object" in result.stderr


def test_submit_and_wait_shows_the_log_and_succeeds_with_the_task(remora):
    result = remora("submit", "EXAMPLE", "{}", "--task-id", "t", "--wait")
    assert result.exit_code == 0
    assert result.stdout.startswith("one\ntwo\n")
    assert "task t: SUCCEEDED after" in result.stdout


def test_submit_and_wait_fails_with_the_task(remora, fake):
    fake.ends = task_pb2.TASK_STATE_FAILED
    result = remora("submit", "EXAMPLE", "{}", "--wait")
    assert result.exit_code == ExitCode.FAILED
    assert "the job failed" in result.stdout


def test_submit_and_wait_with_json_keeps_the_log_out_of_it(remora):
    result = remora("submit", "EXAMPLE", "{}", "--task-id", "t", "--wait", "--json")
    assert json.loads(result.stdout)["state"] == "SUCCEEDED"
    assert "one\ntwo\n" in result.stderr


def test_ctrl_c_leaves_the_task_alone_and_says_how_to_go_on(remora, fake, address):
    fake.hold.clear()

    def interrupt():
        fake.asked.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        fake.hold.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = remora("submit", "EXAMPLE", "{}", "--task-id", "t", "--wait")
    thread.join()
    assert result.exit_code == ExitCode.INTERRUPTED
    assert f"remora logs t --follow --worker {address}\n" in result.stderr
    assert f"remora cancel t --worker {address}\n" in result.stderr
    assert not fake.tasks["t", 1].HasField("stop")


def test_a_task_that_was_born_failed_fails_the_submission(remora, fake):
    fake.ends = task_pb2.TASK_STATE_FAILED
    assert remora("submit", "EXAMPLE", "{}").exit_code == ExitCode.FAILED


def test_get_shows_the_latest_attempt(remora, fake):
    fake.add("t", 1, task_pb2.TASK_STATE_FAILED)
    fake.add("t", 2, detail="Executing: Train")
    fake.add("t-other", 7)
    result = remora("get", "t")
    assert result.exit_code == 0
    assert "attempt:  2\n" in result.stdout
    assert "now:      Executing: Train\n" in result.stdout
    assert json.loads(remora("get", "t", "--attempt", "1", "--json").stdout)["state"] == "FAILED"


def test_get_shows_the_definition_when_asked(remora, fake):
    fake.add("t")
    assert json.loads(remora("get", "t", "--definition", "--json").stdout)["definition"]["parameters"] == {"seconds": 1}


def test_a_task_that_is_unknown_is_refused(remora):
    result = remora("get", "t")
    assert result.exit_code == ExitCode.REFUSED
    assert result.stderr == "error: t: never seen by this worker, or past its retention (TASK_NOT_FOUND)\n"


def test_list_goes_through_the_pages_and_says_when_there_is_more(remora, fake):
    for number in range(5):
        fake.add(f"t{number}", detail=f"step {number}")
    result = remora("list", "--limit", "3", "--state", "running", "--type", "EXAMPLE", "--prefix", "t")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["TASK", "t0", "t1", "t2"]
    assert result.stderr == "there are more than 3; ask for them with --limit\n"
    request = fake.requests[0][0]
    assert (list(request.states), request.task_type) == ([task_pb2.TASK_STATE_RUNNING], "EXAMPLE")
    assert len(json.loads(remora("list", "--json").stdout)) == 5


def test_list_of_nothing_says_so(remora):
    assert remora("list").stdout == "no tasks\n"


@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_logs_prints_every_page(remora, fake, follow):
    fake.add("t")
    result = remora("logs", "t", *follow)
    assert result.exit_code == 0
    assert result.stdout == "one\ntwo\n"
    assert fake.requests[-1][0].wait.seconds == (30 if follow else 0)


def test_cancel_records_the_wish(remora, fake):
    fake.add("t", 3)
    result = remora("cancel", "t", "--reason", "wrong data")
    assert result.exit_code == 0
    assert result.stdout == "it is RUNNING and will be stopped; --wait waits for that\n"
    assert fake.tasks["t", 3].stop.reason == "wrong data"


def test_cancel_and_wait_ends_when_the_stop_is_confirmed(remora, fake):
    fake.add("t")
    fake.ends = task_pb2.TASK_STATE_CANCELLED
    result = remora("cancel", "t", "--wait")
    assert result.exit_code == 0
    assert result.stdout == "it ended CANCELLED\n"


def test_cancel_fails_where_the_task_ended_otherwise(remora, fake):
    fake.add("t")
    result = remora("cancel", "t", "--wait", "--json")
    assert result.exit_code == ExitCode.FAILED
    assert json.loads(result.stdout)["state"] == "SUCCEEDED"
    assert "had ended before it could be stopped" in result.stderr


def test_cancel_of_a_task_never_seen_asks_for_the_attempt(remora):
    result = remora("cancel", "t")
    assert result.exit_code == ExitCode.REFUSED
    assert "with --attempt it is cancelled before it comes" in result.stderr


def test_cancel_needs_one_target(remora):
    assert remora("cancel").exit_code == ExitCode.USAGE
    assert remora("cancel", "t", "--run", "r").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerFull("the worker holds 10 tasks"), "error: the worker holds 10 tasks (WORKER_FULL)\n"),
        (TaskNotFound("gone"), "error: gone (TASK_NOT_FOUND)\n"),
        (InvalidRequest({"key.task_id": "is empty"}), "error: key.task_id: is empty\n"),
    ],
)
def test_what_the_worker_refuses_is_told_in_its_words(remora, fake, error, said):
    fake.error = error
    result = remora("submit", "EXAMPLE", "{}")
    assert result.exit_code == ExitCode.REFUSED
    assert result.stderr == said


def test_the_token_is_sent(remora, fake):
    remora("list", env={"REMORA_TOKEN": "s3cret"})
    assert fake.requests[0][1]["authorization"] == "Bearer s3cret"


def test_the_address_of_another_service_is_noticed(remora):
    result = remora("runs")
    assert result.exit_code == ExitCode.REFUSED
    assert "is no scheduler of Remora; is it the address of a worker?" in result.stderr


def test_a_worker_that_is_not_there_is_told_with_the_remedy():
    result = CliRunner().invoke(cli, ["list", "--worker", "127.0.0.1:1"])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "cannot reach the worker at 127.0.0.1:1: is it running? Start it with `remora worker`." in result.stderr


def test_a_ca_that_is_no_pem_is_named(remora, tmp_path):
    (tmp_path / "ca.pem").write_text("not a certificate")
    result = remora("list", "--tls-ca", str(tmp_path / "ca.pem"))
    assert result.exit_code == ExitCode.CONFIGURATION
    assert result.stderr.startswith(f"error: --tls-ca = {tmp_path / 'ca.pem'}: ")


def test_a_token_that_would_leave_the_machine_unencrypted_is_warned_of(monkeypatch):
    command = ["list", "--worker", "does-not-exist.invalid:1", "--token", "s3cret"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "the token goes to the worker at does-not-exist.invalid:1 unencrypted; give --tls-ca" in result.stderr
    assert "s3cret" not in result.output


def test_health_is_the_exit_code(remora, fake, address):
    assert remora("health").exit_code == 0
    fake.health = health_pb2.HealthCheckResponse.NOT_SERVING
    result = remora("health", "--service", "readiness", "--address", address)
    assert (result.exit_code, result.stdout) == (ExitCode.FAILED, "NOT_SERVING\n")
    assert remora("health", "--service", "other").exit_code == ExitCode.FAILED
    assert remora("health", "--address", "127.0.0.1:1").exit_code == ExitCode.FAILED


class Absent(grpc.aio.AioRpcError):
    def __init__(self, code=grpc.StatusCode.UNAVAILABLE):
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata())


def answers(*outcomes):
    """A method that raises or returns one outcome after the other."""
    left = list(outcomes)

    async def method():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return method


async def test_an_absence_is_sat_out_and_told_once(clock, eventually):
    said = []
    patience = Patience(Server(kind="scheduler", address="there:1"), said.append, clock=clock)
    method = answers("first", Absent(), Absent(grpc.StatusCode.DEADLINE_EXCEEDED), Absent(), "second")
    assert await patience.call(method) == "first"
    call = asyncio.create_task(patience.call(method), name="call")
    await eventually(call.done)
    assert call.result() == "second"
    assert said == [
        "the scheduler at there:1 does not answer; trying until it does",
        "the scheduler at there:1 is back",
    ]


async def test_a_server_that_never_answered_is_not_waited_for(clock):
    patience = Patience(Server(kind="scheduler", address="there:1"), print, clock=clock)
    with pytest.raises(Absent):
        await patience.call(answers(Absent()))


async def test_what_is_no_absence_is_not_sat_out(clock):
    patience = Patience(Server(kind="scheduler", address="there:1"), print, met=True, clock=clock)
    with pytest.raises(Absent):
        await patience.call(answers(Absent(grpc.StatusCode.NOT_FOUND)))
