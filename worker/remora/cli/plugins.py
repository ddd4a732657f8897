"""``remora plugins``: the task types and doors that are installed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from remora.app import Configuration, configure
from remora.cli.options import config_option, examples, json_option
from remora.cli.output import print_json
from remora.config import Properties
from remora.errors import ConfigurationError
from remora.pace import SystemClock
from remora.registry import Registry, installed_doors


@click.command(epilog=examples("remora plugins", "remora plugins --json | jq '.task_types[0].schema'"))
@config_option
@json_option
def plugins(*, config: Path | None, as_json: bool) -> None:
    """Show the task types that a worker can run, with their parameters and permissions, and the doors."""
    configuration = configure(Properties.load(config))
    doors = {name: name in configuration.doors for name in installed_doors()}
    task_types, problems = asyncio.run(_task_types(configuration))
    _show(task_types, doors, as_json=as_json)
    if problems:
        raise ConfigurationError(*problems)


def _show(task_types: Sequence[Mapping[str, Any]], doors: Mapping[str, bool], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"task_types": task_types, "doors": [{"name": name, "open": is_open} for name, is_open in doors.items()]}
        )
        return
    for task_type in task_types:
        click.echo(f"{click.style(task_type['name'], bold=True)}  {task_type['title']}  (plugin {task_type['plugin']})")
        click.echo("\n  Parameters:")
        for line in _fields(task_type["schema"]):
            click.echo(line)
        click.echo("\n  Permissions:")
        for permission in task_type["permissions"]:
            click.echo(f"    {permission}")
        click.echo()
    click.echo(
        f"doors: {', '.join(name if is_open else f'{name} (not in worker.doors)' for name, is_open in doors.items())}"
    )


async def _task_types(configuration: Configuration) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what the plugins run, and the problems of those that cannot work as they are configured."""
    task_types: list[dict[str, Any]] = []
    problems: list[str] = []
    for name, chosen in configuration.plugins.items():
        try:
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
        except ConfigurationError as error:
            problems += error.problems
    return task_types, problems


def _fields(schema: Mapping[str, Any]) -> Iterable[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        kind = _kind(field, schema.get("$defs", {}))
        yield f"    {click.style(name, bold=True)}: {kind}{', required' if name in required else ''}"
        meaning = field.get("description") or field.get("title", "")
        yield click.wrap_text(meaning, width=100, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [_kind(part, definitions) for part in field["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in field:
        return _kind(definitions.get(str(field["$ref"]).rsplit("/", 1)[-1], {}), definitions)
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    return str(field.get("type", "any"))
