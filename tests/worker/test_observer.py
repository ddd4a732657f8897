"""The loop that follows the jobs of one handler, with time in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
from remora import task as moves
from remora.errors import StorageUnavailable
from remora.metrics import Metrics
from remora.observer import Observer, interval
from remora.plugin import Failure, FailureKind, JobState, Observation, Polling
from remora.task import Stop, StopCause
from remora.testing import settle
from structlog.testing import capture_logs


class Follower:
    """An engine that keeps its tasks in memory and writes down what it is told, and when."""

    def __init__(self, clock):
        self._clock = clock
        self.records = {}
        self.told = []
        self.refuse = []

    def record(self, key):
        return self.records.get(key)

    async def seen(self, key, observation):
        self._take(key, observation)
        if observation.state is not JobState.RUNNING:
            del self.records[key]
        elif observation.handle is not None:
            self.records[key] = dataclasses.replace(self.records[key], handle=observation.handle.model_dump_json())

    async def unseen(self, key, failure):
        self._take(key, failure)

    def _take(self, key, answer):
        if self.refuse:
            raise self.refuse.pop()
        self.told.append((self._clock.monotonic(), key.task_id, answer))


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def follower(clock):
    return Follower(clock)


@pytest.fixture
def running(follower, assign, clock):
    """Return the record of a task whose job runs, as the follower has it."""

    def running(task_id="task", *, handler):
        assignment = assign(task_id, task_type=handler.task_type)
        handle = handler.handle(name=f"{task_id}#1", arn=f"arn:{task_id}#1").model_dump_json()
        record = moves.submitting(moves.accepted(assignment, handle, clock.now()), clock.now())
        record = moves.running(record, handle, clock.now())
        follower.records[record.key] = record
        handler.show(f"{task_id}#1", JobState.RUNNING)
        return record

    return running


@pytest.fixture
def observing(follower, clock, metrics):
    """Follow the jobs of a handler while a block runs."""

    @contextlib.asynccontextmanager
    async def observing(handler):
        observer = Observer(handler, follower, clock, metrics)
        loops = [asyncio.ensure_future(observer.run()), asyncio.ensure_future(observer.listen())]
        yield observer
        for loop in loops:
            assert not (loop.done() and loop.exception()), loop
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    return observing


def times(follower):
    return [time for time, _, _ in follower.told]


class TestInterval:
    @pytest.mark.parametrize(("age", "seconds"), [(0, 5), (49, 5), (100, 10), (599, 59.9), (600, 60), (1e9, 60)])
    def test_grows_with_age_between_its_bounds(self, age, seconds):
        assert interval(Polling(initial=5, maximum=60), age) == pytest.approx(seconds)


class TestLook:
    async def test_a_job_that_was_just_started_is_looked_at_at_once(self, handler, running, observing, follower):
        async with observing(handler) as observer:
            observer.watch(running(handler=handler), soon=True)
            await settle()

        assert times(follower) == [0]

    async def test_looks_come_less_often_with_the_age_of_the_job(self, handler, running, observing, follower, clock):
        async with observing(handler) as observer:
            observer.watch(running(handler=handler))
            await clock.advance(100)

        gaps = [after - before for before, after in zip(times(follower), times(follower)[1:], strict=False)]
        assert times(follower)[:10] == pytest.approx(list(range(1, 11)))
        assert gaps == sorted(gaps)
        assert gaps[-1] == pytest.approx(8.0)

    async def test_a_job_that_was_asked_to_stop_is_looked_at_as_a_young_one(
        self, handler, running, observing, follower, clock
    ):
        record = running(handler=handler)
        await clock.advance(1000)
        stop = Stop(cause=StopCause.CANCEL, reason="r", requested_at=clock.now())
        follower.records[record.key] = moves.stop_wished(record, stop)
        async with observing(handler) as observer:
            observer.watch(follower.records[record.key])
            await clock.advance(3)

        assert times(follower) == [1001, 1002, 1003]

    async def test_jobs_that_are_due_at_about_the_same_time_are_looked_at_together(
        self, handler, running, observing, clock
    ):
        handler.polling = Polling(initial=4.0, maximum=8.0)
        async with observing(handler) as observer:
            for name in "abc":
                observer.watch(running(name, handler=handler))
                await clock.advance(0.4)
            await clock.advance(3)

        assert handler.observed == [["a#1", "b#1", "c#1"]]

    async def test_only_so_many_are_looked_at_together(self, handler, running, observing):
        handler.polling = Polling(batch=2)
        async with observing(handler) as observer:
            for name in "abcde":
                observer.watch(running(name, handler=handler), soon=True)
            await settle(100)

        assert [len(batch) for batch in handler.observed] == [2, 2, 1]

    async def test_each_job_gets_its_own_answer(self, handler, running, observing, follower):
        async with observing(handler) as observer:
            for name in "ab":
                observer.watch(running(name, handler=handler), soon=True)
            handler.show("b#1", JobState.SUCCEEDED)
            await settle()

        assert {name: answer.state for _, name, answer in follower.told} == {
            "a": JobState.RUNNING,
            "b": JobState.SUCCEEDED,
        }

    async def test_a_job_that_has_ended_is_looked_at_no_more(self, handler, running, observing, follower, clock):
        async with observing(handler) as observer:
            observer.watch(running(handler=handler), soon=True)
            handler.show("task#1", JobState.SUCCEEDED)
            await clock.advance(100)

        assert len(follower.told) == 1

    async def test_a_task_that_was_forgotten_is_looked_at_no_more(self, handler, running, observing, clock):
        async with observing(handler) as observer:
            record = running(handler=handler)
            observer.watch(record)
            observer.forget(record.key)
            await clock.advance(100)

        assert handler.observed == []

    async def test_a_task_that_is_gone_when_its_time_comes_is_skipped(
        self, handler, running, observing, follower, clock
    ):
        async with observing(handler) as observer:
            gone, stays = running("gone", handler=handler), running("stays", handler=handler)
            observer.watch(gone)
            observer.watch(stays)
            del follower.records[gone.key]
            await clock.advance(1)

        assert handler.observed == [["stays#1"]]

    async def test_no_news_is_no_news_and_the_job_is_looked_at_again(
        self, handler, running, observing, follower, clock
    ):
        async with observing(handler) as observer:
            record = running(handler=handler)
            handler.jobs["task#1"] = None
            observer.watch(record)
            await clock.advance(2)

        assert len(handler.observed) == 2
        assert follower.told == []

    async def test_a_job_that_had_no_turn_is_looked_at_soon_whatever_its_age(
        self, handler, running, observing, follower, clock
    ):
        record = running(handler=handler)
        handler.jobs["task#1"] = None
        await clock.advance(1000)
        async with observing(handler) as observer:
            observer.watch(record)
            await clock.advance(10)

        assert len(handler.observed) == 3  # after 8 s as old as it is, then after 1 s each

    async def test_looks_are_measured(self, handler, running, observing, metrics, clock):
        handler.hold("observe")
        async with observing(handler) as observer:
            observer.watch(running(handler=handler), soon=True)
            await clock.advance(3)
            handler.let_go("observe")
            await settle()

        value = metrics.registry.get_sample_value
        assert value("remora_observe_seconds_sum", {"task_type": "SCRIPTED"}) == 3


class TestFailedLook:
    async def test_of_one_job_is_told_and_the_others_are_seen(self, handler, running, observing, follower, clock):
        failure = Failure(kind=FailureKind.TRANSIENT, message="throttled")
        async with observing(handler) as observer:
            for name in "ab":
                observer.watch(running(name, handler=handler))
            handler.jobs["a#1"] = failure
            await clock.advance(2)

        assert [(name, answer) for _, name, answer in follower.told if name == "a"] == [("a", failure)] * 2
        assert [answer.state for _, name, answer in follower.told if name == "b"] == [JobState.RUNNING] * 2

    async def test_of_all_is_told_of_each_and_repeated_with_backoff(
        self, handler, running, observing, follower, clock, service_error, metrics
    ):
        error = service_error(FailureKind.DENIED)
        handler.fail("observe", *[error] * 4)
        async with observing(handler) as observer:
            for name in "ab":
                observer.watch(running(name, handler=handler), soon=True)
            await clock.advance(200)

        assert [(name, answer) for _, name, answer in follower.told[:2]] == [("a", error.failure), ("b", error.failure)]
        assert [len(batch) for batch in handler.observed] == [2] * len(handler.observed)
        assert isinstance(follower.told[-1][2], Observation)
        value = metrics.registry.get_sample_value
        assert value("remora_remote_errors_total", {"task_type": "SCRIPTED", "kind": "DENIED"}) == 4

    async def test_comes_again_when_the_service_said(self, handler, running, observing, clock, service_error):
        handler.fail("observe", service_error(FailureKind.TRANSIENT, retry_after=500.0))
        async with observing(handler) as observer:
            observer.watch(running(handler=handler), soon=True)
            await clock.advance(499)
            assert len(handler.observed) == 1
            await clock.advance(1)
            assert len(handler.observed) == 2

    async def test_by_a_defect_is_a_failure_of_the_developers_and_goes_on(
        self, handler, running, observing, follower, clock
    ):
        handler.fail("observe", KeyError("a defect"))
        with capture_logs() as logged:
            async with observing(handler) as observer:
                observer.watch(running(handler=handler), soon=True)
                await clock.advance(60)

        assert follower.told[0][2].kind is FailureKind.INTERNAL
        assert isinstance(follower.told[-1][2], Observation)
        assert "plugin_defect" in [entry["event"] for entry in logged]

    async def test_with_too_few_answers_is_a_defect_too(self, handler, running, observing, follower, monkeypatch):
        async def observe_none(handles):
            return []

        monkeypatch.setattr(handler, "observe", observe_none)
        with capture_logs():
            async with observing(handler) as observer:
                observer.watch(running(handler=handler), soon=True)
                await settle()

        assert follower.told[0][2].kind is FailureKind.INTERNAL

    async def test_a_full_disk_does_not_end_the_following(
        self, handler, running, observing, follower, clock, service_error
    ):
        handler.fail("observe", service_error(FailureKind.TRANSIENT), None)
        follower.refuse = [StorageUnavailable("full"), StorageUnavailable("full")]
        with capture_logs() as logged:
            async with observing(handler) as observer:
                observer.watch(running(handler=handler), soon=True)
                await clock.advance(60)

        assert [entry["event"] for entry in logged].count("observation_not_taken") == 2
        assert isinstance(follower.told[0][2], Observation)

    async def test_a_handler_that_cannot_even_classify_does_not_end_the_following(
        self, handler, running, observing, follower, clock, monkeypatch
    ):
        def classify_badly(error):
            raise ZeroDivisionError

        monkeypatch.setattr(handler, "classify", classify_badly)
        handler.fail("observe", KeyError("x"))
        with capture_logs():
            async with observing(handler) as observer:
                observer.watch(running(handler=handler), soon=True)
                await clock.advance(60)

        assert follower.told[0][2].kind is FailureKind.INTERNAL
        assert isinstance(follower.told[-1][2], Observation)

    async def test_a_handle_of_another_version_is_left_for_one_that_understands_it(
        self, handler, running, observing, follower, clock
    ):
        async with observing(handler) as observer:
            record = running("strange", handler=handler)
            follower.records[record.key] = dataclasses.replace(record, handle='{"other": 1}')
            observer.watch(follower.records[record.key], soon=True)
            observer.watch(running("known", handler=handler), soon=True)
            with capture_logs() as logged:
                await clock.advance(1)

        assert handler.observed[0] == ["known#1"]
        assert [entry["event"] for entry in logged] == ["handle_not_understood"]


class TestEvents:
    async def test_a_job_that_is_named_is_looked_at_now(self, talking, running, observing, follower, clock):
        talking.polling = Polling(initial=100, maximum=100)
        async with observing(talking) as observer:
            for name in "ab":
                observer.watch(running(name, handler=talking))
            await clock.advance(10)
            talking.events.put_nowait("arn:b#1")
            await settle()

        assert [(time, name) for time, name, _ in follower.told] == [(10, "b")]

    async def test_an_event_while_a_job_is_looked_at_leads_to_another_look(
        self, talking, running, observing, follower, clock
    ):
        talking.polling = Polling(initial=100, maximum=100)
        async with observing(talking) as observer:
            talking.hold("observe")
            observer.watch(running(handler=talking), soon=True)
            await settle()
            talking.events.put_nowait("arn:task#1")
            await settle()
            talking.let_go("observe")
            await settle(50)

        assert times(follower) == [0, 0]

    async def test_the_name_that_a_job_gets_later_counts(self, talking, running, observing, follower, clock):
        talking.polling = Polling(initial=100, maximum=100)
        async with observing(talking) as observer:
            record = running(handler=talking)
            unnamed = talking.handle(name="task#1").model_dump_json()
            follower.records[record.key] = dataclasses.replace(record, handle=unnamed)
            named = talking.handle(name="task#1", arn="arn:late")
            talking.show("task#1", JobState.RUNNING, handle=named)
            observer.watch(follower.records[record.key], soon=True)
            await settle()
            talking.events.put_nowait("")
            talking.events.put_nowait("arn:late")
            await settle()

        assert times(follower) == [0, 0]

    async def test_names_of_others_are_ignored(self, talking, running, observing, follower, clock):
        talking.polling = Polling(initial=100, maximum=100)
        async with observing(talking) as observer:
            record = running(handler=talking)
            observer.watch(record)
            talking.events.put_nowait("arn:foreign")
            observer.forget(record.key)
            del follower.records[record.key]
            talking.events.put_nowait("arn:task#1")
            await clock.advance(50)

        assert talking.observed == []

    async def test_a_source_that_fails_is_asked_again_and_the_slow_look_goes_on(
        self, talking, running, observing, follower, clock
    ):
        talking.polling = Polling(initial=100, maximum=100)
        with capture_logs() as logged:
            async with observing(talking) as observer:
                observer.watch(running(handler=talking))
                talking.events.put_nowait(ConnectionError("lost"))
                await clock.advance(99.5)
                talking.events.put_nowait("arn:task#1")
                await clock.advance(0.6)
                assert times(follower) == [100]
                await clock.advance(10)
                talking.events.put_nowait("arn:task#1")
                await settle()

        assert times(follower)[1] == pytest.approx(110.1)
        assert [entry["event"] for entry in logged] == ["event_source_failed"]

    async def test_a_handler_that_cannot_name_a_job_is_followed_slowly(
        self, talking, running, observing, follower, clock, monkeypatch
    ):
        def job_id(handle):
            raise ZeroDivisionError

        monkeypatch.setattr(talking, "job_id", job_id)
        with capture_logs() as logged:
            async with observing(talking) as observer:
                observer.watch(running(handler=talking))
                await clock.advance(1)

        assert times(follower) == [1]
        assert {entry["event"] for entry in logged} == {"job_without_id"}
