"""The engine with a scripted service: every way in which a task is made to end."""

from __future__ import annotations

import asyncio

from remora.engine import EngineSettings
from remora.errors import (
    StorageUnavailable,
)
from remora.plugin import FailureKind, JobState, TaskKey
from remora.task import StopCause, TaskState
from remora.testing import settle
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)


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
