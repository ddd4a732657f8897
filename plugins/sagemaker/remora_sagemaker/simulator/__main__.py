"""The command line: ``python -m remora_sagemaker.simulator``."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import click

from remora_sagemaker.simulator.clock import SimulatedClock
from remora_sagemaker.simulator.naming import Account
from remora_sagemaker.simulator.protocol import ApiError
from remora_sagemaker.simulator.server import Simulator


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", help="Address to listen on. There is no authentication: keep it local.")
@click.option("--port", default=8765, type=click.IntRange(0, 65535), help="Port to listen on; 0 is any that is free.")
@click.option("--speed", default=1.0, type=click.FloatRange(0, min_open=True), help="Simulated seconds in a real one.")
@click.option("--region", default="us-east-1", help="Region in the ARNs.")
@click.option("--account", default="123456789012", help="Account in the ARNs.")
@click.option(
    "--pipelines",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of pipeline definitions. Each NAME.json becomes the pipeline NAME.",
)
@click.option("--latency-ms", default=0.0, type=click.FloatRange(0), help="Real milliseconds that each request takes.")
def main(
    *, host: str, port: int, speed: float, region: str, account: str, pipelines: Path | None, latency_ms: float
) -> None:
    """Simulate Amazon SageMaker on this machine.

    Prints one line when it is ready, and runs until SIGINT or SIGTERM. Any AWS client can use it with its URL as the
    endpoint and with any credentials. Pipeline parameters such as SimStepSeconds and SimFailStep decide how an
    execution goes, and POST /_sim/clock, /_sim/faults and others decide how the service behaves; see
    `pydoc remora_sagemaker.simulator`.
    """
    try:
        where = Account(region=region, account=account)
    except ValueError as error:
        raise click.UsageError(f"--region, --account: {error}") from None
    simulator = Simulator(account=where, clock=SimulatedClock(speed=speed), latency=latency_ms / 1000)
    for path in sorted(pipelines.glob("*.json")) if pipelines else ():
        _create_pipeline(simulator, path)
    try:
        asyncio.run(_run(simulator, host, port))
    except OSError as error:
        # asyncio puts the address into strerror once more; the errors of name look-ups are negative and have no other.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise click.ClickException(f"cannot listen on {host}:{port}: {reason}") from None


def _create_pipeline(simulator: Simulator, path: Path) -> None:
    try:
        simulator.create_pipeline(path.stem, path.read_text(encoding="utf-8"))
    except (ApiError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: {error}") from None


async def _run(simulator: Simulator, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with simulator.serve(host=host, port=port) as url:
        click.echo(f"simulator ready on {url}")
        await stopped.wait()


if __name__ == "__main__":
    main(prog_name="python -m remora_sagemaker.simulator")
