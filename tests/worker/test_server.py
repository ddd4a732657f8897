"""WorkerService over a real channel, in front of the real engine and the example plugin."""

from __future__ import annotations

import asyncio
import contextlib
import json

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError
from remora import rpc, wire
from remora.door import ChangePage, LogChunk, TaskPage, TaskTypeInfo, WorkerInfo
from remora.engine import Engine, EngineSettings
from remora.errors import (
    ConfigurationError,
    Fenced,
    InvalidRequest,
    StorageUnavailable,
    TaskConflict,
    TaskNotFound,
    TokenInvalid,
    UnknownTaskType,
    WorkerDraining,
    WorkerFull,
)
from remora.journal import Journal
from remora.pace import SystemClock
from remora.plugin import TaskKey
from remora.registry import Registry
from remora.server import SERVICE, GrpcDoor, GrpcSettings
from remora.task import TaskRecord, TaskState
from remora.tasklog import TaskLogs
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1 import worker_service_pb2_grpc as pb_grpc
from remora_example import ExampleHandler, ExampleSettings
from structlog.testing import capture_logs

WORKER = WorkerInfo(
    worker_id="worker-1",
    instance_id="i",
    version="1.2.3",
    capacity=10,
    task_types=[TaskTypeInfo(name="EXAMPLE", title="An example", schema="{}", permissions=())],
    labels={"zone": "a"},
)
FOR_EVER = 3600
MINUTE = Duration(seconds=60)


def settings(**changes):
    return GrpcSettings.model_validate({"address": "127.0.0.1:0"} | changes, by_name=True, by_alias=False)


def key(task_id="train", attempt=1):
    return task_pb2.TaskKey(task_id=task_id, attempt=attempt)


def dispatch(task_id="train", *, token=1, parameters=None, **definition):
    values = {"key": key(task_id), "task_type": "EXAMPLE", "parameters_json": json.dumps(parameters or {})} | definition
    assignment = task_pb2.Assignment(definition=task_pb2.TaskDefinition(**values), fencing_token=token)
    return pb.DispatchTaskRequest(assignment=assignment)


class Client:
    """Calls WorkerService with a deadline and gets its errors as they were raised."""

    def __init__(self, channel):
        self._stub = pb_grpc.WorkerServiceStub(channel)

    def __getattr__(self, method):
        async def call(request, deadline=10):
            with rpc.call_errors():
                return await getattr(self._stub, method)(request, timeout=deadline)

        return call

    async def until(self, state, task_id="train"):
        """Follow the changes until a task is in a state."""
        cursor = ""
        async with asyncio.timeout(30):
            while True:
                page = await self.WatchTasks(pb.WatchTasksRequest(cursor=cursor, wait=MINUTE))
                for task in page.tasks:
                    if task.key.task_id == task_id and wire.read_state(task.state) is state:
                        return task
                cursor = page.cursor


@contextlib.asynccontextmanager
async def door_to(tasks, **changes):
    """Open a door and a channel to it."""
    door = GrpcDoor()
    async with (
        door.open(settings(**changes), tasks, WORKER, SystemClock()),
        rpc.open_channel(door.address, setting="test") as channel,
    ):
        yield channel


@pytest.fixture
async def engine(tmp_path):
    clock = SystemClock()
    logs = TaskLogs(tmp_path / "logs", clock)
    example = {"plugin.example.directory": tmp_path, "plugin.example.poll.seconds": 0.01}
    handler = ExampleHandler(ExampleSettings.model_validate(example), clock)
    async with (
        Journal.open(tmp_path / "journal.db", clock) as journal,
        Engine.open(
            journal, Registry([handler]), logs, clock, settings=EngineSettings(capacity=WORKER.capacity)
        ) as opened,
    ):
        yield opened
    await asyncio.to_thread(logs.close)


@pytest.fixture
async def channel(engine):
    async with door_to(engine) as opened:
        yield opened


@pytest.fixture
def client(channel):
    return Client(channel)


