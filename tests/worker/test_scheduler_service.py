"""The embedded scheduler over a real channel, with workers that do exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re

import pytest
from remora import rpc, wire
from remora.errors import (
    ConfigurationError,
    Fenced,
    InvalidRequest,
    RunConflict,
    RunNotFound,
    SessionExpired,
    StorageUnavailable,
    TokenInvalid,
    WorkerSuperseded,
)
from remora.scheduler import SchedulerSettings, serve
from remora.scheduler.store import Store
from remora.testing import ManualClock
from remora.v1 import scheduler_service_pb2 as worker_pb
from remora.v1 import task_pb2
from remora.v1 import workflow_service_pb2 as pb
from remora.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from remora.v1.workflow_service_pb2_grpc import WorkflowServiceStub

LEASE = 15.0

ONE = "workflow: {name: one}\ntasks: [{name: only, task_type: Example, params: {x: 1}}]"
CHAIN = """
workflow: {name: chain}
tasks:
  - {name: first, task_type: Example, fail_retry_times: 1, fail_retry_interval: 1}
  - {name: second, task_type: Example, deps: [first], params: {message: "got ${first.message}"}}
"""
WIDE = "workflow: {name: wide}\ntasks:\n" + "".join(f"  - {{name: t{n}, task_type: Example}}\n" for n in range(6))


class World:
    """A scheduler that can be restarted, and clients of it."""

    def __init__(self, directory, clock, **settings):
        self.settings = SchedulerSettings.model_validate(
            {"address": "127.0.0.1:0", "data_dir": directory, "lease_seconds": LEASE, **settings}, by_name=True
        )
        self.clock = clock
        self._server = contextlib.AsyncExitStack()
        self._client = contextlib.AsyncExitStack()

    async def start(self, token=None):
        address = await self._server.enter_async_context(serve(self.settings, self.clock))
        channel = await self._client.enter_async_context(rpc.open_channel(address, setting="test", token=token))
        self.workers = SchedulerServiceStub(channel)
        self.people = WorkflowServiceStub(channel)

    async def stop(self):
        await self._server.aclose()
        await self._client.aclose()

    async def restart(self):
        await self.stop()
        await self.start()

    async def until_waiting(self, count):
        """Return when so many calls wait for the clock, beside the scheduler's own three loops."""
        while self.clock.sleepers < 3 + count:
            await self.people.ListWorkflowRuns(pb.ListWorkflowRunsRequest(), timeout=10)

    async def submit(self, dag, run_id="run", **parameters):
        request = pb.SubmitWorkflowRequest(workflow_yaml=dag, run_id=run_id, parameters=parameters)
        with rpc.call_errors():
            return (await self.people.SubmitWorkflow(request, timeout=10)).run

    async def get(self, run_id="run", **request):
        with rpc.call_errors():
            return (
                await self.people.GetWorkflowRun(pb.GetWorkflowRunRequest(run_id=run_id, **request), timeout=10)
            ).run

    async def until(self, condition, run_id="run"):
        """Return the run as soon as the condition holds."""
        version = 0
        while True:
            run = await self.get(run_id, after_version=version, wait=wire.duration(30))
            if condition(run):
                return run
            version = run.version

    async def until_states(self, **states):
        return await self.until(lambda run: all(states_of(run)[name] == state for name, state in states.items()))

    async def cancel(self, reason="enough", run_id="run"):
        request = pb.CancelWorkflowRunRequest(run_id=run_id, reason=reason)
        with rpc.call_errors():
            return (await self.people.CancelWorkflowRun(request, timeout=10)).run

    async def log(self, task="only", **request):
        message = pb.ReadWorkflowTaskLogsRequest(run_id="run", task_name=task, **request)
        with rpc.call_errors():
            return await self.people.ReadWorkflowTaskLogs(message, timeout=10)

    async def worker(self, worker_id="w1", **more):
        worker = Worker(self, worker_id, **more)
        await worker.register()
        return worker


