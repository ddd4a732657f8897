"""``remora check``: what is wrong with the configuration, where, and what is fine."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from pydantic import BaseModel

from remora.app import Configuration, configure, configure_scheduler
from remora.cli.group import ExitCode
from remora.cli.options import config_option, examples, json_option
from remora.cli.output import WHO_ACTS, print_json
from remora.config import DEFAULT_PATH, Properties
from remora.errors import ConfigurationError
from remora.pace import SystemClock
from remora.plugin import Plugin
from remora.registry import Registry
from remora.tls import Tls, channel_credentials

_SCARCE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    message: str


@click.command(epilog=examples("remora check", "remora check --config /etc/remora/common.properties --offline --json"))
@config_option
@click.option("--offline", is_flag=True, help="Call nobody: credentials are not tried.")
@json_option
def check(*, config: Path | None, offline: bool, as_json: bool) -> None:
    """Say what is wrong with the configuration, where, and what is fine. Changes nothing.

    Looks at every property, the data directory, TLS files and each plugin, and asks the plugins to try their
    credentials. Exits with 0 if a worker could start and work, else with 3.
    """
    findings = _look(config, offline=offline)
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red")
            click.echo(f"{mark} {finding.subject}: {finding.message}")
    if not ok:
        raise click.exceptions.Exit(ExitCode.CONFIGURATION)


def _look(config: Path | None, *, offline: bool) -> list[Finding]:
    origin = str(config or DEFAULT_PATH)
    try:
        configuration = _configure(Properties.load(config))
    except ConfigurationError as error:
        return [Finding(subject="configuration", ok=False, message=problem) for problem in error.problems]
    known = origin if config or DEFAULT_PATH.exists() else f"defaults and environment; there is no {origin}"
    return [
        Finding(subject="configuration", ok=True, message=known),
        *_data_directory(configuration.worker.data_dir),
        *_doors(configuration),
        *asyncio.run(_plugins(configuration, offline=offline)),
    ]


def _configure(properties: Properties) -> Configuration:
    """Read what the worker reads, and what the scheduler does. Raises ConfigurationError with the problems of both."""
    problems: list[str] = []
    for make in (configure, configure_scheduler):
        try:
            make(properties)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(*dict.fromkeys(problems))
    return configure(properties)


def _data_directory(path: Path) -> Iterator[Finding]:
    subject = "worker.data.dir"
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not existing.is_dir():
        yield Finding(subject=subject, ok=False, message=f"{existing} is no directory. Choose another, or remove it.")
    elif not os.access(existing, os.W_OK | os.X_OK):
        message = f"{existing} cannot be written by this user. Make it writable, or choose another."
        yield Finding(subject=subject, ok=False, message=message)
    else:
        free = shutil.disk_usage(existing).free
        what = str(path) if existing == path.absolute() else f"{path} will be made"
        message = f"{what}, {free // 1024**2} MiB free"
        scarce = free < _SCARCE_BYTES
        yield Finding(subject=subject, ok=not scarce, message=f"{message}: make room" if scarce else message)


def _doors(configuration: Configuration) -> Iterator[Finding]:
    if not configuration.doors:
        yield Finding(subject="worker.doors", ok=False, message="no door is open: nobody can hand over tasks.")
    for name, (_, settings) in configuration.doors.items():
        tls: object = getattr(settings, "tls", None)
        address: object = getattr(settings, "address", "")
        try:
            if isinstance(tls, Tls):
                channel_credentials(tls, f"door.{name}")
        except ConfigurationError as error:
            for problem in error.problems:
                yield Finding(subject=f"door {name}", ok=False, message=problem)
        else:
            message = " ".join(filter(None, (str(address), "with TLS" if tls else "without TLS")))
            yield Finding(subject=f"door {name}", ok=True, message=message)


async def _plugins(configuration: Configuration, *, offline: bool) -> list[Finding]:
    return [
        finding
        for name, (plugin, settings) in configuration.plugins.items()
        async for finding in _plugin(name, plugin, settings, offline=offline)
    ]


async def _plugin(name: str, plugin: Plugin, settings: BaseModel, *, offline: bool) -> AsyncIterator[Finding]:
    subject = f"plugin {name}"
    try:
        async with Registry.open({name: (plugin, settings)}, SystemClock()) as registry:
            types = ", ".join(info.name for info in registry.task_types()) or "nothing"
    except ConfigurationError as error:
        for problem in error.problems:
            yield Finding(subject=subject, ok=False, message=problem.removeprefix(f"{subject}: "))
        return
    yield Finding(subject=subject, ok=True, message=f"runs {types}")
    if offline:
        return
    failures = await plugin.check(settings)
    for failure in failures:
        code = f"{failure.code}: " if failure.code else ""
        message = f"{code}{failure.message} (who acts: {WHO_ACTS[failure.kind]})"
        yield Finding(subject=f"{subject}, tried out", ok=False, message=message)
    if not failures:
        yield Finding(subject=f"{subject}, tried out", ok=True, message="its credentials work")
