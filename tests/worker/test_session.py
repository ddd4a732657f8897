# ruff: noqa: N802
# (the names of the methods are gRPC's)
"""The session with a scheduler that the worker dials, against a scripted scheduler over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import defaultdict
from functools import partial

import pytest
from remora import rpc, wire
from remora.door import ChangePage, LogChunk, TaskTypeInfo, WorkerInfo
from remora.engine import Engine
from remora.errors import (
    CallError,
    ConfigurationError,
    Fenced,
    InvalidRequest,
    SessionExpired,
    StorageUnavailable,
    TaskConflict,
    TaskNotFound,
    UnknownTaskType,
    WorkerFull,
    WorkerSuperseded,
)
from remora.journal import Journal
from remora.pace import Signal, SystemClock
from remora.plugin import TaskKey
from remora.registry import Registry
from remora.session import SchedulerDoor, SchedulerDoorSettings
from remora.task import TaskRecord, TaskState
from remora.tasklog import TaskLogs
from remora.testing import ManualClock
from remora.v1 import scheduler_service_pb2 as pb
from remora.v1 import scheduler_service_pb2_grpc as pb_grpc
from remora.v1 import task_pb2
from remora_example import ExampleHandler, ExampleSettings
from structlog.testing import capture_logs

WORKER = WorkerInfo(
    worker_id="worker-1",
    instance_id="instance-1",
    version="1.2.3",
    capacity=10,
    task_types=[TaskTypeInfo(name="EXAMPLE", title="An example", schema="{}", permissions=())],
    labels={"zone": "a"},
)
TRAIN = TaskKey(task_id="train", attempt=1)
PATIENCE = 20


def settings(address, **changes):
    values = {"address": address, "retry_initial": 0.01, "retry_maximum": 0.05} | changes
    return SchedulerDoorSettings.model_validate(values, by_name=True, by_alias=False)


def dispatch(task_id="train", *, token=1, parameters="{}", attempt=1, task_type="EXAMPLE"):
    key = task_pb2.TaskKey(task_id=task_id, attempt=attempt)
    definition = task_pb2.TaskDefinition(key=key, task_type=task_type, parameters_json=parameters)
    return pb.Command(dispatch=task_pb2.Assignment(definition=definition, fencing_token=token))


def cancel(task_id="train", *, token=1, reason="enough"):
    key = task_pb2.TaskKey(task_id=task_id, attempt=1)
    return pb.Command(cancel=pb.CancelCommand(key=key, fencing_token=token, reason=reason))


def key_of(message):
    return TaskKey(task_id=message.task_id, attempt=message.attempt)


class Watched:
    """Something that tests wait for."""

    def __init__(self):
        self._changed = Signal()

    def changed(self):
        self._changed.notify()

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE):
            while True:
                changed = self._changed.listen()
                if condition():
                    return
                await changed.wait()


class Scheduler(Watched, pb_grpc.SchedulerServiceServicer):
    """Keeps what it is told, and does what a test scripts."""

    def __init__(self):
        super().__init__()
        self.registrations = []
        self.deregistrations = []
        self.polls = 0
        self.commands = asyncio.Queue()
        self.batches = []
        self.tasks = {}
        self.logs = defaultdict(bytes)
        self.appends = []
        self.fenced = set()
        self.silent = set()
        self.lose = defaultdict(list)
        """Per method: errors that are answered after the request was taken in."""
        self.refuse = defaultdict(list)
        """Per method: errors that are answered in place of taking the request in."""

    def _refuse(self, method):
        if self.refuse[method]:
            raise self.refuse[method].pop(0)

    def _lose(self, method):
        self.changed()
        if self.lose[method]:
            raise self.lose[method].pop(0)

    async def RegisterWorker(self, request, context):
        self._refuse("RegisterWorker")
        self.registrations.append(request)
        self._lose("RegisterWorker")
        answer = pb.RegisterWorkerResponse(
            session_id=f"session-{len(self.registrations)}",
            fenced=[held.key for held in request.held if key_of(held.key) in self.fenced],
        )
        answer.lease.FromSeconds(30)
        return answer

    async def PollCommands(self, request, context):
        self.polls += 1
        self.changed()
        self._refuse("PollCommands")
        assert 0 < wire.seconds(request.wait) < 10
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wire.seconds(request.wait)):
                commands = await self.commands.get()
                if isinstance(commands, Exception):
                    raise commands
                return pb.PollCommandsResponse(commands=commands)
        return pb.PollCommandsResponse()

    async def ReportTasks(self, request, context):
        self._refuse("ReportTasks")
        self.batches.append(request)
        answer = pb.ReportTasksResponse()
        for task in request.tasks:
            key = key_of(task.key)
            if key in self.fenced:
                answer.fenced.append(task.key)
            elif key not in self.silent:
                if key not in self.tasks or self.tasks[key].sequence < task.sequence:
                    self.tasks[key] = task
                answer.acknowledged.add(key=task.key, sequence=self.tasks[key].sequence)
        self._lose("ReportTasks")
        return answer

    async def AppendTaskLogs(self, request, context):
        self._refuse("AppendTaskLogs")
        key = key_of(request.key)
        if key in self.fenced:
            raise Fenced("another worker has it")
        self.appends.append(request)
        if request.offset == len(self.logs[key]):
            self.logs[key] += request.text.encode()
        self._lose("AppendTaskLogs")
        return pb.AppendTaskLogsResponse(next_offset=len(self.logs[key]))

    async def DeregisterWorker(self, request, context):
        self.deregistrations.append(request)
        return pb.DeregisterWorkerResponse()

    def state(self, key=TRAIN):
        return wire.read_state(self.tasks[key].state) if key in self.tasks else None

    @contextlib.asynccontextmanager
    async def serving(self, address="127.0.0.1:0", **options):
        add = partial(pb_grpc.add_SchedulerServiceServicer_to_server, self)
        async with rpc.serve(
            {"remora.v1.SchedulerService": add}, address=address, setting="test", clock=SystemClock(), **options
        ) as bound:
            yield bound


class Tasks(Watched):
    """A task service in memory, whose tasks move when a test says so."""

    active = 0

    def __init__(self):
        super().__init__()
        self.records = {}
        self.positions = {}
        self.settled = {}
        self.logs = defaultdict(str)
        self.calls = []
        self.draining = False
        self.refuse = defaultdict(list)

    def put(self, key=TRAIN, *, log="", **changes):
        """Change a task, as the engine would: lines first."""
        self.logs[key] += log
        known = self.records.get(key)
        if known is None:
            first = {"door": "scheduler", "state": TaskState.ACCEPTED, "sequence": 1, "created_at": 1, "updated_at": 1}
            self.records[key] = TaskRecord(key=key, **(first | changes))
        else:
            self.records[key] = dataclasses.replace(known, **({"sequence": known.sequence + 1} | changes))
        self.positions[key] = max(self.positions.values(), default=0) + 1
        self.changed()
        return self.records[key]

    def finish(self, key=TRAIN, **changes):
        return self.put(key, **({"state": TaskState.SUCCEEDED, "log": f"the end of {key}\n"} | changes))

    def _refuse(self, method):
        if self.refuse[method]:
            self.changed()
            raise self.refuse[method].pop(0)

    async def accept(self, assignment):
        self.calls.append(("accept", assignment.definition.key, assignment.fencing_token))
        self._refuse("accept")
        key = assignment.definition.key
        return self.records.get(key) or self.put(key, fencing_token=assignment.fencing_token, log="accepted\n")

    async def cancel(self, key, *, door, fencing_token, reason):
        self.calls.append(("cancel", key, fencing_token, reason))
        self._refuse("cancel")
        if key in self.records and self.records[key].state.final:
            return self.records[key]
        return self.put(key, door=door, state=TaskState.CANCELLED)

    async def release(self, key, *, fencing_token):
        self.calls.append(("release", key, fencing_token))
        record = self.records[key]
        if not record.state.final and record.fencing_token <= fencing_token:
            self.put(key, state=TaskState.RELEASED)

    async def get(self, key):
        if key not in self.records:
            raise TaskNotFound(str(key))
        return self.records[key]

    async def changes(self, after, *, door="", limit=100, wait=0.0):
        self._refuse("changes")

        def later():
            chosen = [k for k, p in self.positions.items() if p > after and self.records[k].door == door]
            return sorted(chosen, key=self.positions.__getitem__)[:limit]

        if wait:
            with contextlib.suppress(TimeoutError):
                await self.until(later)
        keys = later()
        return ChangePage(records=[self.records[k] for k in keys], position=self.positions[keys[-1]] if keys else after)

    async def read_log(self, key, *, offset, limit):
        record = await self.get(key)
        data = self.logs[key].encode()
        piece = data[offset : offset + limit]
        piece = piece[: piece.rfind(b"\n") + 1]
        return LogChunk(
            text=piece.decode(),
            next_offset=offset + len(piece),
            done=record.state.final and offset + len(piece) >= len(data),
        )

    def notes(self, door):
        assert door == "scheduler"
        return self

    async def read_all(self):
        return dict(self.settled)

    async def write(self, notes):
        self._refuse("write")
        self.settled.update(notes)
        self.changed()

    def drain(self, reason):
        self.calls.append(("drain", reason))
        self.draining = True
        self.changed()


class Timekeeper(Watched, SystemClock):
    """Counts how often somebody waits for time to pass."""

    slept = 0

    async def sleep(self, seconds):
        self.slept += 1
        self.changed()
        await super().sleep(seconds)


class Noted(Watched):
    """Notes that tell when they are written."""

    def __init__(self, notes):
        super().__init__()
        self._notes = notes
        self.keys = set()

    async def read_all(self):
        return await self._notes.read_all()

    async def write(self, notes):
        await self._notes.write(notes)
        self.keys |= notes.keys()
        self.changed()


@contextlib.asynccontextmanager
async def session(address, tasks, clock=None, **changes):
    async with SchedulerDoor().open(settings(address, **changes), tasks, WORKER, clock or SystemClock()):
        yield


@pytest.fixture
def tasks():
    return Tasks()


@pytest.fixture
async def scheduler():
    """A scheduler that is served while the test runs."""
    scheduler = Scheduler()
    async with scheduler.serving() as scheduler.address:
        yield scheduler


@pytest.fixture
async def registered(scheduler, tasks):
    """A session of the worker at the scheduler."""
    async with session(scheduler.address, tasks):
        await scheduler.until(lambda: scheduler.polls)
        yield


# Registration


async def test_a_worker_introduces_itself_and_takes_its_leave(scheduler, tasks):
    async with session(scheduler.address, tasks, advertised_address="worker.example:50051"):
        await scheduler.until(lambda: scheduler.polls)
    (request,) = scheduler.registrations
    assert (request.worker_id, request.instance_id, request.version) == ("worker-1", "instance-1", "1.2.3")
    assert (request.capacity, dict(request.labels), request.address) == (10, {"zone": "a"}, "worker.example:50051")
    assert [task_type.name for task_type in request.task_types] == ["EXAMPLE"]
    assert [request.session_id for request in scheduler.deregistrations] == ["session-1"]


async def test_the_worker_holds_what_is_not_settled_and_reports_it_again(scheduler, tasks):
    settled, changed = TaskKey(task_id="settled", attempt=1), TaskKey(task_id="changed", attempt=1)
    other = TaskKey(task_id="other door", attempt=1)
    tasks.settled = {settled: "2", changed: "1"}
    for key in (settled, changed, TRAIN):
        tasks.put(key, fencing_token=7)
    tasks.finish(settled)
    tasks.finish(changed)
    tasks.put(other, door="grpc")

    async with session(scheduler.address, tasks):
        await scheduler.until(lambda: {TRAIN, changed} <= scheduler.tasks.keys() and changed in tasks.settled)
        await tasks.until(lambda: tasks.settled[changed] == "2")

    held = {key_of(held.key): (held.fencing_token, held.sequence) for held in scheduler.registrations[0].held}
    assert held == {TRAIN: (7, 1), changed: (7, 2)}
    assert scheduler.tasks.keys() == {TRAIN, changed}


async def test_tasks_that_are_fenced_at_the_registration_are_released(scheduler, tasks):
    tasks.put(fencing_token=7)
    scheduler.fenced.add(TRAIN)
    async with session(scheduler.address, tasks):
        await tasks.until(lambda: TRAIN in tasks.settled)
    assert tasks.records[TRAIN].state is TaskState.RELEASED
    assert ("release", TRAIN, 7) in tasks.calls
    assert scheduler.tasks == {}


async def test_the_worker_starts_without_a_scheduler_and_finds_it_later(tasks):
    scheduler = Scheduler()
    async with scheduler.serving() as address:
        pass
    clock = Timekeeper()
    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(session(address, tasks, clock))
            await clock.until(lambda: clock.slept > 1)
            async with scheduler.serving(address):
                await scheduler.until(lambda: scheduler.polls)
                await stack.aclose()
    told = [line for line in logs if line["event"] == "call_repeated" and line["log_level"] == "warning"]
    assert [line["request"] for line in told] == ["RegisterWorkerRequest"]
    assert told[0]["why"].startswith("UNAVAILABLE: ")


async def test_a_scheduler_that_goes_away_and_comes_back_misses_nothing(tasks):
    scheduler = Scheduler()
    async with contextlib.AsyncExitStack() as stack:
        async with scheduler.serving() as address:
            await stack.enter_async_context(session(address, tasks))
            await scheduler.until(lambda: scheduler.polls)
            await scheduler.commands.put([dispatch()])
            await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
            await scheduler.commands.put([])
        tasks.put(state=TaskState.RUNNING, log="runs\n")
        tasks.finish()
        polls = scheduler.polls
        async with scheduler.serving(address):
            await scheduler.until(lambda: scheduler.state() is TaskState.SUCCEEDED)
            await tasks.until(lambda: TRAIN in tasks.settled)
            await scheduler.until(lambda: scheduler.polls > polls)
            await stack.aclose()
    assert scheduler.logs[TRAIN] == b"accepted\nruns\nthe end of train#1\n"
    assert len(scheduler.registrations) == 1


async def test_an_expired_session_is_followed_by_another_that_holds_the_same(scheduler, registered, tasks):
    tasks.put(state=TaskState.RUNNING, log="runs\n")
    await scheduler.until(lambda: scheduler.logs[TRAIN])
    scheduler.tasks.clear()  # it lost its disk

    await scheduler.commands.put(SessionExpired("who are you?"))

    await scheduler.until(lambda: scheduler.state() is TaskState.RUNNING)
    assert [key_of(held.key) for held in scheduler.registrations[1].held] == [TRAIN]
    assert scheduler.batches[-1].session_id == "session-2"
    assert scheduler.logs[TRAIN] == b"runs\n"


async def test_a_session_that_expires_during_a_report_is_renewed_too(scheduler, registered, tasks):
    scheduler.refuse["ReportTasks"].append(SessionExpired("who are you?"))
    tasks.put()
    await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    assert len(scheduler.registrations) == 2


async def test_a_worker_whose_place_is_taken_ends(scheduler, tasks):
    with pytest.RaisesGroup(pytest.RaisesExc(WorkerSuperseded), flatten_subgroups=True):
        async with session(scheduler.address, tasks):
            await scheduler.commands.put(WorkerSuperseded("another process runs under worker-1"))
            await asyncio.Event().wait()


async def test_a_registration_that_is_refused_ends_the_worker(scheduler, tasks):
    scheduler.refuse["RegisterWorker"].append(InvalidRequest({"worker_id": "is odd"}, reason="REQUEST_INVALID"))
    with pytest.RaisesGroup(pytest.RaisesExc(InvalidRequest, match="worker_id: is odd"), flatten_subgroups=True):
        async with session(scheduler.address, tasks):
            await asyncio.Event().wait()


async def test_a_wrong_token_ends_the_worker_and_names_the_property(tasks):
    scheduler = Scheduler()
    async with scheduler.serving(token="right") as address:
        refused = pytest.RaisesExc(ConfigurationError, match=r"door\.scheduler\.token: .*Set the token")
        with pytest.RaisesGroup(refused, flatten_subgroups=True):
            async with session(address, tasks, token="wrong"):
                await asyncio.Event().wait()
        async with session(address, tasks, token="right"):
            await scheduler.until(lambda: scheduler.polls)


async def test_a_refusal_without_details_counts_as_one(scheduler, tasks):
    """A proxy, or a scheduler of somebody else, answers with the bare code."""

    async def denied(request, context):
        await context.abort(rpc.grpc.StatusCode.PERMISSION_DENIED, "no")

    scheduler.RegisterWorker = denied
    async with scheduler.serving() as address:
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError), flatten_subgroups=True):
            async with session(address, tasks):
                await asyncio.Event().wait()


# Commands


async def test_a_dispatched_task_is_accepted_reported_and_settled_at_its_end(scheduler, registered, tasks):
    await scheduler.commands.put([dispatch(token=3)])
    await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    assert ("accept", TRAIN, 3) in tasks.calls

    tasks.put(state=TaskState.RUNNING, log="runs\n")
    await scheduler.until(lambda: scheduler.state() is TaskState.RUNNING)
    tasks.finish(outputs='{"a": 1}')

    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.tasks[TRAIN].outputs_json == '{"a": 1}'
    assert scheduler.logs[TRAIN] == b"accepted\nruns\nthe end of train#1\n"
    assert tasks.settled == {TRAIN: "3"}


@pytest.mark.parametrize(
    ("error", "sequence"),
    [
        (UnknownTaskType("no plugin runs SPARK"), 1),
        (InvalidRequest({"dispatch.definition.name": "is too long"}), 1),
        (TaskConflict("taken by another definition"), 2),
    ],
)
async def test_a_dispatch_that_can_never_be_accepted_is_reported_as_a_failed_task(
    scheduler, registered, tasks, error, sequence
):
    if isinstance(error, TaskConflict):
        tasks.put(door="grpc")
    tasks.refuse["accept"].append(error)
    await scheduler.commands.put([dispatch(token=4)])

    await scheduler.until(lambda: scheduler.state() is TaskState.FAILED)

    task = scheduler.tasks[TRAIN]
    assert (task.failure.kind, task.failure.code) == (task_pb2.FAILURE_KIND_INVALID, error.reason)
    assert (task.failure.message, task.sequence, task.fencing_token) == (str(error), sequence, 4)
    assert dict(task.failure.details) == getattr(error, "violations", {})


async def test_a_malformed_dispatch_is_reported_under_its_key_and_one_without_a_key_is_skipped(
    scheduler, registered, tasks
):
    with capture_logs() as logs:
        await scheduler.commands.put(
            [dispatch(""), pb.Command(dispatch=task_pb2.Assignment()), dispatch(parameters="[]")]
        )
        await scheduler.until(lambda: scheduler.state() is TaskState.FAILED)
    failure = scheduler.tasks[TRAIN].failure
    assert dict(failure.details) == {
        "dispatch.definition.parameters_json": "must be a JSON object, is another JSON value"
    }
    assert [line["event"] for line in logs].count("dispatch_refused") == 3
    assert tasks.calls == []


@pytest.mark.parametrize(
    "error", [WorkerFull("full"), Fenced("old"), StorageUnavailable("disk is full"), KeyError("x")]
)
async def test_a_dispatch_that_cannot_be_taken_now_is_left_to_the_scheduler(scheduler, registered, tasks, error):
    tasks.refuse["accept"].append(error)
    with capture_logs() as logs:
        await scheduler.commands.put([dispatch()])
        await scheduler.until(lambda: scheduler.polls == 2)
        await scheduler.commands.put([dispatch()])
        await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    assert logs[0]["event"] == ("command_not_obeyed" if isinstance(error, CallError) else "command_failed")
    assert len(scheduler.registrations) == 1


async def test_a_repeated_dispatch_changes_nothing(scheduler, registered, tasks):
    await scheduler.commands.put([dispatch(), dispatch()])
    await scheduler.commands.put([dispatch()])
    await scheduler.until(lambda: scheduler.polls == 3)
    await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    assert tasks.records[TRAIN].sequence == 1


async def test_a_settled_task_that_is_dispatched_again_is_reported_again_with_its_log(scheduler, registered, tasks):
    await scheduler.commands.put([dispatch()])
    await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    tasks.finish()
    await tasks.until(lambda: TRAIN in tasks.settled)
    scheduler.tasks.clear()  # restored from an old copy
    scheduler.logs.clear()
    tasks.settled.clear()

    await scheduler.commands.put([dispatch()])

    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.state() is TaskState.SUCCEEDED
    assert scheduler.logs[TRAIN] == b"accepted\nthe end of train#1\n"


async def test_commands_for_one_task_are_obeyed_in_order(scheduler, registered, tasks):
    await scheduler.commands.put([dispatch(token=2), dispatch("other"), cancel(token=2, reason="x" * 2000)])
    await scheduler.until(lambda: scheduler.state() is TaskState.CANCELLED)
    for_train = [call for call in tasks.calls if call[1] == TRAIN]
    assert for_train == [("accept", TRAIN, 2), ("cancel", TRAIN, 2, "x" * 1024)]


async def test_a_cancel_of_a_task_never_seen_is_reported_as_cancelled(scheduler, registered, tasks):
    await scheduler.commands.put([cancel("never seen")])
    await scheduler.until(lambda: scheduler.state(TaskKey(task_id="never seen", attempt=1)) is TaskState.CANCELLED)


async def test_a_cancel_that_comes_again_after_the_end_is_answered_with_the_end(scheduler, registered, tasks):
    tasks.put()
    tasks.finish()
    await tasks.until(lambda: TRAIN in tasks.settled)
    scheduler.tasks.clear()
    await scheduler.commands.put([cancel()])
    await scheduler.until(lambda: scheduler.state() is TaskState.SUCCEEDED)


async def test_a_drain_is_passed_on(scheduler, registered, tasks):
    await scheduler.commands.put([pb.Command(drain=pb.DrainCommand(reason="upgrade"))])
    await tasks.until(lambda: tasks.draining)
    assert tasks.calls == [("drain", "upgrade")]


async def test_a_command_of_a_later_version_is_skipped_and_logged(scheduler, registered, tasks):
    with capture_logs() as logs:
        await scheduler.commands.put([pb.Command(), dispatch()])
        await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)
    assert [line["event"] for line in logs] == ["unknown_command"]


# Reports


async def test_a_report_whose_answer_is_lost_is_repeated(scheduler, registered, tasks):
    # More often than the channel repeats by itself.
    scheduler.lose["ReportTasks"] += [StorageUnavailable("lost")] * 5
    tasks.put()
    tasks.finish()
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert len(scheduler.batches) >= 6
    assert scheduler.state() is TaskState.SUCCEEDED


async def test_a_defect_of_the_scheduler_is_sat_out(scheduler, registered, tasks):
    scheduler.refuse["ReportTasks"] += [ZeroDivisionError()] * 3
    scheduler.refuse["AppendTaskLogs"] += [ZeroDivisionError()] * 3
    with capture_logs() as logs:
        tasks.put()
        tasks.finish()
        await tasks.until(lambda: TRAIN in tasks.settled)
    assert [line["event"] for line in logs].count("defect") == 6


async def test_a_snapshot_that_is_not_acknowledged_is_sent_again_and_holds_up_nobody(scheduler, registered, tasks):
    other = TaskKey(task_id="other", attempt=1)
    scheduler.silent.add(TRAIN)
    tasks.put()
    await scheduler.until(lambda: len(scheduler.batches) >= 2)
    tasks.put(other)
    await scheduler.until(lambda: other in scheduler.tasks)
    scheduler.silent.clear()
    await scheduler.until(lambda: TRAIN in scheduler.tasks)


async def test_a_task_that_is_fenced_in_a_report_is_released_and_not_reported_again(scheduler, registered, tasks):
    tasks.put(fencing_token=5, state=TaskState.RUNNING)
    await scheduler.until(lambda: scheduler.state() is TaskState.RUNNING)
    scheduler.fenced.add(TRAIN)

    tasks.put(detail="step 2")

    await tasks.until(lambda: TRAIN in tasks.settled)
    assert tasks.records[TRAIN].state is TaskState.RELEASED
    assert tasks.calls == [("release", TRAIN, 5)]
    reported = len(scheduler.batches)
    tasks.put(TaskKey(task_id="other", attempt=1))
    await scheduler.until(lambda: len(scheduler.batches) > reported)
    assert [key_of(task.key).task_id for task in scheduler.batches[-1].tasks] == ["other"]


async def test_a_fenced_task_that_was_handed_over_anew_meanwhile_is_kept(scheduler, registered, tasks):
    released = tasks.release

    async def release(key, *, fencing_token):
        tasks.put(fencing_token=9)  # dispatched to this worker again, under a higher token
        scheduler.fenced.clear()
        await released(key, fencing_token=fencing_token)

    tasks.release = release
    scheduler.fenced.add(TRAIN)
    tasks.put(fencing_token=5, state=TaskState.RUNNING)
    await scheduler.until(lambda: TRAIN in scheduler.tasks and scheduler.tasks[TRAIN].fencing_token == 9)
    assert tasks.records[TRAIN].state is TaskState.RUNNING
    assert tasks.settled == {}


async def test_reports_stay_below_a_mebibyte(scheduler, tasks):
    keys = [TaskKey(task_id=f"t{number}", attempt=1) for number in range(20)]
    for key in keys:
        tasks.put(key)
        tasks.finish(key, outputs='{"x": "%s"}' % ("x" * 200_000))
    async with session(scheduler.address, tasks):
        await tasks.until(lambda: tasks.settled.keys() == set(keys))
    assert max(batch.ByteSize() for batch in scheduler.batches) < 1024 * 1024


# Logs


async def test_a_log_goes_on_where_the_schedulers_copy_ends(scheduler, tasks):
    tasks.put(log="one\ntwo\n", state=TaskState.RUNNING)
    scheduler.logs[TRAIN] = b"one\n"
    async with session(scheduler.address, tasks):
        await scheduler.until(lambda: scheduler.logs[TRAIN] == b"one\ntwo\n")
    asked, sent = scheduler.appends[:2]
    assert (asked.text, sent.offset, sent.text) == ("", 4, "two\n")


async def test_a_log_of_which_the_scheduler_lost_the_end_is_sent_from_there(scheduler, registered, tasks):
    tasks.put(log="one\ntwo\n", state=TaskState.RUNNING)
    await scheduler.until(lambda: scheduler.logs[TRAIN] == b"one\ntwo\n")
    scheduler.logs[TRAIN] = b"one\n"
    tasks.finish(log="three\n")
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.logs[TRAIN] == b"one\ntwo\nthree\n"


async def test_a_log_whose_answer_is_lost_is_not_written_twice(scheduler, registered, tasks):
    scheduler.lose["AppendTaskLogs"] += [StorageUnavailable("lost")] * 5
    tasks.put(log="one\n")
    tasks.finish(log="two\n")
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.logs[TRAIN] == b"one\ntwo\n"


async def test_a_large_log_is_sent_in_pieces_and_whole_before_the_task_is_settled(scheduler, registered, tasks):
    text = "ü" * 99 + "\n"
    tasks.put()
    tasks.finish(log=text * 5000)
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.logs[TRAIN].decode() == text * 5000
    assert max(len(request.text.encode()) for request in scheduler.appends) <= 512 * 1024


async def test_a_task_without_a_log_is_settled_too(scheduler, registered, tasks):
    tasks.put(state=TaskState.CANCELLED)
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.appends == []


async def test_a_log_that_grows_without_a_change_is_shipped_within_a_minute(scheduler, tasks):
    clock = ManualClock()
    async with session(scheduler.address, tasks, clock):
        await scheduler.until(lambda: scheduler.polls)
        tasks.put(log="one\n", state=TaskState.RUNNING)
        await scheduler.until(lambda: scheduler.logs[TRAIN] == b"one\n")
        await clock.advance(0)
        tasks.logs[TRAIN] += "asked the job to stop\n"
        await clock.advance(60)
        await scheduler.until(lambda: scheduler.logs[TRAIN] == b"one\nasked the job to stop\n")


async def test_a_fenced_log_waits_for_no_more_than_the_report(scheduler, registered, tasks):
    scheduler.refuse["AppendTaskLogs"].append(Fenced("another worker has it"))
    tasks.put()
    tasks.finish()
    await tasks.until(lambda: TRAIN in tasks.settled)
    assert scheduler.state() is TaskState.SUCCEEDED


# The worker's own disk


async def test_a_settled_task_that_cannot_be_noted_is_noted_later(scheduler, tasks):
    clock = ManualClock()
    tasks.refuse["write"].append(StorageUnavailable("disk is full"))
    async with session(scheduler.address, tasks, clock):
        await scheduler.until(lambda: scheduler.polls)
        tasks.put()
        tasks.finish()
        await tasks.until(lambda: not tasks.refuse["write"])
        await clock.advance(60)
        await tasks.until(lambda: TRAIN in tasks.settled)


async def test_a_journal_that_cannot_be_read_ends_the_session_and_not_the_worker(scheduler, registered, tasks):
    tasks.refuse["changes"].append(StorageUnavailable("input/output error"))
    tasks.put()
    await scheduler.until(lambda: len(scheduler.registrations) == 2)
    await scheduler.until(lambda: scheduler.state() is TaskState.ACCEPTED)


# The real engine


async def test_a_task_of_the_real_engine_is_delivered_with_its_log(scheduler, tmp_path):
    clock = SystemClock()
    example = {"plugin.example.directory": tmp_path, "plugin.example.poll.seconds": 0.01}
    registry = Registry([ExampleHandler(ExampleSettings.model_validate(example), clock)])
    async with Journal.open(tmp_path / "journal.db", clock) as journal:
        logs = TaskLogs(tmp_path / "logs", clock)
        async with Engine.open(journal, registry, logs, clock) as engine, contextlib.AsyncExitStack() as stack:
            noted = Noted(engine.notes("scheduler"))
            engine.notes = lambda door: noted
            await stack.enter_async_context(session(scheduler.address, engine))
            await scheduler.commands.put(
                [dispatch(parameters='{"message": "hi"}'), dispatch("bad", parameters='{"second": 1}'), cancel("gone")]
            )
            await scheduler.until(lambda: scheduler.state() is TaskState.SUCCEEDED)
            await scheduler.until(lambda: b"the job ended" in scheduler.logs[TRAIN])
            for name, state in (("bad", TaskState.FAILED), ("gone", TaskState.CANCELLED)):
                key = TaskKey(task_id=name, attempt=1)
                await scheduler.until(lambda key=key, state=state: scheduler.state(key) is state)
            await noted.until(lambda: len(noted.keys) == 3)
        async with Engine.open(journal, registry, logs, clock) as engine, session(scheduler.address, engine):
            await scheduler.until(lambda: len(scheduler.registrations) == 2)
        await asyncio.to_thread(logs.close)
    assert json.loads(scheduler.tasks[TRAIN].outputs_json) == {"message": "hi"}
    assert b"job: hi" in scheduler.logs[TRAIN]
    assert not scheduler.registrations[1].held


# Settings


def test_the_settings_are_read_from_their_property_keys():
    read = SchedulerDoorSettings.model_validate(
        {
            "door.scheduler.address": "scheduler.example:50050",
            "door.scheduler.tls.ca": "ca",
            "door.scheduler.token": "t",
        }
    )
    assert (read.address, str(read.tls.ca), read.token.get_secret_value()) == ("scheduler.example:50050", "ca", "t")
    assert "'t'" not in repr(read)
    assert SchedulerDoorSettings().tls is None
