"""The embedded scheduler: runs DAG files on one machine. The reference peer of :mod:`remora.session`.

::

    service        gRPC: SchedulerService for workers, WorkflowService for people
      coordinator  sessions, commands, reports; the loop that hands tasks out
        fleet      workers, leases, who takes what         (memory)
      runs         every run, on disk before it is told; runlogs: their logs
        store      runs and their tasks                    (SQLite)
        state      how a run moves                         (pure)
          parameters, placeholders                         what ``${name}`` stands for
      dagfile      YAML to a workflow, every mistake by path and line
        fields, document

It schedules nothing by the clock, has no users and no alerts: that is what DolphinScheduler is for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Annotated, Self

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from remora import rpc
from remora.database import lock_directory
from remora.plugin import Clock
from remora.scheduler.coordinator import Coordinator
from remora.scheduler.dagfile import load
from remora.scheduler.fleet import Fleet
from remora.scheduler.runlogs import RunLogs
from remora.scheduler.runs import Runs
from remora.scheduler.service import SCHEDULER_SERVICE, WORKFLOW_SERVICE, SchedulerServicer, WorkflowServicer
from remora.scheduler.store import Store
from remora.tasklog import TaskLogs
from remora.tls import Tls, server_tls
from remora.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from remora.v1.workflow_service_pb2_grpc import add_WorkflowServiceServicer_to_server

__all__ = ["SchedulerSettings", "load", "serve"]

log = structlog.get_logger(__name__)

_DAY = 24 * 3600.0


class SchedulerSettings(BaseModel):
    """The embedded scheduler's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(rpc.check_address)] = Field(
        default="127.0.0.1:50050", validation_alias="scheduler.address"
    )
    """host:port. Port 0 is any that is free."""
    data_dir: Path = Field(default=Path("remora-scheduler-data"), validation_alias="scheduler.data.dir")
    lease_seconds: float = Field(default=15.0, ge=1, le=3600, validation_alias="scheduler.lease.seconds")
    """How long after its latest poll began a worker counts as lost."""
    retention_days: float = Field(default=30.0, gt=0, validation_alias="scheduler.retention.days")
    """How long ended runs and their logs are kept."""
    token: Annotated[SecretStr, AfterValidator(rpc.check_token)] | None = Field(
        default=None, validation_alias="scheduler.token"
    )
    """With it workers and people must send ``authorization: Bearer <token>``."""
    certificate: Path | None = Field(default=None, validation_alias="scheduler.tls.certificate")
    """PEM; with it and the key the scheduler speaks TLS only."""
    key: Path | None = Field(default=None, validation_alias="scheduler.tls.key")
    client_ca: Path | None = Field(default=None, validation_alias="scheduler.tls.client.ca")
    """PEM; with it clients must have a certificate that it signed."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        _ = self.tls
        return self

    @property
    def tls(self) -> Tls | None:
        """What the server shows and asks for; None is no TLS."""
        return server_tls("scheduler.tls", self.certificate, self.key, self.client_ca)


@contextlib.asynccontextmanager
async def serve(settings: SchedulerSettings, clock: Clock) -> AsyncGenerator[str]:
    """Run the scheduler while the block runs; yield the address it listens on, with the real port.

    Raises:
        ConfigurationError: the data directory, the address or the TLS files cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, lock_directory(settings.data_dir))
        store = await stack.enter_async_context(Store.open(settings.data_dir / "scheduler.db"))
        files = TaskLogs(settings.data_dir / "logs", clock)
        stack.push_async_callback(asyncio.to_thread, files.close)
        runs = Runs(store, clock)
        await runs.recover()
        logs = RunLogs(runs, files, clock)
        coordinator = Coordinator(runs, Fleet(clock, settings.lease_seconds), logs, clock)
        forgetting = logs.forget(settings.retention_days * _DAY)
        await stack.enter_async_context(rpc.beside(forgetting, name="scheduler: forget runs"))
        await stack.enter_async_context(rpc.beside(coordinator.hand_out(), name="scheduler: hand tasks out"))
        for_workers = SchedulerServicer(coordinator, settings.lease_seconds)
        for_people = WorkflowServicer(runs, logs)
        address = await stack.enter_async_context(
            rpc.serve(
                {
                    SCHEDULER_SERVICE: partial(add_SchedulerServiceServicer_to_server, for_workers),
                    WORKFLOW_SERVICE: partial(add_WorkflowServiceServicer_to_server, for_people),
                },
                address=settings.address,
                setting="scheduler",
                clock=clock,
                tls=settings.tls,
                token=settings.token.get_secret_value() if settings.token else None,
            )
        )
        stack.callback(logs.wake)
        stack.callback(runs.close)  # the first on the way out
        log.info("listening", address=address, tls=settings.tls is not None)
        if not rpc.is_loopback(address) and settings.token is None and settings.client_ca is None:
            log.warning("scheduler_open_to_everybody", address=address, remedy="set scheduler.token")
        yield address
