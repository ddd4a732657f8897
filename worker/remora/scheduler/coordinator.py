"""Hands tasks to workers and takes what they report: sessions, commands, and the one loop.

The loop is level-triggered: it looks at what is, so that nothing is lost where a write failed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from remora.errors import StorageUnavailable
from remora.pace import completed, wait_for
from remora.plugin import Clock, TaskKey
from remora.scheduler import parameters, state
from remora.scheduler.fleet import Fleet, Introduction, Session
from remora.scheduler.placeholders import UnresolvableText
from remora.scheduler.runlogs import RunLogs
from remora.scheduler.runs import Runs
from remora.scheduler.state import Command, Run
from remora.scheduler.workflow import TaskSpec
from remora.task import MAX_JSON_BYTES, TaskRecord

log = structlog.get_logger(__name__)

_LONGEST_PAUSE = 60.0
"""Seconds between two rounds of the loop where nothing is to be expected."""
_DISK_PAUSE = 2.0
"""Seconds before the loop asks a disk again that refused."""
_LARGEST_BATCH = 3 * 1024 * 1024
"""Characters of commands in one answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A task that a worker has when it registers."""

    key: TaskKey
    fencing_token: int


class Coordinator:
    """What workers talk to, and the loop that hands tasks out."""

    def __init__(self, runs: Runs, fleet: Fleet, logs: RunLogs, clock: Clock) -> None:
        """Wait a lease's time for the workers that had tasks before the scheduler was restarted."""
        self._runs = runs
        self._fleet = fleet
        self._logs = logs
        self._clock = clock
        fleet.expect(_load(runs.unfinished))

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
            self._runs.changed.notify()
        deadline = self._clock.monotonic() + min(wait, self._fleet.lease / 3)
        while True:
            changed = self._runs.changed.listen()
            if session.polls != poll:
                return ()
            self._fleet.session(session_id)
            commands, pause = self._commands(session)
            left = deadline - self._clock.monotonic()
            if commands or left <= 0 or self._runs.closed:
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
        worker_id = self._fleet.session(session_id).worker.worker_id
        return await completed(self._logs.append(key, worker_id, offset, text))

    def deregister(self, session_id: str, reason: str) -> None:
        """End a session: what its worker has goes to others. Raises as :meth:`poll`."""
        session = self._fleet.session(session_id)
        self._fleet.end(session)
        log.info("worker_deregistered", worker_id=session.worker.worker_id, reason=reason)
        self._runs.changed.notify()

    # The loop ------------------------------------------------------------------------------------------------------

    async def hand_out(self) -> None:
        """Take tasks back from lost workers and hand ready ones out, for ever."""
        while True:
            changed = self._runs.changed.listen()
            try:
                async with self._runs.turn:
                    await self._take_back()
                    await self._assign()
                pause = self._pause()
            except (StorageUnavailable, OSError) as error:
                log.error("storage_unavailable", error=str(error))  # noqa: TRY400 -- no defect
                pause = _DISK_PAUSE
            await wait_for(changed, pause, self._clock)

    async def _take_back(self) -> None:
        present = self._fleet.present()
        now = self._clock.now()
        runs = list(self._runs.unfinished)
        lost = [worker_id for worker_id in _load(runs) if worker_id not in present]
        for worker_id in lost:
            log.warning("worker_lost", worker_id=worker_id)
            runs = [state.worker_lost(run, worker_id, now) for run in runs]
        await self._runs.commit(runs)

    async def _assign(self) -> None:
        now = self._clock.now()
        load = _load(self._runs.unfinished)
        changed: list[Run] = []
        for before in self._runs.unfinished:
            run = before
            for spec in list(state.ready(before, now)):
                run = await self._hand_over(run, spec, load, now)
            changed.append(run)
        await self._runs.commit(changed)

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

    def _pause(self) -> float:
        now = self._clock.now()
        times = [time - now for run in self._runs.unfinished if (time := state.due(run, now)) is not None]
        end = self._fleet.next_end()
        return min([*times, *([] if end is None else [end]), _LONGEST_PAUSE])

    async def _register(self, worker: Introduction, held: Sequence[Held]) -> tuple[Session, list[TaskKey]]:
        async with self._runs.turn:
            self._fleet.check(worker)
            now = self._clock.now()
            runs = {run.run_id: run for run in self._runs.unfinished}
            fenced: list[TaskKey] = []
            kept: set[TaskKey] = set()
            for task in held:
                run_id, _ = state.names_of(task.key.task_id)
                run = runs.get(run_id) or await self._runs.find(run_id)
                if run is None or state.fenced(run, task.key, task.fencing_token, worker.worker_id):
                    fenced.append(task.key)
                    continue
                kept.add(task.key)
                runs[run_id] = state.resumed(run, task.key, now)
            lost = (state.worker_lost(run, worker.worker_id, now, keep=frozenset(kept)) for run in runs.values())
            await self._runs.commit(lost)
            session = self._fleet.register(worker)
            self._runs.changed.notify()
            log.info("worker_registered", worker_id=worker.worker_id, held=len(held), fenced=len(fenced))
            return session, fenced

    async def _report(
        self, session_id: str, records: Sequence[TaskRecord]
    ) -> tuple[list[tuple[TaskKey, int]], list[TaskKey]]:
        async with self._runs.turn:
            worker_id = self._fleet.session(session_id).worker.worker_id
            now = self._clock.now()
            runs: dict[str, Run] = {}
            taken: list[tuple[TaskKey, int]] = []
            fenced: list[TaskKey] = []
            for record in records:
                run_id, _ = state.names_of(record.key.task_id)
                run = runs.get(run_id) or await self._runs.find(run_id)
                if run is None or state.fenced(run, record.key, record.fencing_token, worker_id):
                    fenced.append(record.key)
                    continue
                runs[run_id] = state.reported(run, record, worker_id, now)
                taken.append((record.key, _highest(runs[run_id], record)))
            await self._runs.commit(runs.values())
            return taken, fenced

    def _commands(self, session: Session) -> tuple[list[Command], float]:
        """Return what to send now, and in how many seconds there is more to be repeated."""
        now, again = self._clock.monotonic(), self._fleet.lease / 3
        worker_id = session.worker.worker_id
        commands = [command for run in self._runs.unfinished for command in state.commands(run, worker_id)]
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


def _load(runs: Iterable[Run]) -> Counter[str]:
    """Count the tasks that each worker has."""
    return Counter(
        node.attempts[-1].worker_id for run in runs for node in run.nodes.values() if node.state.held and node.attempts
    )


def _parameters(run: Run, spec: TaskSpec) -> str:
    """Raise UnresolvableText for whatever makes it impossible: one task must not take the scheduler down."""
    key = run.key(spec.name, len(run.nodes[spec.name].attempts) + 1)
    try:
        text = parameters.expanded(
            run.workflow,
            spec,
            run_id=run.run_id,
            task_id=key.task_id,
            created_at=run.created_at,
            start=run.parameters,
            outputs=run.outputs(spec.name),
        )
        size = len(text.encode())
    except (ValueError, RecursionError) as error:
        raise UnresolvableText(f"what the tasks before it put out cannot be used: {error}") from error
    if size > MAX_JSON_BYTES:
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
