"""The engine with a scripted service: what survives a crash, a full disk, and time."""

from __future__ import annotations

import asyncio
import json

import pytest
from remora.engine import Engine, EngineSettings
from remora.errors import (
    StorageUnavailable,
    TaskNotFound,
    UnknownTaskType,
)
from remora.plugin import FailureKind, JobState, TaskKey
from remora.registry import Registry
from remora.task import TaskState
from remora.testing import settle
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)
BIG = json.dumps({"steps": [10**9] * 5000})


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
