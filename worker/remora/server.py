# ruff: noqa: N802, D102
# (the names of the methods are gRPC's, and the protos document them)
"""The gRPC door: WorkerService, for schedulers and people that dial the worker.

A thin translation: what a message means is in :mod:`remora.wire`, what is done is in the engine. Only the bounds of a
call are decided here, how long it waits and how much it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, TypeVar

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from remora import rpc, wire
from remora.door import Door, TaskFilter, TaskRecord, TaskService, WorkerInfo
from remora.errors import InvalidRequest
from remora.plugin import Clock
from remora.tls import Tls, server_tls
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb
from remora.v1 import worker_service_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["WorkerService"].full_name

_LARGEST_PAGE = 3 * 1024 * 1024
"""Bytes of tasks in one answer; one task has less than 1 MiB, a message may have 4 MiB."""
_MOST_TASKS = 1000
_MOST_LOG = 512 * 1024

T = TypeVar("T")


class GrpcSettings(BaseModel):
    """Where WorkerService is reached, and by whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(rpc.check_address)] = Field(
        default="127.0.0.1:50051", validation_alias="door.grpc.address"
    )
    """host:port. Port 0 is any that is free."""
    certificate: Path | None = Field(default=None, validation_alias="door.grpc.tls.certificate")
    """PEM; with it and the key the door speaks TLS only."""
    key: Path | None = Field(default=None, validation_alias="door.grpc.tls.key")
    client_ca: Path | None = Field(default=None, validation_alias="door.grpc.tls.client.ca")
    """PEM; with it clients must have a certificate that it signed."""
    token: Annotated[SecretStr, AfterValidator(rpc.check_token)] | None = Field(
        default=None, validation_alias="door.grpc.token"
    )
    """With it clients must send ``authorization: Bearer <token>``."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        _ = self.tls
        return self

    @property
    def tls(self) -> Tls | None:
        """What the server shows and asks for; None is no TLS."""
        return server_tls("door.grpc.tls", self.certificate, self.key, self.client_ca)


class GrpcDoor(Door):
    """Serves WorkerService, health and reflection."""

    name = "grpc"
    settings = GrpcSettings

    def __init__(self) -> None:
        self.address = ""
        """Where it listens while it is open, with the real port."""

    @contextlib.asynccontextmanager
    async def open(
        self, settings: GrpcSettings, tasks: TaskService, worker: WorkerInfo, clock: Clock
    ) -> AsyncGenerator[None]:
        """Listen. Raises ConfigurationError if the address or the TLS files cannot be used."""
        servicer = WorkerServicer(tasks, worker, door=self.name)
        async with rpc.serve(
            {SERVICE: partial(pb_grpc.add_WorkerServiceServicer_to_server, servicer)},
            address=settings.address,
            setting="door.grpc",
            clock=clock,
            tls=settings.tls,
            token=settings.token.get_secret_value() if settings.token else None,
            ready=lambda: not tasks.draining,
        ) as self.address:
            log.info("listening", address=self.address, tls=settings.tls is not None)
            _warn_if_open(settings, self.address)
            try:
                yield
            finally:
                servicer.close()


class WorkerServicer(pb_grpc.WorkerServiceServicer):
    """WorkerService in terms of a :class:`~remora.door.TaskService`. The protos say what each method does."""

    def __init__(self, tasks: TaskService, worker: WorkerInfo, *, door: str) -> None:
        self._tasks = tasks
        self._worker = worker
        self._door = door
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Answer long polls now: a server waits for the calls under way when it stops."""
        self._closing.set()

    async def GetWorker(self, request: pb.GetWorkerRequest, context: rpc.Context) -> pb.GetWorkerResponse:
        del request, context
        return pb.GetWorkerResponse(
            worker_id=self._worker.worker_id,
            version=self._worker.version,
            task_types=[wire.task_type_message(info) for info in self._worker.task_types],
            capacity=self._worker.capacity,
            active_tasks=self._tasks.active,
            draining=self._tasks.draining,
            labels=self._worker.labels,
        )

    async def DispatchTask(self, request: pb.DispatchTaskRequest, context: rpc.Context) -> pb.DispatchTaskResponse:
        del context
        assignment = wire.read_assignment(request.assignment, door=self._door)
        record = await self._tasks.accept(assignment)
        return pb.DispatchTaskResponse(task=wire.task_message(record))

    async def CancelTask(self, request: pb.CancelTaskRequest, context: rpc.Context) -> pb.CancelTaskResponse:
        del context
        key = wire.read_key(request.key)
        if request.fencing_token < 0:
            raise InvalidRequest({"fencing_token": f"must not be negative, is {request.fencing_token}"})
        if len(request.reason) > wire.MAX_TEXT:
            raise InvalidRequest({"reason": f"must have at most {wire.MAX_TEXT} characters, has {len(request.reason)}"})
        record = await self._tasks.cancel(
            key, door=self._door, fencing_token=request.fencing_token, reason=request.reason
        )
        return pb.CancelTaskResponse(task=wire.task_message(record))

    async def GetTask(self, request: pb.GetTaskRequest, context: rpc.Context) -> pb.GetTaskResponse:
        del context
        key = wire.read_key(request.key)
        task = wire.task_message(await self._tasks.get(key))
        definition = await self._tasks.definition(key) if request.include_definition else None
        return pb.GetTaskResponse(
            task=task, definition=None if definition is None else wire.definition_message(definition)
        )

    async def ListTasks(self, request: pb.ListTasksRequest, context: rpc.Context) -> pb.ListTasksResponse:
        del context
        chosen = TaskFilter(
            states=wire.read_states(request.states),
            task_type=request.task_type,
            task_id_prefix=request.task_id_prefix,
        )
        limit = rpc.bounded(request.page_size, "page_size", default=100, most=_MOST_TASKS)
        page, tasks = await _page(lambda limit: self._tasks.list(chosen, limit=limit, token=request.page_token), limit)
        return pb.ListTasksResponse(tasks=tasks, next_page_token=page.next_token)

    async def WatchTasks(self, request: pb.WatchTasksRequest, context: rpc.Context) -> pb.WatchTasksResponse:
        position = self._position(request.cursor)
        wait = rpc.patience(request.wait, context)
        limit = rpc.bounded(request.page_size, "page_size", default=100, most=_MOST_TASKS)
        page, tasks = await _page(lambda limit: self._tasks.changes(position, limit=limit), limit)
        if not tasks and wait > 0:
            await self._while_open(self._tasks.changes(position, limit=1, wait=wait))
            page, tasks = await _page(lambda limit: self._tasks.changes(position, limit=limit), limit)
        return pb.WatchTasksResponse(tasks=tasks, cursor=f"{self._tasks.journal_id}:{page.position}")

    async def ReadTaskLogs(self, request: pb.ReadTaskLogsRequest, context: rpc.Context) -> pb.ReadTaskLogsResponse:
        key = wire.read_key(request.key)
        wait = rpc.patience(request.wait, context)
        limit = rpc.bounded(request.max_bytes, "max_bytes", default=64 * 1024, most=_MOST_LOG)
        if request.offset < 0:
            raise rpc.wrong_field("offset", f"must not be negative, is {request.offset}")
        chunk = await self._tasks.read_log(key, offset=request.offset, limit=limit)
        if not chunk.text and not chunk.done and wait > 0:
            await self._while_open(self._tasks.wait_log(key, offset=request.offset, seconds=wait))
            chunk = await self._tasks.read_log(key, offset=request.offset, limit=limit)
        return pb.ReadTaskLogsResponse(text=chunk.text, next_offset=chunk.next_offset, done=chunk.done)

    def _position(self, cursor: str) -> int:
        """Return where to go on from. Positions of another journal mean nothing here: from the beginning."""
        if not cursor:
            return 0
        journal, _, position = cursor.rpartition(":")
        if not journal or not _is_number(position):
            raise InvalidRequest(
                {"cursor": "is not a cursor of a worker; start again without one"}, reason="CURSOR_INVALID"
            )
        return int(position) if journal == self._tasks.journal_id else 0

    async def _while_open(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for something to happen, and no longer than the door is open."""
        closing = asyncio.ensure_future(self._closing.wait())
        happening = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((happening, closing), return_when=asyncio.FIRST_COMPLETED)
            if happening.done():
                happening.result()
        finally:
            happening.cancel()
            closing.cancel()
            await asyncio.gather(happening, closing, return_exceptions=True)


class _Records(Protocol):
    @property
    def records(self) -> Any: ...  # noqa: ANN401


Page = TypeVar("Page", bound=_Records)


async def _page(read: Callable[[int], Awaitable[Page]], limit: int) -> tuple[Page, list[task_pb2.Task]]:
    """Read so many tasks, or as many fewer as fit into an answer."""
    while True:
        page = await read(limit)
        records: list[TaskRecord] = list(page.records)
        tasks = [wire.task_message(record) for record in records]
        if len(tasks) <= 1 or sum(task.ByteSize() for task in tasks) <= _LARGEST_PAGE:
            return page, tasks
        limit = len(tasks) // 2


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19  # noqa: PLR2004 -- what fits into 64 bits


def _warn_if_open(settings: GrpcSettings, address: str) -> None:
    if rpc.is_loopback(address):
        return
    if settings.tls is None:
        log.warning("door_without_tls", address=address, remedy="set door.grpc.tls.certificate and door.grpc.tls.key")
    if settings.token is None and settings.client_ca is None:
        log.warning("door_open_to_everybody", address=address, remedy="set door.grpc.token or door.grpc.tls.client.ca")
