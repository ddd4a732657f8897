"""The contract between the worker and its task plugins.

A plugin brings handlers; a handler knows one type of task. The worker does all the waiting, remembering and
repeating; a handler only answers five questions about a remote job, each of which may be asked again at any time:

    prepare   what will the job be called?          pure, before it exists
    submit    create it, or find that it is there   idempotent by that name
    observe   how are these jobs?                   many at once
    cancel    ask it to stop                        observe() confirms
    classify  who has to act on this error?         foreign error -> Failure

The handle is the only memory: the worker journals it before the job exists and hands it back after a crash, on
this machine or another. This module imports nothing of Remora's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, JsonValue


class FailureKind(StrEnum):
    """Who has to act before another attempt can succeed."""

    INVALID = "INVALID"
    """The author of the task: its definition is wrong."""
    DENIED = "DENIED"
    """The operator: credentials or permissions are missing."""
    EXHAUSTED = "EXHAUSTED"
    """The owner of the account: a quota or capacity is used up. Nothing was created; the worker asks again."""
    TRANSIENT = "TRANSIENT"
    """Nobody: the service was unreachable, busy or throttling. The worker asks again."""
    EXECUTION = "EXECUTION"
    """The owner of the job: it ran and failed."""
    TIMEOUT = "TIMEOUT"
    """The author or the owner: it did not end in time."""
    INTERNAL = "INTERNAL"
    """The developers: this is a defect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why something did not work, in words for people and a code for programs. Never carries a secret."""

    kind: FailureKind
    message: str
    """What was wrong, where, and what to do."""
    code: str = ""
    """The service's own code where there is one, for example ``ResourceLimitExceeded``."""
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    """Facts by name: a failed step, the ARN of a child job, wrong paths."""
    retry_after: float | None = None
    """Seconds that the service asked to wait."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class TaskKey:
    """The name of one attempt at one task. One key is one remote job, ever."""

    task_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.task_id}#{self.attempt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDefinition:
    """What is to be done. Never changes once accepted."""

    key: TaskKey
    task_type: str
    parameters: str
    """A JSON object as text, at most 256 KiB of UTF-8."""
    name: str = ""
    timeout: float | None = None
    """Seconds from acceptance; None is for ever."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


class JobState(StrEnum):
    """What a remote job shows of itself. Stopped is not success, and unknown is RUNNING."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    """It ended because somebody stopped it: the worker, or a person behind its back."""


P = TypeVar("P", bound=BaseModel)
H = TypeVar("H", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation(Generic[H]):
    """How a remote job is now."""

    state: JobState
    detail: str = ""
    """One line for people: the current step or status."""
    handle: H | None = None
    """The handle with what was learned, if that changed. It is journalled with the observation."""
    log: Sequence[str] = ()
    """Lines for the task's log: what changed since the handle was written."""
    outputs: Mapping[str, JsonValue] | None = None
    """What the job produced; for a final state. At most 256 KiB as JSON."""
    failure: Failure | None = None
    """Why, for FAILED; for STOPPED, what is known of who stopped it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Polling:
    """How often the jobs of a handler are looked at."""

    initial: float = 5.0
    """Seconds between looks at a young job."""
    maximum: float = 60.0
    """Seconds between looks at an old one: the interval grows with the age of the job up to this."""
    batch: int = 1000
    """How many handles :meth:`TaskHandler.observe` takes at once."""


class TaskHandler(ABC, Generic[P, H]):
    """Runs one type of task. Each verb is safe to repeat, and none of them waits for the job."""

    task_type: ClassVar[str]
    """As in the definition, for example ``SAGEMAKER``. Unique in a worker."""
    title: ClassVar[str]
    """One line for people."""
    permissions: ClassVar[Sequence[str]] = ()
    """What the worker's identity must be allowed to do."""
    parameters: type[P]
    """Pydantic model of the parameters. Its JSON Schema is what a scheduler's UI draws."""
    handle: type[H]
    """Pydantic model of the handle. Small, without secrets, readable by older and newer versions."""
    polling: Polling = Polling()

    @abstractmethod
    def prepare(self, task: TaskDefinition, parameters: P) -> H:
        """Name the remote job before it exists. Pure and deterministic: same task, same handle; no I/O.

        Raises:
            InvalidTask: the parameters fit the model and still cannot work.
        """

    @abstractmethod
    async def submit(self, task: TaskDefinition, parameters: P, handle: H) -> H:
        """Create the job that the handle names. "Already there and ours" is success.

        Returns the handle with what the service answered. Raises whatever the service's client raises; the worker
        asks :meth:`classify` and repeats on EXHAUSTED and TRANSIENT.
        """

    @abstractmethod
    async def observe(self, handles: Sequence[H]) -> Sequence[Observation[H] | Failure | None]:
        """Look at many jobs. One answer for each handle, in the same order.

        None is "no news yet" (a budget is used up). A Failure is "could not look": it is shown and the job is looked
        at again; it never ends the task. A job that the service says is gone is an Observation in state FAILED.
        """

    @abstractmethod
    async def cancel(self, handle: H) -> None:
        """Ask the job to stop. A job that has ended already is success. The worker repeats until observe() confirms."""

    @abstractmethod
    def classify(self, error: Exception) -> Failure | None:
        """Say who has to act on a foreign error, or None for an error this handler does not know (a defect)."""


