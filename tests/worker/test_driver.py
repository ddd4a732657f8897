"""The next step of each task: what becomes of a submission that does not work."""

from __future__ import annotations

import pytest
from remora.engine import EngineSettings
from remora.plugin import FailureKind, InvalidTask, TaskKey
from remora.task import TaskState
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

KEY = TaskKey(task_id="task", attempt=1)


@pytest.fixture
def accept(worker, assign):
    """Accept a task of which some submissions fail, before or after their effect."""

    async def accept(*errors, lost=(), **others):
        worker._handlers[0].fail("submit", *errors)
        worker._handlers[0].lose("submit", *lost)
        return await worker.engine.accept(assign(**others))

    return accept


@pytest.fixture
def state(worker):
    return lambda state: lambda: worker.reached(KEY, state)


@pytest.fixture
def next_try(worker, until, clock):
    """Wait until a submission has failed and let the time pass until the next one; return how long."""

    async def next_try():
        repeats = worker.engine._driver._repeats
        await until(lambda: KEY in repeats)
        delay = repeats._due[KEY] - clock.monotonic()
        await clock.advance(delay)
        return delay

    return next_try


@pytest.fixture
def tried(worker, handler):
    """Return a condition: so many submissions have failed, and what follows from them is written."""

    async def tried(times):
        return handler.calls["submit"] >= times and (await worker.log(KEY)).count("again in") >= times

    return lambda times: lambda: tried(times)


class TestTransient:
    async def test_is_repeated_until_it_works(self, worker, handler, accept, eventually, state, service_error):
        await accept(*[service_error(FailureKind.TRANSIENT)] * 5)
        await eventually(state(TaskState.RUNNING))

        assert handler.calls["submit"] == 6
        assert handler.created == {"task#1": 1}
        assert (await worker.log(KEY)).count("the service says TRANSIENT") == 5
        assert (await worker.log(KEY)).count("accepted SCRIPTED task") == 1

    async def test_may_have_created_the_job_and_finds_it(self, handler, accept, eventually, state, service_error):
        await accept(lost=[service_error(FailureKind.TRANSIENT), service_error(FailureKind.TRANSIENT)])
        await eventually(state(TaskState.RUNNING))

        assert handler.calls["submit"] == 3
        assert handler.created == {"task#1": 1}

    async def test_leaves_the_state_in_doubt_and_says_what_it_waits_for(
        self, worker, accept, until, tried, service_error
    ):
        await accept(service_error(FailureKind.TRANSIENT))
        await until(tried(1))
        await until(lambda: worker.engine.record(KEY).detail.endswith("the service says TRANSIENT"))

        assert worker.engine.record(KEY).state is TaskState.SUBMITTING

    async def test_waits_as_long_as_the_service_said(self, accept, next_try, until, state, service_error):
        await accept(service_error(FailureKind.TRANSIENT, retry_after=120.0))

        assert await next_try() == 120
        await until(state(TaskState.RUNNING))

    async def test_is_repeated_less_and_less_often(self, accept, next_try, service_error):
        await accept(*[service_error(FailureKind.TRANSIENT)] * 20)
        delays = [await next_try() for _ in range(20)]

        for delay, ceiling in zip(delays, [1, 2, 4, 8, 16, 32, *[60] * 14], strict=True):
            assert ceiling / 10 <= delay <= ceiling


class TestExhausted:
    async def test_waits_without_a_job_and_works_later(
        self, worker, handler, accept, until, eventually, state, tried, service_error
    ):
        await accept(*[service_error(FailureKind.EXHAUSTED)] * 3)
        await until(tried(1))
        await until(lambda: worker.engine.record(KEY).state is TaskState.ACCEPTED)
        assert "the service says EXHAUSTED" in worker.engine.record(KEY).detail
        await eventually(state(TaskState.RUNNING))

        assert handler.calls["submit"] == 4
        assert handler.created == {"task#1": 1}

    async def test_fails_when_it_has_waited_long_enough(
        self, worker, handler, accept, next_try, until, state, service_error
    ):
        await worker.crash()
        await worker.start(EngineSettings(capacity_wait=600.0, drain=0.0))
        await accept(*[service_error(FailureKind.EXHAUSTED)] * 1000)
        waited = 0.0
        while waited < 600:
            waited += await next_try()
        ended = await until(state(TaskState.FAILED))

        assert ended.failure.kind is FailureKind.EXHAUSTED
        assert ended.finished_at - ended.created_at == pytest.approx(waited)
        assert handler.created == {}

    async def test_of_a_task_that_may_have_a_job_does_not_deny_it(
        self, worker, handler, accept, until, eventually, tried, state, service_error
    ):
        await accept(lost=[service_error(FailureKind.TRANSIENT)])
        await until(tried(1))
        handler.fail("submit", service_error(FailureKind.EXHAUSTED))
        await eventually(tried(2))
        assert worker.engine.record(KEY).state is TaskState.SUBMITTING
        await eventually(state(TaskState.RUNNING))

        assert handler.created == {"task#1": 1}

    async def test_of_a_task_that_was_to_stop_is_the_end(self, worker, handler, accept, until, state, service_error):
        handler.hold("submit")
        await accept(service_error(FailureKind.EXHAUSTED))
        await until(lambda: handler.held["submit"] == 1)
        await worker.engine.cancel(KEY, door="test", fencing_token=0, reason="enough")
        handler.let_go("submit")
        await until(state(TaskState.CANCELLED))

        assert handler.created == {}


