"""The engine with a scripted service: what doors are promised, and what survives a crash."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from remora.door import TaskFilter
from remora.engine import Engine, EngineSettings
from remora.errors import (
    Fenced,
    StorageUnavailable,
    TaskConflict,
    TaskNotFound,
    UnknownTaskType,
    WorkerDraining,
    WorkerFull,
)
from remora.plugin import Failure, FailureKind, JobState, TaskKey
from remora.registry import Registry
from remora.task import StopCause, TaskRecord, TaskState
from remora.testing import settle
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)
LEARNED = '{"name": "task#1", "arn": "arn:old"}'
"""A handle with what only a job that exists can have told."""


@pytest.fixture
def state(worker):
    """Return a condition: the task is in a state."""
    return lambda state, key=KEY: lambda: worker.reached(key, state)


@pytest.fixture
def running(worker, assign, until):
    """Accept a task and wait until its job was seen for the first time; return its record."""

    async def running(task_id="task", **others):
        key = (await worker.engine.accept(assign(task_id, **others))).key
        await until(lambda: worker.engine.record(key).detail == "runs")
        return worker.engine.record(key)

    return running


@pytest.fixture
def cancel(worker):
    async def cancel(key=KEY, *, token=0, reason="not needed"):
        return await worker.engine.cancel(key, door="test", fencing_token=token, reason=reason)

    return cancel


@pytest.fixture
def full_disk(worker):
    """Let the disk refuse everything while a block runs."""

    @contextlib.asynccontextmanager
    async def full_disk():
        async def limit(pages):
            await worker.journal._database.write(
                lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
            )

        # A page has 4096 bytes: what is written next needs another one, and there is none.
        await limit(1)
        yield
        await limit(1_000_000)

    return full_disk


BIG = json.dumps({"steps": [10**9] * 5000})


class TestLife:
    async def test_a_task_is_on_disk_when_it_is_accepted(self, engine, worker, handler, assign):
        handler.hold("submit")
        record = await engine.accept(assign(token=1, name="n", labels={"a": "b"}, timeout=60.0))

        assert (record.state, record.sequence, record.fencing_token) == (TaskState.ACCEPTED, 1, 1)
        assert json.loads(record.handle) == {"name": "task#1", "arn": ""}
        assert (await engine.definition(KEY)).timeout == 60.0
        assert (await worker.journal.get(KEY)).name == "n"

    async def test_it_runs_to_its_end_with_every_step_in_its_log(
        self, engine, worker, handler, running, eventually, state, lines, outputs
    ):
        record = await running()
        assert json.loads(record.handle)["arn"] == "arn:task#1"
        handler.show("task#1", JobState.RUNNING, detail="step 2", log=["step 1 done", "step 2 begins"])
        await eventually(lambda: worker.engine.record(KEY).detail == "step 2")
        handler.show("task#1", JobState.SUCCEEDED, detail="done", outputs={"model": "s3://m"}, log=["step 2 done"])
        ended = await eventually(state(TaskState.SUCCEEDED))

        assert outputs(ended) == {"model": "s3://m"}
        assert (ended.detail, ended.failure, ended.stop) == ("done", None, None)
        assert ended.finished_at >= ended.started_at >= ended.created_at
        said = lines(await worker.log(KEY))
        assert [line for line in said if not line.startswith("step")] == [
            "accepted SCRIPTED task task, attempt 1",
            'the job exists: {"name":"task#1","arn":"arn:task#1"}',
            said[-1],
        ]
        assert said[-1].startswith("the job ended SUCCEEDED after ")
        assert [line for line in said if line.startswith("step")][-1] == "step 2 done"
        assert handler.created == {"task#1": 1}

    async def test_a_job_that_fails_fails_the_task_with_the_reason(self, worker, handler, running, eventually, state):
        await running()
        failure = Failure(kind=FailureKind.EXECUTION, message="exit code 1", details={"step": "train"})
        handler.show("task#1", JobState.FAILED, failure=failure)
        ended = await eventually(state(TaskState.FAILED))

        assert ended.failure == failure
        assert "[ERROR]" in (await worker.log(KEY)).splitlines()[-1]

    async def test_the_handle_that_an_observation_brings_is_kept(self, worker, handler, running, eventually):
        await running()
        handler.show("task#1", JobState.RUNNING, handle=handler.handle(name="task#1", arn="arn:learned"))
        await eventually(lambda: "learned" in worker.engine.record(KEY).handle)

        assert json.loads((await worker.journal.get(KEY)).handle)["arn"] == "arn:learned"

    async def test_nothing_is_kept_in_memory_of_what_has_ended(self, worker, talking, assign, eventually, state):
        talking.show("task#1", JobState.SUCCEEDED)
        await worker.engine.accept(assign(task_type="TALKING", timeout=60.0))
        await eventually(state(TaskState.SUCCEEDED))

        observer, driver = worker.engine._observers["TALKING"], worker.engine._driver
        assert not any((observer._keys, observer._jobs, len(observer._due), driver._tries, len(driver._repeats)))
        assert not any((worker.engine.active, len(worker.engine._deadlines)))

    async def test_many_tasks_run_side_by_side(self, engine, handler, assign, eventually):
        records = await asyncio.gather(*(engine.accept(assign(f"{number}")) for number in range(60)))
        await eventually(lambda: len(handler.jobs) == 60)
        for name in handler.jobs:
            handler.show(name, JobState.SUCCEEDED)
        await eventually(lambda: engine.active == 0)

        assert set(handler.created.values()) == {1}
        ended = await engine.list(TaskFilter(states=frozenset({TaskState.SUCCEEDED})), limit=100)
        assert [record.key for record in ended.records] == sorted(
            (record.key for record in records), key=lambda key: int(key.task_id)
        )

    async def test_the_loops_have_names(self, engine):
        names = {task.get_name() for task in asyncio.all_tasks()}

        assert {
            "repeat steps",
            "time tasks out",
            "forget tasks",
            "observe SCRIPTED",
            "observe TALKING",
            "drive SCRIPTED 1",
            "drive TALKING 16",
        } <= names


class TestAccept:
    async def test_parameters_that_cannot_work_are_a_task_born_failed(self, engine, worker, assign, handler):
        record = await engine.accept(assign(parameters='{"refuse": "is wrong", "steps": []}'))

        assert (record.state, record.failure.kind) == (TaskState.FAILED, FailureKind.INVALID)
        assert record.failure.details == {"refuse": "is wrong"}
        assert "refused: refuse: is wrong" in await worker.log(KEY)
        assert engine.active == 0
        assert await engine.accept(assign(parameters='{"refuse": "is wrong", "steps": []}')) == record

    async def test_every_wrong_field_is_named(self, engine, assign):
        record = await engine.accept(assign(parameters='{"refuze": "x", "steps": [1, "y"]}'))

        assert record.failure.details == {
            "refuze": "is not a known field; did you mean refuse?",
            "steps[1]": "Input should be a valid integer, unable to parse string as an integer",
        }

    async def test_a_defect_of_the_plugin_is_a_failure_of_the_task(self, engine, assign):
        with capture_logs() as logged:
            record = await engine.accept(assign(parameters='{"defect": true}'))

        assert (record.state, record.failure.kind) == (TaskState.FAILED, FailureKind.INTERNAL)
        assert "a defect" not in record.failure.message
        assert "plugin_defect" in [entry["event"] for entry in logged]

    async def test_an_unknown_task_type_is_refused_and_leaves_nothing(self, engine, assign):
        with pytest.raises(UnknownTaskType, match="SCRIPTED, TALKING"):
            await engine.accept(assign(task_type="OTHER"))
        with pytest.raises(TaskNotFound):
            await engine.get(KEY)

    async def test_the_same_dispatch_again_is_the_same_task(self, engine, handler, assign, running):
        record = await running(name="first")

        assert await engine.accept(assign(name="renamed")) == record
        assert handler.created == {"task#1": 1}

    async def test_dispatches_at_once_are_one_task(self, engine, handler, assign, until):
        records = await asyncio.gather(*(engine.accept(assign()) for _ in range(30)))
        await until(lambda: handler.jobs)

        assert {record.key for record in records} == {KEY}
        assert handler.created == {"task#1": 1}

    async def test_a_dispatch_after_the_end_gives_the_end(self, engine, handler, assign, running, eventually, state):
        await running()
        handler.show("task#1", JobState.SUCCEEDED, outputs={"a": 1})
        ended = await eventually(state(TaskState.SUCCEEDED))

        assert await engine.accept(assign()) == ended
        assert handler.created == {"task#1": 1}

    @pytest.mark.parametrize(
        "others", [{"parameters": '{"steps": [1]}'}, {"timeout": 5.0}, {"labels": {"a": "b"}}, {"task_type": "TALKING"}]
    )
    async def test_the_key_of_another_definition_is_a_conflict(self, engine, assign, running, others):
        record = await running()
        with pytest.raises(TaskConflict, match="task#1 is known with another definition"):
            await engine.accept(assign(**others))
        assert await engine.get(KEY) == record

    async def test_a_conflict_is_one_after_the_end_too(self, engine, assign):
        await engine.accept(assign(parameters='{"refuse": "x"}'))
        with pytest.raises(TaskConflict):
            await engine.accept(assign())

    async def test_a_caller_who_leaves_leaves_a_task_that_is_driven(self, engine, handler, assign, until, state):
        accepting = asyncio.ensure_future(engine.accept(assign()))
        await settle(2)
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting

        await until(state(TaskState.RUNNING))

    async def test_a_full_worker_takes_no_more_and_answers_what_it_has(self, worker, handler, assign, until, state):
        await worker.crash()
        engine = await worker.start(EngineSettings(capacity=3, drain=0.0))
        answers = await asyncio.gather(
            *(engine.accept(assign(f"{number}")) for number in range(10)), return_exceptions=True
        )

        assert sum(isinstance(answer, WorkerFull) for answer in answers) == 7
        assert engine.active == 3
        taken = next(answer for answer in answers if not isinstance(answer, WorkerFull))
        assert (await engine.accept(assign(taken.key.task_id))).key == taken.key
        with pytest.raises(WorkerFull, match=r"holds 3 tasks, all that worker\.capacity allows"):
            await engine.accept(assign("more"))
        await engine.cancel(taken.key, door="test", fencing_token=0, reason="")
        await until(state(TaskState.CANCELLED, taken.key))
        await engine.accept(assign("more"))

    async def test_a_draining_worker_takes_no_more_and_goes_on_with_what_it_has(
        self, engine, handler, assign, running, eventually, state
    ):
        await running()
        engine.drain("told to")
        engine.drain("told again")

        assert engine.draining
        assert (await engine.accept(assign())).key == KEY
        with pytest.raises(WorkerDraining):
            await engine.accept(assign("other"))
        handler.show("task#1", JobState.SUCCEEDED)
        await eventually(state(TaskState.SUCCEEDED))


class TestFencing:
    async def test_a_lower_token_is_refused(self, engine, assign, cancel, running):
        await running(token=5)
        with pytest.raises(Fenced, match="held under token 5, which is higher than 4"):
            await engine.accept(assign(token=4))
        with pytest.raises(Fenced):
            await cancel(token=4)
        assert (await engine.get(KEY)).stop is None

    async def test_a_person_is_never_refused(self, engine, assign, cancel, running):
        record = await running(token=5)

        assert await engine.accept(assign(token=0)) == record
        assert (await cancel(token=0)).stop.reason == "not needed"

    async def test_a_higher_token_takes_the_task_over_with_its_door(self, engine, handler, assign, running):
        await running(token=1)
        record = await engine.accept(assign(token=2, door="other"))

        assert (record.fencing_token, record.door, record.state) == (2, "other", TaskState.RUNNING)
        assert handler.created == {"task#1": 1}
        with pytest.raises(Fenced):
            await engine.accept(assign(token=1))

    async def test_a_higher_token_takes_over_what_has_ended(self, engine, assign):
        await engine.accept(assign(token=1, parameters='{"refuse": "x"}'))
        record = await engine.accept(assign(token=2, parameters='{"refuse": "x"}'))

        assert (record.state, record.fencing_token, record.sequence) == (TaskState.FAILED, 2, 2)

    async def test_of_tokens_at_once_the_highest_stays(self, engine, assign, running):
        await running(token=1)
        answers = await asyncio.gather(
            *(engine.accept(assign(token=token)) for token in (9, 3, 7, 5)), return_exceptions=True
        )

        assert [type(answer) for answer in answers] == [TaskRecord, Fenced, Fenced, Fenced]
        assert (await engine.get(KEY)).fencing_token == 9

    async def test_a_cancel_that_waits_while_a_higher_token_takes_over_is_refused(
        self, worker, assign, cancel, running, monkeypatch
    ):
        async def update_slowly(record):
            begun.set()
            await gate.wait()
            await update(record)

        begun, gate, update = asyncio.Event(), asyncio.Event(), worker.journal.update
        await running(token=1)
        monkeypatch.setattr(worker.journal, "update", update_slowly)
        taking = asyncio.ensure_future(worker.engine.accept(assign(token=9)))
        await begun.wait()
        cancelling = asyncio.ensure_future(cancel(token=1))
        await asyncio.to_thread(int)
        await settle()
        gate.set()

        assert (await taking).fencing_token == 9
        with pytest.raises(Fenced):
            await cancelling
        assert (await worker.engine.get(KEY)).stop is None

    async def test_a_released_task_is_followed_no_more_and_its_job_goes_on(
        self, engine, worker, handler, running, clock
    ):
        await running(token=1)
        await engine.release(KEY, fencing_token=1)
        looks = len(handler.observed)
        await clock.advance(100)
        await settle()

        assert (await engine.get(KEY)).state is TaskState.RELEASED
        assert engine.active == 0
        assert len(handler.observed) <= looks + 1  # one may have been under way
        assert handler.calls["cancel"] == 0
        assert "its job goes on" in await worker.log(KEY)

    async def test_a_task_held_under_a_higher_token_is_not_released(self, engine, running):
        await running(token=5)
        await engine.release(KEY, fencing_token=4)
        await engine.release(TaskKey(task_id="unknown", attempt=1), fencing_token=4)

        assert (await engine.get(KEY)).state is TaskState.RUNNING

    async def test_a_released_task_is_taken_back_only_under_a_higher_token(
        self, engine, handler, assign, running, until, state
    ):
        await running(token=1)
        await engine.release(KEY, fencing_token=1)
        assert (await engine.accept(assign(token=1))).state is TaskState.RELEASED
        assert (await engine.accept(assign(token=0))).state is TaskState.RELEASED
        assert (await engine.accept(assign(token=2))).state is TaskState.SUBMITTING
        record = await until(state(TaskState.RUNNING))

        assert record.fencing_token == 2
        assert handler.created == {"task#1": 1}

    @pytest.mark.parametrize(
        "earlier", [{"handle": LEARNED}, {"handle": LEARNED, "token": 2}, {"token": 2}], ids=["told", "both", "silent"]
    )
    async def test_a_job_that_an_earlier_holder_may_have_created_is_never_taken_for_none(
        self, worker, handler, assign, cancel, eventually, service_error, earlier
    ):
        handler.show("task#1", JobState.RUNNING)
        handler.fail("submit", service_error(FailureKind.DENIED), service_error(FailureKind.EXHAUSTED))
        record = await worker.engine.accept(assign(**earlier))
        assert record.state is TaskState.SUBMITTING
        assert json.loads(record.handle)["arn"] == ("arn:old" if "handle" in earlier else "")

        await cancel()
        await eventually(lambda: worker.reached(KEY, TaskState.CANCELLED))
        assert handler.jobs["task#1"].state is JobState.STOPPED
        assert handler.created == {}

    async def test_a_handle_that_only_names_the_job_is_no_sign_of_one(self, engine, assign, until, state):
        record = await engine.accept(assign(token=1, handle='{"name": "task#1"}'))

        assert record.state is TaskState.ACCEPTED
        await until(state(TaskState.RUNNING))

    async def test_a_handle_that_nobody_understands_is_not_used(self, engine, assign, until, state):
        with capture_logs() as logged:
            record = await engine.accept(assign(handle='{"strange": 1}'))

        assert json.loads(record.handle) == {"name": "task#1", "arn": ""}
        assert "handle_not_understood" in [entry["event"] for entry in logged]
        await until(state(TaskState.RUNNING))


class TestCancel:
    async def test_before_the_dispatch_leaves_a_tombstone(self, engine, handler, assign, cancel):
        stone = await cancel(token=2)
        assert (stone.state, stone.stop.reason, stone.task_type) == (TaskState.CANCELLED, "not needed", "")

        assert await engine.accept(assign(token=5)) == stone
        assert await cancel(token=3) == stone
        assert await engine.definition(KEY) is None
        assert (await engine.read_log(KEY, offset=0, limit=100)).done
        assert handler.created == {}

    async def test_and_a_dispatch_at_once_never_lose_the_wish(self, engine, handler, assign, cancel, until, state):
        for number in range(20):
            key = TaskKey(task_id=f"{number}", attempt=1)
            accepted, cancelled = await asyncio.gather(engine.accept(assign(f"{number}")), cancel(key))
            assert accepted.key == cancelled.key == key
            assert cancelled.stop is not None
            await until(state(TaskState.CANCELLED, key))

    async def test_of_a_task_without_job_is_the_end(self, engine, worker, handler, assign, cancel, lines):
        await worker.crash()
        await worker.start(EngineSettings(submit_concurrency=1, drain=0.0))
        handler.hold("submit")
        await worker.engine.accept(assign("blocks the lane"))
        await worker.engine.accept(assign())
        record = await cancel()

        assert (record.state, record.detail) == (TaskState.CANCELLED, "cancelled: not needed")
        assert lines(await worker.log(KEY)) == ["stop requested (cancel): not needed"]
        handler.let_go("submit")
        await settle()
        assert "task#1" not in handler.created

    async def test_while_the_job_is_created_stops_it_once_it_is_known(
        self, worker, handler, assign, cancel, until, state
    ):
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        record = await cancel()
        assert (record.state, record.detail) == (TaskState.SUBMITTING, "stopping: not needed")
        assert handler.calls["cancel"] == 0
        handler.let_go("submit")
        ended = await until(state(TaskState.CANCELLED))

        assert handler.calls["cancel"] == 1
        assert ended.stop.cause is StopCause.CANCEL

    async def test_of_a_running_job_is_the_end_when_it_is_seen(self, worker, handler, cancel, running, until, state):
        await running()
        handler.hold("cancel")
        record = await cancel()
        assert (record.state, record.detail) == (TaskState.RUNNING, "stopping: not needed")
        await until(lambda: handler.held["cancel"] == 1)
        assert (await worker.engine.get(KEY)).state is TaskState.RUNNING
        handler.let_go("cancel")
        ended = await until(state(TaskState.CANCELLED))

        assert ended.detail == "cancelled: not needed"
        assert "asked the job to stop" in await worker.log(KEY)

    async def test_is_repeated_until_it_is_taken_and_until_it_is_seen(
        self, worker, handler, cancel, running, eventually, state, service_error
    ):
        await running()
        handler.fail("cancel", service_error(FailureKind.TRANSIENT), service_error(FailureKind.DENIED), KeyError("x"))
        with capture_logs():
            await cancel()
            ended = await eventually(state(TaskState.CANCELLED))

        assert handler.calls["cancel"] >= 4
        assert ended.stop.reason == "not needed"
        assert (await worker.log(KEY)).count("not stopped yet, again in") == 3

    async def test_is_asked_again_of_a_job_that_does_not_stop(self, handler, cancel, running, eventually, state):
        await running()
        handler.show("task#1", JobState.RUNNING)
        stop, handler.cancel = handler.cancel, lambda handle: handler._begin("cancel")
        await cancel()
        await eventually(lambda: handler.calls["cancel"] == 3, step=10)
        handler.cancel = stop
        await eventually(state(TaskState.CANCELLED), step=10)

    async def test_twice_is_once(self, engine, handler, cancel, running, until, state):
        await running()
        first = await cancel(reason="first")
        second = await cancel(reason="second")
        assert second.stop == first.stop

        assert (await until(state(TaskState.CANCELLED))).stop.reason == "first"
        assert (await cancel()).stop.reason == "first"

    async def test_of_a_job_that_succeeds_meanwhile_is_success(
        self, worker, handler, cancel, running, until, eventually, state
    ):
        await running()
        handler.hold("cancel")
        await cancel()
        await until(lambda: handler.held["cancel"] == 1)
        handler.show("task#1", JobState.SUCCEEDED, outputs={"a": 1})
        ended = await eventually(state(TaskState.SUCCEEDED))

        assert (ended.outputs, ended.stop.reason) == ('{"a":1}', "not needed")

    async def test_without_a_reason_says_so(self, cancel, running):
        await running()

        assert (await cancel(reason="")).stop.reason == "no reason given"

    async def test_of_a_task_that_has_ended_gives_the_end(self, engine, cancel, assign):
        record = await engine.accept(assign(parameters='{"refuse": "x"}'))

        assert await cancel() == record

    async def test_by_a_caller_who_leaves_is_carried_out(self, cancel, running, until, state):
        await running()
        cancelling = asyncio.ensure_future(cancel())
        await settle(2)
        cancelling.cancel()
        await asyncio.gather(cancelling, return_exceptions=True)

        await until(state(TaskState.CANCELLED))


class TestStoppedByOthers:
    async def test_a_job_that_was_stopped_behind_our_back_has_failed(self, handler, running, eventually, state):
        await running()
        handler.show("task#1", JobState.STOPPED, detail="stopped by a person")
        ended = await eventually(state(TaskState.FAILED))

        assert (ended.failure.kind, ended.failure.message) == (FailureKind.EXECUTION, "stopped by a person")


class TestTimeout:
    async def test_of_a_running_job_stops_it_and_fails_the_task(
        self, worker, handler, running, clock, eventually, state
    ):
        await running(timeout=60.0)
        await clock.advance(59)
        assert handler.calls["cancel"] == 0
        ended = await eventually(state(TaskState.FAILED))

        assert (ended.failure.kind, ended.stop.cause) == (FailureKind.TIMEOUT, StopCause.TIMEOUT)
        assert ended.failure.message == "the task did not end within its timeout of 60 s"
        assert handler.jobs["task#1"].state is JobState.STOPPED
        assert "stop requested (timeout)" in await worker.log(KEY)

    async def test_of_a_task_without_job_is_the_end(self, worker, handler, assign, clock, eventually, service_error):
        handler.fail("submit", *[service_error(FailureKind.EXHAUSTED)] * 100)
        await worker.engine.accept(assign(timeout=60.0))
        await eventually(lambda: worker.engine.active == 0)

        record = await worker.engine.get(KEY)
        assert (record.state, record.failure.kind) == (TaskState.FAILED, FailureKind.TIMEOUT)
        assert handler.created == {}

    async def test_while_the_job_is_created_stops_it_once_it_is_known(
        self, worker, handler, assign, clock, until, eventually, state
    ):
        handler.hold("submit")
        await worker.engine.accept(assign(timeout=60.0))
        await until(lambda: handler.held["submit"] == 1)
        await clock.advance(60)
        await until(lambda: worker.engine.record(KEY).stop is not None)
        assert worker.engine.record(KEY).state is TaskState.SUBMITTING
        handler.let_go("submit")
        ended = await eventually(state(TaskState.FAILED))

        assert ended.failure.kind is FailureKind.TIMEOUT
        assert handler.created == {"task#1": 1}
        assert handler.jobs["task#1"].state is JobState.STOPPED

    async def test_does_not_come_after_the_end(self, worker, handler, running, clock, eventually, state):
        await running(timeout=60.0)
        handler.show("task#1", JobState.SUCCEEDED)
        ended = await eventually(state(TaskState.SUCCEEDED))
        await clock.advance(100)
        await settle()

        assert await worker.engine.get(KEY) == ended

    async def test_is_counted_from_acceptance_also_after_a_restart(self, worker, running, clock, until, state):
        await running(timeout=60.0)
        await worker.crash()
        await clock.advance(61)
        await worker.start()
        ended = await until(state(TaskState.FAILED))

        assert ended.failure.kind is FailureKind.TIMEOUT

    async def test_that_the_disk_refuses_comes_later(
        self, worker, running, clock, monkeypatch, eventually, until, state
    ):
        async def refuse(_):
            raise StorageUnavailable("full")

        await running(timeout=60.0)
        with capture_logs() as logged, monkeypatch.context() as patch:
            patch.setattr(worker.journal, "update", refuse)
            await clock.advance(61)
            await until(lambda: "storage_unavailable" in [entry["event"] for entry in logged])
        assert worker.engine.record(KEY).stop is None

        ended = await eventually(state(TaskState.FAILED), step=60)
        assert ended.failure.kind is FailureKind.TIMEOUT


class TestLogs:
    async def test_the_jobs_own_lines_are_copied_page_by_page_before_its_end_is_told(
        self, worker, talking, assign, eventually, state, lines
    ):
        talking.pages["task#1"] = [["job: one", "job: two"], ["job: three"]]
        talking.show("task#1", JobState.SUCCEEDED)
        await worker.engine.accept(assign(task_type="TALKING"))
        ended = await eventually(state(TaskState.SUCCEEDED))
        said = lines(await worker.log(KEY))

        assert [line for line in said if line.startswith("job")] == ["job: one", "job: two", "job: three"]
        assert said[-1].startswith("the job ended SUCCEEDED")
        assert ended.log_cursor == "2"

    async def test_a_log_that_is_not_copied_to_its_end_says_so(self, worker, talking, assign, eventually, state, lines):
        talking.pages["task#1"] = [[f"job: {number}"] for number in range(101)]
        talking.show("task#1", JobState.SUCCEEDED)
        await worker.engine.accept(assign(task_type="TALKING"))
        await eventually(state(TaskState.SUCCEEDED))
        said = lines(await worker.log(KEY))

        assert [line for line in said if line.startswith("job:")][-1] == "job: 99"
        assert "the job's own log goes on; the rest of it was not copied" in said

    async def test_the_cursor_goes_on_after_a_restart(self, worker, talking, assign, eventually, lines):
        talking.pages["task#1"] = [["job: one"]]
        await worker.engine.accept(assign(task_type="TALKING"))
        await eventually(lambda: worker.engine.record(KEY).log_cursor == "1")
        await worker.restart()
        talking.cursors.clear()
        talking.pages["task#1"].append(["job: two"])
        await eventually(lambda: worker.engine.record(KEY).log_cursor == "2")

        assert talking.cursors[0] == "1"
        said = lines(await worker.log(KEY))
        assert [line for line in said if line.startswith("job")] == ["job: one", "job: two"]

    async def test_a_log_that_cannot_be_read_does_not_hide_the_end(
        self, worker, talking, assign, eventually, state, service_error
    ):
        talking.fail("read_logs", *[service_error(FailureKind.DENIED)] * 100)
        talking.show("task#1", JobState.SUCCEEDED)
        with capture_logs() as logged:
            await worker.engine.accept(assign(task_type="TALKING"))
            await eventually(state(TaskState.SUCCEEDED))

        assert "job_log_not_read" in [entry["event"] for entry in logged]

    async def test_a_log_that_nobody_can_write_does_not_stop_the_task(
        self, worker, handler, assign, monkeypatch, eventually, state
    ):
        async def refuse(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(worker.logs, "append", refuse)
        handler.show("task#1", JobState.SUCCEEDED)
        with capture_logs() as logged:
            await worker.engine.accept(assign())
            await eventually(state(TaskState.SUCCEEDED))

        assert "task_log_not_written" in [entry["event"] for entry in logged]

    async def test_reading_is_done_at_the_end_of_a_log_whose_task_has_ended(
        self, engine, handler, running, eventually, state
    ):
        await running()
        chunk = await engine.read_log(KEY, offset=0, limit=100_000)
        assert (chunk.text.count("\n"), chunk.done) == (2, False)
        handler.show("task#1", JobState.SUCCEEDED)
        await eventually(state(TaskState.SUCCEEDED))

        middle = await engine.read_log(KEY, offset=0, limit=chunk.next_offset)
        assert (middle.next_offset, middle.done) == (chunk.next_offset, False)
        rest = await engine.read_log(KEY, offset=middle.next_offset, limit=100_000)
        assert (rest.text.count("\n"), rest.done) == (1, True)
        assert (await engine.read_log(KEY, offset=rest.next_offset, limit=100)).done

    async def test_reading_is_done_even_if_the_last_line_was_torn(self, worker, assign):
        await worker.engine.accept(assign(parameters='{"refuse": "x"}'))
        end = await worker.logs.size(KEY)
        await worker.logs.append_at(KEY, end, "half a li")

        chunk = await worker.engine.read_log(KEY, offset=end, limit=100)
        assert (chunk.text, chunk.done) == ("", True)

    async def test_of_an_unknown_task_is_not_found(self, engine):
        with pytest.raises(TaskNotFound):
            await engine.read_log(KEY, offset=0, limit=100)
        with pytest.raises(TaskNotFound):
            await engine.wait_log(KEY, offset=0, seconds=10)

    async def test_waiting_ends_with_a_line(self, worker, running, clock, until):
        await running()
        end = await worker.logs.size(KEY)
        waiting = asyncio.ensure_future(worker.engine.wait_log(KEY, offset=end, seconds=600))
        await settle()
        assert not waiting.done()
        await worker.logs.append(TaskKey(task_id="other", attempt=1), ["elsewhere"])
        await settle()
        assert not waiting.done()
        await worker.logs.append(KEY, ["here"])

        await asyncio.wait_for(waiting, 5)

    async def test_waiting_ends_with_the_task(self, worker, handler, running, cancel):
        await running()
        end = await worker.logs.size(KEY)
        waiting = asyncio.ensure_future(worker.engine.wait_log(KEY, offset=end + 100_000, seconds=600))
        await settle()
        await cancel()

        await asyncio.wait_for(waiting, 5)
        assert (await worker.engine.get(KEY)).state is TaskState.CANCELLED

    async def test_waiting_ends_with_its_time(self, worker, running, clock, eventually):
        await running()
        waiting = asyncio.ensure_future(worker.engine.wait_log(KEY, offset=100_000, seconds=20))
        await eventually(waiting.done)

        assert (await worker.engine.get(KEY)).state is TaskState.RUNNING


class TestChanges:
    async def test_a_reader_learns_of_every_task_until_its_end(self, engine, handler, assign, eventually):
        position, last = 0, {}

        async def read():
            nonlocal position
            page = await engine.changes(position)
            position = page.position
            last.update({record.key.task_id: record for record in page.records})
            return len(last) == 3 and all(record.state.final for record in last.values())

        for name in "abc":
            handler.show(f"{name}#1", JobState.SUCCEEDED)
            await engine.accept(assign(name))
        await eventually(read)

        assert {record.state for record in last.values()} == {TaskState.SUCCEEDED}

    async def test_a_long_poll_wakes_with_the_next_change_of_its_door(self, engine, assign):
        waiting = asyncio.ensure_future(engine.changes(0, door="mine", wait=60))
        await settle()
        await engine.accept(assign("a", door="theirs", parameters='{"refuse": "x"}'))
        await engine.accept(assign("b", door="mine", parameters='{"refuse": "x"}'))

        assert [record.key.task_id for record in (await waiting).records] == ["b"]

    async def test_notes_are_a_doors_own(self, engine, running):
        await running()
        await engine.notes("a").write({KEY: "5"})

        assert await engine.notes("a").read_all() == {KEY: "5"}
        assert await engine.notes("b").read_all() == {}

    async def test_the_journal_has_a_name(self, engine, worker):
        name = engine.journal_id
        await worker.restart()

        assert worker.engine.journal_id == name


class TestUnseen:
    async def test_a_look_that_fails_is_told_and_ends_nothing(
        self, worker, handler, running, eventually, state, service_error
    ):
        await running()
        handler.fail("observe", *[service_error(FailureKind.DENIED)] * 3)
        await eventually(lambda: worker.engine.record(KEY).detail.startswith("cannot see the job"))
        handler.show("task#1", JobState.SUCCEEDED, detail="done")
        ended = await eventually(state(TaskState.SUCCEEDED), step=10)

        assert ended.detail == "done"
        assert (await worker.log(KEY)).count("cannot see the job: the service says DENIED") == 1

    async def test_the_remark_goes_when_the_job_is_seen_again(
        self, worker, handler, running, eventually, service_error
    ):
        await running()
        handler.show("task#1", JobState.RUNNING, detail="step 2")
        await eventually(lambda: worker.engine.record(KEY).detail == "step 2")
        handler.fail("observe", service_error(FailureKind.TRANSIENT))
        await eventually(lambda: worker.engine.record(KEY).detail.startswith("cannot see the job"))
        await eventually(lambda: worker.engine.record(KEY).detail == "step 2", step=10)


class TestEvents:
    async def test_an_event_shows_the_end_at_once(self, worker, talking, assign, until, state, clock):
        talking.polling = type(talking.polling)(initial=1000, maximum=1000)
        await worker.engine.accept(assign(task_type="TALKING"))
        await until(lambda: talking.observed)
        await until(lambda: worker.engine.record(KEY).detail == "runs")
        talking.show("task#1", JobState.SUCCEEDED)
        talking.events.put_nowait("arn:task#1")
        await until(state(TaskState.SUCCEEDED))

        assert clock.monotonic() == 0


class TestRestart:
    """One job for each attempt, wherever the worker was when it died."""

    async def test_before_the_job_was_asked_for(self, worker, handler, assign, until, state):
        await worker.crash()
        await worker.start(EngineSettings(submit_concurrency=1, drain=0.0))
        handler.hold("submit")
        await worker.engine.accept(assign("blocks the lane"))
        await worker.engine.accept(assign())
        await worker.crash()
        handler.let_go("submit")
        await worker.start()
        assert worker.engine.active == 2
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1, "blocks the lane#1": 1}

    async def test_while_it_was_asked_for(self, worker, handler, assign, until, state):
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        await worker.crash()
        assert handler.created == {}
        handler.let_go("submit")
        await worker.start()
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}
        assert (await worker.log(KEY)).count("accepted SCRIPTED task") == 1

    async def test_after_it_was_created_and_before_that_was_written(
        self, worker, handler, assign, until, state, monkeypatch
    ):
        reached = asyncio.Event()

        async def never(*_):
            reached.set()
            await asyncio.Event().wait()

        await worker.engine.accept(assign("other", task_type="TALKING"))
        await until(state(TaskState.RUNNING, TaskKey(task_id="other", attempt=1)))
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        monkeypatch.setattr(worker.engine._driver._ledger, "say", never)
        handler.let_go("submit")
        await reached.wait()
        await worker.crash()
        assert handler.created == {"task#1": 1}
        await worker.start()
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}
        assert handler.calls["submit"] == 2

    async def test_while_it_runs(self, worker, handler, running, eventually, state):
        before = await running()
        await worker.restart()
        assert worker.engine.record(KEY) == before
        handler.show("task#1", JobState.SUCCEEDED)
        await eventually(state(TaskState.SUCCEEDED))

        assert handler.calls["submit"] == 1

    async def test_after_it_ended_and_before_anybody_looked(self, worker, handler, running, until, state):
        await running()
        await worker.crash()
        handler.show("task#1", JobState.SUCCEEDED, outputs={"a": 1})
        await worker.start()
        ended = await until(state(TaskState.SUCCEEDED))

        assert ended.outputs == '{"a":1}'

    async def test_after_the_stop_was_wished_and_before_it_was_asked_for(
        self, worker, handler, running, cancel, until, state
    ):
        await running()
        handler.hold("cancel")
        await cancel()
        await until(lambda: handler.held["cancel"] == 1)
        await worker.crash()
        handler.let_go("cancel")
        assert handler.jobs["task#1"].state is JobState.RUNNING
        await worker.start()
        await until(state(TaskState.CANCELLED))

    async def test_after_the_stop_was_wished_while_the_job_was_created(
        self, worker, handler, assign, cancel, until, eventually, state
    ):
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        await cancel()
        await worker.crash()
        handler.let_go("submit")
        await worker.start()
        await eventually(state(TaskState.CANCELLED))

        assert handler.created == {"task#1": 1}
        assert handler.jobs["task#1"].state is JobState.STOPPED

    async def test_while_it_waits_for_capacity(self, worker, handler, assign, until, eventually, state, service_error):
        handler.fail("submit", service_error(FailureKind.EXHAUSTED))
        await worker.engine.accept(assign())
        await until(lambda: worker.engine.record(KEY).detail.startswith("again in"))
        await worker.restart()
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}

    async def test_what_had_ended_is_still_told(self, worker, handler, running, assign, eventually, state):
        await running()
        handler.show("task#1", JobState.SUCCEEDED, outputs={"a": 1})
        ended = await eventually(state(TaskState.SUCCEEDED))
        text = await worker.log(KEY)
        await worker.restart()

        assert await worker.engine.accept(assign()) == ended
        assert await worker.log(KEY) == text
        assert worker.engine.active == 0

    async def test_a_tombstone_still_stands(self, worker, assign, cancel):
        stone = await cancel()
        await worker.restart()

        assert await worker.engine.accept(assign()) == stone

    async def test_a_released_task_stays_released(self, worker, running):
        await running(token=1)
        await worker.engine.release(KEY, fencing_token=1)
        await worker.restart()

        assert (await worker.engine.get(KEY)).state is TaskState.RELEASED
        assert worker.engine.active == 0

    async def test_without_its_plugin_a_task_waits_for_it_and_can_be_stopped(
        self, worker, handler, talking, running, cancel, until, state
    ):
        await running()
        with capture_logs() as logged:
            await worker.restart(talking)
        assert "task_without_plugin" in [entry["event"] for entry in logged]
        assert (await cancel()).stop is not None
        await worker.restart(handler, talking)

        await until(state(TaskState.CANCELLED))

    async def test_without_its_plugin_what_had_ended_is_still_told(self, worker, talking, assign):
        ended = await worker.engine.accept(assign(token=1, parameters='{"refuse": "x"}'))
        await worker.restart(talking)

        assert await worker.engine.accept(assign(token=1, parameters='{"refuse": "x"}')) == ended
        with pytest.raises(UnknownTaskType):
            await worker.engine.accept(assign(token=2, parameters='{"refuse": "x"}'))

    async def test_without_its_plugin_a_task_without_job_can_be_cancelled(
        self, worker, handler, talking, assign, cancel, until, service_error
    ):
        handler.fail("submit", service_error(FailureKind.EXHAUSTED))
        await worker.engine.accept(assign(timeout=60.0))
        await until(lambda: worker.engine.record(KEY).detail.startswith("again in"))
        with capture_logs():
            await worker.restart(talking)

        assert (await cancel()).state is TaskState.CANCELLED
        assert worker.engine.active == 0


class TestFullDisk:
    async def test_a_task_is_refused_and_the_worker_stays_up(
        self, engine, worker, handler, assign, full_disk, until, state
    ):
        async with full_disk():
            with pytest.raises(StorageUnavailable, match="makes room"):
                await engine.accept(assign(parameters=BIG))
            with pytest.raises(TaskNotFound):
                await engine.get(KEY)
        await engine.accept(assign(parameters=BIG))
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}

    async def test_a_job_that_was_created_meanwhile_is_found_again(
        self, worker, handler, assign, until, eventually, monkeypatch, state
    ):
        async def refuse(record):
            if record.state is TaskState.RUNNING and len(refused) < 3:
                refused.append(record)
                raise StorageUnavailable("full")
            await update(record)

        refused, update = [], worker.journal.update
        monkeypatch.setattr(worker.journal, "update", refuse)
        with capture_logs():
            await worker.engine.accept(assign())
            await eventually(state(TaskState.RUNNING))

        assert len(refused) == 3
        assert handler.created == {"task#1": 1}

    async def test_an_end_that_could_not_be_written_is_written_later(
        self, worker, handler, running, until, eventually, monkeypatch, state
    ):
        async def refuse(record):
            if record.state.final and len(refused) < 3:
                refused.append(record)
                raise StorageUnavailable("full")
            await update(record)

        refused, update = [], worker.journal.update
        await running()
        monkeypatch.setattr(worker.journal, "update", refuse)
        handler.show("task#1", JobState.SUCCEEDED, outputs={"a": 1})
        with capture_logs():
            ended = await eventually(state(TaskState.SUCCEEDED))

        assert len(refused) == 3
        assert ended.outputs == '{"a":1}'

    async def test_a_cancel_is_refused_and_nothing_was_changed(self, worker, running, cancel, monkeypatch):
        async def refuse(_):
            raise StorageUnavailable("full")

        record = await running()
        with monkeypatch.context() as patch:
            patch.setattr(worker.journal, "update", refuse)
            with pytest.raises(StorageUnavailable):
                await cancel()
        assert await worker.engine.get(KEY) == record


class TestRetention:
    async def test_what_ended_long_ago_is_forgotten_with_its_log(self, worker, handler, assign, eventually, clock):
        handler.hold("submit")
        await worker.engine.accept(assign("goes on"))
        await worker.engine.accept(assign(parameters='{"refuse": "x"}'))
        assert worker.logs.path(KEY).exists()
        await eventually(lambda: not worker.logs.path(KEY).exists(), step=24 * 3600.0)

        with pytest.raises(TaskNotFound, match="past its retention"):
            await worker.engine.get(KEY)
        assert not (await worker.engine.get(TaskKey(task_id="goes on", attempt=1))).state.final
        assert clock.monotonic() >= 7 * 24 * 3600

    async def test_a_disk_that_refuses_does_not_end_the_worker(self, worker, assign, clock, monkeypatch, eventually):
        async def refuse(*_):
            refused.append(True)
            raise StorageUnavailable("full")

        refused = []
        await worker.engine.accept(assign(parameters='{"refuse": "x"}'))
        with capture_logs() as logged, monkeypatch.context() as patch:
            patch.setattr(worker.journal, "forget", refuse)
            await eventually(lambda: len(refused) == 2, step=300.0)
        assert "tasks_not_forgotten" in [entry["event"] for entry in logged]
        await eventually(lambda: not worker.logs.path(KEY).exists(), step=24 * 3600.0)


class TestOpen:
    async def test_the_end_waits_for_the_calls_under_way(self, worker, handler, assign, until, clock):
        await worker.crash()
        await worker.start(EngineSettings(drain=20.0))
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        closing = asyncio.ensure_future(worker.crash())
        await settle()
        assert not closing.done()
        handler.let_go("submit")
        await asyncio.wait_for(closing, 5)
        await worker.start()

        assert (await worker.engine.get(KEY)).state is TaskState.RUNNING
        assert handler.calls["submit"] == 1

    async def test_the_end_waits_no_longer_than_its_budget(self, worker, handler, assign, until, clock, state):
        await worker.crash()
        await worker.start(EngineSettings(drain=20.0))
        handler.hold("submit")
        await worker.engine.accept(assign())
        await until(lambda: handler.held["submit"] == 1)
        with capture_logs() as logged:
            closing = asyncio.ensure_future(worker.crash())
            await clock.advance(20)
            await asyncio.wait_for(closing, 5)
        assert "calls_under_way_abandoned" in [entry["event"] for entry in logged]
        handler.let_go("submit")
        await worker.start()
        await until(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}

    async def test_an_error_of_the_block_stays_as_it_is(self, journal, logs, clock, handler):
        with pytest.raises(ZeroDivisionError):
            async with Engine.open(journal, Registry([handler]), logs, clock):
                raise ZeroDivisionError

    async def test_a_loop_that_dies_ends_the_block(self, journal, logs, clock, handler, monkeypatch):
        async def die(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr(journal, "forget", die)
        with pytest.raises(ExceptionGroup) as caught:
            async with Engine.open(journal, Registry([handler]), logs, clock):
                await asyncio.Event().wait()
        assert caught.group_contains(ZeroDivisionError)
