"""A group of commands that are imported when they are called, and how each kind of failure ends the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from typing import IO, Any

import click

from remora.errors import CallError, ConfigurationError, InvalidRequest


class ExitCode(IntEnum):
    """What scripts can tell apart."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Summary:
    """A command without its code."""

    target: str
    """``module:attribute`` of the command."""
    text: str
    """One line for the help of the group."""


class Failed(click.ClickException):
    """Ends the process with some lines for people and a code for programs."""

    def __init__(self, *lines: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = code  # type: ignore[misc]  # click means it to be overridden

    def show(self, file: IO[Any] | None = None) -> None:
        """Print each line to the standard error output. Indented ones belong to the one before."""
        del file
        for line in self.message.splitlines():
            click.echo(line if line.startswith(" ") else f"{click.style('error:', fg='red')} {line}", err=True)


class CommandGroup(click.Group):
    """Shows commands in sections and imports one when it is called."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Summary]], **kwargs: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._summaries = {name: summary for section in sections.values() for name, summary in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        del ctx
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        del ctx
        if cmd_name not in self._summaries:
            return None
        module, _, attribute = self._summaries[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without importing anything."""
        del ctx
        width = max(map(len, self._summaries))
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), summary.text) for name, summary in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- whatever the command returns
        """Call the command, and put what it raises into words and an exit code."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            raise Failed(*error.problems, code=ExitCode.CONFIGURATION) from error
        except InvalidRequest as error:
            lines = [f"{path}: {message}" for path, message in error.violations.items()]
            raise Failed(*lines or [str(error)], code=ExitCode.REFUSED) from error
        except CallError as error:
            raise Failed(f"{error} ({error.reason})", code=ExitCode.REFUSED) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(ExitCode.INTERRUPTED)