class FakeTasks:
    """A task service that knows one running task and does what a test says."""

    journal_id = "j"
    active = 1
    draining = False

    def __init__(self, **overrides):
        self.record = TaskRecord(
            key=TaskKey(task_id="train", attempt=1),
            door="grpc",
            state=TaskState.RUNNING,
            sequence=1,
            created_at=0,
            updated_at=0,
        )
        self.waits = asyncio.Queue()
        for name, value in overrides.items():
            setattr(self, name, value)

    async def accept(self, assignment):
        return self.record

    async def changes(self, after, *, door="", limit=100, wait=0.0):
        if wait:
            self.waits.put_nowait(wait)
            await asyncio.Event().wait()
        return ChangePage(records=[], position=after)

    async def read_log(self, key, *, offset, limit):
        return LogChunk(text="", next_offset=offset, done=False)

    async def wait_log(self, key, *, offset, seconds):
        self.waits.put_nowait(seconds)
        await asyncio.Event().wait()


# What the methods do


async def test_a_worker_tells_what_it_is(client, engine):
    answer = await client.GetWorker(pb.GetWorkerRequest())
    assert (answer.worker_id, answer.version, answer.capacity) == ("worker-1", "1.2.3", 10)
    assert [task_type.name for task_type in answer.task_types] == ["EXAMPLE"]
    assert (answer.active_tasks, answer.draining, dict(answer.labels)) == (0, False, {"zone": "a"})
    engine.drain("test")
    assert (await client.GetWorker(pb.GetWorkerRequest())).draining


async def test_a_dispatched_task_is_followed_to_its_end_with_its_log(client):
    answer = await client.DispatchTask(dispatch(parameters={"message": "hi"}, name="Train", labels={"a": "b"}))
    assert answer.task.key == key()
    assert (answer.task.state, answer.task.sequence) == (task_pb2.TASK_STATE_ACCEPTED, 1)

    task = await client.until(TaskState.SUCCEEDED)

    assert json.loads(task.outputs_json) == {"message": "hi"}
    assert (task.name, dict(task.labels), task.fencing_token) == ("Train", {"a": "b"}, 1)
    assert task.HasField("finished_at")
    log = await client.ReadTaskLogs(pb.ReadTaskLogsRequest(key=key(), wait=MINUTE))
    assert log.done
    assert "job: hi" in log.text
    assert log.next_offset == len(log.text.encode())


async def test_a_repeated_dispatch_gives_the_same_task(client):
    first = await client.DispatchTask(dispatch())
    await client.until(TaskState.SUCCEEDED)
    second = await client.DispatchTask(dispatch())
    assert second.task.created_at == first.task.created_at
    assert second.task.state == task_pb2.TASK_STATE_SUCCEEDED


async def test_a_key_that_is_taken_by_another_definition_is_a_conflict(client):
    await client.DispatchTask(dispatch(parameters={"seconds": 1}))
    with pytest.raises(TaskConflict, match="new task id or attempt"):
        await client.DispatchTask(dispatch(parameters={"seconds": 2}))


async def test_an_unknown_task_type_names_those_that_there_are(client):
    with pytest.raises(UnknownTaskType, match="EXAMPLE"):
        await client.DispatchTask(dispatch(task_type="SPARK"))


async def test_parameters_that_do_not_fit_are_a_failed_task_and_no_error(client):
    answer = await client.DispatchTask(dispatch(parameters={"second": 1}))
    assert answer.task.state == task_pb2.TASK_STATE_FAILED
    assert answer.task.failure.kind == task_pb2.FAILURE_KIND_INVALID
    assert "seconds" in answer.task.failure.details["second"]


async def test_malformed_json_is_named_by_path_line_and_column(client):
    with pytest.raises(InvalidRequest) as caught:
        await client.DispatchTask(dispatch(parameters_json='{"seconds":\n oops}'))
    violations = caught.value.violations
    assert list(violations) == ["assignment.definition.parameters_json"]
    assert "line 2 column 2" in violations["assignment.definition.parameters_json"]
    assert caught.value.reason == "ASSIGNMENT_INVALID"


