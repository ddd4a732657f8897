"""The SQLite file with one writer for many callers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from remora.database import Database, lock_directory
from remora.errors import ConfigurationError, NewerSchemaError, StorageUnavailable

SCHEMA = "CREATE TABLE kept (name TEXT PRIMARY KEY, value TEXT)"


def put(name, value=""):
    return lambda connection: connection.execute("INSERT INTO kept VALUES (?, ?)", (name, value)).rowcount


def names(connection):
    return [name for (name,) in connection.execute("SELECT name FROM kept ORDER BY rowid")]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "test.db"


@pytest.fixture
async def database(path):
    async with Database.open(path, migrations=[SCHEMA]) as opened:
        yield opened


@pytest.fixture
def busy(database):
    """Keep the writer busy while a block runs, so that what is written in it makes one batch."""

    @contextlib.asynccontextmanager
    async def busy():
        begun, gate = threading.Event(), threading.Event()

        def wait(connection):
            begun.set()
            assert gate.wait(10)

        waiting = asyncio.ensure_future(database.write(wait))
        await asyncio.to_thread(begun.wait, 10)
        try:
            yield
            await asyncio.sleep(0)
        finally:
            gate.set()
            await waiting

    return busy


class TestWrite:
    async def test_gives_the_result_and_is_seen_by_readers(self, database):
        assert await database.write(put("a")) == 1
        assert await database.read(names) == ["a"]

    async def test_is_on_disk_after_the_file_was_closed(self, path):
        async with Database.open(path, migrations=[SCHEMA]) as database:
            await database.write(put("a"))
        async with Database.open(path, migrations=[SCHEMA]) as database:
            assert await database.read(names) == ["a"]

    async def test_syncs_every_commit(self, database):
        pragmas = await database.write(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )
        assert pragmas == ["wal", 2, 1]

    async def test_callers_that_come_while_the_disk_is_busy_share_a_commit_in_their_order(self, database, busy):
        statements = []
        await database.write(lambda connection: connection.set_trace_callback(statements.append))
        async with busy():
            writes = [asyncio.ensure_future(database.write(put(str(number)))) for number in range(100)]
        await asyncio.gather(*writes)

        assert await database.read(names) == [str(number) for number in range(100)]
        assert statements.count("COMMIT") == 2 + 1  # the trace's own, the one that was held, and one for all

    async def test_an_error_of_its_own_does_not_harm_its_neighbours(self, database, busy):
        def refuse(connection):
            raise KeyError("mine")

        async with busy():
            writes = [asyncio.ensure_future(database.write(each)) for each in (put("a"), refuse, put("b"))]
        results = await asyncio.gather(*writes, return_exceptions=True)

        assert [type(result) for result in results] == [int, KeyError, int]
        assert await database.read(names) == ["a", "b"]

    async def test_an_error_of_sqlite_harms_only_the_one_that_caused_it(self, database, busy):
        async with busy():
            writes = [asyncio.ensure_future(database.write(put(name))) for name in ("a", "b", "a", "c")]
        results = await asyncio.gather(*writes, return_exceptions=True)

        assert [type(result) for result in results] == [int, int, StorageUnavailable, int]
        assert await database.read(names) == ["a", "b", "c"]

    async def test_what_failed_has_changed_nothing(self, database):
        def half(connection):
            connection.execute("INSERT INTO kept VALUES ('half', '')")
            connection.execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(StorageUnavailable, match=r"test\.db: no such table: nowhere\. Nothing was changed"):
            await database.write(half)
        assert await database.read(names) == []

    async def test_the_write_of_a_caller_who_left_stands(self, database, busy):
        async with busy():
            left = asyncio.ensure_future(database.write(put("a")))
            await asyncio.sleep(0)
            left.cancel()
            stayed = asyncio.ensure_future(database.write(put("b")))
        assert await stayed == 1
        assert left.cancelled()

        assert await database.read(names) == ["a", "b"]

    async def test_what_waits_at_the_end_is_written(self, path):
        async with Database.open(path, migrations=[SCHEMA]) as database:
            writes = [asyncio.ensure_future(database.write(put(str(number)))) for number in range(3000)]
            await asyncio.sleep(0)
        assert sum(await asyncio.gather(*writes)) == 3000

    async def test_callers_of_several_loops_are_all_served(self, database):
        await asyncio.to_thread(lambda: asyncio.run(database.write(put("elsewhere"))))
        await database.write(put("here"))

        assert await database.read(names) == ["elsewhere", "here"]


class TestFullDisk:
    @pytest.fixture
    async def limit(self, database):
        async def limit(pages):
            return await database.write(
                lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
            )

        return limit

    async def test_a_write_is_refused_and_the_next_one_works_when_there_is_room(self, database, limit):
        await database.write(put("before"))
        await limit(1)
        with pytest.raises(StorageUnavailable, match="full"):
            await database.write(put("big", "x" * 100_000))
        assert await database.read(names) == ["before"]

        await limit(1_000_000)
        await database.write(put("big", "x" * 100_000))
        assert await database.read(names) == ["before", "big"]

    async def test_small_writes_beside_a_big_one_are_kept(self, database, limit, busy):
        await limit(1)
        async with busy():
            writes = [
                asyncio.ensure_future(database.write(each)) for each in (put("a"), put("big", "x" * 100_000), put("b"))
            ]
        results = await asyncio.gather(*writes, return_exceptions=True)

        assert [type(result) for result in results] == [int, StorageUnavailable, int]
        assert await database.read(names) == ["a", "b"]


class TestRead:
    async def test_cannot_write(self, database):
        with pytest.raises(StorageUnavailable, match="readonly"):
            await database.read(put("a"))

    async def test_an_error_of_its_own_is_the_callers(self, database):
        with pytest.raises(ZeroDivisionError):
            await database.read(lambda _: 1 / 0)

    async def test_sees_only_what_is_committed(self, database):
        begun, gate = threading.Event(), threading.Event()

        def slow(connection):
            connection.execute("INSERT INTO kept VALUES ('slow', '')")
            begun.set()
            assert gate.wait(10)

        writing = asyncio.ensure_future(database.write(slow))
        await asyncio.to_thread(begun.wait, 10)
        assert await database.read(names) == []
        gate.set()
        await writing
        assert await database.read(names) == ["slow"]


class TestOpen:
    async def test_brings_an_older_schema_up_to_date_once(self, path):
        async with Database.open(path, migrations=[SCHEMA]) as database:
            await database.write(put("a"))
        newer = [SCHEMA, "ALTER TABLE kept ADD COLUMN more TEXT DEFAULT 'new'; UPDATE kept SET value = value || '!'"]
        for _ in range(2):
            async with Database.open(path, migrations=newer) as database:
                rows = await database.read(lambda connection: connection.execute("SELECT * FROM kept").fetchall())
                assert rows == [("a", "!", "new")]

    async def test_a_migration_that_fails_changes_nothing(self, path):
        async with Database.open(path, migrations=[SCHEMA]):
            pass
        with pytest.raises(ConfigurationError, match="nowhere"):
            async with Database.open(path, migrations=[SCHEMA, "DROP TABLE kept; DROP TABLE nowhere"]):
                pass
        async with Database.open(path, migrations=[SCHEMA]) as database:
            assert await database.read(names) == []

    async def test_a_newer_schema_is_refused_with_both_numbers(self, path):
        async with Database.open(path, migrations=[SCHEMA, "CREATE TABLE more (a)"]):
            pass
        with pytest.raises(NewerSchemaError, match=r"schema 2, this one knows 1\)\. Start that version"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass

    async def test_a_database_of_another_program_is_left_alone(self, path):
        path.parent.mkdir()
        with contextlib.closing(sqlite3.connect(path)) as foreign:
            foreign.execute("CREATE TABLE theirs (a)")
        with pytest.raises(ConfigurationError, match="is a database of another program"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass
        with contextlib.closing(sqlite3.connect(path)) as foreign:
            assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
            assert foreign.execute("PRAGMA journal_mode").fetchone() == ("delete",)

    async def test_a_file_that_is_no_database_is_left_alone(self, path):
        path.parent.mkdir()
        path.write_bytes(b"holiday photographs" * 1000)
        with pytest.raises(ConfigurationError, match="not a database"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass
        assert path.read_bytes() == b"holiday photographs" * 1000

    @pytest.mark.parametrize("directory", ["{tmp_path}/file/data", "/proc/remora"])
    async def test_a_directory_that_cannot_be_made_is_named(self, tmp_path, directory):
        (tmp_path / "file").write_text("in the way")
        path = Path(directory.format(tmp_path=tmp_path)) / "test.db"
        with pytest.raises(ConfigurationError, match=r"test\.db: cannot be opened for writing"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass

    async def test_a_directory_in_place_of_the_file_is_refused(self, path):
        path.mkdir(parents=True)
        with pytest.raises(ConfigurationError, match="unable to open database file"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
    async def test_a_file_that_cannot_be_written_is_refused_at_the_start(self, path):
        async with Database.open(path, migrations=[SCHEMA]):
            pass
        path.chmod(0o400)
        path.parent.chmod(0o500)
        with pytest.raises(ConfigurationError, match=r"readonly|unable to open"):
            async with Database.open(path, migrations=[SCHEMA]):
                pass
        path.parent.chmod(0o700)

    async def test_leaves_no_thread_behind(self, path):
        before = set(threading.enumerate())
        async with Database.open(path, migrations=[SCHEMA]) as database:
            await database.write(put("a"))
            await database.read(names)
        assert not [thread for thread in set(threading.enumerate()) - before if "test.db" in thread.name]


HOLD = """
import sys, pathlib
from remora.database import lock_directory
with lock_directory(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLockDirectory:
    def test_can_be_taken_again_when_it_was_given_back(self, tmp_path):
        for _ in range(2):
            with lock_directory(tmp_path / "data"):
                assert (tmp_path / "data" / "lock").exists()

    def test_another_process_has_it(self, tmp_path):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ConfigurationError, match="is in use by another process"), lock_directory(tmp_path):
                pass
            holder.kill()
            holder.wait()
            with lock_directory(tmp_path):
                pass

    def test_an_unwritable_place_is_named(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with (
            pytest.raises(ConfigurationError, match=r"file/data: cannot be written: Not a directory"),
            lock_directory(tmp_path / "file" / "data"),
        ):
            pass
