"""The engine with a scripted service: what doors are promised when they hand a task over."""

from __future__ import annotations

import asyncio
import json

import pytest
from remora.door import TaskFilter
from remora.engine import EngineSettings
from remora.errors import (
    Fenced,
    TaskConflict,
    TaskNotFound,
    UnknownTaskType,
    WorkerDraining,
    WorkerFull,
)
from remora.plugin import Failure, FailureKind, JobState, TaskKey
from remora.task import TaskRecord, TaskState
from remora.testing import settle
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)
LEARNED = '{"name": "task#1", "arn": "arn:old"}'
"""A handle with what only a job that exists can have told."""


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
            "the job exists: name=task#1, arn=arn:task#1",
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