class TestDenied:
    async def test_fails_at_once(self, worker, handler, accept, until, state, service_error):
        await accept(service_error(FailureKind.DENIED))
        ended = await until(state(TaskState.FAILED))

        assert (ended.failure.kind, ended.failure.code) == (FailureKind.DENIED, "DENIEDCode")
        assert ended.detail == ended.failure.message
        assert handler.calls["submit"] == 1
        assert "[ERROR]" in (await worker.log(KEY)).splitlines()[-1]

    async def test_of_a_task_that_may_have_a_job_does_not_deny_it(
        self, handler, accept, until, eventually, tried, state, service_error
    ):
        await accept(lost=[service_error(FailureKind.TRANSIENT)])
        await until(tried(1))
        handler.fail("submit", *[service_error(FailureKind.DENIED)] * 3)
        await eventually(state(TaskState.RUNNING))

        assert handler.calls["submit"] == 5
        assert handler.created == {"task#1": 1}


class TestOtherFailures:
    @pytest.mark.parametrize("kind", [FailureKind.INVALID, FailureKind.EXECUTION, FailureKind.INTERNAL])
    async def test_fail_at_once(self, handler, accept, until, state, service_error, kind):
        await accept(service_error(kind))
        ended = await until(state(TaskState.FAILED))

        assert ended.failure.kind is kind
        assert handler.calls["submit"] == 1

    async def test_an_invalid_task_names_the_paths(self, accept, until, state):
        await accept(InvalidTask({"request.Name": "does not exist"}))
        ended = await until(state(TaskState.FAILED))

        assert ended.failure.kind is FailureKind.INVALID
        assert ended.failure.details == {"request.Name": "does not exist"}

    async def test_a_defect_fails_the_task_and_its_text_stays_in_the_workers_log(self, worker, accept, until, state):
        with capture_logs() as logged:
            await accept(KeyError("hunter2"))
            ended = await until(state(TaskState.FAILED))

        assert (ended.failure.kind, ended.failure.code) == (FailureKind.INTERNAL, "KeyError")
        assert "hunter2" not in ended.failure.message + await worker.log(KEY)
        assert "plugin_defect" in [entry["event"] for entry in logged]

    async def test_are_counted_by_who_has_to_act(self, worker, accept, until, state, service_error):
        await accept(service_error(FailureKind.DENIED))
        await until(state(TaskState.FAILED))

        value = worker.metrics.registry.get_sample_value
        assert value("remora_remote_errors_total", {"task_type": "SCRIPTED", "kind": "DENIED"}) == 1

    async def test_of_one_task_are_no_failures_of_others(self, worker, accept, assign, until, service_error):
        await accept(service_error(FailureKind.DENIED))
        await worker.engine.accept(assign("other"))

        await until(lambda: worker.reached(KEY, TaskState.FAILED))
        await until(lambda: worker.reached(TaskKey(task_id="other", attempt=1), TaskState.RUNNING))


class TestStep:
    async def test_a_defect_of_our_own_is_repeated_and_harms_no_other_task(
        self, worker, handler, accept, assign, until, eventually, monkeypatch, state
    ):
        async def fail_once(key):
            if key == KEY and not failed:
                failed.append(key)
                raise ZeroDivisionError
            return await definition(key)

        failed, definition = [], worker.journal.definition
        monkeypatch.setattr(worker.journal, "definition", fail_once)
        with capture_logs() as logged:
            await accept()
            await until(lambda: failed)
            await worker.engine.accept(assign("other"))
            await until(lambda: worker.reached(TaskKey(task_id="other", attempt=1), TaskState.RUNNING))
            await eventually(state(TaskState.RUNNING))

        assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["step_failed"]
        assert handler.created == {"task#1": 1, "other#1": 1}

    async def test_what_is_logged_in_a_step_names_the_task(self, handler, accept, until, state, monkeypatch):
        bound = []

        async def note(verb):
            bound.append((verb, get_contextvars()))

        monkeypatch.setattr(handler, "_begin", note)
        await accept()
        await until(state(TaskState.RUNNING))

        assert bound[0] == ("submit", {"task_id": "task", "attempt": 1, "task_type": "SCRIPTED"})

    async def test_the_time_from_acceptance_to_a_job_is_measured(self, worker, handler, accept, until, clock, state):
        handler.hold("submit")
        await accept()
        await until(lambda: handler.held["submit"] == 1)
        await clock.advance(7)
        handler.let_go("submit")
        await until(state(TaskState.RUNNING))

        value = worker.metrics.registry.get_sample_value
        assert value("remora_submit_seconds_sum", {"task_type": "SCRIPTED"}) == 7

    async def test_only_so_many_are_submitted_at_a_time(self, worker, handler, assign, until):
        await worker.crash()
        await worker.start(EngineSettings(submit_concurrency=2, drain=0.0))
        handler.hold("submit")
        for number in range(5):
            await worker.engine.accept(assign(f"{number}"))
        await until(lambda: handler.held["submit"] == 2)
        await worker.journal.unfinished()

        assert handler.calls["submit"] == 2
        handler.let_go("submit")
        await until(lambda: len(handler.created) == 5)

    async def test_a_stop_goes_before_the_submissions_that_wait(self, worker, handler, assign, until, eventually):
        await worker.crash()
        await worker.start(EngineSettings(submit_concurrency=1, drain=0.0))
        await worker.engine.accept(assign())
        await until(lambda: worker.reached(KEY, TaskState.RUNNING))
        handler.hold("submit")
        for number in range(5):
            await worker.engine.accept(assign(f"{number}"))
        await until(lambda: handler.held["submit"] == 1)
        await worker.engine.cancel(KEY, door="test", fencing_token=0, reason="enough")
        order = []
        begin = handler._begin

        async def note(verb):
            order.append(verb)
            await begin(verb)

        handler._begin = note
        handler.let_go("submit")
        await until(lambda: len(handler.created) == 6)

        assert [verb for verb in order if verb != "observe"] == ["cancel", *["submit"] * 4]
