"""``remora worker`` and ``scheduler``: the processes that run until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
import structlog
import uvloop

from remora import log as logs
from remora.app import configure, configure_scheduler, run_worker, stop_signals
from remora.cli.group import ExitCode, Failed
from remora.cli.options import config_option, examples
from remora.config import Properties, WorkerSettings
from remora.errors import ConfigurationError, RemoraError, WorkerSuperseded
from remora.pace import SystemClock
from remora.scheduler import serve

log = structlog.get_logger(__name__)


@click.command(
    epilog=examples(
        "remora worker", "REMORA_WORKER_DATA_DIR=/var/lib/remora remora worker --config /etc/remora/common.properties"
    )
)
@config_option
def worker(*, config: Path | None) -> None:
    """Run the worker until SIGTERM or SIGINT. Jobs on SageMaker run on; the next start goes on following them."""
    properties = Properties.load(config)
    configuration = configure(properties)
    _run(configuration.worker, lambda: run_worker(configuration))


@click.command(epilog=examples("remora scheduler --config config/common.properties"))
@config_option
def scheduler(*, config: Path | None) -> None:
    """Run the embedded scheduler until SIGTERM or SIGINT. It keeps its runs; the next start goes on with them."""
    properties = Properties.load(config)
    settings = configure_scheduler(properties)

    async def run() -> None:
        with stop_signals() as stop:
            async with serve(settings, SystemClock()):
                await stop.wait()

    _run(properties.settings(WorkerSettings), run)


def _run(settings: WorkerSettings, main: Callable[[], Awaitable[None]]) -> None:
    logs.configure(settings.log_level, settings.log_format)
    _share_arenas()

    async def run() -> None:
        await main()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except ExceptionGroup as group:
        raise _told(group) from group


def _share_arenas() -> None:
    """Keep what is allocated in two arenas instead of one or more for each thread.

    With 16 threads that call AWS and 10,000 tasks the fragments of the others cost 20 MB. glibc only; elsewhere this
    does nothing. M_ARENA_MAX is -8 in its malloc.h.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, 2)


def _told(group: ExceptionGroup) -> Exception:
    """Return what made a door or a loop end, in one line; the log has the rest."""
    causes = list(_leaves(group))
    problems = [line for cause in causes if isinstance(cause, ConfigurationError) for line in cause.problems]
    if problems:
        return ConfigurationError(*problems)
    for cause in causes:
        if isinstance(cause, WorkerSuperseded):
            return Failed(
                "another process runs under the same worker.id and has taken this worker's place.",
                "Stop one of them, or give each an id of its own. Jobs run on and are followed by the other.",
            )
    log.error("died", exc_info=group)
    said = [f"{cause}" if isinstance(cause, RemoraError) else f"{type(cause).__name__}: {cause}" for cause in causes]
    return Failed(*(f"stopped: {line}; the log has more" for line in said), code=ExitCode.FAILED)


def _leaves(group: ExceptionGroup) -> list[Exception]:
    return [
        leaf
        for part in group.exceptions
        for leaf in (_leaves(part) if isinstance(part, ExceptionGroup) else [part])  # pyright: ignore[reportUnknownArgumentType]  # a group of anything
    ]
