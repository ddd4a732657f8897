"""The composition root: configuration in, a running worker out.

Life-times are a stack, so that reading :func:`open_worker` downwards is the start and upwards the stop: doors close
before the engine, the engine before the plugins, the journal last. Whatever dies on the way ends the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from prometheus_client import start_http_server
from pydantic import BaseModel

import remora
from remora.config import Properties, Selection, WorkerSettings
from remora.database import lock_directory
from remora.door import Door, WorkerInfo
from remora.engine import Engine, EngineSettings
from remora.errors import ConfigurationError
from remora.journal import Journal
from remora.metrics import Metrics
from remora.pace import SystemClock
from remora.plugin import Clock, Plugin
from remora.registry import Registry, installed_doors, installed_plugins
from remora.scheduler import SchedulerSettings
from remora.tasklog import TaskLogs

log = structlog.get_logger(__name__)

_DAY = 24 * 3600.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Everything that was configured, validated."""

    worker: WorkerSettings
    plugins: Mapping[str, tuple[Plugin, BaseModel]]
    doors: Mapping[str, tuple[Door, BaseModel]]


def configure(properties: Properties) -> Configuration:
    """Make sense of the properties.

    Raises:
        ConfigurationError: with every problem that was found.
    """
    problems: list[str] = []
    worker = _collect(problems, lambda: properties.settings(WorkerSettings))
    selection = worker or _collect(problems, lambda: properties.settings(Selection)) or Selection()
    plugins = _collect(problems, lambda: installed_plugins(selection.plugins)) or {}
    doors = _collect(problems, lambda: installed_doors(selection.doors)) or {}
    _collect(problems, lambda: _check_unknown(properties))
    chosen_plugins = {
        name: (plugin, settings)
        for name, plugin in plugins.items()
        if (settings := _collect(problems, partial(properties.settings, plugin.settings)))
    }
    chosen_doors = {
        name: (door, settings)
        for name, door in doors.items()
        if (settings := _collect(problems, partial(properties.settings, door.settings)))
    }
    if worker is None or problems:
        raise ConfigurationError(*dict.fromkeys(problems))
    return Configuration(worker=worker, plugins=chosen_plugins, doors=chosen_doors)


def configure_scheduler(properties: Properties) -> SchedulerSettings:
    """Make sense of what the embedded scheduler reads. Raises as :func:`configure`."""
    problems: list[str] = []
    settings = _collect(problems, lambda: properties.settings(SchedulerSettings))
    _collect(problems, lambda: _check_unknown(properties))
    if settings is None or problems:
        raise ConfigurationError(*problems)
    return settings


@contextlib.asynccontextmanager
async def open_worker(configuration: Configuration, clock: Clock | None = None) -> AsyncGenerator[Engine]:
    """Run a worker while the block runs.

    Raises:
        ConfigurationError: the data directory, an address or a plugin cannot be used as configured.
    """
    settings = configuration.worker
    clock = clock or SystemClock()
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, lock_directory(settings.data_dir))
        journal = await stack.enter_async_context(Journal.open(settings.data_dir / "journal.db", clock))
        logs = TaskLogs(settings.data_dir / "logs", clock)
        stack.push_async_callback(asyncio.to_thread, logs.close)
        registry = await stack.enter_async_context(Registry.open(configuration.plugins, clock))
        engine = await stack.enter_async_context(
            Engine.open(
                journal,
                registry,
                logs,
                clock,
                metrics=metrics,
                settings=EngineSettings(
                    capacity=settings.capacity,
                    submit_concurrency=settings.submit_concurrency,
                    drain=settings.drain_seconds,
                    capacity_wait=settings.capacity_wait_hours * 3600,
                    retention=settings.retention_days * _DAY,
                ),
            )
        )
        if settings.metrics_address:
            close = await asyncio.to_thread(_serve_metrics, settings.metrics_address, metrics)
            stack.push_async_callback(asyncio.to_thread, close)
        info = WorkerInfo(
            worker_id=settings.worker_id,
            instance_id=uuid.uuid4().hex,
            version=remora.__version__,
            capacity=settings.capacity,
            task_types=registry.task_types(),
            labels=settings.labels,
        )
        for door, door_settings in configuration.doors.values():
            await stack.enter_async_context(door.open(door_settings, engine, info, clock))
        log.info("ready", worker_id=info.worker_id, task_types=[each.name for each in info.task_types])
        yield engine
        # Before the doors close, so that who asks for its health hears of it.
        engine.drain("the worker was asked to stop")
    log.info("stopped", worker_id=settings.worker_id)


async def run_worker(configuration: Configuration) -> None:
    """Run a worker until SIGTERM or SIGINT; a second signal ends the process at once. Raises as :func:`open_worker`."""
    with stop_signals() as stop:
        async with open_worker(configuration):
            await stop.wait()


@contextlib.contextmanager
def stop_signals() -> Generator[asyncio.Event]:
    """Set an event at the first SIGTERM or SIGINT, and hand the next one to the system's own behaviour."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def first(number: signal.Signals) -> None:
        log.info("signal", name=number.name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _check_unknown(properties: Properties) -> None:
    # Keys of what is installed and does not run are known all the same.
    try:
        installed: list[Plugin | Door] = [*installed_plugins().values(), *installed_doors().values()]
    except ConfigurationError as error:
        log.warning("unknown_keys_not_checked", error=str(error))  # any key may be of what cannot be loaded
        return
    models: list[type[BaseModel]] = [WorkerSettings, SchedulerSettings, *(each.settings for each in installed)]
    prefixes = [prefix for each in installed if isinstance(each, Plugin) for prefix in each.prefixes]
    properties.check_unknown(models, prefixes)


def _serve_metrics(address: str, metrics: Metrics) -> Callable[[], None]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host or "127.0.0.1", metrics.registry)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigurationError(f"worker.metrics.address: cannot listen on {address}: {error}.") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _collect(problems: list[str], make: Callable[[], T]) -> T | None:
    """Return what is made, or None with its problems noted, so that all of them are told at once."""
    try:
        return make()
    except ConfigurationError as error:
        problems.extend(error.problems)
        return None
