"""The door to a scheduler that the worker dials: register, keep the lease, obey commands, deliver what happened.

The worker starts without the scheduler and outlives its absence: what runs goes on, what happens is in the journal,
and the next session delivers it. Only a scheduler that refuses the worker for good ends the door, and with it the
worker: the token is wrong, the registration is invalid, or another process runs under the same worker id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from remora import rpc, wire
from remora.delivery import Delivery
from remora.door import Door, TaskKey, TaskService, WorkerInfo
from remora.errors import (
    CallError,
    ConfigurationError,
    InvalidRequest,
    SessionExpired,
    StorageUnavailable,
    TaskConflict,
    TokenInvalid,
    UnknownTaskType,
)
from remora.pace import Backoff, completed
from remora.plugin import Clock, Failure, FailureKind
from remora.tls import Tls
from remora.v1 import scheduler_service_pb2 as pb
from remora.v1 import task_pb2
from remora.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

if TYPE_CHECKING:
    from remora.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub  # for type checkers only

log = structlog.get_logger(__name__)

_REGISTER = 30.0
"""Seconds for the registration."""
_GOODBYE = 2.0
"""Seconds for the end of the session when the worker stops."""
_WAIT_SHARE = 0.3
"""Of the lease, for one poll: below a third, so that two polls may be lost."""


class SchedulerDoorSettings(BaseModel):
    """Which scheduler, and how it is dialled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(rpc.check_address)] = Field(
        default="127.0.0.1:50050", validation_alias="door.scheduler.address"
    )
    ca: Path | None = Field(default=None, validation_alias="door.scheduler.tls.ca")
    """PEM of who signs the scheduler's certificate; with it the worker speaks TLS only."""
    certificate: Path | None = Field(default=None, validation_alias="door.scheduler.tls.certificate")
    """PEM, for a scheduler that asks for one."""
    key: Path | None = Field(default=None, validation_alias="door.scheduler.tls.key")
    token: Annotated[SecretStr, AfterValidator(rpc.check_token)] | None = Field(
        default=None, validation_alias="door.scheduler.token"
    )
    advertised_address: Annotated[str, AfterValidator(rpc.check_address)] | None = Field(
        default=None, validation_alias="door.scheduler.advertised.address"
    )
    """Where the scheduler, and people, reach this worker's own gRPC door."""
    retry_initial: float = Field(default=1.0, gt=0, validation_alias="door.scheduler.retry.initial.seconds")
    retry_maximum: float = Field(default=30.0, gt=0, validation_alias="door.scheduler.retry.maximum.seconds")

    @property
    def tls(self) -> Tls | None:
        """What the worker asks for and shows; None is no TLS."""
        return None if self.ca is None else Tls(ca=self.ca, certificate=self.certificate, key=self.key)


class SchedulerDoor(Door):
    """Dials SchedulerService."""

    name = "scheduler"
    settings = SchedulerDoorSettings

    @contextlib.asynccontextmanager
    async def open(
        self, settings: SchedulerDoorSettings, tasks: TaskService, worker: WorkerInfo, clock: Clock
    ) -> AsyncGenerator[None]:
        """Keep a session; entry does not wait for it. Raises ConfigurationError if the TLS files cannot be used."""
        token = settings.token.get_secret_value() if settings.token else None
        async with rpc.open_channel(
            settings.address, setting="door.scheduler", tls=settings.tls, token=token
        ) as channel:
            session = Session(SchedulerServiceStub(channel), settings, tasks, worker, clock, door=self.name)
            try:
                async with rpc.beside(session.run(), name="scheduler: session"):
                    yield
            finally:
                await completed(session.leave())