class Worker:
    """A worker that does what it is told to by a test."""

    def __init__(self, world, worker_id, *, instance_id="i1", capacity=100, task_types=("EXAMPLE",), labels=None):
        self._world = world
        self._introduction = worker_pb.RegisterWorkerRequest(
            worker_id=worker_id,
            instance_id=instance_id,
            capacity=capacity,
            task_types=[task_pb2.TaskType(name=name) for name in task_types],
            labels=labels or {},
        )
        self.session_id = ""

    async def register(self, *held):
        request = worker_pb.RegisterWorkerRequest()
        request.CopyFrom(self._introduction)
        for task in held:
            request.held.add(key=task.definition.key, fencing_token=task.fencing_token)
        with rpc.call_errors():
            answer = await self._world.workers.RegisterWorker(request, timeout=10)
        self.session_id = answer.session_id
        return [key.task_id for key in answer.fenced]

    async def poll(self, wait=4.9):
        request = worker_pb.PollCommandsRequest(session_id=self.session_id, wait=wire.duration(wait))
        with rpc.call_errors():
            return list((await self._world.workers.PollCommands(request, timeout=10)).commands)

    async def take(self):
        """Return the one assignment that comes."""
        (command,) = await self.poll()
        return command.dispatch

    async def report(self, assignment, state, *, sequence=1, token=None, outputs="", failure="", **more):
        task = task_pb2.Task(
            key=assignment.definition.key,
            state=task_pb2.TaskState.Value(f"TASK_STATE_{state}"),
            sequence=sequence,
            fencing_token=token or assignment.fencing_token,
            outputs_json=outputs,
            failure=task_pb2.Failure(kind=task_pb2.FAILURE_KIND_EXECUTION, message=failure) if failure else None,
            **more,
        )
        request = worker_pb.ReportTasksRequest(session_id=self.session_id, tasks=[task])
        with rpc.call_errors():
            answer = await self._world.workers.ReportTasks(request, timeout=10)
        if answer.fenced:
            assert not answer.acknowledged
            return "fenced"
        return answer.acknowledged[0].sequence

    async def append(self, assignment, offset, text):
        request = worker_pb.AppendTaskLogsRequest(
            session_id=self.session_id, key=assignment.definition.key, offset=offset, text=text
        )
        with rpc.call_errors():
            return (await self._world.workers.AppendTaskLogs(request, timeout=10)).next_offset

    async def deregister(self):
        request = worker_pb.DeregisterWorkerRequest(session_id=self.session_id, reason="bye")
        with rpc.call_errors():
            await self._world.workers.DeregisterWorker(request, timeout=10)


def states_of(run):
    return {task.name: pb.WorkflowTaskState.Name(task.state).removeprefix("WORKFLOW_TASK_STATE_") for task in run.tasks}


def state_of(run):
    return pb.WorkflowRunState.Name(run.state).removeprefix("WORKFLOW_RUN_STATE_")


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path / "data", ManualClock())
    await world.start()
    async with asyncio.timeout(20):
        yield world
    await world.stop()


async def test_a_run_goes_from_task_to_task_and_outputs_with_it(world):
    worker = await world.worker()
    submitted = await world.submit(CHAIN)
    assert (submitted.name, [task.name for task in submitted.tasks]) == ("chain", ["first", "second"])
    first = await worker.take()
    assert re.fullmatch(r"run~[0-9a-f]{8}/first", first.definition.key.task_id)
    assert (first.definition.key.attempt, first.fencing_token) == (1, 1)
    assert await worker.report(first, "RUNNING", detail="step 1") == 1
    run = await world.until_states(first="RUNNING", second="WAITING")
    assert (run.tasks[0].detail, run.tasks[0].worker_id, run.tasks[0].task.detail) == ("step 1", "w1", "step 1")
    assert await worker.report(first, "SUCCEEDED", sequence=2, outputs='{"message": "hi"}') == 2
    second = await worker.take()
    assert json.loads(second.definition.parameters_json) == {"message": "got hi"}
    await worker.report(second, "SUCCEEDED")
    run = await world.until(lambda run: run.HasField("finished_at"))
    assert (state_of(run), states_of(run)) == ("SUCCEEDED", {"first": "SUCCEEDED", "second": "SUCCEEDED"})
    assert run.tasks[0].task.outputs_json == '{"message": "hi"}'


