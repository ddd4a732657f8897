# ruff: noqa: N802 -- the names of the methods are gRPC's
"""run, runs and the parts of logs and cancel that ask the scheduler, against one that answers as it is told."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status
from remora import wire
from remora.cli import cli
from remora.cli.group import ExitCode
from remora.cli.views import LinesView, TableView, summary
from remora.errors import InvalidRequest
from remora.v1 import task_pb2
from remora.v1 import workflow_service_pb2 as pb
from remora.v1 import workflow_service_pb2_grpc as pb_grpc
from rich.console import Console

DAG = """
workflow: {name: w}
tasks:
  - {name: a, task_type: SageMaker, sagemaker_request_json: {PipelineName: P}}
  - {name: b, task_type: SageMaker, sagemaker_request_json: {PipelineName: P}, deps: [a]}
"""


def task(name, state, attempt=1, detail="", **fields):
    number = pb.WorkflowTaskState.Value(f"WORKFLOW_TASK_STATE_{state}")
    return pb.WorkflowTask(name=name, state=number, attempt=attempt, max_attempts=2, detail=detail, **fields)


def version(number, *tasks, state="RUNNING"):
    return pb.WorkflowRun(
        run_id="r",
        name="w",
        state=pb.WorkflowRunState.Value(f"WORKFLOW_RUN_STATE_{state}"),
        version=number,
        tasks=tasks,
        created_at=Timestamp(seconds=100),
        finished_at=None if state == "RUNNING" else Timestamp(seconds=131),
    )


FAILURE = task_pb2.Task(failure=task_pb2.Failure(kind=task_pb2.FAILURE_KIND_EXECUTION, message="step Train failed"))
STORY = [
    version(1, task("a", "RUNNING", detail="Executing: Train"), task("b", "WAITING", 0)),
    version(2, task("a", "READY", detail="the next one follows"), task("b", "WAITING", 0)),
    version(3, task("a", "RUNNING", 2), task("b", "WAITING", 0)),
]
WELL = version(4, task("a", "SUCCEEDED", 2), task("b", "SUCCEEDED"), state="SUCCEEDED")
BADLY = version(4, task("a", "FAILED", 2, task=FAILURE), task("b", "UPSTREAM_FAILED", 0), state="FAILED")


class FakeScheduler(pb_grpc.WorkflowServiceServicer):
    """Tells a story: each version of a run once."""

    def __init__(self):
        self.story = [*STORY, WELL]
        self.logs = {("a", 1): "[INFO] 2026-11-20 10:00:00.123 +0000 - first\n", ("a", 2): "second\n", ("b", 1): "b\n"}
        self.requests = []
        self.error = None
        self.asked = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def SubmitWorkflow(self, request, context):
        self._begin(request, context)
        return pb.SubmitWorkflowResponse(run=self._named(self.story[0], request.run_id))

    def GetWorkflowRun(self, request, context):
        self._begin(request, context)
        self.asked.set()
        self.hold.wait(10)
        later = [run for run in self.story if run.version > request.after_version]
        return pb.GetWorkflowRunResponse(run=self._named(later[0], request.run_id))

    def ListWorkflowRuns(self, request, context):
        self._begin(request, context)
        return pb.ListWorkflowRunsResponse(runs=self.story)

    def CancelWorkflowRun(self, request, context):
        self._begin(request, context)
        self.story.append(version(5, task("a", "CANCELLED"), state="CANCELLED"))
        return pb.CancelWorkflowRunResponse(run=self.story[0])

    def ReadWorkflowTaskLogs(self, request, context):
        self._begin(request, context)
        attempt = request.attempt or 2
        data = self.logs[request.task_name, attempt].encode()
        text = data[request.offset :]
        return pb.ReadWorkflowTaskLogsResponse(
            text=text.decode(), next_offset=len(data), done=not text, attempt=attempt
        )

    def _begin(self, request, context):
        self.requests.append(request)
        if self.error is not None:
            context.abort_with_status(rpc_status.to_status(wire.status_of(self.error)))

    def _named(self, run, run_id):
        named = pb.WorkflowRun()
        named.CopyFrom(run)
        named.run_id = run_id
        return named


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    """The loggers of this process are not the command line's."""
    monkeypatch.setattr("remora.log.configure", lambda *_: None)


@pytest.fixture
def fake():
    return FakeScheduler()


