"""``remora plugins``: the task types and doors that are installed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from remora.app import Configuration, configure
from remora.cli.options import config_option, examples, json_option
from remora.cli.output import print_json
from remora.config import Properties
from remora.pace import SystemClock
from remora.registry import Registry, installed_doors


@click.command(epilog=examples("remora plugins", "remora plugins --json | jq '.task_types[0].schema'"))
@config_option
@json_option
def plugins(*, config: Path | None, as_json: bool) -> None:
    """Show the task types that a worker can run, with their parameters and permissions, and the doors."""
    configuration = configure(Properties.load(config))
    found = asyncio.run(_find(configuration))
    if as_json:
        print_json(found)
        return
    for task_type in found["task_types"]:
        click.echo(f"{click.style(task_type['name'], bold=True)}  {task_type['title']}  (plugin {task_type['plugin']})")
        click.echo("\n  Parameters:")
        for line in _fields(task_type["schema"]):
            click.echo(line)
        click.echo("\n  Permissions:")
        for permission in task_type["permissions"]:
            click.echo(f"    {permission}")
        click.echo()
    doors = [f"{door['name']}{'' if door['open'] else ' (not in worker.doors)'}" for door in found["doors"]]
    click.echo(f"doors: {', '.join(doors)}")


async def _find(configuration: Configuration) -> dict[str, Any]:
    task_types: list[dict[str, Any]] = []
    for name, chosen in configuration.plugins.items():
        async with Registry.open({name: chosen}, SystemClock()) as registry:
            task_types += [
                {
                    "name": info.name,
                    "title": info.title,
                    "plugin": name,
                    "permissions": list(info.permissions),
                    "schema": json.loads(info.schema),
                }
                for info in registry.task_types()
            ]
    doors = [{"name": name, "open": name in configuration.doors} for name in installed_doors()]
    return {"task_types": task_types, "doors": doors}


def _fields(schema: Mapping[str, Any]) -> Iterable[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        yield f"    {click.style(name, bold=True)}: {_type(field)}{', required' if name in required else ''}"
        meaning = field.get("description") or field.get("title", "")
        yield click.wrap_text(meaning, width=100, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(part) for part in field["anyOf"] if part.get("type") != "null"))
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    return str(field.get("type", "any"))