async def test_a_lower_fencing_token_is_refused(client):
    await client.DispatchTask(dispatch(token=5, parameters={"seconds": FOR_EVER}))
    with pytest.raises(Fenced):
        await client.DispatchTask(dispatch(token=4, parameters={"seconds": FOR_EVER}))
    with pytest.raises(Fenced):
        await client.CancelTask(pb.CancelTaskRequest(key=key(), fencing_token=4))


async def test_a_cancelled_task_ends_as_cancelled(client):
    await client.DispatchTask(dispatch(parameters={"seconds": FOR_EVER}))
    await client.until(TaskState.RUNNING)

    answer = await client.CancelTask(pb.CancelTaskRequest(key=key(), reason="enough"))

    assert (answer.task.stop.cause, answer.task.stop.reason) == (task_pb2.STOP_CAUSE_CANCEL, "enough")
    assert (await client.until(TaskState.CANCELLED)).detail == "cancelled: enough"


async def test_a_cancel_before_the_dispatch_keeps_the_task_from_starting(client, tmp_path):
    cancelled = await client.CancelTask(pb.CancelTaskRequest(key=key(), reason="never mind"))
    assert cancelled.task.state == task_pb2.TASK_STATE_CANCELLED

    late = await client.DispatchTask(dispatch())

    assert late.task.state == task_pb2.TASK_STATE_CANCELLED
    assert not (await client.GetTask(pb.GetTaskRequest(key=key(), include_definition=True))).HasField("definition")


async def test_a_full_and_a_draining_worker_take_nothing_new(client, engine):
    for number in range(WORKER.capacity):
        await client.DispatchTask(dispatch(f"t{number}", parameters={"seconds": FOR_EVER}))
    with pytest.raises(WorkerFull):
        await client.DispatchTask(dispatch("one too many"))
    engine.drain("test")
    with pytest.raises(WorkerDraining):
        await client.DispatchTask(dispatch("one more"))


async def test_a_task_is_read_with_its_definition_when_asked(client):
    await client.DispatchTask(dispatch(parameters={"seconds": FOR_EVER}, timeout=Duration(seconds=90)))
    plain = await client.GetTask(pb.GetTaskRequest(key=key()))
    full = await client.GetTask(pb.GetTaskRequest(key=key(), include_definition=True))
    assert not plain.HasField("definition")
    assert json.loads(full.definition.parameters_json) == {"seconds": FOR_EVER}
    assert full.definition.timeout.seconds == 90


async def test_tasks_that_nobody_knows_are_not_found(client):
    for call in (
        client.GetTask(pb.GetTaskRequest(key=key("nobody"))),
        client.ReadTaskLogs(pb.ReadTaskLogsRequest(key=key("nobody"), wait=MINUTE)),
    ):
        with pytest.raises(TaskNotFound, match="nobody#1"):
            await call


async def test_tasks_are_listed_by_filter_in_pages(client):
    for name in ("a1", "a2", "a3", "b1"):
        await client.DispatchTask(dispatch(name, parameters={"seconds": FOR_EVER}))
    await client.CancelTask(pb.CancelTaskRequest(key=key("c1")))

    first = await client.ListTasks(pb.ListTasksRequest(task_id_prefix="a", task_type="EXAMPLE", page_size=2))
    second = await client.ListTasks(
        pb.ListTasksRequest(task_id_prefix="a", page_size=2, page_token=first.next_page_token)
    )
    cancelled = await client.ListTasks(pb.ListTasksRequest(states=[task_pb2.TASK_STATE_CANCELLED]))

    assert [task.key.task_id for task in first.tasks] == ["a1", "a2"]
    assert ([task.key.task_id for task in second.tasks], second.next_page_token) == (["a3"], "")
    assert [task.key.task_id for task in cancelled.tasks] == ["c1"]


# Long polls