class Session:
    """The worker at the scheduler, through one session after another."""

    def __init__(
        self,
        scheduler: SchedulerServiceAsyncStub,
        settings: SchedulerDoorSettings,
        tasks: TaskService,
        worker: WorkerInfo,
        clock: Clock,
        *,
        door: str,
    ) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._tasks = tasks
        self._worker = worker
        self._clock = clock
        self._door = door
        self._backoff = Backoff(initial=settings.retry_initial, maximum=settings.retry_maximum)
        self._call = rpc.PersistentCaller(self._backoff, clock)
        self._session_id = ""

    async def run(self) -> None:
        """Register, poll and deliver; begin again when the session expires.

        Raises:
            ConfigurationError: the scheduler refuses the token.
            InvalidRequest: the scheduler refuses the registration or a report.
            WorkerSuperseded: another process runs under this worker's id.
        """
        while True:
            try:
                await self._hold_session()
            except* SessionExpired:
                self._session_id = ""
                log.info("session_expired", scheduler=self._settings.address)
            except* StorageUnavailable as group:
                log.warning("session_given_up", errors=[str(error) for error in group.exceptions])
            except* TokenInvalid as group:
                raise ConfigurationError(
                    f"door.scheduler.token: the scheduler at {self._settings.address} refuses it. "
                    "Set the token that the scheduler is configured with."
                ) from group
            # All workers of a scheduler that restarts come at once.
            await self._clock.sleep(self._backoff.delay(0))

    async def leave(self) -> None:
        """Tell the scheduler that the worker stops, if it listens."""
        if not self._session_id:
            return
        request = pb.DeregisterWorkerRequest(session_id=self._session_id, reason="the worker stops")
        try:
            with rpc.call_errors():
                await self._scheduler.DeregisterWorker(request, timeout=_GOODBYE)
        except (rpc.NoAnswer, CallError) as error:
            log.info("not_deregistered", why=str(error))

    async def _hold_session(self) -> None:
        delivery = Delivery(
            self._tasks, self._scheduler, self._call, self._clock, door=self._door, backoff=self._backoff
        )
        answer = await self._register(await delivery.load())
        self._session_id = answer.session_id
        lease = max(1.0, wire.seconds(answer.lease))
        log.info("registered", scheduler=self._settings.address, session_id=answer.session_id, lease=lease)
        for key in answer.fenced:
            await delivery.release(TaskKey(task_id=key.task_id, attempt=key.attempt))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll(answer.session_id, lease, delivery), name="scheduler: poll commands")
            group.create_task(delivery.run(answer.session_id), name="scheduler: deliver")

    async def _register(self, held: Iterable[pb.HeldTask]) -> pb.RegisterWorkerResponse:
        request = pb.RegisterWorkerRequest(
            worker_id=self._worker.worker_id,
            instance_id=self._worker.instance_id,
            address=self._settings.advertised_address or "",
            version=self._worker.version,
            task_types=[wire.task_type_message(info) for info in self._worker.task_types],
            capacity=self._worker.capacity,
            labels=self._worker.labels,
            held=held,
        )
        return await self._call(self._scheduler.RegisterWorker, request, seconds=_REGISTER)

    async def _poll(self, session_id: str, lease: float, delivery: Delivery) -> None:
        wait = lease * _WAIT_SHARE
        request = pb.PollCommandsRequest(session_id=session_id, wait=wire.duration(wait))
        while True:
            began = self._clock.monotonic()
            answer = await self._call(self._scheduler.PollCommands, request, seconds=2 * wait)
            if answer.commands:
                await self._obey(answer.commands, delivery)
            else:
                # A scheduler that does not wait must not be asked a thousand times a second.
                await self._clock.sleep(began + min(1.0, wait) - self._clock.monotonic())

    async def _obey(self, commands: Iterable[pb.Command], delivery: Delivery) -> None:
        """Do what is asked: in order for each task, at once for all, so that they share commits."""
        by_task: dict[tuple[str, int], list[pb.Command]] = {}
        for command in commands:
            kind = command.WhichOneof("command")
            if kind == "dispatch":
                key = command.dispatch.definition.key
            elif kind == "cancel":
                key = command.cancel.key
            else:
                if kind == "drain":
                    self._tasks.drain(command.drain.reason or "the scheduler asked for it")
                else:
                    log.warning("unknown_command", remedy="a newer scheduler sent it; update the worker")
                continue
            by_task.setdefault((key.task_id, key.attempt), []).append(command)
        async with asyncio.TaskGroup() as group:
            for (task_id, attempt), queue in by_task.items():
                group.create_task(self._obey_in_order(queue, delivery), name=f"scheduler: obey {task_id}#{attempt}")

    async def _obey_in_order(self, commands: Iterable[pb.Command], delivery: Delivery) -> None:
        for command in commands:
            try:
                if command.HasField("dispatch"):
                    await self._dispatch(command.dispatch, delivery)
                else:
                    await self._cancel(command.cancel, delivery)
            except CallError as error:
                # The scheduler repeats what no report shows the effect of, here or at another worker.
                log.warning("command_not_obeyed", reason=error.reason, why=str(error))
            except Exception:
                # A defect met with one task must not take the others down.
                log.exception("command_failed")

    async def _dispatch(self, message: task_pb2.Assignment, delivery: Delivery) -> None:
        try:
            assignment = wire.read_assignment(message, door=self._door, path="dispatch")
            record = await self._tasks.accept(assignment)
        except (InvalidRequest, UnknownTaskType, TaskConflict) as error:
            log.warning("dispatch_refused", task_id=message.definition.key.task_id, reason=error.reason, why=str(error))
            await self._refuse(message, error, delivery)
            return
        if record.sequence > 1 or record.state.final:
            # Asked for again: the scheduler has not heard of it, however long ago it was reported.
            delivery.repeat(record)

    async def _cancel(self, command: pb.CancelCommand, delivery: Delivery) -> None:
        key = wire.read_key(command.key, "cancel.key")
        reason = command.reason[: wire.MAX_TEXT]
        record = await self._tasks.cancel(key, door=self._door, fencing_token=command.fencing_token, reason=reason)
        if record.state.final:
            delivery.repeat(record)

    async def _refuse(self, message: task_pb2.Assignment, error: CallError, delivery: Delivery) -> None:
        """Report an assignment that cannot be accepted as a failed task, so that the scheduler does not wait for it."""
        definition = message.definition
        sequence = 1
        if isinstance(error, TaskConflict):
            key = TaskKey(task_id=definition.key.task_id, attempt=definition.key.attempt)
            sequence = (await self._tasks.get(key)).sequence + 1
        if not definition.key.task_id:
            return  # nothing that could be reported under a name
        failure = Failure(
            kind=FailureKind.INVALID,
            code=error.reason,
            message=str(error),
            details=error.violations if isinstance(error, InvalidRequest) else {},
        )
        now = wire.timestamp(self._clock.now())
        delivery.add(
            task_pb2.Task(
                key=definition.key,
                task_type=definition.task_type[: wire.MAX_ID],
                state=task_pb2.TASK_STATE_FAILED,
                sequence=sequence,
                detail="refused",
                failure=wire.failure_message(failure),
                fencing_token=message.fencing_token,
                created_at=now,
                finished_at=now,
                updated_at=now,
            )
        )
