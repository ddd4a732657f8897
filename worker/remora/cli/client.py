"""Dials a worker or a scheduler, and puts what does not work into words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click
import grpc
import grpc.aio

from remora import log, wire
from remora.cli.group import ExitCode, Failed
from remora.errors import ConfigurationError, TaskNotFound
from remora.pace import Backoff, SystemClock
from remora.plugin import Clock
from remora.rpc import call_errors, is_loopback, open_channel
from remora.tls import Tls
from remora.v1 import task_pb2
from remora.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from remora.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub

DEFAULT_ADDRESSES = {"worker": "127.0.0.1:50051", "scheduler": "127.0.0.1:50050"}

CALL_SECONDS = 20.0
"""How long a call may take."""
WAIT_SECONDS = 30.0
"""How long a long poll asks the server to wait; such a call may take so much longer."""

P = ParamSpec("P")
T = TypeVar("T")

_ABSENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Where a server is, and how to come in."""

    kind: str
    """``worker`` or ``scheduler``, also the command that runs it; ``server`` for either."""
    address: str
    token: str | None = None
    tls: Tls | None = None

    @property
    def option(self) -> str:
        """What to add to a command so that it finds this server; nothing for the default one."""
        return "" if self.address == DEFAULT_ADDRESSES.get(self.kind) else f" --{self.kind} {self.address}"

    def __str__(self) -> str:
        return f"the {self.kind} at {self.address}"


@contextlib.asynccontextmanager
async def connect(server: Server) -> AsyncGenerator[grpc.aio.Channel]:
    """Yield a channel. What calls in the block raise ends the command in words.

    Raises:
        CallError: the server refused a call.
        Failed: the server does not answer, or is none of ours.
    """
    # What the library would log is said here, in the words of the command line.
    log.configure("error", "console")
    if server.token and server.tls is None and not is_loopback(server.address):
        click.echo(f"warning: the token goes to {server} unencrypted; give --tls-ca", err=True)
    try:
        async with open_channel(server.address, setting="-", tls=server.tls, token=server.token) as channel:
            with call_errors():
                yield channel
    except ConfigurationError as error:
        lines = [problem.replace("-.tls.", "--tls-") for problem in error.problems]
        raise Failed(*lines, code=ExitCode.CONFIGURATION) from error
    except grpc.aio.AioRpcError as error:
        raise _failed(server, error) from error


class Patience:
    """Sits out the absence of a server that has answered once: says so, repeats with back-off, says when it is back."""

    def __init__(
        self, server: Server, say: Callable[[str], None], *, met: bool = False, clock: Clock | None = None
    ) -> None:
        self._server = server
        self._say = say
        self._clock = clock or SystemClock()
        self._backoff = Backoff(initial=0.5, maximum=2.0)
        self._met = met

    async def call(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the answer of a method, as soon as there is one."""
        retries = 0
        while True:
            try:
                answer = await method(*args, **kwargs)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ABSENT or not self._met:
                    raise
                if not retries:
                    self._say(f"{self._server} does not answer; trying until it does")
                await self._clock.sleep(self._backoff.delay(retries))
                retries += 1
            else:
                self._met = True
                if retries:
                    self._say(f"{self._server} is back")
                return answer


async def pages(stub: WorkerServiceAsyncStub, request: pb.ListTasksRequest) -> AsyncIterator[task_pb2.Task]:
    """Yield the tasks of all pages."""
    while True:
        answer = await stub.ListTasks(request, timeout=CALL_SECONDS)
        for task in answer.tasks:
            yield task
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


async def find_key(stub: WorkerServiceAsyncStub, task_id: str, attempt: int | None) -> task_pb2.TaskKey:
    """Return the key of an attempt, the latest that the worker knows where none is named.

    Raises:
        TaskNotFound: the worker knows none.
    """
    if attempt is None:
        request = pb.ListTasksRequest(task_id_prefix=task_id, page_size=1000)
        attempts = [task.key.attempt async for task in pages(stub, request) if task.key.task_id == task_id]
        if not attempts:
            raise TaskNotFound(f"{task_id}: never seen by this worker, or past its retention")
        attempt = max(attempts)
    return task_pb2.TaskKey(task_id=task_id, attempt=attempt)


def remark(text: str) -> None:
    """Print a remark that is not part of what was asked for."""
    click.echo(text, err=True)


def has_ended(task: task_pb2.Task) -> bool:
    """Whether nothing more will happen to a task."""
    state = wire.read_state(task.state)
    return state is not None and state.final


def _failed(server: Server, error: grpc.aio.AioRpcError) -> Failed:
    code, details = error.code(), error.details() or "it gave no reason"
    if code in _ABSENT:
        remedy = "" if server.kind == "server" else f" Start it with `remora {server.kind}`."
        lines = [f"cannot reach {server}: is it running?{remedy}"]
        if "SSL" in details or "handshake" in details.lower():
            lines[0] = f"cannot agree on TLS with {server}: check --tls-ca, --tls-certificate and --tls-key."
        elif server.tls is None and "Socket closed" in details:
            lines.append("  If it uses TLS, give --tls-ca.")
        return Failed(*lines, f"  {details}", code=ExitCode.UNREACHABLE)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        other = "scheduler" if server.kind == "worker" else "worker"
        return Failed(
            f"what answers at {server.address} is no {server.kind} of Remora; is it the address of a {other}?",
            code=ExitCode.REFUSED,
        )
    return Failed(f"{server} refused the call: {code.name}: {details}", code=ExitCode.REFUSED)
