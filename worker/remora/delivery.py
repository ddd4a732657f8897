"""What the worker owes a scheduler that it dialled: the latest snapshot of each task, and its whole log.

A task is *settled* when the scheduler has its final snapshot and its log to the end; that is noted in the journal.
What is not settled is delivered again in the next session, from what the journal says: nothing here needs to survive.
Three loops, each with one idea:

* **follow** reads the journal's changes and queues snapshots;
* **report** sends queued snapshots, one call at a time, again and again until the scheduler has them;
* **ship** sends what the logs have grown by. It looks at the log of a task when the task changed, because almost all
  lines come with a change, and once a minute for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remora import wire
from remora.door import TaskKey, TaskRecord, TaskService, TaskState
from remora.errors import Fenced, StorageUnavailable, TaskNotFound
from remora.pace import Backoff, Timetable
from remora.plugin import Clock
from remora.rpc import PersistentCaller
from remora.v1 import scheduler_service_pb2 as pb
from remora.v1 import task_pb2

if TYPE_CHECKING:
    from remora.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub  # for type checkers only

log = structlog.get_logger(__name__)

_CALL = 30.0
"""Seconds for one call that does not wait."""
_QUEUE = 1000
"""Snapshots that wait to be sent; the journal keeps the others."""
_ENOUGH = 256 * 1024
"""Bytes of tasks after which a report is sent. With one large task more it stays below 1 MiB."""
_LOG_PIECE = 256 * 1024
"""Bytes; a message may carry 512 KiB."""
_LOGS_AT_ONCE = 16
_LOOK_AGAIN = 60.0
"""Seconds until the log of a task that did not change is looked at, or a note that was not written is tried again."""
_PAUSE = 5.0
"""Seconds until text is sent again that the scheduler did not take."""


@dataclass(slots=True)
class _Owed:
    """How far a task is known to the scheduler."""

    offset: int | None
    """Where its copy of the log ends; None: not asked yet."""
    final: int = 0
    """The sequence of the final snapshot; 0 while there is none."""
    acknowledged: int = 0
    """The highest sequence that is on the scheduler's disk."""
    log_complete: bool = False

    @property
    def settled(self) -> bool:
        return 0 < self.final <= self.acknowledged and self.log_complete


