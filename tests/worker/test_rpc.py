"""What every server and client has in common, over real channels on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
from functools import partial

import grpc
import grpc.aio
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from remora import rpc
from remora.errors import (
    CallError,
    ConfigurationError,
    InvalidRequest,
    StorageUnavailable,
    TaskConflict,
    TokenInvalid,
    WorkerFull,
)
from remora.pace import SystemClock
from remora.testing import ManualClock
from remora.tls import Tls
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

SAY = "/test.Echo/Say"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def echo(method):
    """Return services with one method."""
    handler = grpc.unary_unary_rpc_method_handler(method, StringValue.FromString, StringValue.SerializeToString)

    def add(server):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": handler}),))

    return {"test.Echo": add}


async def same(request, context):
    return request


def raising(error):
    async def method(request, context):
        raise error

    return method


def serving(method=same, *, address="127.0.0.1:0", clock=None, **options):
    return rpc.serve(echo(method), address=address, setting="door.grpc", clock=clock or SystemClock(), **options)


channel_to = partial(rpc.open_channel, setting="door.scheduler")


async def say(channel, text="hello", **options):
    call = channel.unary_unary(SAY, StringValue.SerializeToString, StringValue.FromString)
    return (await call(StringValue(value=text), timeout=options.pop("timeout", 10), **options)).value


@contextlib.asynccontextmanager
async def connected(method=same, **options):
    async with serving(method, **options) as address, channel_to(address) as channel:
        yield channel


async def check(channel, service=""):
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest({"a.b": "is wrong"}), grpc.StatusCode.INVALID_ARGUMENT),
        (TaskConflict("taken"), grpc.StatusCode.ALREADY_EXISTS),
        (WorkerFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_an_error_that_was_raised_on_purpose_reaches_the_client_as_itself(error, code):
    async with connected(raising(error)) as channel:
        with pytest.raises(type(error), match=str(error)) as caught, rpc.call_errors():
            await say(channel)
        assert caught.value.reason == error.reason
        assert caught.value.__cause__.code() is code


async def test_a_defect_is_logged_with_an_id_and_nothing_of_it_leaves_the_process():
    with capture_logs(processors=[merge_contextvars]) as logs:
        async with connected(raising(RuntimeError("secret=AKIA123"))) as channel:
            with pytest.raises(CallError) as caught, rpc.call_errors():
                await say(channel)

    (line,) = [line for line in logs if line["event"] == "defect"]
    assert (line["rpc"], line["exc_info"]) == (SAY, True)
    assert line["id"] in str(caught.value)
    answer = caught.value.__cause__
    assert answer.code() is grpc.StatusCode.INTERNAL
    assert "AKIA123" not in f"{answer.details()} {answer.trailing_metadata()!r} {answer.debug_error_string()}"


async def test_an_answer_that_cannot_be_written_is_a_defect_too():
    async def nothing(request, context):
        return None

    with capture_logs() as logs:
        async with connected(nothing) as channel:
            with pytest.raises(CallError), rpc.call_errors():
                await say(channel)
    assert [line["event"] for line in logs] == ["defect"]


async def test_bytes_that_are_no_message_are_the_callers_mistake():
    async with connected() as channel:
        with pytest.raises(InvalidRequest) as caught, rpc.call_errors():
            await channel.unary_unary(SAY)(b"\xff\xff\xff", timeout=10)
        assert caught.value.violations == {"request": "is not the message that this method takes"}
        assert caught.value.reason == "REQUEST_INVALID"


async def test_an_unknown_method_is_unimplemented_and_stays_grpcs_own_error():
    async with connected() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught, rpc.call_errors():
            await channel.unary_unary("/test.Echo/Sing")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_cancels_the_method():
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with capture_logs() as logs:
        async with connected(slow) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(channel, timeout=0.1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await asyncio.wait_for(cancelled.wait(), 10)
    assert began.is_set()
    assert logs == []


async def test_an_oversize_request_is_refused_with_both_sizes_and_the_channel_stays_usable():
    async with connected() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            # The client's own limit is the same; raw bytes on a channel without one show the server's.
            await say(channel, "x" * (5 * 1024 * 1024))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4194304" in caught.value.details()
        assert await say(channel) == "hello"


async def test_the_server_refuses_an_oversize_request_of_a_client_without_a_limit():
    async with serving() as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel, "x" * (5 * 1024 * 1024))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4194304" in caught.value.details()
        assert await say(channel) == "hello"


async def test_a_call_is_repeated_while_the_server_is_unavailable():
    left = [StorageUnavailable("full"), StorageUnavailable("full")]

    async def unavailable_twice(request, context):
        if left:
            raise left.pop()
        return request

    async with connected(unavailable_twice) as channel:
        assert await say(channel) == "hello"


async def test_log_lines_of_a_call_carry_the_method_and_the_peer():
    bound = {}

    async def look(request, context):
        bound.update(structlog.contextvars.get_contextvars())
        return request

    async with connected(look) as channel:
        await say(channel)
    assert bound["rpc"] == SAY
    assert bound["peer"].startswith("ipv4:127.0.0.1:")


# Tokens and TLS


async def test_a_token_is_asked_of_every_call_but_those_for_health():
    with capture_logs() as logs:
        async with serving(token="s3cret") as address:
            for token in (None, "wrong", "s3cret2"):
                metadata = None if token is None else (("authorization", f"Bearer {token}"),)
                async with grpc.aio.insecure_channel(address) as channel:
                    with pytest.raises(TokenInvalid) as caught, rpc.call_errors():
                        await say(channel, metadata=metadata)
                    assert caught.value.__cause__.code() is grpc.StatusCode.UNAUTHENTICATED
                    assert await check(channel) == SERVING
            async with channel_to(address, token="s3cret") as channel:
                assert await say(channel) == "hello"
    assert {line["event"] for line in logs} == {"token_refused"}
    assert "s3cret" not in repr(logs)


async def test_a_token_that_would_travel_in_clear_is_warned_about():
    with capture_logs() as logs:
        async with channel_to("192.0.2.1:50051", token="s3cret"), channel_to("[::1]:50051", token="s3cret"):
            pass
    assert [line["event"] for line in logs] == ["token_sent_in_clear"]


def signed(name, issuer_name, key, issuer_key, *, ca):
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """Files of a CA and of one certificate that it signed, for both sides."""
    directory = tmp_path_factory.mktemp("tls")
    ca_key, key, other_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    certificates = {
        "ca": signed("ca", "ca", ca_key, ca_key, ca=True),
        "certificate": signed("server", "ca", key, ca_key, ca=False),
    }
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for name, certificate in certificates.items():
        (directory / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    (directory / "other_key").write_bytes(other_key.private_bytes(serialization.Encoding.PEM, *form))
    (directory / "garbage").write_text("garbage")
    return directory


async def test_a_client_that_knows_the_ca_talks_to_a_server_with_tls(pem):
    server = Tls(certificate=pem / "certificate", key=pem / "key")
    async with serving(tls=server, token="s3cret") as address:
        async with channel_to(address, tls=Tls(ca=pem / "ca"), token="s3cret") as channel:
            assert await say(channel) == "hello"
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_with_a_client_ca_refuses_clients_without_a_certificate(pem):
    both = Tls(certificate=pem / "certificate", key=pem / "key", ca=pem / "ca")
    async with serving(tls=both) as address:
        async with channel_to(address, tls=both) as channel:
            assert await say(channel) == "hello"
        async with channel_to(address, tls=Tls(ca=pem / "ca")) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await say(channel)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"certificate": "nowhere", "key": "key"},
            r"door\.grpc\.tls\.certificate = .*nowhere: cannot be read: No such",
        ),
        ({"certificate": "certificate", "key": "other_key"}, r"door\.grpc\.tls\.key = .*other_key: no usable PEM"),
        ({"certificate": "garbage", "key": "key"}, r"door\.grpc\.tls\.certificate = .*garbage.*no usable PEM"),
        ({"certificate": "certificate", "key": "key", "ca": "garbage"}, r"door\.grpc\.tls\.ca = .*no usable PEM"),
        ({"certificate": "certificate"}, r"door\.grpc\.tls\.certificate, door\.grpc\.tls\.key: set both"),
        ({"ca": "ca"}, r"door\.grpc\.tls\.certificate, door\.grpc\.tls\.key: a server needs both"),
    ],
)
async def test_tls_files_of_no_use_are_named_with_their_keys(pem, files, words):
    tls = Tls(**{name: pem / file for name, file in files.items()})
    with pytest.raises(ConfigurationError, match=words):
        async with serving(tls=tls):
            pytest.fail("it serves")


# Addresses


async def test_a_port_in_use_is_an_error_that_names_the_key_and_the_address(capfd):
    async with serving() as address:
        with pytest.raises(ConfigurationError, match="Address already in use") as caught:
            async with serving(address=address):
                pytest.fail("it serves")
        assert f"door.grpc.address = {address}" in str(caught.value)
        async with channel_to(address) as channel:
            assert await say(channel) == "hello"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:99999", ":50051", "http://a:1", "a b:1", "[::1:5", "::1:5"]
)
async def test_an_address_that_reads_wrong_says_how_it_should_read(address):
    with pytest.raises(ConfigurationError, match=r"an address reads host:port"):
        async with serving(address=address):
            pytest.fail("it serves")


async def test_an_address_of_another_machine_cannot_be_bound(capfd):
    with pytest.raises(ConfigurationError, match="Cannot assign requested address"):
        async with serving(address="192.0.2.1:50051"):
            pytest.fail("it serves")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("worker.example:1", False),
    ],
)
def test_loopback_addresses_are_told_from_others(address, loopback):
    assert rpc.is_loopback(rpc.check_address(address)) is loopback


def test_a_token_that_cannot_travel_in_a_header_is_refused():
    assert rpc.check_token(SecretStr("aZ09-._~+/=")).get_secret_value() == "aZ09-._~+/="
    for token in ("é", "a b", "a\n"):
        with pytest.raises(ValueError, match="printable ASCII"):
            rpc.check_token(SecretStr(token))


# Health


async def test_health_follows_readiness_except_for_liveness():
    ready = True
    async with connected(ready=lambda: ready) as channel:
        names = ["", "liveness", "readiness", "test.Echo"]
        assert [await check(channel, name) for name in names] == [SERVING] * 4
        ready = False
        assert [await check(channel, name) for name in names] == [SERVING, SERVING, NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(channel, "nothing.Known")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10)
        assert {name: answer.status for name, answer in listed.statuses.items()} == {
            "": SERVING,
            "liveness": SERVING,
            "readiness": NOT_SERVING,
            "test.Echo": NOT_SERVING,
        }


async def test_who_watches_health_is_told_of_changes_within_a_second():
    ready, clock = True, ManualClock()
    async with connected(ready=lambda: ready, clock=clock) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=10)
        assert (await watch.read()).status == SERVING
        ready = False
        await clock.advance(1)
        assert (await watch.read()).status == NOT_SERVING
        ready = True
        await clock.advance(1)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_who_watches_health_sees_the_server_stop():
    async with contextlib.AsyncExitStack() as server:
        address = await server.enter_async_context(serving())
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=10)
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.aclose())
            assert (await watch.read()).status == NOT_SERVING
            # The stream ends by itself, so that nobody who watches holds up the stop.
            assert await watch.read() is grpc.aio.EOF
            await stopping


# Robustness


async def test_garbage_on_the_port_leaves_the_server_up():
    async with serving() as address:
        host, port = address.split(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 64,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                await asyncio.wait_for(reader.read(), 10)
            writer.close()
        async with channel_to(address) as channel:
            assert await say(channel) == "hello"


async def test_calls_under_way_are_answered_when_the_server_stops():
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        began.set()
        await go_on.wait()
        return request

    async with contextlib.AsyncExitStack() as stack:
        server = contextlib.AsyncExitStack()
        address = await server.enter_async_context(serving(slow))
        channel = await stack.enter_async_context(channel_to(address))
        call = asyncio.create_task(say(channel))
        await began.wait()
        stopping = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        go_on.set()
        assert await call == "hello"
        await stopping


async def test_work_beside_a_body_ends_with_it():
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with rpc.beside(work(), name="work"):
        await asyncio.sleep(0)
        assert "work" in {task.get_name() for task in asyncio.all_tasks()}
    assert ended.is_set()


async def test_work_that_fails_ends_the_body():
    async def work():
        raise TaskConflict("lost")

    with pytest.RaisesGroup(pytest.RaisesExc(TaskConflict, match="lost")):
        async with rpc.beside(work(), name="work"):
            await asyncio.Event().wait()


async def test_an_error_of_the_body_is_not_wrapped():
    async def work():
        await asyncio.Event().wait()

    with pytest.raises(ConfigurationError, match="mine"):
        async with rpc.beside(work(), name="work"):
            raise ConfigurationError("mine")


def test_the_probe_for_why_an_address_fails_finds_nothing_wrong_with_a_free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert rpc._why_not(f"127.0.0.1:{port}") == "Address already in use"
    assert rpc._why_not("127.0.0.1:0") == ""
