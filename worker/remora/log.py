"""Structured logs of the worker itself: JSON lines for machines, coloured lines for a terminal.

Event names are snake_case and mean one thing each. ``task_id``, ``attempt`` and what else is bound around a unit of
work come from context variables.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRET_NAMES = ("secret", "password", "token", "authorization", "credential")
_NOT_SECRET = ("fencing_token",)


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up structlog for this process. `auto` is console on a terminal, JSON otherwise."""
    to_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: list[Processor] = (
        # Plain tracebacks: the pretty ones show local variables, and some of those are secrets.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if to_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # Libraries that use the standard library's logging (grpc, botocore) are heard when something is wrong.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


class _Unfailing:
    """A stream whose failures are nobody's: a worker outlives the disk or the pipe that its log goes to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Hide values whose name says that they are secret: the last fence, behind the rule not to log them."""
    del logger, method
    for name in event:
        if name not in _NOT_SECRET and any(part in name.lower() for part in _SECRET_NAMES):
            event[name] = "***"
    return event
