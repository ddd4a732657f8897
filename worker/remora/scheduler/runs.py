"""Every run, on disk and, until it has ended, in memory; and what people do with one.

A change is on disk before anybody is told of it, and one is made at a time: who changes runs holds the turn from
looking to :meth:`Runs.commit`.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

import structlog

from remora.errors import InvalidRequest, RunConflict, RunNotFound
from remora.pace import Signal, completed, wait_for
from remora.plugin import Clock
from remora.scheduler import dagfile, parameters, state
from remora.scheduler.placeholders import UnresolvableText
from remora.scheduler.state import Run
from remora.scheduler.store import Store

log = structlog.get_logger(__name__)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}")


class Runs:
    """All runs of a scheduler."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Use :meth:`recover` first."""
        self._store = store
        self._clock = clock
        self._unfinished: dict[str, Run] = {}
        self.turn = asyncio.Lock()
        """Held while runs are changed."""
        self.changed = Signal()
        """Notified after every change."""
        self.closed = False

    async def recover(self) -> None:
        """Go on with every run that has not ended."""
        self._unfinished = {run.run_id: run for run in await self._store.unfinished()}
        log.info("runs_recovered", count=len(self._unfinished))

    def close(self) -> None:
        """Answer whoever waits: the server stops."""
        self.closed = True
        self.changed.notify()

    @property
    def unfinished(self) -> Collection[Run]:
        """Every run that has not ended, in the order of submission."""
        return self._unfinished.values()

    async def find(self, run_id: str) -> Run | None:
        """Return a run, ended or not."""
        return self._unfinished.get(run_id) or await self._store.get(run_id)

    async def commit(self, runs: Iterable[Run]) -> None:
        """Write the runs that changed, then show them. The caller has the turn; ended runs do not change.

        Raises:
            StorageUnavailable: nothing was changed.
        """
        known = self._unfinished
        changes = [(known[run.run_id], run) for run in runs if run.run_id in known and run is not known[run.run_id]]
        if not changes:
            return
        await self._store.update(changes)
        for _, run in changes:
            known[run.run_id] = run
            if run.finished_at is not None:
                del known[run.run_id]
                log.info("run_finished", run_id=run.run_id, state=run.state)
        self.changed.notify()

    async def forget(self, ended_before: float) -> list[Run]:
        """Delete some runs that ended before a time, in seconds since the epoch, and return them."""
        return await self._store.forget(ended_before)

    # For people

    async def submit(self, source: str, start: Mapping[str, str], run_id: str) -> Run:
        """Begin a run, or return the one that the same submission began.

        Raises:
            InvalidRequest: the run id, the file or the start parameters are wrong.
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
        nonce = uuid.uuid4().hex[:8]
        run = state.started(run_id or self._new_id(workflow.name), nonce, workflow, start, self._clock.now())
        if not await completed(self._insert(run, source)):
            return await self._known(source, start, run_id) or await self.get(run_id)
        for note in workflow.notes:
            log.warning("workflow_field_ignored", run_id=run.run_id, note=note)
        return run

    async def get(self, run_id: str) -> Run:
        """Return a run, or raise RunNotFound."""
        run = await self.find(run_id)
        if run is None:
            raise RunNotFound(f"there is no run {run_id!r} here, or it is past its retention")
        return run

    async def get_after(self, run_id: str, version: int, seconds: float) -> Run:
        """Return a run as soon as its version is higher, or the time is over. Raises RunNotFound."""
        deadline = self._clock.monotonic() + seconds
        while True:
            changed = self.changed.listen()
            run = await self.get(run_id)
            left = deadline - self._clock.monotonic()
            if run.version > version or left <= 0 or self.closed:
                return run
            await wait_for(changed, left, self._clock)

    async def latest(self, limit: int) -> list[Run]:
        """Return so many runs, newest first."""
        return await self._store.latest(limit)

    async def cancel(self, run_id: str, reason: str) -> Run:
        """Wish that a run ends. Raises RunNotFound."""
        return await completed(self._cancel(run_id, reason))

    async def _cancel(self, run_id: str, reason: str) -> Run:
        async with self.turn:
            run = state.cancelled(await self.get(run_id), reason or "no reason given", self._clock.now())
            await self.commit([run])
            return run

    async def _insert(self, run: Run, source: str) -> bool:
        async with self.turn:
            if not await self._store.insert(run, source):
                return False
            self._unfinished[run.run_id] = run
            self.changed.notify()
            log.info("run_submitted", run_id=run.run_id, workflow=run.workflow.name, tasks=len(run.nodes))
            return True

    async def _known(self, source: str, start: Mapping[str, str], run_id: str) -> Run | None:
        submission = await self._store.submission(run_id)
        if submission is None:
            return None
        if (submission.source, submission.parameters) != (source, dict(start)):
            raise RunConflict(f"the run id {run_id!r} is taken by another workflow or other parameters")
        return await self.get(run_id)

    def _new_id(self, name: str) -> str:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "run"
        moment = datetime.fromtimestamp(self._clock.now(), UTC)
        return f"{slug}-{moment:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
