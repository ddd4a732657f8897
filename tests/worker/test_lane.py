"""A queue of keys, each driven by one of a few tasks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from remora.lane import Lane
from remora.plugin import TaskKey
from remora.testing import settle
from structlog.testing import capture_logs


def key(name):
    return TaskKey(task_id=name, attempt=1)


class Drive:
    """Drives keys for as long as the test says, and writes down which and how many at a time."""

    def __init__(self):
        self.driven, self.ended, self.now, self.most = [], [], [], 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, driven):
        assert driven not in self.now, "twice at once"
        self.driven.append(driven.task_id)
        self.now.append(driven)
        self.most = max(self.most, len(self.now))
        try:
            await self.gate.wait()
        finally:
            self.now.remove(driven)
        self.ended.append(driven.task_id)


@pytest.fixture
def drive():
    return Drive()


@pytest.fixture
def lane(drive):
    return Lane(drive)


@pytest.fixture
def started(lane):
    """Drive while a block runs, so many at a time."""

    @contextlib.asynccontextmanager
    async def started(concurrency=1):
        async with asyncio.TaskGroup() as group:
            loops = lane.start(group, "drive", concurrency)
            yield loops
            for loop in loops:
                loop.cancel()

    return started


async def test_keys_are_driven_in_their_order(lane, drive, started):
    for name in "abc":
        lane.put(key(name))
    async with started():
        await settle()

    assert drive.driven == ["a", "b", "c"]


async def test_urgent_keys_come_first(lane, drive, started):
    lane.put(key("a"))
    lane.put(key("b"))
    lane.put(key("stop"), urgent=True)
    async with started():
        await settle()

    assert drive.driven == ["stop", "a", "b"]


async def test_a_key_that_becomes_urgent_moves_ahead_and_is_driven_once(lane, drive, started):
    for name in "abc":
        lane.put(key(name))
    lane.put(key("c"), urgent=True)
    async with started():
        await settle()

    assert drive.driven == ["c", "a", "b"]


async def test_a_key_that_is_put_often_is_driven_once(lane, drive, started):
    for _ in range(5):
        lane.put(key("a"))
        lane.put(key("a"), urgent=True)
    async with started(3):
        await settle()

    assert drive.driven == ["a"]


async def test_only_so_many_are_driven_at_a_time(lane, drive, started):
    drive.gate.clear()
    for number in range(10):
        lane.put(key(f"{number}"))
    async with started(3):
        await settle()
        assert len(drive.now) == 3
        drive.gate.set()
        await settle()

    assert drive.most == 3
    assert len(drive.ended) == 10


async def test_a_key_that_is_put_while_it_is_driven_is_driven_again_and_never_twice_at_once(lane, drive, started):
    drive.gate.clear()
    lane.put(key("a"))
    async with started(3):
        await settle()
        for _ in range(3):
            lane.put(key("a"))
            lane.put(key("a"), urgent=True)
        await settle()
        assert drive.driven == ["a"]
        drive.gate.set()
        await settle()

    assert drive.driven == ["a", "a"]


async def test_others_are_driven_while_one_waits_for_itself(lane, drive, started):
    drive.gate.clear()
    lane.put(key("a"))
    async with started(2):
        await settle()
        lane.put(key("a"))
        lane.put(key("b"))
        await settle()
        assert drive.driven == ["a", "b"]


async def test_loops_have_names(lane, started):
    async with started(2) as loops:
        assert [loop.get_name() for loop in loops] == ["drive 1", "drive 2"]


async def test_an_error_ends_the_loops(lane):
    async def fail(_):
        raise ZeroDivisionError

    lane = Lane(fail)
    lane.put(key("a"))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            lane.start(group, "drive", 2)
    assert caught.group_contains(ZeroDivisionError)


class TestFinish:
    async def test_is_at_once_where_nothing_is_driven(self, lane, clock, started):
        async with started():
            await lane.finish(10, clock)

        assert clock.sleepers == 0

    async def test_waits_for_what_is_driven_and_begins_nothing_more(self, lane, drive, clock, started):
        drive.gate.clear()
        lane.put(key("a"))
        async with started():
            await settle()
            lane.put(key("b"))
            finishing = asyncio.ensure_future(lane.finish(10, clock))
            await settle()
            assert not finishing.done()
            drive.gate.set()
            await finishing
            lane.put(key("c"))
            await settle()

        assert drive.ended == ["a"]

    async def test_gives_up_when_its_time_is_over_and_says_on_what(self, lane, drive, clock, started):
        drive.gate.clear()
        lane.put(key("a"))
        with capture_logs() as logged:
            async with started():
                await settle()
                finishing = asyncio.ensure_future(lane.finish(10, clock))
                await clock.advance(9.9)
                assert not finishing.done()
                await clock.advance(0.1)
                await finishing

        assert logged == [{"event": "calls_under_way_abandoned", "log_level": "warning", "tasks": ["a#1"]}]

    async def test_without_time_waits_for_nobody(self, lane, drive, clock, started):
        drive.gate.clear()
        lane.put(key("a"))
        async with started():
            await settle()
            await lane.finish(0, clock)

        assert drive.ended == []
