"""The test doubles themselves, and the behaviour suite on handlers that break it."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import BaseModel
from remora.plugin import Failure, FailureKind, JobState, LogPage, Observation, TaskHandler
from remora.testing import HandlerContract, ManualClock, Workbench, settle


class TestManualClock:
    async def test_stands_still_until_it_is_told(self):
        clock = ManualClock(now=100.0)
        sleeping = asyncio.ensure_future(clock.sleep(5))
        await settle()

        assert (clock.now(), clock.monotonic(), clock.sleepers) == (100.0, 0.0, 1)
        await clock.advance(4.9)
        assert not sleeping.done()
        await clock.advance(0.1)
        assert sleeping.done()
        assert (clock.now(), clock.monotonic(), clock.sleepers) == (105.0, 5.0, 0)

    async def test_wakes_in_the_order_of_time_and_shows_each_its_own(self):
        clock = ManualClock()
        woken = []

        async def sleep(seconds):
            await clock.sleep(seconds)
            woken.append((seconds, clock.monotonic()))

        async with asyncio.TaskGroup() as group:
            for seconds in (3, 1, 2):
                group.create_task(sleep(seconds))
            await clock.advance(10)

        assert woken == [(1, 1), (2, 2), (3, 3)]

    async def test_who_sleeps_again_is_woken_again_on_the_way(self):
        clock = ManualClock()
        ticks = []

        async def tick():
            while True:
                await clock.sleep(1)
                ticks.append(clock.monotonic())

        ticking = asyncio.ensure_future(tick())
        await clock.advance(3.5)
        ticking.cancel()

        assert ticks == [1, 2, 3]

    async def test_a_cancelled_sleeper_is_none(self):
        clock = ManualClock()
        sleeping = asyncio.ensure_future(clock.sleep(1))
        await settle()
        sleeping.cancel()
        await settle()

        assert clock.sleepers == 0
        await clock.advance(2)

    async def test_no_time_is_a_turn_of_the_loop(self):
        clock = ManualClock()
        turns = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await clock.sleep(0)

        assert turns == [1]

    async def test_times_are_as_fine_as_what_is_slept(self):
        clock = ManualClock()
        due = clock.monotonic() + 0.123456789
        sleeping = asyncio.ensure_future(clock.sleep(due - clock.monotonic()))
        await clock.advance(1)
        await sleeping
        clock = ManualClock()
        await clock.advance(0.123456789)

        assert clock.monotonic() == due


class MemoryParameters(BaseModel):
    end: JobState


class MemoryHandle(BaseModel):
    name: str


class MemoryHandler(TaskHandler):
    """The least that keeps the contract. Its service is a dictionary of observations."""

    task_type = "MEMORY"
    title = "Jobs in memory"
    parameters = MemoryParameters
    handle = MemoryHandle

    def __init__(self, jobs, ends):
        self.jobs, self.ends = jobs, ends

    def prepare(self, task, parameters):
        return MemoryHandle(name=str(task.key))

    async def submit(self, task, parameters, handle):
        self.ends[handle.name] = parameters.end
        self.jobs.setdefault(handle.name, Observation(state=JobState.RUNNING))
        return handle

    async def observe(self, handles):
        failure = Failure(kind=FailureKind.EXECUTION, message="gone")
        return [self.jobs.get(each.name, Observation(state=JobState.FAILED, failure=failure)) for each in handles]

    async def cancel(self, handle):
        if handle.name in self.jobs and self.jobs[handle.name].state is JobState.RUNNING:
            self.jobs[handle.name] = Observation(state=JobState.STOPPED)

    def classify(self, error):
        return Failure(kind=FailureKind.TRANSIENT, message="late") if isinstance(error, TimeoutError) else None

    async def read_logs(self, handle, cursor):
        return LogPage(lines=() if cursor else ("one", "two"), cursor="2")

    def job_id(self, handle):
        return handle.name

    async def changes(self):
        yield ""


class MemoryBench(Workbench):
    secrets = ("hunter2",)
    known_errors = (TimeoutError(),)

    def __init__(self, kind=MemoryHandler):
        self.service, self._kind = {}, kind
        self.handler = kind(self.service, {})

    def parameters(self, end):
        return json.dumps({"end": end})

    async def finish(self):
        failure = Failure(kind=FailureKind.EXECUTION, message="as told")
        for name, job in self.service.items():
            if job.state is JobState.RUNNING:
                end = self.handler.ends[name]
                self.service[name] = Observation(state=end, failure=failure if end is JobState.FAILED else None)

    async def jobs(self):
        return len(self.service)

    async def vanish(self, handle):
        del self.service[handle.name]

    async def restart(self):
        self.handler = self._kind(self.service, self.handler.ends)


class TestTheLeastThatKeepsTheContract(HandlerContract):
    @pytest.fixture
    def bench(self):
        return MemoryBench()


class ForgetsTheAttempt(MemoryHandler):
    def prepare(self, task, parameters):
        return MemoryHandle(name=task.key.task_id)


class NamesAtRandom(MemoryHandler):
    def prepare(self, task, parameters):
        return MemoryHandle(name=f"{task.key}-{id(self)}")


class CreatesInPrepare(MemoryHandler):
    def prepare(self, task, parameters):
        self.jobs[str(task.key)] = Observation(state=JobState.RUNNING)
        return MemoryHandle(name=str(task.key))


class CreatesEachTime(MemoryHandler):
    async def submit(self, task, parameters, handle):
        name = f"{handle.name}-{len(self.jobs)}"
        self.jobs[name] = Observation(state=JobState.RUNNING)
        self.ends[name] = parameters.end
        return MemoryHandle(name=name)


class StrictHandle(MemoryHandler):
    handle = type("StrictHandle", (MemoryHandle,), {"model_config": {"extra": "forbid"}})

    async def submit(self, task, parameters, handle):
        return self.handle(name=(await super().submit(task, parameters, handle)).name)


class AnswersInItsOwnOrder(MemoryHandler):
    async def observe(self, handles):
        return sorted(await super().observe(handles), key=lambda observation: observation.state)


class AnswersOnlyWhatIsThere(MemoryHandler):
    async def observe(self, handles):
        return [self.jobs[each.name] for each in handles if each.name in self.jobs]


class RaisesForWhatIsGone(MemoryHandler):
    async def observe(self, handles):
        return [self.jobs[each.name] for each in handles]


class NeverHasNews(MemoryHandler):
    async def observe(self, handles):
        return [None for _ in handles]


class StopsWhatHasEnded(MemoryHandler):
    async def cancel(self, handle):
        if handle.name in self.jobs:
            self.jobs[handle.name] = Observation(state=JobState.STOPPED)


class RefusesTheSecondStop(MemoryHandler):
    async def cancel(self, handle):
        assert self.jobs[handle.name].state is JobState.RUNNING, "there is nothing to stop"
        await super().cancel(handle)


class ExplainsEverything(MemoryHandler):
    def classify(self, error):
        return Failure(kind=FailureKind.TRANSIENT, message="try again")


class KnowsNothing(MemoryHandler):
    def classify(self, error):
        return None


class TellsItsSecret(MemoryHandler):
    async def read_logs(self, handle, cursor):
        return LogPage(lines=("logged in with hunter2",), cursor="1", done=True)


class LogsWithoutEnd(MemoryHandler):
    async def read_logs(self, handle, cursor):
        return LogPage(lines=("again",), cursor=cursor)


class NamesNoJobs(MemoryHandler):
    def job_id(self, handle):
        return ""


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (ForgetsTheAttempt, HandlerContract.test_another_attempt_and_another_task_get_other_names),
        (ForgetsTheAttempt, HandlerContract.test_another_attempt_is_another_job),
        (NamesAtRandom, HandlerContract.test_the_same_task_gets_the_same_name),
        (CreatesInPrepare, HandlerContract.test_a_name_creates_nothing),
        (CreatesEachTime, HandlerContract.test_submitting_again_finds_the_same_job),
        (CreatesEachTime, HandlerContract.test_a_job_whose_handle_was_lost_is_found_by_its_name),
        (CreatesEachTime, HandlerContract.test_two_who_submit_at_once_create_one_job),
        (CreatesEachTime, HandlerContract.test_a_job_that_has_ended_is_found_and_not_created_again),
        (AnswersInItsOwnOrder, HandlerContract.test_many_jobs_are_answered_in_order),
        (AnswersOnlyWhatIsThere, HandlerContract.test_a_job_that_is_gone_has_failed),
        (NeverHasNews, HandlerContract.test_a_job_runs_until_it_ends),
        (StopsWhatHasEnded, HandlerContract.test_a_stop_after_the_end_changes_nothing),
        (RefusesTheSecondStop, HandlerContract.test_a_job_may_be_asked_to_stop_twice),
        (ExplainsEverything, HandlerContract.test_foreign_errors_are_not_explained_away),
        (KnowsNothing, HandlerContract.test_its_own_errors_are_known),
        (TellsItsSecret, HandlerContract.test_secrets_are_seen_nowhere),
        (LogsWithoutEnd, HandlerContract.test_a_log_ends_and_reads_the_same_again),
        (NamesNoJobs, HandlerContract.test_events_have_a_name_for_each_job),
    ],
    ids=lambda value: value.__name__,
)
async def test_a_handler_that_breaks_a_rule_fails_its_test(broken, rule):
    with pytest.raises(AssertionError):
        await rule(HandlerContract(), MemoryBench(broken))


async def test_an_error_of_the_handler_fails_the_test_as_it_is():
    with pytest.raises(KeyError):
        await HandlerContract().test_a_job_that_is_gone_has_failed(MemoryBench(RaisesForWhatIsGone))
    with pytest.raises(ValueError, match="of_a_later_version"):
        await HandlerContract().test_handles_of_a_later_version_are_understood(MemoryBench(StrictHandle))