async def test_a_watcher_is_told_of_a_change_while_it_waits(client):
    empty = await client.WatchTasks(pb.WatchTasksRequest())
    assert not empty.tasks
    waiting = asyncio.create_task(client.WatchTasks(pb.WatchTasksRequest(cursor=empty.cursor, wait=MINUTE)))
    await client.DispatchTask(dispatch(parameters={"seconds": FOR_EVER}))
    assert [task.key.task_id for task in (await waiting).tasks] == ["train"]


async def test_a_cursor_goes_on_where_the_answer_before_ended(client):
    for name in ("a", "b", "c"):
        await client.DispatchTask(dispatch(name, parameters={"second": 1}))
    seen, cursor = [], ""
    for _ in range(3):
        page = await client.WatchTasks(pb.WatchTasksRequest(cursor=cursor, page_size=1))
        seen += [task.key.task_id for task in page.tasks]
        cursor = page.cursor
    assert seen == ["a", "b", "c"]
    assert not (await client.WatchTasks(pb.WatchTasksRequest(cursor=cursor))).tasks


async def test_a_cursor_of_another_journal_begins_again(client):
    await client.DispatchTask(dispatch(parameters={"second": 1}))
    page = await client.WatchTasks(pb.WatchTasksRequest(cursor="another journal:999"))
    assert [task.key.task_id for task in page.tasks] == ["train"]


async def test_waits_end_with_the_deadline_of_the_call_and_after_a_minute_at_most():
    tasks = FakeTasks()
    async with door_to(tasks) as channel:
        client = Client(channel)
        for request in (
            pb.WatchTasksRequest(wait=Duration(seconds=3600)),
            pb.ReadTaskLogsRequest(key=key(), wait=Duration(seconds=3600)),
        ):
            method = client.WatchTasks if isinstance(request, pb.WatchTasksRequest) else client.ReadTaskLogs
            call = asyncio.create_task(method(request, deadline=None))
            assert await tasks.waits.get() == 60
            call.cancel()
            call = asyncio.create_task(method(request, deadline=30))
            assert 29 < await tasks.waits.get() < 30
            call.cancel()


async def test_long_polls_are_answered_when_the_door_closes():
    tasks = FakeTasks()
    async with contextlib.AsyncExitStack() as stack:
        door, opened = GrpcDoor(), contextlib.AsyncExitStack()
        await opened.enter_async_context(door.open(settings(), tasks, WORKER, SystemClock()))
        client = Client(await stack.enter_async_context(rpc.open_channel(door.address, setting="test")))
        watch = asyncio.create_task(client.WatchTasks(pb.WatchTasksRequest(cursor="j:7", wait=MINUTE)))
        read = asyncio.create_task(client.ReadTaskLogs(pb.ReadTaskLogsRequest(key=key(), offset=5, wait=MINUTE)))
        for _ in range(2):
            await tasks.waits.get()
        await opened.aclose()
        assert (await watch).cursor == "j:7"
        assert (await read).next_offset == 5


async def test_a_page_holds_no_more_than_fits_into_an_answer():
    large = {"outputs": '{"x": "%s"}' % ("x" * 200_000), "state": TaskState.SUCCEEDED}
    record = FakeTasks().record
    stored = [TaskRecord(**({name: getattr(record, name) for name in record.__slots__} | large)) for _ in range(100)]

    async def listed(chosen, *, limit, token=""):
        start = int(token or 0)
        end = min(start + limit, len(stored))
        return TaskPage(records=stored[start:end], next_token=str(end) if end < len(stored) else "")

    async with door_to(FakeTasks(list=listed)) as channel:
        client, count, token = Client(channel), 0, ""
        while count < len(stored):
            page = await client.ListTasks(pb.ListTasksRequest(page_size=1000, page_token=token))
            assert page.tasks
            count, token = count + len(page.tasks), page.next_page_token
        assert (count, token) == (100, "")


# Bad input


