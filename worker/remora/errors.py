"""What can go wrong in a call to Remora, and what the caller does about it.

::

    RemoraError                  every error that Remora raises on purpose
    ├── ConfigurationError       the operator corrects the configuration; the worker does not start
    │   └── NewerSchemaError     the data directory was written by a newer version
    ├── CallError                the answer to a call; maps to one google.rpc.Status each
    │   ├── InvalidRequest       the caller corrects the named fields
    │   ├── TokenInvalid         the caller's operator corrects the token
    │   ├── UnknownTaskType      the caller chooses another worker
    │   ├── TaskNotFound         never seen here, or past its retention
    │   ├── TaskConflict         the key is taken by another definition
    │   ├── Fenced               another worker holds the task under a higher token
    │   ├── WorkerFull           the caller chooses another worker, or comes back later
    │   ├── WorkerDraining       the caller chooses another worker
    │   ├── StorageUnavailable   the disk refuses; nothing was changed
    │   ├── SessionExpired       the worker registers again
    │   ├── WorkerSuperseded     another process runs under the same worker id
    │   ├── RunNotFound          the scheduler does not know the run
    │   └── RunConflict          the run id is taken by another workflow
    └── IllegalTransition        a defect: a task was moved where it cannot go

Failures of *tasks* are not here: they are values (:class:`remora.plugin.Failure`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class RemoraError(Exception):
    """Every error that Remora raises on purpose."""


class ConfigurationError(RemoraError):
    """The configuration is wrong. One line for each problem, each with the key and what to do."""

    def __init__(self, *problems: str) -> None:
        """Take every problem that was found, so that the operator corrects them in one go."""
        super().__init__("\n".join(problems))
        self.problems = problems


class NewerSchemaError(ConfigurationError):
    """The data directory was written by a newer version of Remora."""


class CallError(RemoraError):
    """The answer to a call that cannot be served. The message is safe to send to the caller."""

    reason: ClassVar[str] = "DEFECT"
    """Stable name for programs: the ``reason`` of the google.rpc.ErrorInfo."""


class InvalidRequest(CallError):
    """The caller corrects the named fields."""

    reason = "ASSIGNMENT_INVALID"

    def __init__(self, violations: Mapping[str, str], *, reason: str | None = None) -> None:
        """Take a message for each wrong field path."""
        super().__init__("; ".join(f"{path}: {message}" for path, message in violations.items()))
        self.violations = dict(violations)
        if reason is not None:
            self.reason = reason  # type: ignore[misc]  # narrowed for one instance


class TokenInvalid(CallError):
    """The bearer token is missing or wrong. The caller stops; its operator corrects the token."""

    reason = "TOKEN_INVALID"


class UnknownTaskType(CallError):
    """The caller chooses another worker."""

    reason = "TASK_TYPE_NOT_FOUND"


class TaskNotFound(CallError):
    """Never seen here, or past its retention."""

    reason = "TASK_NOT_FOUND"


class TaskConflict(CallError):
    """The key is taken by another definition."""

    reason = "TASK_CONFLICT"


class Fenced(CallError):
    """Another worker holds the task under a higher token."""

    reason = "FENCED"


class WorkerFull(CallError):
    """The caller chooses another worker, or comes back later."""

    reason = "WORKER_FULL"
    retry_after: ClassVar[float] = 5.0
    """Seconds."""


class WorkerDraining(CallError):
    """The caller chooses another worker."""

    reason = "WORKER_DRAINING"


class StorageUnavailable(CallError):
    """The disk refuses; nothing was changed. The operator makes room or repairs the disk."""

    reason = "STORAGE_UNAVAILABLE"


class SessionExpired(CallError):
    """The worker registers again."""

    reason = "SESSION_EXPIRED"


class WorkerSuperseded(CallError):
    """Another process runs under the same worker id."""

    reason = "WORKER_SUPERSEDED"


class RunNotFound(CallError):
    """The scheduler does not know the run."""

    reason = "RUN_NOT_FOUND"


class RunConflict(CallError):
    """The run id is taken by another workflow."""

    reason = "RUN_CONFLICT"


class IllegalTransition(RemoraError):
    """A defect: a task was moved where it cannot go."""
