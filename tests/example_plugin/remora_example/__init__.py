"""The smallest task plugin there is. Its "remote jobs" are files in a directory: one file, one job.

A job is created by creating its file and can be created only once; it ends by itself when its time is over, and at
once when a file beside it asks it to stop. That is all that a service must offer for exactly one job per attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from remora.plugin import (
    Clock,
    Failure,
    FailureKind,
    JobState,
    LogPage,
    Observation,
    Plugin,
    Polling,
    TaskDefinition,
    TaskHandler,
)

__all__ = ["ExampleHandle", "ExampleHandler", "ExampleParameters", "ExamplePlugin", "ExampleSettings"]


class ExampleSettings(BaseModel):
    """Where the jobs live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(default=Path("example-jobs"), validation_alias=AliasChoices("plugin.example.directory"))
    poll_seconds: float = Field(default=1.0, gt=0, validation_alias=AliasChoices("plugin.example.poll.seconds"))


class ExampleParameters(BaseModel):
    """What a job is to do."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(default=0.0, ge=0, description="How long the job runs.")
    message: str = Field(default="hello", description="What the job says; its output.")
    fail: str = Field(default="", description="If not empty, the job fails with this reason.")


class ExampleHandle(BaseModel):
    """Names the job: its file."""

    job: str


class ExampleHandler(TaskHandler[ExampleParameters, ExampleHandle]):
    """Runs tasks of type EXAMPLE."""

    task_type = "EXAMPLE"
    title = "A file that is a job"
    permissions = ("write the directory",)
    parameters = ExampleParameters
    handle = ExampleHandle

    def __init__(self, settings: ExampleSettings, clock: Clock) -> None:
        """Take the directory and the time."""
        self._directory = settings.directory
        self._clock = clock
        self.polling = Polling(initial=settings.poll_seconds, maximum=settings.poll_seconds)

    def prepare(self, task: TaskDefinition, parameters: ExampleParameters) -> ExampleHandle:
        """Name the job after the task and the attempt."""
        digest = hashlib.sha256(task.key.task_id.encode()).hexdigest()[:32]
        return ExampleHandle(job=f"{digest}-{task.key.attempt}")

    async def submit(self, task: TaskDefinition, parameters: ExampleParameters, handle: ExampleHandle) -> ExampleHandle:
        """Create the file; one that is there already is ours, because only we know its name."""
        del task
        job = {"until": self._clock.now() + parameters.seconds, **parameters.model_dump()}
        await asyncio.to_thread(_create, self._directory / handle.job, json.dumps(job))
        return handle

    async def observe(self, handles: Sequence[ExampleHandle]) -> Sequence[Observation[ExampleHandle]]:
        """Read the files."""
        return await asyncio.to_thread(lambda: [self._look(handle) for handle in handles])

    async def cancel(self, handle: ExampleHandle) -> None:
        """Ask by a file beside the job's that says when; the first one counts."""
        await asyncio.to_thread(_create, self._directory / f"{handle.job}.stop", json.dumps(self._clock.now()))

    async def read_logs(self, handle: ExampleHandle, cursor: str) -> LogPage:
        """Give the job's only line once."""
        if cursor:
            return LogPage(lines=(), cursor=cursor, done=True)
        text = await asyncio.to_thread((self._directory / handle.job).read_text)
        return LogPage(lines=(f"job: {json.loads(text)['message']}",), cursor="1", done=True)

    def classify(self, error: Exception) -> Failure | None:
        """A directory that cannot be written is the operator's."""
        if isinstance(error, OSError):
            return Failure(kind=FailureKind.DENIED, code=type(error).__name__, message=str(error))
        return None

    def _look(self, handle: ExampleHandle) -> Observation[ExampleHandle]:
        try:
            job: dict[str, Any] = json.loads((self._directory / handle.job).read_text())
        except FileNotFoundError:
            failure = Failure(kind=FailureKind.EXECUTION, code="Gone", message="somebody removed the job")
            return Observation(state=JobState.FAILED, failure=failure)
        if self._stopped_at(handle) < job["until"]:
            return Observation(state=JobState.STOPPED, detail="stopped")
        if self._clock.now() < job["until"]:
            return Observation(state=JobState.RUNNING, detail="runs")
        if job["fail"]:
            failure = Failure(kind=FailureKind.EXECUTION, code="JobFailed", message=job["fail"])
            return Observation(state=JobState.FAILED, detail="failed", failure=failure)
        return Observation(state=JobState.SUCCEEDED, detail="done", outputs={"message": job["message"]})

    def _stopped_at(self, handle: ExampleHandle) -> float:
        try:
            return float(json.loads((self._directory / f"{handle.job}.stop").read_text()))
        except FileNotFoundError:
            return math.inf


class ExamplePlugin(Plugin):
    """What the entry point names."""

    name = "example"
    settings = ExampleSettings

    @contextlib.asynccontextmanager
    async def open(self, settings: Any, clock: Clock) -> AsyncGenerator[Sequence[TaskHandler[Any, Any]]]:
        """Make the directory."""
        await asyncio.to_thread(lambda: settings.directory.mkdir(parents=True, exist_ok=True))
        yield [ExampleHandler(settings, clock)]


def _create(path: Path, text: str) -> None:
    # Written aside and linked, so that a file is there whole or not at all, and only the first creation counts.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    aside.write_text(text)
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()