@pytest.mark.parametrize(
    ("method", "request_", "path", "reason"),
    [
        ("DispatchTask", pb.DispatchTaskRequest(), "assignment.definition", "ASSIGNMENT_INVALID"),
        ("CancelTask", pb.CancelTaskRequest(), "key.task_id", "ASSIGNMENT_INVALID"),
        ("CancelTask", pb.CancelTaskRequest(key=key(), fencing_token=-1), "fencing_token", "ASSIGNMENT_INVALID"),
        ("CancelTask", pb.CancelTaskRequest(key=key(), reason="x" * 1025), "reason", "ASSIGNMENT_INVALID"),
        ("GetTask", pb.GetTaskRequest(key=key(attempt=0)), "key.attempt", "ASSIGNMENT_INVALID"),
        ("ListTasks", pb.ListTasksRequest(page_token="x"), "page_token", "PAGE_TOKEN_INVALID"),
        ("ListTasks", pb.ListTasksRequest(page_size=-1), "page_size", "REQUEST_INVALID"),
        ("ListTasks", pb.ListTasksRequest(states=[0]), "states[0]", "REQUEST_INVALID"),
        ("WatchTasks", pb.WatchTasksRequest(cursor="x"), "cursor", "CURSOR_INVALID"),
        ("WatchTasks", pb.WatchTasksRequest(cursor="j:-1"), "cursor", "CURSOR_INVALID"),
        ("WatchTasks", pb.WatchTasksRequest(cursor="j:" + "9" * 30), "cursor", "CURSOR_INVALID"),
        ("WatchTasks", pb.WatchTasksRequest(wait=Duration(seconds=-1)), "wait", "REQUEST_INVALID"),
        ("ReadTaskLogs", pb.ReadTaskLogsRequest(key=key(), offset=-1), "offset", "REQUEST_INVALID"),
        ("ReadTaskLogs", pb.ReadTaskLogsRequest(key=key(), max_bytes=-1), "max_bytes", "REQUEST_INVALID"),
    ],
)
async def test_each_wrong_field_is_named(client, method, request_, path, reason):
    with pytest.raises(InvalidRequest) as caught:
        await getattr(client, method)(request_)
    assert path in caught.value.violations
    assert caught.value.reason == reason


async def test_a_disk_that_refuses_is_told_and_the_worker_stays_up():
    refused = True

    async def accept(assignment):
        if refused:
            raise StorageUnavailable("journal.db: database or disk is full")
        return tasks.record

    tasks = FakeTasks(accept=accept)
    async with door_to(tasks) as channel:
        client = Client(channel)
        with pytest.raises(StorageUnavailable, match="disk is full"):
            await client.DispatchTask(dispatch())
        refused = False
        assert (await client.DispatchTask(dispatch())).task.key == key()


