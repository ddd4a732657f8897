"""Guards over all tests: nothing of ours may block the event loop.

A blocking call with a frame of ours on its stack raises :class:`blockbuster.BlockingError` where it happens. Much of
what is tested catches every error, so each call is written down as well, and the test that made it fails at its end.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator

import blockbuster.blockbuster
import grpc.aio
import pytest
import remora
import remora_example
import remora_sagemaker
from blockbuster import BlockingError, blockbuster_ctx

pytest.register_assert_rewrite("remora.testing")


@pytest.fixture(scope="session", autouse=True)
def _blocking_guard() -> Iterator[list[str]]:
    calls: list[str] = []

    class RecordedBlockingError(BlockingError):
        def __init__(self, func: str) -> None:
            super().__init__(func)
            calls.append(f"{func} blocks the event loop:\n{''.join(traceback.format_stack()[:-2])}")

    with pytest.MonkeyPatch.context() as patch, blockbuster_ctx([remora, remora_sagemaker, remora_example]) as guard:
        # pytest copies each record of logging to a file of its own, and without a handler logging writes to standard
        # error; what asyncio or gRPC log is not our doing.
        guard.functions["io.TextIOWrapper.write"].can_block_in("logging/__init__.py", "emit")
        guard.functions["io.BufferedWriter.write"].can_block_in("logging/__init__.py", "flush")
        patch.setattr(blockbuster.blockbuster, "BlockingError", RecordedBlockingError)
        yield calls


@pytest.fixture(autouse=True)
def _root_handlers() -> Iterator[None]:
    # A command under test sets up the logging of its process: of this one, that is, and of every test after it.
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


@pytest.fixture(scope="session", autouse=True)
def _grpc() -> Iterator[None]:
    # gRPC joins its poller thread when its last object is collected, which may be anywhere on the loop of a test.
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture(autouse=True)
def blocking_calls(_blocking_guard: list[str]) -> Iterator[list[str]]:
    """What blocked the event loop in this test; a test that provokes it clears the list."""
    _blocking_guard.clear()
    yield _blocking_guard
    assert not _blocking_guard, "\n".join(_blocking_guard)
