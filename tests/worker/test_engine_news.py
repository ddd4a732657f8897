"""The engine with a scripted service: what it tells of a job, and what it hears."""

from __future__ import annotations

import asyncio

import pytest
from remora.errors import (
    TaskNotFound,
)
from remora.plugin import FailureKind, JobState, TaskKey
from remora.task import TaskState
from remora.testing import settle
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)


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
