"""Test doubles and a behaviour suite for authors of plugins and doors."""

# ruff: noqa: D102 -- the names of tests are sentences

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from remora.plugin import (
    EventSource,
    Failure,
    FailureKind,
    JobState,
    LogSource,
    Observation,
    TaskDefinition,
    TaskHandler,
    TaskKey,
)

__all__ = ["HandlerContract", "ManualClock", "Workbench", "settle"]

_MAX_OUTPUTS = 256 * 1024  # bytes of JSON
_LOOKS = 100
"""Looks at a job that must bring news, and pages of a log that must end."""


class ManualClock:
    """A clock that stands still until it is told to advance.

    ``await clock.advance(5)`` wakes every sleeper that is due, in order of time, and lets each run until it waits
    for something else.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        """Start at so many seconds since the epoch."""
        self._started = now
        # Counted from 0 and not from the epoch, where a float is too coarse to hold a tenth of a microsecond.
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._started + self._elapsed

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by so many seconds."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), future))
        await future

    @property
    def sleepers(self) -> int:
        """How many wait."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self._elapsed + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, due)
            if not future.done():
                future.set_result(None)
            await settle()
        self._elapsed = end


async def settle(rounds: int = 20) -> None:
    """Let every task that is ready run until it waits. Does not wait for threads."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class Workbench(ABC):
    """A handler and the service it talks to, in the hands of :class:`HandlerContract`."""

    handler: TaskHandler[Any, Any]
    """Ready for use; :meth:`restart` puts another one in its place."""
    secrets: Sequence[str] = ()
    """Texts that nobody may ever see: the keys, tokens and passwords that the handler was configured with."""
    known_errors: Sequence[Exception] = ()
    """Errors of the service's client, on which the handler knows who has to act."""

    @abstractmethod
    def parameters(self, end: JobState) -> str:
        """Return parameters, as JSON text, of a job that runs until :meth:`finish` and then SUCCEEDED or FAILED."""

    @abstractmethod
    async def finish(self) -> None:
        """Let so much time pass that every job ends, also those that were asked to stop."""

    @abstractmethod
    async def jobs(self) -> int:
        """Return how many jobs the service has created so far."""

    @abstractmethod
    async def vanish(self, handle: Any) -> None:  # noqa: ANN401 -- the handler's own model
        """Make the service forget a job."""

    @abstractmethod
    async def restart(self) -> None:
        """Replace the handler by one that remembers nothing, as after a crash."""

    async def wait(self) -> None:
        """Let a moment pass, in which budgets of calls are refilled and no job ends."""
        await settle()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the worker has of a job before it exists."""

    task: TaskDefinition
    parameters: BaseModel
    handle: BaseModel


class HandlerContract:
    """The behaviour that the worker expects of every handler, as tests. Inherit them, and give them a bench::

        class TestMyHandler(HandlerContract):
            @pytest.fixture
            async def bench(self, tmp_path):
                async with open_my_bench(tmp_path) as bench:  # a remora.testing.Workbench
                    yield bench

    pytest runs them with pytest-asyncio in mode ``auto``, and shows the values of a failed assertion if a conftest.py
    says ``pytest.register_assert_rewrite("remora.testing")``. A test that a service makes impossible can be
    overridden by one that says so with ``pytest.skip``.
    """

    async def test_the_handler_describes_itself(self, bench: Workbench) -> None:
        handler = bench.handler
        assert handler.task_type
        assert handler.title
        assert "\n" not in handler.title
        assert not isinstance(handler.permissions, str)
        assert all(isinstance(permission, str) and permission for permission in handler.permissions)
        assert 0 < handler.polling.initial <= handler.polling.maximum
        assert handler.polling.batch >= 1

    async def test_the_schema_of_the_parameters_is_of_a_json_object(self, bench: Workbench) -> None:
        schema = bench.handler.parameters.model_json_schema()
        assert schema["type"] == "object"
        assert json.loads(json.dumps(schema)) == schema

    async def test_the_same_task_gets_the_same_name(self, bench: Workbench) -> None:
        before = _prepare(bench)
        assert _prepare(bench).handle == before.handle
        await bench.restart()
        assert _prepare(bench).handle == before.handle

    async def test_another_attempt_and_another_task_get_other_names(self, bench: Workbench) -> None:
        names = [_prepare(bench, "a", 1), _prepare(bench, "a", 2), _prepare(bench, "b", 1), _prepare(bench, "a1", 1)]
        assert len({job.handle.model_dump_json() for job in names}) == len(names)

    async def test_a_name_creates_nothing(self, bench: Workbench) -> None:
        _prepare(bench)
        assert await bench.jobs() == 0

    async def test_handles_survive_the_journal(self, bench: Workbench) -> None:
        job = _prepare(bench)
        assert _journalled(bench, job.handle) == job.handle
        submitted = await _submit(bench, job)
        assert _journalled(bench, submitted) == submitted

    async def test_handles_of_a_later_version_are_understood(self, bench: Workbench) -> None:
        submitted = await _submit(bench, _prepare(bench))
        known = submitted.model_dump(mode="json")
        later = bench.handler.handle.model_validate_json(json.dumps({**known, "of_a_later_version": {"a": 1}}))
        assert known.items() <= later.model_dump(mode="json").items()

    async def test_submitting_creates_one_job(self, bench: Workbench) -> None:
        await _submit(bench, _prepare(bench))
        assert await bench.jobs() == 1

    async def test_submitting_again_finds_the_same_job(self, bench: Workbench) -> None:
        job = _prepare(bench)
        submitted = await _submit(bench, job)
        again = await bench.handler.submit(job.task, job.parameters, _journalled(bench, submitted))
        assert again == submitted
        assert await bench.jobs() == 1

    async def test_a_job_whose_handle_was_lost_is_found_by_its_name(self, bench: Workbench) -> None:
        submitted = await _submit(bench, _prepare(bench))
        await bench.restart()
        assert await _submit(bench, _prepare(bench)) == submitted
        assert await bench.jobs() == 1

    async def test_two_who_submit_at_once_create_one_job(self, bench: Workbench) -> None:
        job = _prepare(bench)
        first, second = await asyncio.gather(_submit(bench, job), _submit(bench, job))
        assert first == second
        assert await bench.jobs() == 1

    async def test_a_job_that_has_ended_is_found_and_not_created_again(self, bench: Workbench) -> None:
        job = _prepare(bench)
        submitted = await _submit(bench, job)
        await bench.finish()
        assert await _submit(bench, job) == submitted
        assert await bench.jobs() == 1

    async def test_another_attempt_is_another_job(self, bench: Workbench) -> None:
        await _submit(bench, _prepare(bench, attempt=1))
        await _submit(bench, _prepare(bench, attempt=2))
        assert await bench.jobs() == 2  # noqa: PLR2004 -- two attempts

    async def test_a_job_runs_until_it_ends(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.RUNNING
        assert observation.outputs is None
        assert observation.failure is None

    async def test_a_job_that_went_well_is_succeeded_with_outputs(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench, end=JobState.SUCCEEDED))
        await bench.finish()
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.SUCCEEDED
        assert observation.failure is None
        text = json.dumps(dict(observation.outputs or {}), allow_nan=False)
        assert len(text.encode()) <= _MAX_OUTPUTS

    async def test_a_job_that_went_wrong_is_failed_with_the_reason(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench, end=JobState.FAILED))
        await bench.finish()
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.FAILED
        assert observation.failure is not None
        assert observation.failure.kind is FailureKind.EXECUTION
        assert observation.failure.message

    async def test_many_jobs_are_answered_in_order(self, bench: Workbench) -> None:
        ends = [JobState.FAILED, JobState.SUCCEEDED, JobState.FAILED, JobState.SUCCEEDED]
        handles = [await _submit(bench, _prepare(bench, f"job-{number}", end=end)) for number, end in enumerate(ends)]
        await bench.finish()
        assert [observation.state for observation in await _look(bench, handles)] == ends

    async def test_no_jobs_get_no_answers(self, bench: Workbench) -> None:
        assert list(await bench.handler.observe([])) == []

    async def test_looking_again_changes_nothing(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        await bench.finish()
        [first] = await _look(bench, [handle])
        await bench.restart()
        [second] = await _look(bench, [handle])
        assert (second.state, second.outputs, second.failure) == (first.state, first.outputs, first.failure)

    async def test_a_job_that_was_asked_to_stop_is_stopped(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        await bench.handler.cancel(handle)
        await bench.finish()
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.STOPPED

    async def test_a_job_may_be_asked_to_stop_twice(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        await bench.handler.cancel(handle)
        await bench.restart()
        await bench.handler.cancel(_journalled(bench, handle))
        await bench.finish()
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.STOPPED

    async def test_a_stop_after_the_end_changes_nothing(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        await bench.finish()
        await _look(bench, [handle])
        await bench.handler.cancel(handle)
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.SUCCEEDED

    async def test_a_stop_of_one_job_leaves_the_others_alone(self, bench: Workbench) -> None:
        stopped, other = [await _submit(bench, _prepare(bench, task_id)) for task_id in ("a", "b")]
        await bench.handler.cancel(stopped)
        await bench.finish()
        states = [observation.state for observation in await _look(bench, [stopped, other])]
        assert states == [JobState.STOPPED, JobState.SUCCEEDED]

    async def test_a_job_that_is_gone_has_failed(self, bench: Workbench) -> None:
        gone, other = [await _submit(bench, _prepare(bench, task_id)) for task_id in ("a", "b")]
        await bench.vanish(gone)
        observations = await _look(bench, [gone, other])
        assert [observation.state for observation in observations] == [JobState.FAILED, JobState.RUNNING]
        assert observations[0].failure is not None
        assert observations[0].failure.message

    async def test_a_job_that_is_gone_can_be_asked_to_stop(self, bench: Workbench) -> None:
        handle = await _submit(bench, _prepare(bench))
        await bench.vanish(handle)
        await bench.handler.cancel(handle)
        [observation] = await _look(bench, [handle])
        assert observation.state is JobState.FAILED

    async def test_its_own_errors_are_known(self, bench: Workbench) -> None:
        failures = [bench.handler.classify(error) for error in bench.known_errors]
        assert all(failure is not None and failure.message for failure in failures)

    async def test_foreign_errors_are_not_explained_away(self, bench: Workbench) -> None:
        assert bench.handler.classify(RuntimeError("a defect")) is None

    async def test_a_log_ends_and_reads_the_same_again(self, bench: Workbench) -> None:
        source = bench.handler
        if not isinstance(source, LogSource):
            return
        handle = await _submit(bench, _prepare(bench))
        await bench.finish()
        lines = await _read_log(source, handle)
        assert all(isinstance(line, str) for line in lines)
        assert await _read_log(source, handle) == lines

    async def test_events_have_a_name_for_each_job(self, bench: Workbench) -> None:
        if not isinstance(bench.handler, EventSource):
            return
        source = cast("EventSource[Any]", bench.handler)
        handles = [await _submit(bench, _prepare(bench, task_id)) for task_id in ("a", "b")]
        ids = {source.job_id(handle) for handle in handles}
        assert "" not in ids
        assert len(ids) == len(handles)

    async def test_secrets_are_seen_nowhere(self, bench: Workbench) -> None:
        job = _prepare(bench, "well", end=JobState.SUCCEEDED)
        handles = [
            await _submit(bench, job),
            await _submit(bench, _prepare(bench, "wrong", end=JobState.FAILED)),
            await _submit(bench, _prepare(bench, "stopped")),
        ]
        seen: list[object] = [job.handle, *handles, *await _look(bench, handles)]
        await bench.handler.cancel(handles[2])
        await bench.finish()
        seen += await _look(bench, handles)
        seen += [bench.handler.classify(error) for error in bench.known_errors]
        if isinstance(bench.handler, LogSource):
            seen += [await _read_log(bench.handler, handle) for handle in handles]
        text = "\n".join(map(_shown, seen))
        assert not [secret for secret in bench.secrets if secret in text]


def _prepare(
    bench: Workbench, task_id: str = "contract", attempt: int = 1, *, end: JobState = JobState.SUCCEEDED
) -> _Job:
    handler = bench.handler
    key = TaskKey(task_id=task_id, attempt=attempt)
    task = TaskDefinition(key=key, task_type=handler.task_type, parameters=bench.parameters(end), name="contract")
    parameters = handler.parameters.model_validate_json(task.parameters)
    return _Job(task=task, parameters=parameters, handle=handler.prepare(task, parameters))


async def _submit(bench: Workbench, job: _Job) -> BaseModel:
    handle: BaseModel = await bench.handler.submit(job.task, job.parameters, _journalled(bench, job.handle))
    assert type(handle) is bench.handler.handle
    return handle


def _journalled(bench: Workbench, handle: BaseModel) -> BaseModel:
    """Write and read a handle as the worker's journal does."""
    read: BaseModel = bench.handler.handle.model_validate_json(handle.model_dump_json())
    return read


async def _look(bench: Workbench, handles: Sequence[BaseModel]) -> Sequence[Observation[Any]]:
    """Look until there is news of every job."""
    news: dict[int, Observation[Any]] = {}
    for _ in range(_LOOKS):
        answers = await bench.handler.observe([_journalled(bench, handle) for handle in handles])
        assert len(answers) == len(handles)
        for number, answer in enumerate(answers):
            assert not isinstance(answer, Failure), answer
            if answer is not None:
                news.setdefault(number, answer)
        if len(news) == len(handles):
            return [news[number] for number in range(len(handles))]
        await bench.wait()
    raise AssertionError(f"no news of {len(handles) - len(news)} of {len(handles)} jobs after {_LOOKS} looks")


async def _read_log(source: LogSource[Any], handle: BaseModel) -> Sequence[str]:
    lines: list[str] = []
    cursor = ""
    for _ in range(_LOOKS):
        page = await source.read_logs(handle, cursor)
        lines += page.lines
        cursor = page.cursor
        if page.done or not page.lines:
            return lines
    raise AssertionError(f"the log does not end after {_LOOKS} pages")


def _shown(value: object) -> str:
    """Return all that people and disks may see of a value."""
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    return str(value)
