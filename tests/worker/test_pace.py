"""Time and rates."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remora.pace import Backoff, Signal, SystemClock, Timetable, TokenBucket, completed, wait_for
from remora.testing import ManualClock, settle


def highest(low, high):
    return high


def lowest(low, high):
    return low


class TestSystemClock:
    async def test_is_the_time_of_this_machine(self):
        clock = SystemClock()

        assert clock.now() == pytest.approx(time.time(), abs=60)
        assert clock.monotonic() <= time.monotonic()
        await clock.sleep(0)


class TestBackoff:
    def test_the_ceiling_doubles_up_to_the_maximum(self):
        backoff = Backoff(initial=1.0, maximum=10.0)

        assert [backoff.delay(retries, uniform=highest) for retries in range(6)] == [1, 2, 4, 8, 10, 10]

    def test_a_delay_is_never_nothing(self):
        assert Backoff(initial=1.0, maximum=10.0).delay(2, uniform=lowest) == pytest.approx(0.4)

    def test_what_the_service_asked_for_is_the_least(self):
        assert Backoff(initial=1.0, maximum=10.0).delay(0, at_least=30.0) == 30.0

    def test_a_huge_number_of_failures_is_no_overflow(self):
        assert Backoff(initial=1.0, maximum=60.0).delay(10**9, uniform=highest) == 60.0

    @given(retries=st.integers(0, 100), at_least=st.floats(0, 100))
    def test_every_delay_is_between_its_bounds(self, retries, at_least):
        backoff = Backoff(initial=0.5, maximum=20.0, factor=3.0)

        ceiling = min(20.0, 0.5 * 3.0**retries)
        assert max(at_least, ceiling / 10) <= backoff.delay(retries, at_least=at_least) <= max(at_least, ceiling)


class TestTokenBucket:
    async def test_a_burst_goes_at_once_and_the_rest_at_the_rate(self, clock):
        bucket = TokenBucket(2.0, 3.0, clock)
        served = []

        async def call(number):
            await bucket.acquire()
            served.append((number, clock.monotonic()))

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(call(number))
            await clock.advance(10)

        assert served == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (5, 1.5)]

    async def test_what_was_not_used_is_not_saved_beyond_the_burst(self, clock):
        bucket = TokenBucket(1.0, 2.0, clock)
        await clock.advance(1000)

        assert [bucket.try_acquire() for _ in range(3)] == [True, True, False]

    async def test_nobody_jumps_the_queue(self, clock):
        bucket = TokenBucket(1.0, 1.0, clock)
        await bucket.acquire()
        waiting = asyncio.ensure_future(bucket.acquire())
        await settle()
        await clock.advance(0.5)

        assert not bucket.try_acquire()
        await clock.advance(0.5)
        assert waiting.done()

    async def test_one_that_gives_up_does_not_hold_the_others_up(self, clock):
        bucket = TokenBucket(1.0, 1.0, clock)
        await bucket.acquire()
        first, second = asyncio.ensure_future(bucket.acquire()), asyncio.ensure_future(bucket.acquire())
        await settle()
        first.cancel()
        await clock.advance(1)

        assert second.done()
        assert first.cancelled()

    async def test_throttling_halves_the_rate_and_takes_what_is_left(self, clock):
        bucket = TokenBucket(8.0, 8.0, clock)
        bucket.throttled()

        assert bucket.rate == 4.0
        assert not bucket.try_acquire()
        await clock.advance(0.25)
        assert bucket.try_acquire()

    async def test_the_rate_never_falls_below_a_hundredth(self, clock):
        bucket = TokenBucket(10.0, 1.0, clock)
        for _ in range(50):
            bucket.throttled()

        assert bucket.rate == 0.1

    async def test_each_success_gives_back_a_hundredth_up_to_what_was_configured(self, clock):
        bucket = TokenBucket(10.0, 1.0, clock)
        bucket.throttled()
        bucket.succeeded()

        assert bucket.rate == pytest.approx(5.1)
        for _ in range(100):
            bucket.succeeded()
        assert bucket.rate == 10.0

    async def test_a_burst_below_one_call_still_lets_calls_through(self, clock):
        bucket = TokenBucket(0.5, 0.5, clock)

        async with asyncio.timeout(5):
            await bucket.acquire()

    async def test_calls_never_exceed_burst_and_rate(self, clock):
        bucket = TokenBucket(3.0, 5.0, clock)
        taken = 0
        for _ in range(200):
            taken += bucket.try_acquire()
            await clock.advance(0.1)

        assert taken <= 5 + 3 * 20


class TestSignal:
    async def test_wakes_everybody_who_listens(self):
        signal = Signal()
        first, second = signal.listen(), signal.listen()
        signal.notify()

        assert first.is_set()
        assert second.is_set()

    async def test_a_notification_between_the_look_and_the_wait_is_not_lost(self):
        signal = Signal()
        listening = signal.listen()
        signal.notify()

        await asyncio.wait_for(listening.wait(), 1)

    async def test_who_listens_later_waits_for_the_next_one(self):
        signal = Signal()
        signal.notify()

        assert not signal.listen().is_set()


class TestTimetable:
    async def test_keys_come_when_they_are_due_soonest_first(self, clock):
        timetable = Timetable[str](clock)
        timetable.set("late", 3)
        timetable.set("soon", 1)
        taking = asyncio.ensure_future(timetable.take())
        await clock.advance(0.9)
        assert not taking.done()
        await clock.advance(0.1)

        assert await taking == ["soon"]
        assert "soon" not in timetable
        assert "late" in timetable

    async def test_a_key_that_is_set_again_moves(self, clock):
        timetable = Timetable[str](clock)
        timetable.set("a", 1)
        timetable.set("a", 5)
        taking = asyncio.ensure_future(timetable.take())
        await clock.advance(4)
        assert not taking.done()
        await clock.advance(1)

        assert await taking == ["a"]
        assert len(timetable) == 0

    async def test_a_key_that_is_set_twice_to_the_same_time_comes_once(self, clock):
        timetable = Timetable[str](clock)
        timetable.set("a", 1)
        timetable.set("a", 1)
        timetable.set("b", 1)
        await clock.advance(1)

        assert await timetable.take() == ["a", "b"]
        assert len(timetable) == 0

    async def test_who_waits_learns_of_a_sooner_key(self, clock):
        timetable = Timetable[str](clock)
        timetable.set("late", 100)
        taking = asyncio.ensure_future(timetable.take())
        await settle()
        timetable.set("now", 0)

        assert await asyncio.wait_for(taking, 1) == ["now"]

    async def test_who_waits_for_an_empty_one_learns_of_the_first_key(self, clock):
        timetable = Timetable[str](clock)
        taking = asyncio.ensure_future(timetable.take())
        await settle()
        timetable.set("a", 2)
        await clock.advance(2)

        assert await taking == ["a"]

    async def test_a_key_that_was_taken_out_does_not_come(self, clock):
        timetable = Timetable[str](clock)
        timetable.set("a", 1)
        timetable.set("b", 2)
        timetable.discard("a")
        timetable.discard("never there")
        taking = asyncio.ensure_future(timetable.take())
        await clock.advance(2)

        assert await taking == ["b"]

    async def test_keys_that_are_nearly_due_come_along_up_to_the_limit(self, clock):
        timetable = Timetable[int](clock)
        for number in range(5):
            timetable.set(number, 1 + number)
        await clock.advance(1)

        assert await timetable.take(3, ahead=10) == [0, 1, 2]
        await clock.advance(3)
        assert await timetable.take() == [3]

    @given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.floats(0, 10))), max_size=30))
    def test_it_is_a_dictionary_of_times_in_the_order_of_the_times(self, changes):
        async def check():
            clock = ManualClock()
            timetable, model = Timetable[int](clock), {}
            for key, delay in changes:
                if delay is None:
                    timetable.discard(key)
                    model.pop(key, None)
                else:
                    timetable.set(key, delay)
                    model[key] = delay
            assert len(timetable) == len(model)
            await clock.advance(10)
            if model:
                taken = await timetable.take()
                assert sorted(taken) == sorted(model)
                assert [model[key] for key in taken] == sorted(model.values())

        asyncio.run(check())


class TestCompleted:
    async def test_gives_the_result(self):
        async def work():
            return 5

        assert await completed(work()) == 5

    async def test_gives_the_error(self):
        async def work():
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await completed(work())

    async def test_a_cancelled_caller_learns_of_it_when_the_work_is_done(self):
        gate, done = asyncio.Event(), []

        async def work():
            await gate.wait()
            done.append(True)

        caller = asyncio.ensure_future(completed(work()))
        await settle()
        caller.cancel()
        await settle()
        assert not caller.done()
        gate.set()

        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done

    async def test_an_error_after_the_caller_was_cancelled_is_no_noise(self, caplog):
        gate = asyncio.Event()

        async def work():
            await gate.wait()
            raise ValueError("nobody waits for this")

        caller = asyncio.ensure_future(completed(work()))
        await settle()
        caller.cancel()
        await settle()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        del caller
        await settle()

        assert not caplog.records


class TestWaitFor:
    async def test_says_whether_the_event_came_in_time(self, clock):
        event = asyncio.Event()
        waiting = asyncio.ensure_future(wait_for(event, 5, clock))
        await settle()
        event.set()
        assert await waiting is True

        late = asyncio.ensure_future(wait_for(asyncio.Event(), 5, clock))
        await clock.advance(5)
        assert await late is False

    async def test_no_time_is_a_look(self, clock):
        event = asyncio.Event()
        assert await wait_for(event, 0, clock) is False
        assert await wait_for(event, -1, clock) is False
        event.set()
        assert await wait_for(event, 0, clock) is True

    async def test_leaves_no_sleeper_behind(self, clock):
        event = asyncio.Event()
        waiting = asyncio.ensure_future(wait_for(event, 5, clock))
        await settle()
        assert clock.sleepers == 1
        event.set()
        await waiting

        assert clock.sleepers == 0

    async def test_a_cancelled_waiter_leaves_no_sleeper_behind(self, clock):
        waiting = asyncio.ensure_future(wait_for(asyncio.Event(), 5, clock))
        await settle()
        waiting.cancel()
        await settle()

        assert waiting.cancelled()
        assert clock.sleepers == 0
