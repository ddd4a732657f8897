"""``remora health``: one question to ``grpc.health.v1``, for containers and scripts."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from remora.cli.client import DEFAULT_ADDRESSES, Server, connect
from remora.cli.group import ExitCode, Failed
from remora.cli.options import AddressType, connection_options, examples
from remora.tls import Tls


@click.command(epilog=examples("remora health", "remora health --address 127.0.0.1:50050 --service readiness"))
@click.option(
    "--address",
    type=AddressType(),
    envvar="REMORA_WORKER",
    default=DEFAULT_ADDRESSES["worker"],
    show_default=True,
    help="Of a worker or a scheduler.",
)
@click.option("--service", default="", help='"readiness" asks whether it takes new work.  [default: whether it lives]')
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds.")
@connection_options
def health(*, address: str, service: str, timeout: float, token: str | None, tls: Tls | None) -> None:
    """Ask a worker or a scheduler whether it is well. Exits with 0 if it is, else with 1."""
    server = Server(kind="server", address=address, token=token, tls=tls)
    try:
        status = asyncio.run(_check(server, service, timeout))
    except Failed as error:
        raise Failed(*error.message.splitlines()) from error
    click.echo(status)
    if status != "SERVING":
        raise click.exceptions.Exit(ExitCode.FAILED)


async def _check(server: Server, service: str, seconds: float) -> str:
    async with connect(server) as channel:
        stub: Any = HealthStub(channel)  # comes without types
        try:
            answer: HealthCheckResponse = await stub.Check(HealthCheckRequest(service=service), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise Failed(f"{server.address} knows no service {service!r}") from error
            raise
        name: str = HealthCheckResponse.ServingStatus.Name(answer.status)
        return name