async def test_tasks_that_do_not_depend_on_each_other_are_balanced_over_the_workers(world):
    workers = [await world.worker(f"w{number}") for number in range(3)]
    await world.submit(WIDE)
    await world.until(lambda run: set(states_of(run).values()) == {"DISPATCHED"})
    assert [len(await worker.poll()) for worker in workers] == [2, 2, 2]


async def test_no_worker_gets_more_than_it_can_hold(world):
    worker = await world.worker(capacity=2)
    await world.submit(WIDE)
    first, _ = [command.dispatch for command in await worker.poll()]
    run = await world.until(lambda run: "capacity" in run.tasks[5].detail)
    assert run.tasks[5].detail == "waits for capacity: every worker that runs EXAMPLE is full"
    await worker.report(first, "SUCCEEDED")
    assert (await worker.take()).definition.key.task_id.endswith("/t2")


async def test_a_task_waits_for_a_worker_that_can_run_it_and_says_so(world):
    await world.submit(ONE)
    run = await world.until(lambda run: "no worker" in run.tasks[0].detail)
    assert run.tasks[0].detail == "waits for a worker that runs EXAMPLE; no worker is registered"
    await world.worker("other", task_types=["SHELL", "SQL"])
    run = await world.until(lambda run: "other" in run.tasks[0].detail)
    assert run.tasks[0].detail == "waits for a worker that runs EXAMPLE; registered: other (SHELL, SQL)"
    assert states_of(run) == {"only": "READY"}
    worker = await world.worker()
    assert (await worker.take()).definition.task_type == "EXAMPLE"


async def test_a_task_of_a_worker_group_goes_to_a_worker_of_that_group(world):
    await world.worker("plain")
    await world.submit(ONE.replace("params", "worker_group: gpu, params"))
    await world.until(lambda run: "in the group gpu" in run.tasks[0].detail)
    worker = await world.worker("special", labels={"group": "gpu"})
    assert (await worker.take()).definition.key.task_id.endswith("/only")


async def test_of_two_polls_the_older_one_returns_at_once(world):
    worker = await world.worker()
    older = asyncio.create_task(worker.poll())
    await world.until_waiting(1)
    newer = asyncio.create_task(worker.poll())
    assert await older == []
    await world.submit(ONE)
    assert len(await newer) == 1


async def test_a_poll_without_commands_ends_after_its_wait(world):
    worker = await world.worker()
    assert await worker.poll(wait=0) == []
    polling = asyncio.create_task(worker.poll(wait=3))
    await world.until_waiting(1)
    await world.clock.advance(3)
    assert await polling == []