class Delivery:
    """What one session owes."""

    def __init__(
        self,
        tasks: TaskService,
        scheduler: SchedulerServiceAsyncStub,
        call: PersistentCaller,
        clock: Clock,
        *,
        door: str,
        backoff: Backoff,
    ) -> None:
        """Owe nothing yet; :meth:`load` what the journal says."""
        self._tasks = tasks
        self._scheduler = scheduler
        self._call = call
        self._clock = clock
        self._door = door
        self._backoff = backoff
        self._session_id = ""
        self._owed: dict[TaskKey, _Owed] = {}
        self._queue: asyncio.Queue[task_pb2.Task] = asyncio.Queue(_QUEUE)
        self._logs_due = Timetable[TaskKey](clock)
        self._position = 0
        # Only for records that were there before the session: emptied when those are through.
        self._settled: dict[TaskKey, str] = {}
        self._settled_until = 0

    async def load(self) -> Sequence[pb.HeldTask]:
        """Find what is not settled, and return it for the registration."""
        self._settled = dict(await self._tasks.notes(self._door).read_all())
        held: list[pb.HeldTask] = []
        position = 0
        while (page := await self._tasks.changes(position, door=self._door, limit=100)).records:
            for record in page.records:
                if self._is_settled(record):
                    continue
                if not held:
                    self._position = position
                self._owed[record.key] = _Owed(offset=None)
                held.append(
                    pb.HeldTask(
                        key=wire.key_message(record.key),
                        fencing_token=record.fencing_token,
                        sequence=record.sequence,
                    )
                )
            position = page.position
        self._settled_until = position
        if not held:
            self._position = position
        return held

    async def run(self, session_id: str) -> None:
        """Deliver, for ever.

        Raises:
            ExceptionGroup: of what ended a loop: SessionExpired, WorkerSuperseded, a refusal, or StorageUnavailable
                where the worker's own disk cannot be read.
        """
        self._session_id = session_id
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="scheduler: follow tasks")
            group.create_task(self._report(), name="scheduler: report tasks")
            group.create_task(self._ship(), name="scheduler: ship logs")

    def repeat(self, record: TaskRecord) -> None:
        """Report a task that the scheduler should know already, and asks for again."""
        if record.door == self._door:
            self._track(record, offset=None)
        self.add(wire.task_message(record))

    def add(self, task: task_pb2.Task) -> None:
        """Report a snapshot, unless too many wait: then the scheduler asks again."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(task)

    async def release(self, key: TaskKey, *, fencing_token: int | None = None) -> None:
        """Let go of a task that belongs to another worker, or that the scheduler does not know."""
        try:
            record = await self._tasks.get(key)
            token = record.fencing_token if fencing_token is None else fencing_token
            log.warning("task_fenced", task_id=key.task_id, attempt=key.attempt, fencing_token=token)
            await self._tasks.release(key, fencing_token=token)
            record = await self._tasks.get(key)
        except TaskNotFound:
            return  # it was refused and never ours
        # It may have been handed to this worker again in the meantime, under a higher token.
        if record.state.final and record.fencing_token <= token:
            await self._tasks.notes(self._door).write({key: str(record.sequence)})
            self._forget(key)

    # Snapshots

    async def _follow(self) -> None:
        while True:
            page = await self._tasks.changes(self._position, door=self._door, limit=100, wait=60.0)
            for record in page.records:
                if self._is_settled(record):
                    self._forget(record.key)
                    continue
                self._track(record, offset=0)
                await self._queue.put(wire.task_message(record))
            self._position = page.position
            if self._position >= self._settled_until:
                self._settled.clear()

    async def _report(self) -> None:
        unanswered: dict[TaskKey, task_pb2.Task] = {}
        retries = 0
        while True:
            batch = await self._fill(unanswered)
            request = pb.ReportTasksRequest(session_id=self._session_id, tasks=batch.values())
            answer = await self._call(self._scheduler.ReportTasks, request, seconds=_CALL)
            unanswered = await self._take(batch, answer)
            if not unanswered:
                retries = 0
                continue
            delay = self._backoff.delay(retries)
            log.warning("report_not_acknowledged", tasks=[str(key) for key in unanswered], delay=round(delay, 1))
            retries += 1
            await self._clock.sleep(delay)

    async def _fill(self, batch: dict[TaskKey, task_pb2.Task]) -> dict[TaskKey, task_pb2.Task]:
        """Add what waits, the newest snapshot of each task; wait for the first one."""
        size = sum(task.ByteSize() for task in batch.values())
        while not batch or (size < _ENOUGH and not self._queue.empty()):
            task = await self._queue.get()
            size += task.ByteSize()
            key = TaskKey(task_id=task.key.task_id, attempt=task.key.attempt)
            if key not in batch or batch[key].sequence <= task.sequence:
                batch[key] = task
        return batch

    async def _take(
        self, batch: Mapping[TaskKey, task_pb2.Task], answer: pb.ReportTasksResponse
    ) -> dict[TaskKey, task_pb2.Task]:
        """Take what the scheduler says of a report; return what it says nothing of."""
        unanswered = dict(batch)
        for fenced in answer.fenced:
            key = TaskKey(task_id=fenced.task_id, attempt=fenced.attempt)
            if (task := unanswered.pop(key, None)) is not None:
                await self.release(key, fencing_token=task.fencing_token)
        acknowledged: list[TaskKey] = []
        for taken in answer.acknowledged:
            key = TaskKey(task_id=taken.key.task_id, attempt=taken.key.attempt)
            if key in unanswered and taken.sequence >= unanswered[key].sequence:
                del unanswered[key]
                acknowledged.append(key)
                if (owed := self._owed.get(key)) is not None:
                    owed.acknowledged = max(owed.acknowledged, taken.sequence)
        await self._settle(acknowledged)
        return unanswered

    # Logs

    async def _ship(self) -> None:
        while True:
            keys = await self._logs_due.take(_LOGS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for key in keys:
                    group.create_task(self._ship_piece(key), name=f"scheduler: ship the log of {key}")
            await self._settle(keys)

    async def _ship_piece(self, key: TaskKey) -> None:
        """Send the next piece of a log, and say when to look at it again."""
        owed = self._owed.get(key)
        if owed is None:
            return
        try:
            if owed.offset is None:
                owed.offset = await self._append(key, 0, "")
            begin = owed.offset
            chunk = await self._tasks.read_log(key, offset=begin, limit=_LOG_PIECE)
            if chunk.text:
                owed.offset = await self._append(key, begin, chunk.text)
        except Fenced:
            # A report will be answered so too, and then the task is let go.
            owed.log_complete = True
            return
        except TaskNotFound:
            self._forget(key)  # past its retention
            return
        owed.log_complete = chunk.done and owed.offset == max(begin, chunk.next_offset)
        if owed.log_complete:
            return
        if owed.offset == begin and chunk.text:
            log.warning("log_not_taken", task_id=key.task_id, attempt=key.attempt, offset=begin)
            self._look(key, _PAUSE)
        elif owed.offset != begin:
            self._look(key, 0.0)  # there may be more
        else:
            self._look(key, _LOOK_AGAIN)

    async def _append(self, key: TaskKey, offset: int, text: str) -> int:
        request = pb.AppendTaskLogsRequest(
            session_id=self._session_id, key=wire.key_message(key), offset=offset, text=text
        )
        return (await self._call(self._scheduler.AppendTaskLogs, request, seconds=_CALL)).next_offset

    def _look(self, key: TaskKey, delay: float) -> None:
        if key not in self._logs_due:
            self._logs_due.set(key, delay)

    # Both

    def _track(self, record: TaskRecord, *, offset: int | None) -> None:
        owed = self._owed.setdefault(record.key, _Owed(offset=offset))
        owed.final = record.sequence if record.state.final else 0
        self._logs_due.set(record.key, 0.0)

    async def _settle(self, keys: Iterable[TaskKey]) -> None:
        """Note what is settled, and forget it."""
        settled = {key: str(owed.final) for key in keys if (owed := self._owed.get(key)) is not None and owed.settled}
        if not settled:
            return
        try:
            await self._tasks.notes(self._door).write(settled)
        except StorageUnavailable as error:
            log.warning("settled_tasks_not_noted", error=str(error), tasks=len(settled))
            for key in settled:
                self._look(key, _LOOK_AGAIN)
            return
        for key, sequence in settled.items():
            owed = self._owed.get(key)
            # It may have changed meanwhile, and then the note is of an older snapshot.
            if owed is not None and owed.settled and str(owed.final) == sequence:
                self._forget(key)

    def _forget(self, key: TaskKey) -> None:
        self._owed.pop(key, None)
        self._logs_due.discard(key)

    def _is_settled(self, record: TaskRecord) -> bool:
        return record.state is TaskState.RELEASED or self._settled.get(record.key) == str(record.sequence)
