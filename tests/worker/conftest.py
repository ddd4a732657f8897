"""What the tests of the worker share: a clock, a journal, a service that does as it is told, ways to wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from remora.engine import Engine, EngineSettings
from remora.journal import Journal
from remora.metrics import Metrics
from remora.plugin import (
    Failure,
    FailureKind,
    InvalidTask,
    JobState,
    LogPage,
    Observation,
    Polling,
    TaskDefinition,
    TaskHandler,
    TaskKey,
)
from remora.registry import Registry
from remora.task import Assignment, TaskRecord, TaskState
from remora.tasklog import TaskLogs
from remora.testing import ManualClock

Condition = Callable[[], Any]

_KEY = TaskKey(task_id="task", attempt=1)
"""Of the task that is meant where none is named."""
_PATIENCE = 60.0
"""Real seconds after which a test that waits has failed; far more than it ever takes."""
_TURNS = 5


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def until() -> Callable[[Condition], Awaitable[Any]]:
    """Wait until a condition, plain or asynchronous, is true; return what it gave.

    Each turn goes through a thread, so that the event loop and the journal's threads get on; nothing sleeps.
    """

    async def until(condition: Condition) -> Any:
        async with asyncio.timeout(_PATIENCE):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.to_thread(int)

    return until


@pytest.fixture
def eventually(until, clock) -> Callable[..., Awaitable[Any]]:
    """Wait as `until`, and let so much time of the manual clock pass with every few turns."""

    async def eventually(condition: Condition, *, step: float = 1.0) -> Any:
        turns = itertools.count(1)

        async def look() -> Any:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            # Threads get a chance to finish what they do, so that time does not run away from them.
            if not value and next(turns) % _TURNS == 0:
                await clock.advance(step)
            return value

        return await until(look)

    return eventually


@pytest.fixture
def assign() -> Callable[..., Assignment]:
    """Return an assignment to run a task of type SCRIPTED."""

    def assign(
        task_id: str = "task",
        attempt: int = 1,
        *,
        token: int = 0,
        door: str = "test",
        handle: str | None = None,
        parameters: str = "{}",
        task_type: str = "SCRIPTED",
        **others: Any,
    ) -> Assignment:
        definition = TaskDefinition(
            key=TaskKey(task_id=task_id, attempt=attempt), task_type=task_type, parameters=parameters, **others
        )
        return Assignment(definition=definition, door=door, fencing_token=token, handle=handle)

    return assign


@pytest.fixture
async def journal(tmp_path, clock) -> AsyncIterator[Journal]:
    async with Journal.open(tmp_path / "journal.db", clock) as opened:
        yield opened


@pytest.fixture
def logs(tmp_path, clock):
    opened = TaskLogs(tmp_path / "logs", clock)
    yield opened
    opened.close()


class ServiceError(Exception):
    """An error of the scripted service, of any kind."""

    def __init__(self, kind: FailureKind, *, retry_after: float | None = None) -> None:
        super().__init__(f"the service says {kind}")
        self.failure = Failure(kind=kind, code=f"{kind}Code", message=str(self), retry_after=retry_after)


class ScriptedParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    refuse: str = ""
    defect: bool = False
    steps: list[int] = []


class ScriptedHandle(BaseModel):
    name: str
    arn: str = ""


class ScriptedHandler(TaskHandler[ScriptedParameters, ScriptedHandle]):
    """A handler and its service in memory.

    Jobs run until the test changes their state. Each verb can be held, and made to fail before or after its effect.
    """

    task_type = "SCRIPTED"
    title = "Does as it is told"
    permissions = ("scripted:CreateJob",)
    parameters = ScriptedParameters
    handle = ScriptedHandle

    def __init__(self, polling: Polling | None = None) -> None:
        self.polling = polling or Polling(initial=1.0, maximum=8.0)
        self.jobs: dict[str, Observation[ScriptedHandle]] = {}
        self.created = Counter[str]()
        self.calls = Counter[str]()
        self.observed: list[list[str]] = []
        self.held = Counter[str]()
        self._gates: dict[str, asyncio.Event] = {}
        self._errors: dict[str, list[Exception | None]] = defaultdict(list)
        self._lost: dict[str, list[Exception | None]] = defaultdict(list)

    def fail(self, verb: str, *errors: Exception | None) -> None:
        """Make the next calls of a verb fail before they have an effect; None is a call that works."""
        self._errors[verb] += errors

    def lose(self, verb: str, *errors: Exception | None) -> None:
        """Make the next calls of a verb fail after they had their effect."""
        self._lost[verb] += errors

    def hold(self, verb: str) -> None:
        """Make calls of a verb wait before they have an effect."""
        self._gates[verb] = asyncio.Event()

    def let_go(self, verb: str) -> None:
        """Let the calls go on that are held."""
        self._gates.pop(verb).set()

    def show(self, name: str, state: JobState, **others: Any) -> None:
        """Put a job into a state."""
        self.jobs[name] = Observation(state=state, **others)

    def prepare(self, task: TaskDefinition, parameters: ScriptedParameters) -> ScriptedHandle:
        if parameters.refuse:
            raise InvalidTask({"refuse": parameters.refuse})
        if parameters.defect:
            raise KeyError("a defect of the plugin")
        return ScriptedHandle(name=str(task.key))

    async def submit(
        self, task: TaskDefinition, parameters: ScriptedParameters, handle: ScriptedHandle
    ) -> ScriptedHandle:
        await self._begin("submit")
        if handle.name not in self.jobs:
            self.created[handle.name] += 1
            self.show(handle.name, JobState.RUNNING, detail="runs")
        self._end("submit")
        return handle.model_copy(update={"arn": f"arn:{handle.name}"})

    async def observe(self, handles: Sequence[ScriptedHandle]) -> Sequence[Any]:
        self.observed.append([handle.name for handle in handles])
        await self._begin("observe")
        return [self.jobs[handle.name] for handle in handles]

    async def cancel(self, handle: ScriptedHandle) -> None:
        await self._begin("cancel")
        if self.jobs[handle.name].state is JobState.RUNNING:
            self.show(handle.name, JobState.STOPPED, detail="stopped")
        self._end("cancel")

    def classify(self, error: Exception) -> Failure | None:
        return error.failure if isinstance(error, ServiceError) else None

    async def _begin(self, verb: str) -> None:
        self.calls[verb] += 1
        if gate := self._gates.get(verb):
            self.held[verb] += 1
            try:
                await gate.wait()
            finally:
                self.held[verb] -= 1
        _raise_next(self._errors[verb])

    def _end(self, verb: str) -> None:
        _raise_next(self._lost[verb])


class TalkingHandler(ScriptedHandler):
    """A scripted handler whose jobs have logs, and that is told of changes."""

    task_type = "TALKING"

    def __init__(self, polling: Polling | None = None) -> None:
        super().__init__(polling)
        self.pages: dict[str, list[Sequence[str]]] = defaultdict(list)
        self.cursors: list[str] = []
        self.events: asyncio.Queue[str | Exception] = asyncio.Queue()

    async def read_logs(self, handle: ScriptedHandle, cursor: str) -> LogPage:
        await self._begin("read_logs")
        self.cursors.append(cursor)
        read = int(cursor or 0)
        pages = self.pages[handle.name]
        lines = pages[read] if read < len(pages) else ()
        return LogPage(lines=lines, cursor=str(read + bool(lines)))

    def job_id(self, handle: ScriptedHandle) -> str:
        return handle.arn

    async def changes(self) -> AsyncIterator[str]:
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            yield event


def _raise_next(errors: list[Exception | None]) -> None:
    if errors and (error := errors.pop(0)) is not None:
        raise error


@pytest.fixture
def service_error() -> type[ServiceError]:
    return ServiceError


@pytest.fixture
def handler() -> ScriptedHandler:
    return ScriptedHandler()


@pytest.fixture
def talking() -> TalkingHandler:
    return TalkingHandler()


class Worker:
    """An engine with its journal on disk, that can crash and come back."""

    def __init__(self, directory: Any, clock: ManualClock, handlers: Sequence[ScriptedHandler]) -> None:
        self._directory = directory
        self._clock = clock
        self._handlers = handlers
        self._stack = contextlib.AsyncExitStack()
        # Nothing is waited for at the end: what was under way is cut off, as in a crash.
        self.settings = EngineSettings(drain=0.0)
        self.metrics: Metrics
        self.journal: Journal
        self.logs: TaskLogs
        self.engine: Engine

    async def start(self, settings: EngineSettings | None = None) -> Engine:
        self.metrics = Metrics()
        self.journal = await self._stack.enter_async_context(Journal.open(self._directory / "journal.db", self._clock))
        self.logs = TaskLogs(self._directory / "logs", self._clock)
        self._stack.push_async_callback(asyncio.to_thread, self.logs.close)
        self.engine = await self._stack.enter_async_context(
            Engine.open(
                self.journal,
                Registry(self._handlers),
                self.logs,
                self._clock,
                metrics=self.metrics,
                settings=settings or self.settings,
            )
        )
        return self.engine

    async def crash(self) -> None:
        await self._stack.aclose()

    async def restart(self, *handlers: ScriptedHandler) -> Engine:
        await self.crash()
        self._handlers = handlers or self._handlers
        return await self.start()

    async def reached(self, key: TaskKey, state: TaskState) -> TaskRecord | None:
        """Return the record if it is in a state: a condition to wait for."""
        record = await self.engine.get(key)
        return record if record.state is state else None

    async def log(self, key: TaskKey) -> str:
        return (await self.engine.read_log(key, offset=0, limit=1 << 20)).text


@pytest.fixture
async def worker(tmp_path, clock, handler, talking) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, clock, [handler, talking])
    await worker.start()
    yield worker
    await worker.crash()


@pytest.fixture
def engine(worker) -> Engine:
    return worker.engine


@pytest.fixture
def lines() -> Callable[[str], list[str]]:
    """Return the messages of a task's log, without their stamps."""
    return lambda text: [line.partition(" - ")[2] for line in text.splitlines()]


@pytest.fixture
def outputs() -> Callable[[TaskRecord], Any]:
    return lambda record: json.loads(record.outputs)


@pytest.fixture
def state(worker):
    """Return a condition: the task is in a state."""
    return lambda state, key=_KEY: lambda: worker.reached(key, state)


@pytest.fixture
def running(worker, assign, until):
    """Accept a task and wait until its job was seen for the first time; return its record."""

    async def running(task_id="task", **others):
        key = (await worker.engine.accept(assign(task_id, **others))).key
        await until(lambda: worker.engine.record(key).detail == "runs")
        return worker.engine.record(key)

    return running


@pytest.fixture
def cancel(worker):
    async def cancel(key=_KEY, *, token=0, reason="not needed"):
        return await worker.engine.cancel(key, door="test", fencing_token=token, reason=reason)

    return cancel


@pytest.fixture
def full_disk(worker):
    """Let the disk refuse everything while a block runs."""

    @contextlib.asynccontextmanager
    async def full_disk():
        async def limit(pages):
            await worker.journal._database.write(
                lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
            )

        # A page has 4096 bytes: what is written next needs another one, and there is none.
        await limit(1)
        yield
        await limit(1_000_000)

    return full_disk