@pytest.fixture
def remora(fake, monkeypatch):
    server = grpc.server(ThreadPoolExecutor(8))
    pb_grpc.add_WorkflowServiceServicer_to_server(fake, server)
    monkeypatch.setenv("REMORA_SCHEDULER", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield lambda *arguments, **options: CliRunner().invoke(cli, arguments, **options)
    server.stop(None).wait()


@pytest.fixture
def dag(tmp_path):
    path = tmp_path / "Train & Register.yaml"
    path.write_text(DAG)
    return str(path)


def submission(fake):
    return fake.requests[0]


def without_time(text):
    return [line[9:] if line[2:3] == ":" else line for line in text.splitlines()]


def test_a_run_that_succeeds_is_told_in_lines_with_the_logs_between_them(remora, fake, dag):
    result = remora("run", dag, "--run-id", "r", "-p", "date=2026-11-20", "-p", "x=a=b")
    assert result.exit_code == 0
    assert submission(fake) == pb.SubmitWorkflowRequest(
        workflow_yaml=DAG, run_id="r", parameters={"date": "2026-11-20", "x": "a=b"}
    )
    lines = without_time(result.stdout)
    states = [line for line in lines if " | " not in line]
    assert states == [
        "a: RUNNING: Executing: Train",
        "b: WAITING",
        "a: READY: the next one follows",
        "a: RUNNING (attempt 2 of 2)",
        "a: SUCCEEDED (attempt 2 of 2)",
        "b: SUCCEEDED",
        "run r of w: SUCCEEDED after 31s, 2 tasks, 3 attempts",
    ]
    assert sorted(line for line in lines if " | " in line) == [
        "a | [INFO] 2026-11-20 10:00:00.123 +0000 - first",
        "a | second",
        "b | b",
    ]


def test_logs_can_be_left_out(remora, fake, dag):
    result = remora("run", dag, "--no-logs")
    assert " | " not in result.stdout
    assert not [request for request in fake.requests if isinstance(request, pb.ReadWorkflowTaskLogsRequest)]


def test_a_run_that_fails_fails_the_command_and_says_why(remora, fake, dag):
    fake.story[-1] = BADLY
    result = remora("run", dag)
    assert result.exit_code == ExitCode.FAILED
    assert "a: step Train failed\n  who acts: the owner of the job looks at why it failed\n" in result.stdout


def test_with_json_the_output_is_the_run_and_all_else_is_elsewhere(remora, dag):
    result = remora("run", dag, "--json", "--run-id", "r")
    run = json.loads(result.stdout)
    assert (run["run_id"], run["state"], [each["state"] for each in run["tasks"]]) == (
        "r",
        "SUCCEEDED",
        ["SUCCEEDED", "SUCCEEDED"],
    )
    assert "a: RUNNING" in result.stderr


def test_each_run_gets_a_new_name_after_its_file(remora, fake, dag):
    remora("run", dag, "--detach")
    remora("run", dag, "--detach")
    first, second = (request.run_id for request in fake.requests)
    assert first.startswith("train-register-20")
    assert first != second


def test_a_detached_run_prints_its_name(remora, fake, dag):
    result = remora("run", dag, "--detach", "--run-id", "r")
    assert (result.exit_code, result.stdout) == (0, "r\n")
    assert len(fake.requests) == 1
    assert json.loads(remora("run", dag, "--detach", "--json", "--run-id", "r").stdout)["state"] == "RUNNING"


def test_the_dag_may_come_from_the_input(remora, fake):
    remora("run", "-", "--detach", input=DAG)
    assert submission(fake).workflow_yaml == DAG


def test_a_mistake_in_the_file_is_found_before_anybody_is_asked(remora, fake, dag):
    Path(dag).write_text(DAG.replace("deps:", "dep:"))
    result = remora("run", dag)
    assert result.exit_code == ExitCode.REFUSED
    assert result.stderr == "error: tasks[1].dep: line 5: is not a known field. Did you mean deps?\n"
    assert not fake.requests


def test_what_lies_beside_the_file_goes_with_it_and_what_nobody_heeds_is_told(remora, fake, dag):
    Path(dag).write_text(DAG.replace("{PipelineName: P}}", "'$FILE{\"start.json\"}', task_priority: HIGH}", 1))
    Path(dag).with_name("start.json").write_text('{"PipelineName": "FromFile"}')
    result = remora("run", dag, "--detach")
    assert "FromFile" in submission(fake).workflow_yaml
    assert "task_priority is ignored" in result.stderr


def test_a_run_is_followed_again_without_being_submitted(remora, fake):
    result = remora("run", "--attach", "r")
    assert result.exit_code == 0
    assert not [request for request in fake.requests if isinstance(request, pb.SubmitWorkflowRequest)]


@pytest.mark.parametrize("arguments", [(), ("dag", "--attach", "r"), ("--attach", "r", "--detach")])
def test_run_takes_a_file_or_a_run(remora, dag, arguments):
    given = [dag if each == "dag" else each for each in arguments]
    assert remora("run", *given).exit_code == ExitCode.USAGE


def test_what_is_wrong_with_the_dag_is_told_by_path(remora, fake, dag):
    fake.error = InvalidRequest({"tasks[0].dep": "line 4: did you mean deps?"}, reason="WORKFLOW_INVALID")
    result = remora("run", dag)
    assert result.exit_code == ExitCode.REFUSED
    assert result.stderr == "error: tasks[0].dep: line 4: did you mean deps?\n"


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_go_on(remora, fake, dag):
    fake.hold.clear()

    def interrupt():
        fake.asked.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        fake.hold.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = remora("run", dag, "--run-id", "r")
    thread.join()
    assert result.exit_code == ExitCode.INTERRUPTED
    address = os.environ["REMORA_SCHEDULER"]
    assert f"remora run --attach r --scheduler {address}\n" in result.stderr
    assert f"remora cancel --run r --scheduler {address}\n" in result.stderr
    assert not [request for request in fake.requests if isinstance(request, pb.CancelWorkflowRunRequest)]


def test_runs_are_listed(remora):
    lines = remora("runs").stdout.splitlines()
    assert lines[0].split() == ["RUN", "WORKFLOW", "STATE", "TASKS", "DURATION", "BEGAN"]
    assert lines[-1].split()[:5] == ["r", "w", "succeeded", "0/2", "31s"]
    assert [run["version"] for run in json.loads(remora("runs", "--json").stdout)] == [1, 2, 3, 4]


def test_no_runs_are_said_to_be_none(remora, fake):
    fake.story = []
    assert remora("runs").stdout == "no runs\n"


def test_the_log_of_a_task_of_a_run_is_that_of_its_latest_attempt(remora, fake):
    assert remora("logs", "--run", "r", "a").stdout == "second\n"
    assert remora("logs", "--run", "r", "a", "--attempt", "1").stdout.endswith(" - first\n")


def test_a_follower_stays_with_the_attempt_it_began_with(remora, fake):
    remora("logs", "--run", "r", "a", "--follow")
    assert [request.attempt for request in fake.requests] == [0, 2]


def test_a_run_is_cancelled(remora, fake):
    result = remora("cancel", "--run", "r", "--reason", "enough")
    assert (result.exit_code, result.stdout) == (0, "it is RUNNING and will be stopped; --wait waits for that\n")
    assert submission(fake).reason == "enough"


def test_a_run_is_cancelled_and_waited_for(remora, fake):
    fake.story = STORY[:1]
    result = remora("cancel", "--run", "r", "--wait")
    assert (result.exit_code, result.stdout) == (0, "it ended CANCELLED\n")


def test_the_table_shows_every_task_and_the_logs_pass_above_it():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={})
    with TableView(console, "waiting") as view:
        view.show(STORY[2])
        view.log("a", "[ERROR] 2026-11-20 10:00:00.123 +0000 - it broke [not markup]\nplain\n")
        view.say("the worker is back")
        view.show(BADLY)
    shown = console.file.getvalue()
    for text in ("10:00:00", "it broke [not markup]", "plain", "the worker is back", "attempt 2/2", "upstream failed"):
        assert text in shown


def test_lines_are_written_only_for_what_changed():
    lines = []
    with LinesView(lines.append) as view:
        view.show(STORY[0])
        view.show(STORY[0])
    assert len(lines) == 2


def test_the_summary_tells_of_failures_that_no_worker_reported():
    run = version(2, task("a", "FAILED", detail="${x} is not defined"), state="FAILED")
    assert summary(run)[0] == "a: ${x} is not defined"
