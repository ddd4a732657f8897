# pyright: reportUnknownMemberType=false
# (grpc_health, grpc_reflection and grpc_status come without types)
"""What every gRPC server and client of Remora has in common.

A server is :func:`serve` with some services; a client is :func:`open_channel` and, around its calls,
:func:`call_errors`. Everything in between, errors, tokens, TLS, health, reflection, sizes and keepalive, is the same
for the worker, the scheduler and the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
import re
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from pydantic import SecretStr

from remora import wire
from remora.errors import CallError, ConfigurationError, InvalidRequest, StorageUnavailable, TokenInvalid
from remora.health import HealthServicer
from remora.pace import Backoff
from remora.plugin import Clock
from remora.tls import Tls, channel_credentials, server_credentials

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of a request and of an answer. gRPC refuses a larger one as RESOURCE_EXHAUSTED and names both sizes."""

Request = TypeVar("Request")
Response = TypeVar("Response")
NoAnswer: TypeAlias = grpc.aio.AioRpcError
"""What :func:`call_errors` leaves as it is: there was no answer, or somebody on the way gave it."""
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]]

_ADDRESS = re.compile(r"(?:(?P<host>[^\s:/@\[\]]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\]):(?P<port>[0-9]{1,5})")

_LONGEST_WAIT = 60.0
_ANSWER_TIME = 0.25
"""Seconds before its deadline at which a long poll answers, so that the answer arrives."""

_HEALTH = "/grpc.health.v1.Health/"

_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two processes on one port would share the calls between them; we want the second one to fail.
    ("grpc.so_reuseport", 0),
    # A peer that vanished without a word is noticed within 80 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ping while a long poll is under way, and between calls.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# Every method is safe to repeat. Long outages are for the caller to sit out.
_SERVICE_CONFIG = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.1s",
 "maxBackoff": "1s", "backoffMultiplier": 3, "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own ceiling is two minutes: a server that is back would stay unseen for so long.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

log = structlog.get_logger(__name__)


def check_address(address: str) -> str:
    """Return an address that reads ``host:port`` or ``[ipv6]:port``, as a pydantic validator does."""
    _split(address)
    return address


