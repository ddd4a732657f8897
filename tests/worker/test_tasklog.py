"""The log files of tasks."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remora.plugin import TaskKey
from remora.tasklog import TaskLogs
from remora.testing import ManualClock

EVERYTHING = 1 << 30
STAMP = "[INFO] 2023-11-14 22:13:20.000 +0000 - "


def key(task_id="task", attempt=1):
    return TaskKey(task_id=task_id, attempt=attempt)


async def text_of(logs, of):
    return (await logs.read(of, offset=0, limit=EVERYTHING))[0]


class TestAppend:
    async def test_lines_look_as_dolphinschedulers_do(self, logs):
        await logs.append(key(), ["started", "ended"])
        await logs.append(key(), ["failed"], level="ERROR")

        assert await text_of(logs, key()) == (
            f"{STAMP}started\n{STAMP}ended\n[ERROR] 2023-11-14 22:13:20.000 +0000 - failed\n"
        )

    async def test_the_stamp_has_milliseconds(self, tmp_path):
        logs = TaskLogs(tmp_path, ManualClock(now=1_700_000_000.0625))
        await logs.append(key(), ["x"])

        assert "22:13:20.062 +0000" in await text_of(logs, key())
        await asyncio.to_thread(logs.close)

    async def test_a_line_with_line_ends_inside_is_several(self, logs):
        await logs.append(key(), ["one\ntwo\r\nthree", ""])

        assert await text_of(logs, key()) == f"{STAMP}one\n{STAMP}two\n{STAMP}three\n{STAMP}\n"

    async def test_a_very_long_line_is_cut(self, logs):
        await logs.append(key(), ["x" * 1_000_000])

        assert len(await text_of(logs, key())) == len(STAMP) + 64 * 1024 + 1

    async def test_text_that_is_no_utf8_is_still_written(self, logs):
        await logs.append(key(), ["lone \ud800 surrogate"])

        assert "lone ? surrogate" in await text_of(logs, key())

    async def test_no_lines_make_no_file(self, logs, tmp_path):
        await logs.append(key(), [])

        assert not (tmp_path / "logs").exists()

    async def test_lines_of_many_callers_stay_whole_and_in_order(self, logs):
        await asyncio.gather(*(logs.append(key(), [f"{number} {'x' * 5000}"]) for number in range(50)))

        lines = (await text_of(logs, key())).splitlines()
        assert [int(line.removeprefix(STAMP).split()[0]) for line in lines] == list(range(50))

    async def test_what_the_disk_refuses_leaves_no_torn_line(self, logs, monkeypatch):
        await logs.append(key(), ["whole"])
        write = os.write

        def write_half(handle, data):
            if len(data) < 4:
                raise OSError(28, "No space left on device")
            return write(handle, data[: len(data) // 2])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_half)
            with pytest.raises(OSError, match="No space left"):
                await logs.append(key(), ["torn"])

        assert await logs.size(key()) == len(f"{STAMP}whole\n")
        await logs.append(key(), ["again"])
        assert await text_of(logs, key()) == f"{STAMP}whole\n{STAMP}again\n"

    async def test_an_append_wakes_who_follows(self, logs):
        grew = logs.grew.listen()
        await logs.append(key(), ["x"])

        assert grew.is_set()


class TestAppendAt:
    async def test_text_at_the_end_is_written_as_it_is(self, logs):
        assert await logs.append_at(key(), 0, "ä\n") == 3
        assert await logs.append_at(key(), 3, "b\n") == 5
        assert await text_of(logs, key()) == "ä\nb\n"

    @pytest.mark.parametrize("offset", [0, 1, 4, 1000])
    async def test_text_elsewhere_is_not_written_and_the_end_is_told(self, logs, offset):
        await logs.append_at(key(), 0, "a\n")

        assert await logs.append_at(key(), offset, "again\n") == 2
        assert await text_of(logs, key()) == "a\n"

    async def test_a_gap_before_the_first_text_is_refused_too(self, logs):
        assert await logs.append_at(key(), 7, "late\n") == 0
        assert await logs.size(key()) == 0


class TestRead:
    async def test_nothing_where_there_is_no_log(self, logs):
        assert await logs.read(key(), offset=0, limit=100) == ("", 0)
        assert await logs.size(key()) == 0

    async def test_nothing_at_the_end_and_beyond(self, logs):
        await logs.append_at(key(), 0, "a\n")

        assert await logs.read(key(), offset=2, limit=100) == ("", 2)
        assert await logs.read(key(), offset=50, limit=100) == ("", 50)

    async def test_pages_are_whole_lines(self, logs):
        await logs.append_at(key(), 0, "one\ntwo\nthree\n")

        assert await logs.read(key(), offset=0, limit=9) == ("one\ntwo\n", 8)
        assert await logs.read(key(), offset=8, limit=9) == ("three\n", 14)

    async def test_a_last_line_that_is_not_complete_is_not_shown(self, logs):
        await logs.append_at(key(), 0, "whole\nhal")

        assert await logs.read(key(), offset=0, limit=100) == ("whole\n", 6)
        assert await logs.read(key(), offset=6, limit=100) == ("", 6)
        await logs.append_at(key(), 9, "f\n")
        assert await logs.read(key(), offset=6, limit=100) == ("half\n", 11)

    async def test_a_line_longer_than_the_limit_comes_in_pieces_cut_between_characters(self, logs):
        line = "äöü€😀" * 20 + "\n"
        await logs.append_at(key(), 0, line)

        pieces, offset = [], 0
        while True:
            piece, offset = await logs.read(key(), offset=offset, limit=7)
            if not piece:
                break
            assert "\N{REPLACEMENT CHARACTER}" not in piece
            pieces.append(piece)
        assert "".join(pieces) == line
        assert offset == len(line.encode())

    async def test_a_limit_smaller_than_a_character_still_gets_on(self, logs):
        await logs.append_at(key(), 0, "😀\n")
        offsets, offset = [], 0
        while (after := (await logs.read(key(), offset=offset, limit=1))[1]) != offset:
            offsets.append(offset := after)

        assert offsets == [1, 2, 3, 4, 5]

    @settings(max_examples=30, deadline=None)
    @given(
        lines=st.lists(st.text(alphabet="aä€😀 ", max_size=30), max_size=10),
        limit=st.integers(4, 50),
    )
    def test_pages_add_up_to_the_whole(self, tmp_path_factory, lines, limit):
        async def check():
            logs = TaskLogs(tmp_path_factory.mktemp("logs"), ManualClock())
            text = "".join(f"{line}\n" for line in lines)
            await logs.append_at(key(), 0, text)
            read, offset = "", 0
            while True:
                piece, offset = await logs.read(key(), offset=offset, limit=limit)
                if not piece:
                    break
                assert len(piece.encode()) <= limit
                read += piece
            assert (read, offset) == (text, len(text.encode()))
            await asyncio.to_thread(logs.close)

        asyncio.run(check())


ODD_IDS = [
    "",
    ".",
    "..",
    "...",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "~",
    "*",
    "task 1",
    "ünï¢ødé-任务",
    "x" * 256,
    "x" * 255 + "y",
    "ä" * 256,
    "%2E%2E",
    "%",
    "1.log",
    "-rf",
    "a\tb",
    "%2E",
]


class TestPath:
    @pytest.mark.parametrize("task_id", ODD_IDS)
    async def test_any_id_stays_below_the_directory(self, logs, tmp_path, task_id):
        await logs.append(key(task_id), [task_id])

        path = logs.path(key(task_id)).resolve()
        assert path.relative_to(tmp_path / "logs").parts == (path.parent.name, "1.log")
        assert path.is_file()
        assert (await text_of(logs, key(task_id))).count("\n") == max(1, len(task_id.splitlines()))

    def test_no_two_ids_share_a_file(self, logs):
        ids = [*ODD_IDS, *(logs.path(key(task_id)).parent.name for task_id in ODD_IDS)]
        paths = {logs.path(key(task_id)) for task_id in ids}

        assert len(paths) == len(set(ids))

    def test_attempts_have_files_of_their_own(self, logs):
        assert logs.path(key(attempt=1)) != logs.path(key(attempt=2))

    def test_readable_ids_stay_readable(self, logs):
        assert logs.path(key("daily_2026-11-20, train: a@b+c=d")).parent.name == "daily_2026-11-20, train: a@b+c=d"


class TestRemove:
    async def test_takes_files_and_the_directories_that_are_empty_then(self, logs, tmp_path):
        for of in (key("a", 1), key("a", 2), key("b")):
            await logs.append(of, ["x"])
        await logs.remove([key("a", 1), key("b"), key("never there")])

        assert not logs.path(key("b")).parent.exists()
        assert logs.path(key("a", 2)).exists()
        assert not logs.path(key("a", 1)).exists()
        assert (tmp_path / "logs").is_dir()

    async def test_a_log_that_was_removed_begins_anew(self, logs):
        await logs.append_at(key(), 0, "old\n")
        await logs.remove([key()])

        assert await logs.append_at(key(), 0, "new\n") == 4

    async def test_the_log_of_an_empty_id_is_removed_alone(self, logs):
        await logs.append(key(""), ["x"])
        await logs.append(key("b"), ["x"])
        await logs.remove([key("")])

        assert await text_of(logs, key("")) == ""
        assert await text_of(logs, key("b")) != ""


async def test_a_directory_that_cannot_be_made_is_the_callers_error(tmp_path, clock):
    (tmp_path / "file").write_text("in the way")
    logs = TaskLogs(tmp_path / "file" / "logs", clock)
    with pytest.raises(OSError, match="Not a directory"):
        await logs.append(key(), ["x"])
    await asyncio.to_thread(logs.close)


async def test_closing_writes_what_waits(tmp_path, clock):
    logs = TaskLogs(tmp_path, clock)
    writes = [asyncio.ensure_future(logs.append(key(), [str(number)])) for number in range(100)]
    await asyncio.sleep(0)
    await asyncio.to_thread(logs.close)
    await asyncio.gather(*writes)

    assert len(logs.path(key()).read_text().splitlines()) == 100
