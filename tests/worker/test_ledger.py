"""The unfinished tasks, and the one way to change a task."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from remora import task as moves
from remora.errors import IllegalTransition, StorageUnavailable
from remora.ledger import Ledger
from remora.metrics import Metrics
from remora.plugin import Failure, FailureKind, TaskKey
from remora.task import Stop, StopCause, TaskState
from remora.testing import settle
from structlog.testing import capture_logs

NOW = 1000.0
FAILURE = Failure(kind=FailureKind.INVALID, message="it is wrong")
CANCEL = Stop(cause=StopCause.CANCEL, reason="r", requested_at=NOW)


def fail(record, now):
    return moves.failed(record, FAILURE, now)


def remark(text):
    return lambda record, now: moves.noted(record, text, now)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def ledger(journal, logs, clock, metrics):
    return Ledger(journal, logs, clock, metrics)


@pytest.fixture
def insert(ledger, assign):
    """Write a task that was accepted and return its record."""

    async def insert(task_id="task", **others):
        assignment = assign(task_id, **others)
        return await ledger.insert(moves.accepted(assignment, "{}", NOW), assignment.definition)

    return insert


class TestInsert:
    async def test_an_unfinished_task_is_held(self, ledger, insert, journal):
        record = await insert()

        assert ledger.get(record.key) is record
        assert await journal.get(record.key) == record
        assert (len(ledger), ledger.get(record.key)) == (1, record)

    async def test_a_task_that_has_ended_already_is_not_and_is_counted(self, ledger, journal, assign, metrics):
        assignment = assign()
        record = await ledger.insert(moves.born_failed(assignment, FAILURE, NOW), assignment.definition)

        assert ledger.get(record.key) is None
        assert await journal.get(record.key) == record
        ended = metrics.registry.get_sample_value(
            "remora_tasks_finished_total", {"task_type": "SCRIPTED", "state": "FAILED"}
        )
        assert ended == 1

    async def test_a_key_that_is_taken_gives_the_one_that_has_it(self, ledger, insert):
        first = await insert()
        moved = await ledger.change(first.key, moves.submitting)
        second = await insert(token=5)

        assert second == moved
        assert ledger.get(first.key) is moved

    async def test_what_the_disk_refuses_is_not_held(self, ledger, insert, monkeypatch, journal):
        async def refuse(*_):
            raise StorageUnavailable("full")

        monkeypatch.setattr(journal, "insert", refuse)
        with pytest.raises(StorageUnavailable):
            await insert()

        assert len(ledger) == 0


class TestChange:
    async def test_memory_and_disk_move_together(self, ledger, insert, journal, clock):
        key = (await insert()).key
        moved = await ledger.change(key, moves.submitting)

        assert (moved.state, moved.updated_at) == (TaskState.SUBMITTING, clock.now())
        assert ledger.get(key) is moved
        assert await journal.get(key) == moved

    async def test_no_change_writes_nothing(self, ledger, insert, journal):
        record = await insert()
        position = (await journal.changes(0)).position

        assert await ledger.change(record.key, lambda before, _: before) is record
        assert (await journal.changes(position)).records == []

    async def test_an_unknown_task_is_none(self, ledger):
        key = TaskKey(task_id="a", attempt=1)

        assert await ledger.change(key, fail) is None
        assert await ledger.change(key, fail, finished=True) is None

    async def test_a_finished_task_moves_only_where_that_is_meant(self, ledger, insert, assign):
        key = (await insert(token=1)).key
        ended = await ledger.change(key, fail)
        assert await ledger.change(key, moves.submitting) is None

        def hand_over(record, now):
            return moves.reassigned(record, assign(token=2), "{}", now)

        moved = await ledger.change(key, hand_over, finished=True)
        assert (moved.fencing_token, moved.sequence, moved.state) == (2, ended.sequence + 1, TaskState.FAILED)
        assert ledger.get(key) is None

    async def test_a_released_task_that_is_taken_back_is_held_again(self, ledger, insert, assign):
        key = (await insert(token=1)).key
        await ledger.change(key, moves.released)
        assert len(ledger) == 0

        def take(record, now):
            return moves.reassigned(record, assign(token=2), "{}", now)

        taken = await ledger.change(key, take, finished=True)
        assert ledger.get(key) is taken

    async def test_changes_of_one_task_come_one_after_the_other_and_none_is_lost(self, ledger, insert, journal):
        key = (await insert()).key
        await asyncio.gather(*(ledger.change(key, remark(f"{number}")) for number in range(30)))

        assert ledger.get(key).sequence == 31
        assert (await journal.get(key)).detail == "29"

    async def test_a_move_that_is_not_legal_changes_nothing(self, ledger, insert, journal):
        record = await insert()
        with pytest.raises(IllegalTransition):
            await ledger.change(record.key, lambda before, now: moves.running(before, "{}", now))

        assert ledger.get(record.key) is record
        assert await journal.get(record.key) == record

    async def test_what_the_disk_refuses_changes_nothing_and_works_later(self, ledger, insert, journal, monkeypatch):
        async def refuse(_):
            raise StorageUnavailable("full")

        record = await insert()
        with monkeypatch.context() as patch:
            patch.setattr(journal, "update", refuse)
            with pytest.raises(StorageUnavailable):
                await ledger.change(record.key, moves.submitting)
        assert ledger.get(record.key) is record

        assert (await ledger.change(record.key, moves.submitting)).sequence == 2

    async def test_a_caller_who_leaves_does_not_tear_memory_from_disk(self, ledger, insert, journal):
        key = (await insert()).key
        changing = asyncio.ensure_future(ledger.change(key, moves.submitting))
        await settle(2)
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing

        assert ledger.get(key).state is TaskState.SUBMITTING
        assert await journal.get(key) == ledger.get(key)

    async def test_a_task_that_is_on_disk_and_not_yet_here_is_waited_for(
        self, ledger, journal, assign, monkeypatch, until
    ):
        written, gate = asyncio.Event(), asyncio.Event()
        insert = journal.insert

        async def insert_slowly(*arguments):
            record = await insert(*arguments)
            written.set()
            await gate.wait()
            return record

        monkeypatch.setattr(journal, "insert", insert_slowly)
        assignment = assign()
        key = assignment.definition.key
        inserting = asyncio.ensure_future(ledger.insert(moves.accepted(assignment, "{}", NOW), assignment.definition))
        await written.wait()
        assert await journal.get(key) is not None
        stopping = asyncio.ensure_future(ledger.change(key, lambda record, _: moves.stop_wished(record, CANCEL)))
        await settle()
        gate.set()
        await inserting

        assert (await stopping).state is TaskState.CANCELLED
        assert (await journal.get(key)).state is TaskState.CANCELLED
        assert ledger.get(key) is None


class TestEnd:
    async def test_who_asked_is_told_once(self, ledger, insert, assign):
        ended = []
        ledger.on_final.append(ended.append)
        key = (await insert(token=1)).key
        final = await ledger.change(key, fail)
        await ledger.change(
            key, lambda record, now: moves.reassigned(record, assign(token=2), "{}", now), finished=True
        )

        assert ended == [final]

    async def test_is_counted_and_logged_with_the_reason(self, ledger, insert, metrics):
        key = (await insert()).key
        with capture_logs() as logged:
            await ledger.change(key, fail)

        value = metrics.registry.get_sample_value
        assert value("remora_tasks_finished_total", {"task_type": "SCRIPTED", "state": "FAILED"}) == 1
        assert value("remora_tasks_active") == 0
        assert [(entry["event"], entry["state"], entry["detail"]) for entry in logged] == [
            ("task_finished", "FAILED", "it is wrong")
        ]

    async def test_wakes_who_follows_the_log(self, ledger, insert, logs):
        key = (await insert()).key
        listening = logs.grew.listen()
        await ledger.change(key, fail)

        assert listening.is_set()

    async def test_active_tasks_are_counted(self, ledger, insert, metrics):
        await insert("a")
        record = await insert("b")
        ledger.hold(dataclasses.replace(record, detail="recovered"))

        assert metrics.registry.get_sample_value("remora_tasks_active") == 2


class TestSay:
    async def test_lines_are_in_the_tasks_log(self, ledger, logs):
        key = TaskKey(task_id="a", attempt=1)
        await ledger.say(key, "one", "two", level="WARN")

        assert [line.partition(" ")[0] for line in (await logs.read(key, offset=0, limit=1000))[0].splitlines()] == [
            "[WARN]",
            "[WARN]",
        ]

    async def test_a_line_that_the_disk_refuses_is_in_the_workers_log(self, ledger, logs, monkeypatch):
        async def refuse(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(logs, "append", refuse)
        with capture_logs() as logged:
            await ledger.say(TaskKey(task_id="a", attempt=1), "the line")

        assert [(entry["event"], entry["lines"]) for entry in logged] == [("task_log_not_written", ("the line",))]
