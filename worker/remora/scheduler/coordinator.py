"""Joins runs, workers and the disk: what the services ask for, and the one loop that hands tasks out.

Every change of a run is on disk before anybody is told of it. Runs that have not ended are in memory too. One change
is made at a time; the loop is level-triggered: it looks at what is, so that nothing is lost where a write failed.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from remora.errors import Fenced, InvalidRequest, RunConflict, RunNotFound, StorageUnavailable
from remora.pace import Signal, completed, wait_for
from remora.plugin import Clock, TaskKey
from remora.scheduler import dagfile, parameters, state
from remora.scheduler.fleet import Fleet, Introduction, Session
from remora.scheduler.placeholders import UnresolvableText
from remora.scheduler.state import Command, Run
from remora.scheduler.store import Store
from remora.scheduler.workflow import TaskSpec
from remora.task import MAX_JSON_BYTES, TaskRecord
from remora.tasklog import TaskLogs

log = structlog.get_logger(__name__)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}")
_HOUSEKEEPING = 600.0
"""Seconds between deletions of what is past its retention."""
_DISK_PAUSE = 2.0
"""Seconds before the loop asks a disk again that refused."""
_LAST_LINES = 2.0
"""Seconds after its end for the last lines of a task to come: logs and reports travel side by side."""
_LARGEST_BATCH = 3 * 1024 * 1024
"""Characters of commands in one answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A task that a worker has when it registers."""

    key: TaskKey
    fencing_token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPage:
    """A piece of the log of an attempt."""

    text: str
    next_offset: int
    done: bool
    attempt: int
    """0 where there was none yet."""


class Coordinator:
    """The scheduler without its wire."""

    def __init__(self, store: Store, logs: TaskLogs, fleet: Fleet, clock: Clock, *, retention: float) -> None:
        """Take how many seconds a run is kept after its end. Use :meth:`recover` first."""
        self._store = store
        self._logs = logs
        self._fleet = fleet
        self._clock = clock
        self._retention = retention
        self._runs: dict[str, Run] = {}
        self._turn = asyncio.Lock()
        self._changed = Signal()
        self._closing = False
        self._clean_at = 0.0

    async def recover(self) -> None:
        """Go on with every run that has not ended."""
        self._runs = {run.run_id: run for run in await self._store.unfinished()}
        self._fleet.expect(_load(self._runs.values()))
        log.info("runs_recovered", count=len(self._runs))

    def close(self) -> None:
        """Answer whoever waits: the server stops."""
        self._closing = True
        self._changed.notify()
        self._logs.grew.notify()

    # For people ----------------------------------------------------------------------------------------------------

    async def submit(self, source: str, start: Mapping[str, str], run_id: str) -> Run:
        """Begin a run, or return the one that the same submission began.

        Raises:
            InvalidRequest: the run id or the file is wrong.
            RunConflict: the run id is taken by another workflow.
        """
        if run_id and not _RUN_ID.fullmatch(run_id):
            message = "must be 1 to 100 letters, digits or ._@:- and begin with a letter or a digit"
            raise InvalidRequest({"run_id": message}, reason="WORKFLOW_INVALID")
        if run_id and (known := await self._known(source, start, run_id)):
            return known
        workflow = await asyncio.to_thread(dagfile.parse, source)
        try:
            await asyncio.to_thread(parameters.check_circles, workflow, start)
        except UnresolvableText as error:
            raise InvalidRequest({"parameters": str(error)}, reason="WORKFLOW_INVALID") from None
        run = state.started(run_id or self._new_id(workflow.name), workflow, start, self._clock.now())
        return await completed(self._insert(run, source)) or await self._known(source, start, run_id) or run

    async def run(self, run_id: str) -> Run:
        """Return a run, or raise RunNotFound."""
        run = await self._find(run_id)
        if run is None:
            raise RunNotFound(f"there is no run {run_id!r} here, or it is past its retention")
        return run

    async def run_after(self, run_id: str, version: int, seconds: float) -> Run:
        """Return a run as soon as its version is higher, or the time is over. Raises RunNotFound."""
        deadline = self._clock.monotonic() + seconds
        while True:
            changed = self._changed.listen()
            run = await self.run(run_id)
            left = deadline - self._clock.monotonic()
            if run.version > version or left <= 0 or self._closing:
                return run
            await wait_for(changed, left, self._clock)

    async def latest(self, limit: int) -> list[Run]:
        """Return so many runs, newest first."""
        return await self._store.latest(limit)

    async def cancel(self, run_id: str, reason: str) -> Run:
        """Wish that a run ends. Raises RunNotFound."""

        async def cancel() -> Run:
            async with self._turn:
                run = state.cancelled(await self.run(run_id), reason or "no reason given", self._clock.now())
                await self._commit([run])
                return run

        return await completed(cancel())

    async def read_log(self, run_id: str, name: str, attempt: int, *, offset: int, limit: int, wait: float) -> LogPage:
        """Return a piece of the log of an attempt, 0 being the latest, as soon as there is one or the time is over.

        Raises:
            RunNotFound: there is no such run.
            InvalidRequest: the run has no such task or attempt.
        """
        deadline = self._clock.monotonic() + wait
        while True:
            grew = self._logs.grew.listen()
            page = await self._log_page(run_id, name, attempt, offset=offset, limit=limit)
            left = deadline - self._clock.monotonic()
            if page.text or page.done or left <= 0 or self._closing:
                return page
            await wait_for(grew, min(left, _LAST_LINES), self._clock)

    # For workers ---------------------------------------------------------------------------------------------------

    async def register(self, worker: Introduction, held: Sequence[Held]) -> tuple[Session, list[TaskKey]]:
        """Open a session; return it and the held tasks that belong to others now.

        Raises:
            WorkerSuperseded: another process has taken the worker's place.
        """
        return await completed(self._register(worker, held))

    async def poll(self, session_id: str, wait: float) -> Sequence[Command]:
        """Renew a lease and return commands as soon as there are any, or none when the time is over.

        A command comes again after a third of the lease while no report shows its effect. Of two polls of one
        session, the older returns at once.

        Raises:
            SessionExpired, WorkerSuperseded: the session is over.
        """
        session = self._fleet.renew(session_id)
        poll = session.polls
        if poll > 1:
            self._changed.notify()
        deadline = self._clock.monotonic() + min(wait, self._fleet.lease / 3)
        while True:
            changed = self._changed.listen()
            if session.polls != poll:
                return ()
            self._fleet.session(session_id)
            commands, pause = self._commands(session)
            left = deadline - self._clock.monotonic()
            if commands or left <= 0 or self._closing:
                return commands
            await wait_for(changed, min(left, pause), self._clock)

    async def report(
        self, session_id: str, records: Sequence[TaskRecord]
    ) -> tuple[list[tuple[TaskKey, int]], list[TaskKey]]:
        """Take snapshots; return what is on disk, as keys and sequences, and which tasks belong to others now.

        Raises:
            SessionExpired, WorkerSuperseded: the session is over.
            StorageUnavailable: nothing was taken.
        """
        return await completed(self._report(session_id, records))

    async def append_log(self, session_id: str, key: TaskKey, offset: int, text: str) -> int:
        """Append to a log if it ends at the offset; return where it ends.

        Raises:
            SessionExpired, WorkerSuperseded: the session is over.
            Fenced: another worker has the task, or nobody knows it.
            StorageUnavailable: the disk refuses.
        """
        return await completed(self._append_log(session_id, key, offset, text))

    def deregister(self, session_id: str, reason: str) -> None:
        """End a session: what its worker has goes to others. Raises as :meth:`poll`."""
        session = self._fleet.session(session_id)
        self._fleet.end(session)
        log.info("worker_deregistered", worker_id=session.worker.worker_id, reason=reason)
        self._changed.notify()

    # The loop ------------------------------------------------------------------------------------------------------

    async def hand_out(self) -> None:
        """Take tasks back from lost workers and hand ready ones out, for ever."""
        while True:
            changed = self._changed.listen()
            try:
                async with self._turn:
                    await self._take_back()
                    await self._assign()
                await self._forget()
                pause = self._pause()
            except (StorageUnavailable, OSError) as error:
                log.error("storage_unavailable", error=str(error))  # noqa: TRY400 -- no defect
                pause = _DISK_PAUSE
            await wait_for(changed, pause, self._clock)

    async def _take_back(self) -> None:
        present = self._fleet.present()
        now = self._clock.now()
        runs = list(self._runs.values())
        lost = [worker_id for worker_id in _load(runs) if worker_id not in present]
        for worker_id in lost:
            log.warning("worker_lost", worker_id=worker_id)
            runs = [state.worker_lost(run, worker_id, now) for run in runs]
        await self._commit(runs)

    async def _assign(self) -> None:
        now = self._clock.now()
        load = _load(self._runs.values())
        changed: list[Run] = []
        for before in self._runs.values():
            run = before
            for spec in list(state.ready(before, now)):
                run = await self._hand_over(run, spec, load, now)
            changed.append(run)
        await self._commit(changed)

    async def _hand_over(self, run: Run, spec: TaskSpec, load: Counter[str], now: float) -> Run:
        chosen = self._fleet.place(spec, load)
        if isinstance(chosen, str):
            return state.noted(run, spec.name, chosen, now)
        attempt = run.nodes[spec.name].open_attempt
        try:
            text = attempt.parameters if attempt is not None else await asyncio.to_thread(_parameters, run, spec)
            log_size = 0 if attempt is None else await self._logs.size(run.key(spec.name, attempt.number))
        except UnresolvableText as error:
            return state.refused(run, spec.name, str(error), now)
        load[chosen.worker.worker_id] += 1
        return state.handed_over(run, spec.name, chosen.worker.worker_id, text, now, log_size=log_size)

    async def _forget(self) -> None:
        if self._clock.monotonic() < self._clean_at:
            return
        while forgotten := await self._store.forget(self._clock.now() - self._retention):
            await self._logs.remove([key for run in forgotten for key in run.attempt_keys()])
        self._clean_at = self._clock.monotonic() + _HOUSEKEEPING

    async def _append_log(self, session_id: str, key: TaskKey, offset: int, text: str) -> int:
        # With the turn, so that the log does not grow while the task is handed to another worker.
        async with self._turn:
            worker_id = self._fleet.session(session_id).worker.worker_id
            run = await self._find(state.names_of(key.task_id)[0])
            attempt = None if run is None else state.attempt_of(run, key)
            if attempt is None or attempt.worker_id != worker_id:
                raise Fenced(f"{key} belongs to another worker now, or is unknown")
            try:
                if not text:
                    return await self._logs.size(key) - attempt.log_base
                return await self._logs.append_at(key, offset + attempt.log_base, text) - attempt.log_base
            except OSError as error:
                raise StorageUnavailable(f"the log of {key} cannot be written: {error.strerror}") from error

    def _pause(self) -> float:
        now = self._clock.now()
        times = [time - now for run in self._runs.values() if (time := state.due(run, now)) is not None]
        end = self._fleet.next_end()
        return max(0.0, min([*times, _HOUSEKEEPING if end is None else end, _HOUSEKEEPING]))

    # One change ----------------------------------------------------------------------------------------------------

    async def _insert(self, run: Run, source: str) -> Run | None:
        async with self._turn:
            if not await self._store.insert(run, source):
                return None
            self._runs[run.run_id] = run
            self._changed.notify()
            log.info("run_submitted", run_id=run.run_id, workflow=run.workflow.name, tasks=len(run.nodes))
            return run

    async def _known(self, source: str, start: Mapping[str, str], run_id: str) -> Run | None:
        submission = await self._store.submission(run_id)
        if submission is None:
            return None
        if (submission.source, submission.parameters) != (source, dict(start)):
            raise RunConflict(f"the run id {run_id!r} is taken by another workflow or other parameters")
        return await self.run(run_id)

    async def _register(self, worker: Introduction, held: Sequence[Held]) -> tuple[Session, list[TaskKey]]:
        async with self._turn:
            self._fleet.check(worker)
            now = self._clock.now()
            runs = dict(self._runs)
            fenced: list[TaskKey] = []
            kept: set[TaskKey] = set()
            for task in held:
                run_id, _ = state.names_of(task.key.task_id)
                run = runs.get(run_id) or await self._find(run_id)
                if run is None or state.fenced(run, task.key, task.fencing_token, worker.worker_id):
                    fenced.append(task.key)
                    continue
                kept.add(task.key)
                runs[run_id] = state.resumed(run, task.key, now)
            lost = (state.worker_lost(run, worker.worker_id, now, keep=frozenset(kept)) for run in runs.values())
            await self._commit(lost)
            session = self._fleet.register(worker)
            self._changed.notify()
            log.info("worker_registered", worker_id=worker.worker_id, held=len(held), fenced=len(fenced))
            return session, fenced

    async def _report(
        self, session_id: str, records: Sequence[TaskRecord]
    ) -> tuple[list[tuple[TaskKey, int]], list[TaskKey]]:
        async with self._turn:
            worker_id = self._fleet.session(session_id).worker.worker_id
            now = self._clock.now()
            runs: dict[str, Run] = {}
            taken: list[tuple[TaskKey, int]] = []
            fenced: list[TaskKey] = []
            for record in records:
                run_id, _ = state.names_of(record.key.task_id)
                run = runs.get(run_id) or await self._find(run_id)
                if run is None or state.fenced(run, record.key, record.fencing_token, worker_id):
                    fenced.append(record.key)
                    continue
                runs[run_id] = state.reported(run, record, worker_id, now)
                taken.append((record.key, _highest(runs[run_id], record)))
            await self._commit(runs.values())
            return taken, fenced

    async def _commit(self, runs: Iterable[Run]) -> None:
        """Write the runs that changed, then show them. The caller has the turn."""
        changes = [
            (before, run) for run in runs if (before := self._runs.get(run.run_id)) is not None and run is not before
        ]
        if not changes:
            return
        await self._store.update(changes)
        for _, run in changes:
            self._runs[run.run_id] = run
            if run.finished_at is not None:
                del self._runs[run.run_id]
                log.info("run_finished", run_id=run.run_id, state=run.state)
        self._changed.notify()
        self._logs.grew.notify()  # a log that has come to its end

    # What is -------------------------------------------------------------------------------------------------------

    async def _find(self, run_id: str) -> Run | None:
        return self._runs.get(run_id) or await self._store.get(run_id)

    def _commands(self, session: Session) -> tuple[list[Command], float]:
        """Return what to send now, and in how many seconds there is more to be repeated."""
        now, again = self._clock.monotonic(), self._fleet.lease / 3
        worker_id = session.worker.worker_id
        commands = [command for run in self._runs.values() for command in state.commands(run, worker_id)]
        outstanding = {_identity(command) for command in commands}
        session.delivered = {name: time for name, time in session.delivered.items() if name in outstanding}
        due: list[Command] = []
        size = 0
        for command in commands:
            if session.delivered.get(_identity(command), now - again) > now - again:
                continue
            size += _size(command)
            if due and size > _LARGEST_BATCH:
                break
            due.append(command)
            session.delivered[_identity(command)] = now
        return due, min((time + again - now for time in session.delivered.values()), default=again)

    async def _log_page(self, run_id: str, name: str, attempt: int, *, offset: int, limit: int) -> LogPage:
        run = await self.run(run_id)
        node = run.nodes.get(name)
        if node is None:
            raise InvalidRequest({"task_name": f"the run has no task {name!r}"}, reason="REQUEST_INVALID")
        number = attempt or len(node.attempts)
        if number > len(node.attempts):
            raise InvalidRequest({"attempt": f"the task has had {len(node.attempts)}"}, reason="REQUEST_INVALID")
        if number == 0:
            return LogPage(text="", next_offset=0, done=node.state.final, attempt=0)
        key = run.key(name, number)
        text, end = await self._logs.read(key, offset=offset, limit=limit)
        ended_at = node.attempts[number - 1].ended_at
        complete = ended_at is not None and self._clock.now() >= ended_at + _LAST_LINES
        return LogPage(text=text, next_offset=end, done=complete and end >= await self._logs.size(key), attempt=number)

    def _new_id(self, name: str) -> str:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "run"
        moment = datetime.fromtimestamp(self._clock.now(), UTC)
        return f"{slug}-{moment:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


def _load(runs: Iterable[Run]) -> Counter[str]:
    """Count the tasks that each worker has."""
    return Counter(
        node.attempts[-1].worker_id for run in runs for node in run.nodes.values() if node.state.held and node.attempts
    )


def _parameters(run: Run, spec: TaskSpec) -> str:
    key = run.key(spec.name, len(run.nodes[spec.name].attempts) + 1)
    text = parameters.expanded(
        run.workflow,
        spec,
        run_id=run.run_id,
        task_id=key.task_id,
        created_at=run.created_at,
        start=run.parameters,
        outputs=run.outputs(spec.name),
    )
    if len(text.encode()) > MAX_JSON_BYTES:
        raise UnresolvableText(f"the parameters have more than {MAX_JSON_BYTES} bytes once they are filled in")
    return text


def _highest(run: Run, record: TaskRecord) -> int:
    """Return the highest sequence that needs no report any more: after the end, nothing is news."""
    attempt = state.attempt_of(run, record.key)
    known = attempt.record if attempt is not None else None
    same = known is not None and known.fencing_token == record.fencing_token
    return max(record.sequence, known.sequence) if same and known is not None else record.sequence


def _identity(command: Command) -> tuple[TaskKey, int, bool]:
    return command.key, command.fencing_token, command.dispatch is not None


def _size(command: Command) -> int:
    return (
        0
        if command.dispatch is None
        else len(command.dispatch.definition.parameters) + len(command.dispatch.handle or "")
    )