async def test_a_command_comes_again_after_a_third_of_the_lease_until_a_report_confirms_it(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    assert await worker.poll(wait=0) == []
    await world.clock.advance(LEASE / 3)
    assert await worker.take() == assignment
    await worker.report(assignment, "ACCEPTED")
    await world.clock.advance(LEASE / 3)
    assert await worker.poll(wait=0) == []


async def test_a_worker_whose_lease_ran_out_loses_its_tasks_to_another_one(world):
    lost = await world.worker("w1")
    await world.submit(ONE)
    assignment = await lost.take()
    await lost.report(assignment, "RUNNING", sequence=5, handle_json='{"arn": "x"}')
    await world.clock.advance(LEASE - 1)
    other = await world.worker("w2")
    assert await other.poll(wait=0) == []
    await world.clock.advance(2)
    taken = await other.take()
    assert taken.definition == assignment.definition
    assert (taken.fencing_token, taken.handle_json) == (2, '{"arn": "x"}')

    with pytest.raises(SessionExpired, match="within its lease of 15 s"):
        await lost.poll()
    with pytest.raises(SessionExpired):
        await lost.report(assignment, "SUCCEEDED", sequence=6)
    assert await lost.register(assignment) == [assignment.definition.key.task_id]
    assert await lost.report(assignment, "SUCCEEDED", sequence=6) == "fenced"
    with pytest.raises(Fenced):
        await lost.append(assignment, 0, "late\n")
    assert states_of(await world.get()) == {"only": "DISPATCHED"}

    assert await other.report(taken, "SUCCEEDED", sequence=1) == 1
    assert state_of(await world.get()) == "SUCCEEDED"


async def test_a_poll_renews_the_lease_and_a_report_does_not(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    for _ in range(4):
        await world.clock.advance(LEASE - 5)
        assert await worker.report(assignment, "RUNNING") == 1
        await worker.poll(wait=0)
    await world.clock.advance(LEASE - 5)
    await worker.report(assignment, "RUNNING")
    await world.clock.advance(6)
    with pytest.raises(SessionExpired):
        await worker.report(assignment, "RUNNING")


async def test_a_worker_that_registers_again_with_what_it_holds_just_goes_on(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    await worker.report(assignment, "RUNNING")
    await world.clock.advance(LEASE + 1)
    await world.until_states(only="READY")
    assert await worker.register(assignment) == []
    await world.until_states(only="RUNNING")
    assert await worker.poll(wait=0) == []
    assert await worker.report(assignment, "SUCCEEDED", sequence=2) == 2
    assert state_of(await world.get()) == "SUCCEEDED"


async def test_what_a_worker_has_lost_is_handed_out_again_when_it_registers(world):
    worker = await world.worker()
    await world.submit(ONE)
    await worker.report(await worker.take(), "RUNNING")
    assert await worker.register() == []
    assert (await worker.take()).fencing_token == 2


async def test_a_task_that_nobody_knows_is_fenced(world):
    worker = await world.worker()
    stranger = task_pb2.Assignment(fencing_token=1)
    stranger.definition.key.task_id, stranger.definition.key.attempt = "elsewhere/only", 1
    assert await worker.register(stranger) == ["elsewhere/only"]
    assert await worker.report(stranger, "RUNNING") == "fenced"


async def test_another_process_under_the_same_worker_id_supersedes_the_older_one(world):
    older = await world.worker(instance_id="older")
    newer = await world.worker(instance_id="newer")
    for call in (older.poll(), older.register(), older.deregister()):
        with pytest.raises(WorkerSuperseded, match="give each worker its own"):
            await call
    assert await newer.poll(wait=0) == []


async def test_an_older_process_that_slept_through_its_lease_does_not_come_back(world):
    older = await world.worker(instance_id="older")
    await world.clock.advance(LEASE * 20)
    newer = await world.worker(instance_id="newer")
    with pytest.raises((WorkerSuperseded, SessionExpired)):
        await older.poll()
    with pytest.raises(WorkerSuperseded):
        await older.register()
    assert await newer.poll(wait=0) == []


async def test_the_same_process_registering_again_ends_its_older_session(world):
    worker = await world.worker()
    session_id = worker.session_id
    await worker.register()
    worker.session_id = session_id
    with pytest.raises(SessionExpired, match="registered again"):
        await worker.poll()


async def test_a_poll_under_way_hears_that_its_session_is_over(world):
    older = await world.worker(instance_id="older")
    polling = asyncio.create_task(older.poll())
    await world.until_waiting(1)
    await world.worker(instance_id="newer")
    with pytest.raises(WorkerSuperseded):
        await polling


async def test_a_worker_that_signs_off_gives_its_tasks_back_at_once(world):
    leaving = await world.worker("w1")
    await world.submit(ONE)
    assignment = await leaving.take()
    await leaving.report(assignment, "RUNNING")
    other = await world.worker("w2")
    await leaving.deregister()
    assert (await other.take()).fencing_token == 2
    with pytest.raises(SessionExpired, match="signed off"):
        await leaving.poll()


async def test_reports_may_be_repeated_and_come_out_of_order(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    assert await worker.report(assignment, "RUNNING", sequence=4, detail="new") == 4
    assert await worker.report(assignment, "ACCEPTED", sequence=2, detail="old") == 4
    assert await worker.report(assignment, "RUNNING", sequence=4, detail="new") == 4
    run = await world.get()
    assert (states_of(run), run.tasks[0].detail, run.tasks[0].task.sequence) == ({"only": "RUNNING"}, "new", 4)


async def test_reports_after_the_end_are_acknowledged_and_change_nothing(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    await worker.report(assignment, "SUCCEEDED", sequence=3)
    run = await world.get()
    assert await worker.report(assignment, "SUCCEEDED", sequence=3) == 3
    assert await worker.report(assignment, "FAILED", sequence=7) == 7
    assert await world.get() == run


async def test_a_failed_task_is_a_new_attempt_after_its_interval(world):
    worker = await world.worker()
    await world.submit(CHAIN)
    await worker.report(await worker.take(), "FAILED", failure="out of memory")
    run = await world.get()
    assert run.tasks[0].detail == "attempt 1 of 2 failed: out of memory; the next one follows in 60 s"
    assert (run.tasks[0].attempt, run.tasks[0].max_attempts, run.tasks[0].task.failure.message) == (
        1,
        2,
        "out of memory",
    )
    for _ in range(6):
        assert await worker.poll(wait=0) == []
        await world.clock.advance(10)
    retry = await worker.take()
    assert (retry.definition.key.attempt, retry.fencing_token) == (2, 1)
    await worker.report(retry, "FAILED", failure="again")
    run = await world.until(lambda run: run.HasField("finished_at"))
    assert (state_of(run), states_of(run)) == ("FAILED", {"first": "FAILED", "second": "UPSTREAM_FAILED"})
    assert run.tasks[1].detail == "never ran: the task first failed"


async def test_a_task_whose_input_was_never_put_out_fails_and_says_so(world):
    worker = await world.worker()
    await world.submit(CHAIN)
    await worker.report(await worker.take(), "SUCCEEDED", outputs='{"other": 1}')
    run = await world.until(lambda run: run.HasField("finished_at"))
    assert states_of(run) == {"first": "SUCCEEDED", "second": "FAILED"}
    assert run.tasks[1].detail == "${first.message}: the task first put out no message; it put out other"


@pytest.mark.parametrize("outputs", ["{", "[" * 100_000, '{"message": "\\ud800"}'])
async def test_outputs_that_cannot_be_used_fail_the_next_task_and_not_the_scheduler(world, outputs):
    worker = await world.worker()
    await world.submit(CHAIN)
    await worker.report(await worker.take(), "SUCCEEDED", outputs=outputs)
    run = await world.until(lambda run: run.HasField("finished_at"))
    assert states_of(run) == {"first": "SUCCEEDED", "second": "FAILED"}
    assert run.tasks[1].detail.startswith("what the tasks before it put out cannot be used: ")
    await world.submit(ONE, "other")
    assert len(await worker.poll()) == 1


async def test_parameters_that_grow_too_large_fail_the_task(world):
    await world.worker()
    dag = ONE.replace("x: 1", "a: '${big}', b: '${big}'")
    await world.submit(dag, big="x" * 200_000)
    run = await world.until(lambda run: run.HasField("finished_at"))
    assert run.tasks[0].detail == "the parameters have more than 262144 bytes once they are filled in"


async def test_a_cancelled_run_stops_what_runs_and_starts_nothing_more(world):
    worker = await world.worker()
    await world.submit(CHAIN)
    assignment = await worker.take()
    await worker.report(assignment, "RUNNING")
    run = await world.cancel("enough")
    assert (state_of(run), states_of(run)) == ("RUNNING", {"first": "RUNNING", "second": "CANCELLED"})
    (command,) = await worker.poll()
    assert (command.cancel.key, command.cancel.fencing_token) == (assignment.definition.key, 1)
    assert command.cancel.reason == "enough"
    stop = task_pb2.StopRequest(cause=task_pb2.STOP_CAUSE_CANCEL, reason="enough")
    await worker.report(assignment, "RUNNING", sequence=2, stop=stop)
    await world.clock.advance(LEASE / 3)
    assert await worker.poll(wait=0) == []
    await worker.report(assignment, "CANCELLED", sequence=3, stop=stop)
    run = await world.get()
    assert (state_of(run), states_of(run)) == ("CANCELLED", {"first": "CANCELLED", "second": "CANCELLED"})
    assert await world.cancel() == run


async def test_a_run_that_is_cancelled_before_its_worker_took_the_task_sends_both(world):
    worker = await world.worker()
    await world.submit(ONE)
    await world.until_states(only="DISPATCHED")
    await world.cancel()
    assert [command.WhichOneof("command") for command in await worker.poll()] == ["dispatch", "cancel"]


async def test_a_restarted_scheduler_goes_on_where_it_was(world):
    worker = await world.worker()
    await world.submit(CHAIN)
    assignment = await worker.take()
    await worker.report(assignment, "RUNNING", sequence=2)
    before = await world.get()
    await world.restart()
    assert await world.get() == before
    with pytest.raises(SessionExpired, match="unknown"):
        await worker.poll()
    assert await worker.register(assignment) == []
    assert await worker.poll(wait=0) == []
    await worker.report(assignment, "SUCCEEDED", sequence=3, outputs='{"message": "hi"}')
    await worker.report(await worker.take(), "SUCCEEDED")
    await world.restart()
    assert state_of(await world.get()) == "SUCCEEDED"


async def test_a_restarted_scheduler_waits_one_lease_for_workers_and_never_gives_a_token_twice(world):
    worker = await world.worker()
    await world.submit(ONE)
    assert (await worker.take()).fencing_token == 1
    await world.restart()
    other = await world.worker("w2")
    await world.clock.advance(LEASE - 1)
    assert await other.poll(wait=0) == []
    await world.clock.advance(2)
    assert (await other.take()).fencing_token == 2
    await world.restart()
    third = await world.worker("w3")
    await world.clock.advance(LEASE + 1)
    await third.register()
    assert (await third.take()).fencing_token == 3


async def test_a_log_grows_at_its_end_only_and_can_be_followed(world):
    await world.submit(ONE)
    assert await world.log() == pb.ReadWorkflowTaskLogsResponse()
    worker = await world.worker()
    assignment = await worker.take()
    following = asyncio.create_task(world.log(wait=wire.duration(9)))
    assert await worker.append(assignment, 0, "one\ntwo\n") == 8
    assert (await following).text == "one\ntwo\n"
    assert await worker.append(assignment, 0, "one\ntwo\n") == 8
    assert await worker.append(assignment, 20, "three\n") == 8
    assert await worker.append(assignment, 8, "") == 8
    assert await worker.append(assignment, 8, "three\n") == 14
    page = await world.log(offset=4, max_bytes=5)
    assert (page.text, page.next_offset, page.done, page.attempt) == ("two\n", 8, False, 1)


async def test_a_log_is_done_when_its_last_lines_have_had_time_to_come(world):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    await worker.append(assignment, 0, "one\n")
    await worker.report(assignment, "SUCCEEDED")
    assert not (await world.log(offset=4)).done
    assert await worker.append(assignment, 4, "last\n") == 9
    await world.clock.advance(2)
    assert (await world.log()).text == "one\nlast\n"
    page = await world.log(offset=9)
    assert (page.text, page.next_offset, page.done) == ("", 9, True)


async def test_each_attempt_has_a_log_of_its_own(world):
    worker = await world.worker()
    await world.submit(CHAIN.replace("fail_retry_interval: 1", "fail_retry_interval: 0"))
    first = await worker.take()
    await worker.append(first, 0, "attempt 1\n")
    await worker.report(first, "FAILED", failure="x")
    second = await worker.take()
    await worker.append(second, 0, "attempt 2\n")
    assert (await world.log("first", attempt=1)).text == "attempt 1\n"
    latest = await world.log("first")
    assert (latest.text, latest.attempt) == ("attempt 2\n", 2)


async def test_workers_that_follow_each_other_keep_offsets_of_their_own(world):
    """Each worker counts in its own log; the scheduler's holds what all of them sent."""
    first, second = await world.worker("w1"), await world.worker("w2", capacity=0)
    await world.submit(ONE)
    assignment = await first.take()
    await first.append(assignment, 0, "w1 a\n")
    await first.deregister()
    second = await world.worker("w2", instance_id="i2")
    taken = await second.take()
    assert await second.append(taken, 0, "") == 0
    assert await second.append(taken, 0, "w2 a\n") == 5
    await second.deregister()
    assert await first.register(assignment) == [assignment.definition.key.task_id]
    again = await first.take()
    assert again.fencing_token == 3
    assert await first.append(again, 0, "") == 5
    assert await first.append(again, 5, "w1 b\n") == 10
    assert (await world.log()).text == "w1 a\nw2 a\nw1 b\n"


async def test_the_same_submission_again_gives_the_same_run(world):
    run = await world.submit(ONE, n="1")
    await world.worker()
    await world.until_states(only="DISPATCHED")
    assert (await world.submit(ONE, n="1")).created_at == run.created_at
    for dag, parameters in ((ONE, {}), (ONE, {"n": "2"}), (CHAIN, {"n": "1"})):
        with pytest.raises(RunConflict, match="is taken by another workflow"):
            await world.submit(dag, **parameters)
    await world.restart()
    assert (await world.submit(ONE, n="1")).run_id == "run"


async def test_submissions_without_a_run_id_get_one_each(world):
    runs = [await world.submit(ONE, run_id="") for _ in range(2)]
    assert runs[0].run_id != runs[1].run_id
    assert all(run.run_id.startswith("one-20231114-221320-") for run in runs)


async def test_two_submissions_at_once_begin_one_run(world):
    runs = await asyncio.gather(*(world.submit(ONE) for _ in range(5)))
    assert {run.run_id for run in runs} == {"run"}
    listed = await world.people.ListWorkflowRuns(pb.ListWorkflowRunsRequest(), timeout=10)
    assert len(listed.runs) == 1


@pytest.mark.parametrize(
    ("dag", "run_id", "parameters", "path", "message"),
    [
        ("workflow: 3", "run", {}, "tasks", "must be a list"),
        (ONE.replace("Example", "Switch"), "run", {}, "tasks[0].task_type", "line 2"),
        (ONE, "a/b", {}, "run_id", "letters, digits"),
        (ONE, "x" * 101, {}, "run_id", "1 to 100"),
        (ONE, "run", {"a": "${b}", "b": "${a}"}, "parameters", "circle"),
    ],
)
async def test_a_wrong_submission_is_refused_with_its_path(world, dag, run_id, parameters, path, message):
    with pytest.raises(InvalidRequest) as caught:
        await world.submit(dag, run_id, **parameters)
    assert caught.value.reason == "WORKFLOW_INVALID"
    assert message in caught.value.violations[path]


async def test_runs_are_listed_newest_first_without_snapshots(world):
    worker = await world.worker()
    for run_id in ("a", "b", "c"):
        await world.submit(ONE, run_id)
        await worker.report(await worker.take(), "RUNNING")
    answer = await world.people.ListWorkflowRuns(pb.ListWorkflowRunsRequest(page_size=2), timeout=10)
    assert [run.run_id for run in answer.runs] == ["c", "b"]
    assert not answer.runs[0].tasks[0].HasField("task")


async def test_a_run_with_outputs_beyond_a_message_is_told_without_them(world):
    worker = await world.worker()
    wide = WIDE + "".join(f"  - {{name: u{n}, task_type: Example}}\n" for n in range(10))
    await world.submit(wide)
    for command in await worker.poll():
        await worker.report(command.dispatch, "SUCCEEDED", outputs=json.dumps({"x": "y" * 250_000}))
    run = await world.get()
    assert state_of(run) == "SUCCEEDED"
    assert run.tasks[0].task.outputs_json == ""


@pytest.mark.parametrize(
    "call",
    [
        lambda world: world.get("gone"),
        lambda world: world.cancel(run_id="gone"),
        lambda world: world.log(),
    ],
)
async def test_a_run_that_is_not_there_is_not_found(world, call):
    with pytest.raises(RunNotFound, match="there is no run"):
        await call(world)


async def test_requests_that_make_no_sense_are_refused_by_field(world):
    await world.submit(ONE)
    worker = await world.worker()
    assignment = await worker.take()
    stateless = worker_pb.ReportTasksRequest(
        session_id=worker.session_id, tasks=[task_pb2.Task(key=assignment.definition.key, sequence=1)]
    )
    calls = {
        "task_name": world.log("nothing"),
        "attempt": world.log(attempt=2),
        "offset": world.log(offset=-1),
        "max_bytes": world.log(max_bytes=-1),
        "wait": world.get(wait=task_pb2.TaskDefinition(timeout={"seconds": -1}).timeout),
        "reason": world.cancel("x" * 1025),
        "worker_id": world.worker(""),
        "capacity": world.worker(capacity=-1),
        "text": worker.append(assignment, 0, "x" * (512 * 1024 + 1)),
        "tasks[0].state": world.workers.ReportTasks(stateless, timeout=10),
        "tasks[0].sequence": worker.report(assignment, "RUNNING", sequence=0),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidRequest) as caught, rpc.call_errors():
            await call
        assert list(caught.value.violations) == [field]
        assert caught.value.reason == "REQUEST_INVALID"


async def test_a_disk_that_refuses_a_report_loses_nothing(world, monkeypatch):
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()

    async def refuse(self, changes):
        raise StorageUnavailable("scheduler.db: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "update", refuse)
        with pytest.raises(StorageUnavailable, match="disk full"):
            await worker.report(assignment, "SUCCEEDED")
        assert states_of(await world.get()) == {"only": "DISPATCHED"}
        await world.submit(ONE, "other")
    assert await worker.report(assignment, "SUCCEEDED") == 1
    await world.clock.advance(2)
    assert (await worker.take()).definition.key.task_id.startswith("other~")


async def test_ended_runs_are_forgotten_after_their_retention(tmp_path):
    world = World(tmp_path, ManualClock(), retention_days=0.001)
    await world.start()
    worker = await world.worker()
    await world.submit(ONE)
    assignment = await worker.take()
    await worker.append(assignment, 0, "line\n")
    await worker.report(assignment, "SUCCEEDED")
    logs = world.settings.data_dir / "logs"
    assert len(list(logs.rglob("*.log"))) == 1
    await world.clock.advance(700)
    while (await world.people.ListWorkflowRuns(pb.ListWorkflowRunsRequest(), timeout=10)).runs:
        continue
    with pytest.raises(RunNotFound):
        await world.get()
    await world.stop()
    assert not list(logs.rglob("*.log"))


async def test_a_scheduler_that_stops_answers_who_waits(world):
    worker = await world.worker()
    await world.submit(ONE)
    await worker.take()
    waiting = [
        asyncio.create_task(worker.poll()),
        asyncio.create_task(world.get(after_version=99, wait=wire.duration(9))),
        asyncio.create_task(world.log(wait=wire.duration(9))),
    ]
    await world.until_waiting(3)
    await world.stop()
    commands, run, log = [await each for each in waiting]
    assert (commands, states_of(run), log.text) == ([], {"only": "DISPATCHED"}, "")


async def test_a_data_directory_is_for_one_scheduler(world):
    second = World(world.settings.data_dir, world.clock)
    with pytest.raises(ConfigurationError, match="is in use by another process"):
        await second.start()


async def test_a_token_is_asked_for_where_one_is_configured(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    world = World(tmp_path, ManualClock(), token="secret")
    await world.start()
    with pytest.raises(TokenInvalid):
        await world.submit(ONE)
    await world.stop()
    await world.start(token="secret")
    assert (await world.submit(ONE)).run_id == "run"
    await world.stop()


def test_settings_are_read_by_their_keys_and_checked():
    assert SchedulerSettings().address == "127.0.0.1:50050"
    settings = SchedulerSettings.model_validate({"scheduler.lease.seconds": "3", "scheduler.data.dir": "x"})
    assert (settings.lease_seconds, str(settings.data_dir), settings.tls) == (3, "x", None)
    for wrong in (
        {"scheduler.address": "nowhere"},
        {"scheduler.lease.seconds": "0"},
        {"scheduler.tls.key": "k.pem"},
        {"scheduler.tls.client.ca": "c.pem"},
    ):
        with pytest.raises(ValueError, match=r"scheduler|address|lease"):
            SchedulerSettings.model_validate(wrong)
