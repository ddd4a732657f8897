"""The guard of tests/conftest.py fires for what is ours, wherever it hides, and only on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from blockbuster import BlockingError
from remora.config import Properties
from remora.database import Database


@pytest.fixture
def properties(tmp_path: Path) -> Path:
    path = tmp_path / "common.properties"
    path.write_text("worker.capacity = 3\n")
    return path


async def test_a_file_of_ours_that_is_read_on_the_loop_is_an_error(properties, blocking_calls):
    with pytest.raises(BlockingError, match=r"read"):
        Properties.load(properties)

    blocking_calls.clear()


async def test_a_call_that_somebody_swallowed_is_still_written_down_with_its_stack(properties, blocking_calls):
    with contextlib.suppress(Exception):
        Properties.load(properties)

    (call,) = blocking_calls
    assert call.startswith("io.")
    assert "remora/config.py" in call
    blocking_calls.clear()


async def test_sqlite_on_the_loop_is_an_error(tmp_path, blocking_calls):
    async with Database.open(tmp_path / "journal.db", migrations=["CREATE TABLE kept (value)"]) as database:
        with pytest.raises(BlockingError, match="sqlite3"):
            database._commit([])

    blocking_calls.clear()


async def test_threads_may_block(properties):
    assert await asyncio.to_thread(Properties.load, properties) is not None


def test_code_outside_of_a_loop_may_block(properties):
    assert Properties.load(properties) is not None