def is_loopback(address: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    host, _ = _split(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(token: SecretStr) -> SecretStr:
    """Return a token that can travel in a header, as a pydantic validator does."""
    text = token.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token has printable ASCII characters only, and no spaces")
    return token


# Servers -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve(
    services: Mapping[str, Callable[[grpc.aio.Server], None]],
    *,
    address: str,
    setting: str,
    clock: Clock,
    tls: Tls | None = None,
    token: str | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> AsyncGenerator[str]:
    """Serve, with health and reflection, and yield the address that was bound: port 0 becomes the real one.

    Take the full name of each service with what adds its servicer to a server. ``setting`` is the prefix of the
    property keys that errors name (``<setting>.address``, ``<setting>.tls.*``). ``ready`` is asked at every check and
    once a second for those who watch. On exit readiness ends, calls under way get two seconds, the rest are cancelled.

    Raises:
        ConfigurationError: the address cannot be bound or the TLS files cannot be used.
    """
    credentials = None if tls is None else await asyncio.to_thread(server_credentials, tls, setting)
    interceptors: list[grpc.aio.ServerInterceptor] = [CallInterceptor()]
    if token is not None:
        interceptors.append(TokenInterceptor(token))
    server = grpc.aio.server(interceptors=interceptors, options=_SERVER_OPTIONS)
    for add in services.values():
        add(server)
    checks = HealthServicer(services, ready)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    bound = await _bind(server, address, credentials, setting)
    await server.start()
    try:
        async with beside(checks.follow(clock), name=f"health {bound}"):
            yield bound
    finally:
        await asyncio.shield(_stop(server, checks))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Binds ``rpc`` and ``peer`` to what is logged, and maps what a method raises to google.rpc.Status. The outermost.

    A :class:`~remora.errors.CallError` becomes its status. Anything else is a defect: the caller gets INTERNAL and an
    id, the log gets the same id and the traceback; no text of an exception leaves the process. Streams are left
    alone: only health and reflection have any.
    """

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """Wrap the method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behaviour, read, write = _parts(handler)

        # Reading and writing messages is done here, so that what fails there is mapped as well.
        async def answer(request: bytes, context: Context) -> bytes:  # noqa: RET503 -- the last line always raises
            # A call has a task and so a context of its own: nothing is to be unbound.
            structlog.contextvars.bind_contextvars(rpc=handler_call_details.method, peer=context.peer())
            try:
                return write(await behaviour(read(request), context))
            except grpc.aio.AbortError:
                raise
            except CallError as error:
                status = wire.status_of(error)
            except DecodeError:
                malformed = {"request": "is not the message that this method takes"}
                status = wire.status_of(InvalidRequest(malformed, reason="REQUEST_INVALID"))
            except Exception:
                number = uuid.uuid4().hex
                log.exception("defect", id=number)
                defect = CallError(f"internal error; the log of the server has the cause under the id {number}")
                status = wire.status_of(defect, {"id": number})
            await context.abort_with_status(rpc_status.to_status(status))

        return grpc.unary_unary_rpc_method_handler(answer)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Asks for ``authorization: Bearer <token>``. Health is exempt: probes of an orchestrator carry no secrets."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """Refuse the call unless it brings the token."""
        if handler_call_details.method.startswith(_HEALTH) or self._brings_token(handler_call_details):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)

    def _brings_token(self, details: grpc.HandlerCallDetails) -> bool:
        for name, value in details.invocation_metadata:
            if name == "authorization":
                given = value if isinstance(value, bytes) else value.encode()
                return hmac.compare_digest(given, self._expected)
        return False


def patience(wait: Duration, context: Context) -> float:
    """Return the seconds that a long poll may wait: what was asked, at most 60 s, and in time for the deadline.

    Raises:
        InvalidRequest: the wait is negative.
    """
    seconds = wire.seconds(wait)
    if seconds < 0:
        raise wrong_field("wait", f"must not be negative, is {seconds:g} s")
    remaining = cast("float | None", context.time_remaining())  # None without a deadline, whatever the stubs say
    return min(seconds, _LONGEST_WAIT, _LONGEST_WAIT if remaining is None else remaining - _ANSWER_TIME)


def bounded(number: int, field: str, *, default: int, most: int) -> int:
    """Return a size that was asked for: the default for 0, and no more than the most.

    Raises:
        InvalidRequest: it is negative.
    """
    if number < 0:
        raise wrong_field(field, f"must not be negative, is {number}")
    return min(number or default, most)


def wrong_field(field: str, message: str) -> InvalidRequest:
    """Return the error for a field of a request that no method could take."""
    return InvalidRequest({field: message}, reason="REQUEST_INVALID")


async def _refuse(request: bytes, context: Context) -> bytes:
    del request
    log.warning("token_refused", peer=context.peer())
    raise TokenInvalid("the bearer token is missing or wrong; set the token that this server is configured with")


def _parts(
    handler: _Handler,
) -> tuple[Callable[[Any, Context], Awaitable[Any]], Callable[[bytes], Any], Callable[[Any], bytes]]:
    """Return the method, what reads its request, and what writes its answer."""
    behaviour: Any = handler.unary_unary
    return behaviour, handler.request_deserializer or _as_it_is, handler.response_serializer or _as_it_is


def _as_it_is(message: bytes) -> bytes:
    return message


async def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None, setting: str) -> str:
    try:
        host, _ = _split(address)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except (ValueError, RuntimeError) as error:
        why = await asyncio.to_thread(_why_not, address)
        raise ConfigurationError(
            f"{setting}.address = {address}: cannot listen there: {why or error}. "
            "Choose another address, or stop the process that uses it."
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _stop(server: grpc.aio.Server, checks: HealthServicer) -> None:
    checks.stop()
    await server.stop(grace=2.0)


def _why_not(address: str) -> str:
    """Ask the operating system for what gRPC keeps to itself."""
    try:
        host, port = _split(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return ""
    except OSError as error:
        # Python's own text repeats the address; numbers below 1 are the resolver's.
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)
    except ValueError as error:
        return str(error)


def _split(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004 -- the highest port
        raise ValueError("an address reads host:port or [ipv6]:port, with a port from 0 to 65535")
    return match["host"] or match["ipv6"], int(match["port"])


# Clients -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_channel(
    address: str, *, setting: str, tls: Tls | None = None, token: str | None = None
) -> AsyncGenerator[grpc.aio.Channel]:
    """Yield a channel that repeats a call on UNAVAILABLE, twice within a second. It connects when it is first used.

    A token without TLS is sent as it is, and a warning is logged unless the address is this machine's.

    Raises:
        ConfigurationError: the TLS files cannot be used.
    """
    loopback = is_loopback(address)
    if token is not None and tls is None and not loopback:
        log.warning("token_sent_in_clear", address=address, remedy=f"set {setting}.tls.ca")
    interceptors = [] if token is None else [_Bearer(token)]
    # A proxy that leads to AWS does not lead to this machine.
    options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not loopback)))
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options, interceptors=interceptors)
    else:
        credentials = await asyncio.to_thread(channel_credentials, tls, setting)
        channel = grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)
    async with channel:
        yield channel


@contextlib.contextmanager
def call_errors() -> Generator[None]:
    """Raise the :class:`~remora.errors.CallError` that the server raised; other answers stay AioRpcError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        known = wire.error_of(error)
        if known is None:
            raise
        raise known from error


class PersistentCaller:
    """Calls a server until it answers, however long it is away.

    Repeated with jittered back-off are calls that got no answer and those that failed through no fault of the caller
    (StorageUnavailable, a defect). What the caller must act on is raised, as with :func:`call_errors`; a refusal of
    the caller itself is TokenInvalid, whoever refuses.
    """

    def __init__(self, backoff: Backoff, clock: Clock) -> None:
        self._backoff = backoff
        self._clock = clock

    async def __call__(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, seconds: float
    ) -> Response:
        """Return the answer. Each try has so many seconds."""
        retries = 0
        while True:
            try:
                with call_errors():
                    answer = await method(request, timeout=seconds)
            except (grpc.aio.AioRpcError, CallError) as error:
                why = _passing(error)
            else:
                if retries:
                    log.info("call_answered", request=type(request).__name__, retries=retries)
                return answer
            delay = self._backoff.delay(retries)
            # Once for an outage: it may last for days.
            tell = log.debug if retries else log.warning
            tell("call_repeated", request=type(request).__name__, why=why, delay=round(delay, 1))
            retries += 1
            await self._clock.sleep(delay)


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], *, name: str) -> AsyncGenerator[None]:
    """Run work in a task of its own for as long as the body runs.

    Work that fails cancels the body and is raised as an ExceptionGroup; what the body raises stays as it is.
    """
    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name=name)
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- raised below, where the task group cannot wrap it
            raised = error
        finally:
            task.cancel()
    if raised is not None:
        raise raised


def _passing(error: grpc.aio.AioRpcError | CallError) -> str:
    """Return why a call failed if it may succeed later; raise what the caller must act on."""
    if isinstance(error, CallError):
        if isinstance(error, StorageUnavailable) or type(error) is CallError:
            return str(error)
        raise error
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise TokenInvalid(f"{error.code().name}: {error.details()}") from error
    return f"{error.code().name}: {error.details()}"


class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: object
    ) -> Any:  # noqa: ANN401 -- whatever the call gives
        details = grpc.aio.ClientCallDetails(
            client_call_details.method,
            client_call_details.timeout,
            grpc.aio.Metadata(*(client_call_details.metadata or ()), self._header),
            client_call_details.credentials,
            client_call_details.wait_for_ready,
        )
        return await continuation(details, request)