class InvalidTask(Exception):
    """The parameters cannot work. Raised by :meth:`TaskHandler.prepare` and by validators that need many violations."""

    def __init__(self, violations: Mapping[str, str]) -> None:
        """Take a message for each wrong path, for example ``{"request.PipelineName": "must be ..."}``."""
        super().__init__("; ".join(f"{path}: {message}" for path, message in violations.items()))
        self.violations = dict(violations)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPage:
    """Log lines of a remote job, and where to read on."""

    lines: Sequence[str]
    cursor: str
    """Opaque to the worker; journalled. Empty before the first page."""
    done: bool = False
    """True when nothing can follow."""


H_contra = TypeVar("H_contra", bound=BaseModel, contravariant=True)


@runtime_checkable
class LogSource(Protocol[H_contra]):
    """A handler that can read its jobs' own log lines is one of these too."""

    async def read_logs(self, handle: H_contra, cursor: str) -> LogPage:
        """Read the lines after the cursor. May return none; never waits for more."""
        ...


@runtime_checkable
class EventSource(Protocol[H_contra]):
    """A handler that is told of changes is one of these too."""

    def job_id(self, handle: H_contra) -> str:
        """Return the id by which :meth:`changes` names the job, or "" while it has none."""
        ...

    def changes(self) -> AsyncIterator[str]:
        """Yield the id of each job that should be looked at now. Never a state: that comes from observe()."""
        ...


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def now(self) -> float:
        """Seconds since the Unix epoch, for what is shown and kept."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for intervals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        ...


class Plugin(ABC):
    """What an entry point in the group ``remora.plugins`` names: settings, and handlers while it is open."""

    name: ClassVar[str]
    """Its properties are ``plugin.<name>.*``."""
    prefixes: ClassVar[Sequence[str]] = ()
    """Further prefixes of which every property is the plugin's, so that an unknown one is an error."""
    settings: type[BaseModel]
    """Frozen pydantic model. Each field's alias choices are the full property keys it is read from, best first;
    secrets are :class:`pydantic.SecretStr`."""

    @abstractmethod
    def open(self, settings: Any, clock: Clock) -> AbstractAsyncContextManager[Sequence[TaskHandler[Any, Any]]]:  # noqa: ANN401 -- the plugin's own model
        """Open clients and pools, yield the handlers, close on exit.

        Raises:
            ValueError: the settings are well-formed and still cannot work; the message names the keys.
        """

    async def check(self, settings: Any) -> Sequence[Failure]:  # noqa: ANN401 -- the plugin's own model
        """Say what would not work with these settings, for ``remora check``. May call out; changes nothing."""
        del settings
        return ()