async def test_a_caller_that_gives_up_does_not_stop_an_acceptance_half_way(client, engine, monkeypatch):
    go_on, insert = asyncio.Event(), engine._ledger.insert

    async def slow(record, definition):
        await go_on.wait()
        return await insert(record, definition)

    monkeypatch.setattr(engine._ledger, "insert", slow)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.DispatchTask(dispatch(), deadline=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    go_on.set()
    await client.until(TaskState.SUCCEEDED)


async def test_a_defect_in_the_engine_leaks_nothing():
    async def accept(assignment):
        raise KeyError("secret=AKIA123")

    with capture_logs() as logs:
        async with door_to(FakeTasks(accept=accept)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.WorkerServiceStub(channel).DispatchTask(dispatch(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "AKIA123" not in f"{caught.value.details()} {caught.value.trailing_metadata()!r}"
    assert "defect" in [line["event"] for line in logs]


# The door


async def test_readiness_ends_when_the_worker_drains_and_liveness_does_not(channel, engine):
    stub = health_pb2_grpc.HealthStub(channel)

    async def status(service):
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status

    assert [await status(name) for name in ("liveness", "readiness", SERVICE)] == [1, 1, 1]
    engine.drain("test")
    assert [await status(name) for name in ("liveness", "readiness", SERVICE)] == [1, 2, 2]


async def test_the_service_can_be_called_knowing_nothing_but_reflection(channel):
    """As grpcurl does: list the services, fetch the descriptors, build the messages, call."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**question):
        requests = iter([reflection_pb2.ServerReflectionRequest(**question)])
        (answer,) = [answer async for answer in stub.ServerReflectionInfo(requests, timeout=10)]
        return answer

    listed = (await ask(list_services="")).list_services_response.service
    assert {service.name for service in listed} == {
        "remora.v1.WorkerService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }

    pool, known = descriptor_pool.DescriptorPool(), set()

    async def fetch(**question):
        for data in (await ask(**question)).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name in known:
                continue
            known.add(file.name)
            for dependency in file.dependency:
                await fetch(file_by_filename=dependency)
            pool.Add(file)

    await fetch(file_containing_symbol="remora.v1.WorkerService")
    method = pool.FindServiceByName("remora.v1.WorkerService").FindMethodByName("DispatchTask")
    request_type = message_factory.GetMessageClass(method.input_type)
    response_type = message_factory.GetMessageClass(method.output_type)
    request = json_format.ParseDict(
        {
            "assignment": {
                "definition": {
                    "key": {"taskId": "dynamic", "attempt": 1},
                    "taskType": "EXAMPLE",
                    "parametersJson": '{"seconds": 3600}',
                    "timeout": "90s",
                }
            }
        },
        request_type(),
    )
    call = channel.unary_unary(
        "/remora.v1.WorkerService/DispatchTask", request_type.SerializeToString, response_type.FromString
    )
    answer = json_format.MessageToDict(await call(request, timeout=10))
    assert answer["task"]["key"] == {"taskId": "dynamic", "attempt": 1}
    assert answer["task"]["state"] == "TASK_STATE_ACCEPTED"


async def test_the_door_says_where_it_listens_and_warns_when_everybody_can_reach_it():
    with capture_logs() as logs:
        async with door_to(FakeTasks()):
            pass
        async with GrpcDoor().open(settings(address="0.0.0.0:0"), FakeTasks(), WORKER, SystemClock()):
            pass
    assert [line["event"] for line in logs] == [
        "listening",
        "listening",
        "door_without_tls",
        "door_open_to_everybody",
    ]
    assert logs[0]["address"].startswith("127.0.0.1:")
    assert not logs[0]["address"].endswith(":0")


async def test_a_token_of_the_settings_is_asked_for():
    door = GrpcDoor()
    opened = settings(token="s3cret")
    assert "s3cret" not in repr(opened)
    async with door.open(opened, FakeTasks(), WORKER, SystemClock()):
        async with rpc.open_channel(door.address, setting="test") as channel:
            with pytest.raises(TokenInvalid):
                await Client(channel).GetWorker(pb.GetWorkerRequest())
        async with rpc.open_channel(door.address, setting="test", token="s3cret") as channel:
            assert (await Client(channel).GetWorker(pb.GetWorkerRequest())).worker_id == "worker-1"


async def test_a_port_in_use_is_an_error_of_the_configuration(channel, capfd):
    door = GrpcDoor()
    async with door.open(settings(), FakeTasks(), WORKER, SystemClock()):
        with pytest.raises(ConfigurationError, match=r"door\.grpc\.address"):
            async with GrpcDoor().open(settings(address=door.address), FakeTasks(), WORKER, SystemClock()):
                pytest.fail("it serves")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"address": "50051"}, "host:port"),
        ({"certificate": "c"}, r"door\.grpc\.tls\.certificate and door\.grpc\.tls\.key: set both"),
        ({"client_ca": "c"}, r"door\.grpc\.tls\.client\.ca needs"),
        ({"token": "a b"}, "printable ASCII"),
    ],
)
def test_settings_that_cannot_work_say_why(values, words):
    with pytest.raises(ValidationError, match=words):
        settings(**values)


def test_the_settings_are_read_from_their_property_keys():
    read = GrpcSettings.model_validate(
        {"door.grpc.address": "[::1]:7", "door.grpc.tls.certificate": "c", "door.grpc.tls.key": "k"}
    )
    assert (read.address, str(read.tls.certificate), str(read.tls.key)) == ("[::1]:7", "c", "k")
    assert GrpcSettings().tls is None
