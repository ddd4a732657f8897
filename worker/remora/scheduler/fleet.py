"""The workers that are registered: their sessions, their leases, and which of them takes a task.

All of this is in memory only: after a restart of the scheduler every worker registers again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from remora.errors import SessionExpired, WorkerSuperseded
from remora.plugin import Clock, TaskKey
from remora.scheduler.workflow import DEFAULT_GROUP, TaskSpec

GROUP_LABEL = "group"
"""The label of a worker that names the worker group it belongs to, beside the default one."""

_KEEP_ENDED = 10
"""Leases for which the scheduler remembers why a session ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What a worker says of itself."""

    worker_id: str
    instance_id: str
    capacity: int
    task_types: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    def fits(self, spec: TaskSpec) -> bool:
        """Tell whether the worker can run a task and belongs to its group."""
        in_group = spec.worker_group in (DEFAULT_GROUP, self.labels.get(GROUP_LABEL))
        return in_group and spec.task_type in self.task_types


@dataclass(kw_only=True, slots=True)
class Session:
    """A worker while it is registered. Times are monotonic."""

    session_id: str
    worker: Introduction
    expires_at: float
    polls: int = 0
    """How many began; only the latest one is answered with commands."""
    delivered: dict[tuple[TaskKey, int, bool], float] = field(default_factory=dict[tuple[TaskKey, int, bool], float])
    """When each command was last sent: key, token, and whether it is a dispatch."""
    ended: str = ""
    """Why, once it is over."""
    superseded: bool = False


class Fleet:
    """All workers."""

    def __init__(self, clock: Clock, lease: float) -> None:
        """Take how many seconds after its latest poll began a worker counts as lost."""
        self._clock = clock
        self.lease = lease
        self._sessions: dict[str, Session] = {}
        self._current: dict[str, Session] = {}
        """By worker id."""
        self._superseded: dict[str, set[str]] = {}
        """Instance ids by worker id."""
        self._awaited: dict[str, float] = {}

    def expect(self, worker_ids: Iterable[str]) -> None:
        """Give workers a lease's time to register: they had tasks before the scheduler was restarted."""
        self._awaited.update(dict.fromkeys(worker_ids, self._clock.monotonic() + self.lease))

    def check(self, worker: Introduction) -> None:
        """Raise WorkerSuperseded if another process has taken the worker's place."""
        if worker.instance_id in self._superseded.get(worker.worker_id, ()):
            raise _superseded(worker.worker_id)

    def register(self, worker: Introduction) -> Session:
        """Open a session; an older one of the same worker id ends."""
        self.check(worker)
        before = self._current.get(worker.worker_id)
        if before is not None and before.worker.instance_id == worker.instance_id:
            before.ended = "the worker has registered again since"
        elif before is not None:
            self._superseded.setdefault(worker.worker_id, set()).add(before.worker.instance_id)
            before.superseded = True
        session = Session(session_id=uuid.uuid4().hex, worker=worker, expires_at=self._clock.monotonic() + self.lease)
        self._sessions[session.session_id] = self._current[worker.worker_id] = session
        self._awaited.pop(worker.worker_id, None)
        return session

    def session(self, session_id: str) -> Session:
        """Return a session that lives.

        Raises:
            SessionExpired: it does not; the worker registers again.
            WorkerSuperseded: another process runs under its worker id.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionExpired("the session is unknown; the scheduler may have been restarted")
        if session.superseded:
            raise _superseded(session.worker.worker_id)
        if not session.ended and session.expires_at <= self._clock.monotonic():
            session.ended = f"the worker did not poll within its lease of {self.lease:g} s"
        if session.ended:
            raise SessionExpired(session.ended)
        return session

    def renew(self, session_id: str) -> Session:
        """Return a session whose poll begins now. Raises as :meth:`session`."""
        session = self.session(session_id)
        session.expires_at = self._clock.monotonic() + self.lease
        session.polls += 1
        return session

    def end(self, session: Session) -> None:
        """Let a worker go."""
        session.ended = "the worker has signed off"

    def live(self) -> Mapping[str, Session]:
        """Return the sessions that live, by worker id, and forget those that ended long ago."""
        now = self._clock.monotonic()
        long_ago = now - _KEEP_ENDED * self.lease
        self._sessions = {name: session for name, session in self._sessions.items() if session.expires_at > long_ago}
        return {
            name: session for name, session in self._current.items() if not session.ended and session.expires_at > now
        }

    def present(self) -> frozenset[str]:
        """Return the ids of workers that keep their tasks: those that live, and those that may yet come back."""
        now = self._clock.monotonic()
        self._awaited = {name: until for name, until in self._awaited.items() if until > now}
        return frozenset({*self.live(), *self._awaited})

    def next_end(self) -> float | None:
        """Return the seconds until the next lease ends."""
        ends = [*self._awaited.values(), *(session.expires_at for session in self.live().values())]
        return min(ends) - self._clock.monotonic() if ends else None

    def place(self, spec: TaskSpec, load: Mapping[str, int]) -> Session | str:
        """Return the worker with the most free capacity for a task, or what the task waits for."""
        fitting = [session for session in self.live().values() if session.worker.fits(spec)]
        if not fitting:
            group = "" if spec.worker_group == DEFAULT_GROUP else f" in the group {spec.worker_group}"
            return f"waits for a worker that runs {spec.task_type}{group}; {self._say()}"
        free = {session.worker.worker_id: _free(session, load) for session in fitting}
        best = max(fitting, key=lambda session: free[session.worker.worker_id])
        if free[best.worker.worker_id] <= 0:
            return f"waits for capacity: every worker that runs {spec.task_type} is full"
        return best

    def _say(self) -> str:
        live = self.live()
        if not live:
            return "no worker is registered"
        return "registered: " + ", ".join(
            f"{name} ({', '.join(sorted(session.worker.task_types)) or 'nothing'})" for name, session in live.items()
        )


def _free(session: Session, load: Mapping[str, int]) -> int:
    return session.worker.capacity - load.get(session.worker.worker_id, 0)


def _superseded(worker_id: str) -> WorkerSuperseded:
    return WorkerSuperseded(f"another process has registered as worker {worker_id}; give each worker its own worker.id")
