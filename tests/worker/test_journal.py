"""The journal: every task as it is now, on disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sqlite3

import pytest
from remora import task as moves
from remora.door import TaskFilter
from remora.errors import IllegalTransition, InvalidRequest, NewerSchemaError, StorageUnavailable
from remora.journal import Journal
from remora.plugin import Failure, FailureKind, TaskKey
from remora.task import Stop, StopCause, TaskState
from remora.testing import settle

NOW = 1000.0
EVERYTHING = TaskFilter()


@pytest.fixture
def born(assign):
    """Return the record and the definition of a task that was just accepted."""

    def born(task_id="task", attempt=1, **others):
        assignment = assign(task_id, attempt, **others)
        return moves.accepted(assignment, '{"name":"a"}', NOW), assignment.definition

    return born


@pytest.fixture
def keep(journal, born):
    """Write a task and return its record."""

    async def keep(*arguments, **others):
        return await journal.insert(*born(*arguments, **others))

    return keep


@pytest.fixture
def advance(journal):
    """Take a task one step further and return its record."""

    async def advance(record, **changes):
        after = dataclasses.replace(record, sequence=record.sequence + 1, **changes)
        await journal.update(after)
        return after

    return advance


def ids(page):
    return [record.key.task_id for record in page.records]


def ended(state=TaskState.SUCCEEDED, at=NOW):
    return {"state": state, "finished_at": at}


class TestInsert:
    async def test_what_is_written_can_be_read(self, journal, born):
        record, definition = born(
            parameters='{"a": 1}',
            timeout=5.0,
            labels={"ä": "ö"},
            name="n",
            door="d",
            handle='{"name":"b"}',
            token=2**62,
        )
        assert await journal.insert(record, definition) is record

        assert await journal.get(record.key) == record
        assert await journal.definition(record.key) == definition

    async def test_a_key_that_is_taken_gives_the_record_that_has_it(self, journal, born, keep, advance):
        first = await advance(await keep(), state=TaskState.SUBMITTING)
        record, definition = born(parameters='{"other": true}')

        assert await journal.insert(record, definition) == first
        assert (await journal.definition(first.key)).parameters == "{}"

    async def test_of_many_at_once_one_wins_and_all_learn_which(self, journal, born):
        written = await asyncio.gather(*(journal.insert(*born(token=number)) for number in range(20)))

        assert {record.fencing_token for record in written} == {0}

    async def test_attempts_are_tasks_of_their_own(self, journal, keep):
        await keep(attempt=1)
        await keep(attempt=2)

        assert len((await journal.list(EVERYTHING, limit=10)).records) == 2

    async def test_a_tombstone_has_no_definition(self, journal):
        stop = Stop(cause=StopCause.CANCEL, reason="r", requested_at=NOW)
        stone = moves.tombstone(TaskKey(task_id="a", attempt=1), "test", stop, fencing_token=0)
        await journal.insert(stone, None)

        assert await journal.get(stone.key) == stone
        assert await journal.definition(stone.key) is None

    async def test_what_was_never_written_is_none(self, journal):
        assert await journal.get(TaskKey(task_id="a", attempt=1)) is None
        assert await journal.definition(TaskKey(task_id="a", attempt=1)) is None

    @pytest.mark.parametrize("task_id", ["", "a'b", 'a"b', "ünï-😀", "x" * 10_000, "%", "_"])
    async def test_any_id_can_be_kept(self, journal, keep, task_id):
        record = await keep(task_id)

        assert await journal.get(record.key) == record
        assert ids(await journal.list(TaskFilter(task_id_prefix=task_id), limit=9)) == [task_id]

    async def test_every_field_survives(self, journal, keep):
        record = await keep()
        failure = Failure(kind=FailureKind.EXECUTION, message="m", code="c", details={"step": "train"}, retry_after=1.5)
        stop = Stop(cause=StopCause.TIMEOUT, reason="late", requested_at=NOW + 0.125)
        full = dataclasses.replace(
            record,
            sequence=2,
            state=TaskState.FAILED,
            failure=failure,
            stop=stop,
            outputs='{"a":[1,2.5,null]}',
            log_cursor="cursor",
            started_at=NOW + 0.1,
            finished_at=NOW + 0.2,
            detail="d",
        )
        await journal.update(full)

        assert await journal.get(record.key) == full


class TestUpdate:
    async def test_replaces_the_record_and_keeps_the_definition(self, journal, keep, advance):
        record = await advance(await keep(), state=TaskState.RUNNING, door="other")

        assert await journal.get(record.key) == record
        assert (await journal.definition(record.key)).parameters == "{}"
        assert ids(await journal.list(TaskFilter(door="other", states=frozenset({TaskState.RUNNING})), limit=9)) == [
            "task"
        ]

    @pytest.mark.parametrize("sequence", [0, 1, 3])
    async def test_a_record_that_does_not_follow_is_a_defect_and_changes_nothing(self, journal, keep, sequence):
        record = await keep()
        with pytest.raises(IllegalTransition, match=f"task#1: sequence {sequence} does not follow"):
            await journal.update(dataclasses.replace(record, sequence=sequence, state=TaskState.RUNNING))

        assert await journal.get(record.key) == record

    async def test_an_unknown_task_is_a_defect(self, journal, born):
        record, _ = born()
        with pytest.raises(IllegalTransition):
            await journal.update(dataclasses.replace(record, sequence=2))


class TestUnfinished:
    async def test_is_what_has_not_ended_oldest_first(self, journal, keep, advance):
        records = [await keep(name) for name in ("c", "a", "b")]
        await advance(records[1], **ended())
        running = await advance(records[2], state=TaskState.RUNNING)

        assert await journal.unfinished() == [records[0], running]


class TestList:
    async def test_filters_narrow_together(self, journal, keep, advance):
        await keep("train-1", door="a")
        await keep("train-2", door="b")
        await advance(await keep("train-3", door="a"), state=TaskState.RUNNING)
        await keep("other", door="a", task_type="OTHER")

        async def listed(**chosen):
            return ids(await journal.list(TaskFilter(**chosen), limit=10))

        assert await listed() == ["train-1", "train-2", "train-3", "other"]
        assert await listed(door="a") == ["train-1", "train-3", "other"]
        assert await listed(task_type="OTHER") == ["other"]
        assert await listed(task_id_prefix="train-") == ["train-1", "train-2", "train-3"]
        assert await listed(states=frozenset({TaskState.RUNNING, TaskState.FAILED})) == ["train-3"]
        assert await listed(door="a", task_id_prefix="train", states=frozenset({TaskState.ACCEPTED})) == ["train-1"]
        assert await listed(door="nobody") == []

    async def test_a_prefix_is_text_and_no_pattern(self, journal, keep):
        for task_id in ("100%", "1000", "a_b", "axb", "ÄB", "äb"):
            await keep(task_id)

        for prefix, found in (("100%", ["100%"]), ("a_", ["a_b"]), ("Ä", ["ÄB"]), ("A", [])):
            assert ids(await journal.list(TaskFilter(task_id_prefix=prefix), limit=10)) == found

    async def test_pages_join_without_gaps_also_while_tasks_change_and_come(self, journal, keep, advance):
        records = [await keep(f"{number}") for number in range(7)]
        first = await journal.list(EVERYTHING, limit=3)
        await advance(records[0], state=TaskState.RUNNING)
        await keep("7")
        second = await journal.list(EVERYTHING, limit=3, token=first.next_token)
        third = await journal.list(EVERYTHING, limit=3, token=second.next_token)

        assert [ids(page) for page in (first, second, third)] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
        assert third.next_token == ""

    async def test_a_last_page_that_is_full_says_that_it_is_the_last(self, journal, keep):
        for number in range(3):
            await keep(f"{number}")

        assert (await journal.list(EVERYTHING, limit=3)).next_token == ""

    @pytest.mark.parametrize("token", ["x", "-1", "1.5", " 1", "٣", "9" * 19, "9" * 5000, "1\n"])
    async def test_a_token_that_is_not_ours_is_refused(self, journal, token):
        with pytest.raises(InvalidRequest, match="page_token") as caught:
            await journal.list(EVERYTHING, limit=3, token=token)
        assert caught.value.reason == "PAGE_TOKEN_INVALID"

    async def test_a_token_beyond_the_end_is_an_empty_page(self, journal, keep):
        await keep()

        assert ids(await journal.list(EVERYTHING, limit=3, token="9" * 18)) == []


class TestChanges:
    async def test_each_task_comes_once_as_it_is_now_in_the_order_of_its_latest_change(self, journal, keep, advance):
        a, b = await keep("a"), await keep("b")
        a = await advance(a, state=TaskState.SUBMITTING)
        page = await journal.changes(0)

        assert page.records == [b, a]
        assert (await journal.changes(page.position)).records == []
        b = await advance(b, state=TaskState.SUBMITTING)
        assert (await journal.changes(page.position)).records == [b]

    async def test_pages_go_on_from_the_position(self, journal, keep):
        for number in range(5):
            await keep(f"{number}")
        first = await journal.changes(0, limit=2)
        second = await journal.changes(first.position, limit=2)
        third = await journal.changes(second.position, limit=2)

        assert [ids(page) for page in (first, second, third)] == [["0", "1"], ["2", "3"], ["4"]]

    async def test_a_door_sees_its_own(self, journal, keep):
        await keep("a", door="x")
        await keep("b", door="y")

        assert ids(await journal.changes(0, door="y")) == ["b"]

    async def test_nothing_new_leaves_the_position(self, journal, keep):
        await keep()

        assert (await journal.changes(77)).position == 77

    async def test_a_reader_waits_for_the_first_change(self, journal, keep):
        waiting = asyncio.ensure_future(journal.changes(0, wait=60))
        await settle()
        record = await keep()

        assert (await waiting).records == [record]

    async def test_a_change_of_another_door_does_not_end_the_wait(self, journal, keep, clock, until):
        waiting = asyncio.ensure_future(journal.changes(0, door="mine", wait=60))
        await until(lambda: clock.sleepers == 1)
        await keep("a", door="theirs")
        await journal.get(TaskKey(task_id="a", attempt=1))
        assert not waiting.done()
        record = await keep("b", door="mine")

        assert (await waiting).records == [record]

    async def test_a_wait_is_over_in_time(self, journal, clock, until):
        waiting = asyncio.ensure_future(journal.changes(5, wait=60))
        await until(lambda: clock.sleepers == 1)
        await clock.advance(60)
        page = await waiting

        assert (page.records, page.position) == ([], 5)

    async def test_a_reader_that_pages_through_a_storm_misses_nobody(self, journal, born, advance):
        async def write(number):
            record = await journal.insert(*born(f"{number}"))
            for _ in range(3):
                record = await advance(record, detail=f"{record.sequence}")

        seen, position = {}, 0
        writing = asyncio.gather(*(write(number) for number in range(20)))
        while not writing.done() or len(seen) < 20 or set(seen.values()) != {4}:
            page = await journal.changes(position, limit=3)
            for record in page.records:
                assert record.sequence > seen.get(record.key.task_id, 0)
                seen[record.key.task_id] = record.sequence
            position = page.position
        await writing

        assert len(seen) == 20


class TestForget:
    async def test_takes_what_ended_before_a_time_and_nothing_else(self, journal, keep, advance):
        old, young, running = [await keep(name) for name in ("old", "young", "running")]
        await advance(old, **ended(at=NOW))
        await advance(young, **ended(at=NOW + 10))

        assert await journal.forget(NOW + 5) == [old.key]
        assert await journal.get(old.key) is None
        assert ids(await journal.list(EVERYTHING, limit=9)) == ["young", "running"]
        assert await journal.get(running.key) == running

    async def test_takes_only_so_many_at_once_oldest_first(self, journal, keep, advance):
        for number in range(5):
            await advance(await keep(f"{number}"), **ended(at=NOW - number))

        assert {key.task_id for key in await journal.forget(NOW + 1, limit=2)} == {"3", "4"}
        assert len(await journal.forget(NOW + 1, limit=2)) == 2
        assert len(await journal.forget(NOW + 1, limit=2)) == 1
        assert await journal.forget(NOW + 1) == []

    async def test_takes_the_notes_too(self, journal, keep, advance):
        record = await keep()
        await journal.write_notes("door", {record.key: "5"})
        await advance(record, **ended())
        await journal.forget(NOW + 1)

        assert await journal.read_notes("door") == {}

    async def test_the_key_may_be_used_again(self, journal, keep, advance):
        await advance(await keep(), **ended())
        await journal.forget(NOW + 1)
        record = await keep()

        assert await journal.get(record.key) == record


class TestReopened:
    async def test_everything_is_there_again(self, tmp_path, clock, born):
        record, definition = born()
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            await journal.insert(record, definition)
            await journal.write_notes("door", {record.key: "note"})
            journal_id, position = journal.id, (await journal.changes(0)).position
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            assert journal.id == journal_id
            assert await journal.unfinished() == [record]
            assert await journal.definition(record.key) == definition
            assert await journal.read_notes("door") == {record.key: "note"}
            assert (await journal.changes(position)).records == []

    async def test_positions_are_never_given_out_twice(self, tmp_path, clock, born):
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            for number in range(5):
                record = await journal.insert(*born(f"{number}"))
                await journal.update(dataclasses.replace(record, sequence=2, **ended()))
            position = (await journal.changes(0)).position
            await journal.forget(NOW + 1)
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            record = await journal.insert(*born("new"))
            page = await journal.changes(position)
            assert page.records == [record]
            assert page.position > position

    async def test_pages_of_a_list_are_never_given_out_twice(self, tmp_path, clock, born):
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            for number in range(3):
                record = await journal.insert(*born(f"{number}"))
            token = (await journal.list(EVERYTHING, limit=2)).next_token
            await journal.update(dataclasses.replace(record, sequence=2, **ended()))
            await journal.forget(NOW + 1)
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            await journal.insert(*born("new"))
            assert ids(await journal.list(EVERYTHING, limit=2, token=token)) == ["new"]

    async def test_a_lost_directory_is_another_journal(self, tmp_path, clock):
        async with Journal.open(tmp_path / "a.db", clock) as first, Journal.open(tmp_path / "b.db", clock) as second:
            assert first.id != second.id

    async def test_a_journal_of_a_newer_version_is_refused_and_left_alone(self, tmp_path, clock, born):
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            await journal.insert(*born())
        with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as file:
            file.execute("PRAGMA user_version = 99")
        with pytest.raises(NewerSchemaError, match="schema 99"):
            async with Journal.open(tmp_path / "j.db", clock):
                pass
        with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as file:
            assert file.execute("SELECT count(*) FROM task").fetchone() == (1,)

    async def test_records_with_fields_of_a_later_version_are_read(self, tmp_path, clock, born):
        record, definition = born()
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            await journal.insert(record, definition)
        with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as file:
            file.execute("UPDATE task SET record = json_set(record, '$.later', 1)")
            file.commit()
        async with Journal.open(tmp_path / "j.db", clock) as journal:
            assert await journal.unfinished() == [record]


class TestNotes:
    async def test_are_kept_for_each_door_and_task(self, journal, keep):
        a, b = await keep("a"), await keep("b")
        await journal.write_notes("x", {a.key: "1", b.key: "2"})
        await journal.write_notes("y", {a.key: "other"})
        await journal.write_notes("x", {a.key: "3"})

        assert await journal.read_notes("x") == {a.key: "3", b.key: "2"}
        assert await journal.read_notes("y") == {a.key: "other"}
        assert await journal.read_notes("z") == {}

    async def test_a_note_for_a_task_that_is_gone_is_dropped(self, journal, keep):
        record = await keep()
        await journal.write_notes("x", {TaskKey(task_id="gone", attempt=1): "1", record.key: "2"})

        assert await journal.read_notes("x") == {record.key: "2"}

    async def test_survive_the_changes_of_the_task(self, journal, keep, advance):
        record = await keep()
        await journal.write_notes("x", {record.key: "1"})
        await advance(record, state=TaskState.RUNNING)

        assert await journal.read_notes("x") == {record.key: "1"}

    async def test_none_are_no_write(self, journal):
        await journal.write_notes("x", {})

        assert await journal.read_notes("x") == {}


class TestFullDisk:
    async def test_nothing_is_taken_and_it_works_again_when_there_is_room(self, journal, born, keep, advance):
        async def limit(pages):
            await journal._database.write(
                lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
            )

        kept = await keep("kept")
        position = (await journal.changes(0)).position
        big = '{"a": "' + "x" * 200_000 + '"}'
        await limit(1)
        with pytest.raises(StorageUnavailable):
            await journal.insert(*born("big", parameters=big))
        with pytest.raises(StorageUnavailable):
            await journal.update(dataclasses.replace(kept, sequence=2, outputs=big))

        assert await journal.get(kept.key) == kept
        assert (await journal.changes(position)).records == []
        await limit(1_000_000)
        grown = await advance(kept, outputs=big)
        record = await keep("big", parameters=big)
        assert (await journal.changes(position)).records == [grown, record]
