"""How a run looks while it is followed: a table that changes in place on a terminal, lines everywhere else."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from remora.cli.output import STYLES, duration, failure_lines, lasted, state_name, state_text
from remora.pace import SystemClock
from remora.v1 import workflow_service_pb2 as pb

_STAMP = re.compile(r"\[([A-Z]+)\] \d{4}-\d\d-\d\d (\d\d:\d\d:\d\d)\.\d{3} \+0000 - ")
"""Of a line of a task's log; see :mod:`remora.tasklog`."""
_LEVELS = {"WARN": "yellow", "ERROR": "red"}
_MARKS = {
    "WAITING": "·",
    "READY": "○",
    "DISPATCHED": "◌",
    "SUCCEEDED": "✓",
    "FAILED": "✗",
    "UPSTREAM_FAILED": "⊘",
    "CANCELLED": "⊘",
}
_COLOURS = ("cyan", "magenta", "blue", "yellow", "green", "bright_cyan", "bright_magenta", "bright_blue")


class LinesView:
    """One line for each change; the logs between them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown: dict[str, tuple[str, int, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is open."""

    def show(self, run: pb.WorkflowRun) -> None:
        """Write a line for each task that is not as it was."""
        for task in run.tasks:
            now = (state_name(task), task.attempt, task.detail)
            if self._shown.get(task.name) != now:
                self._shown[task.name] = now
                attempt = f" (attempt {task.attempt} of {task.max_attempts})" if task.attempt > 1 else ""
                self._write(
                    f"{_clock_time()} {task.name}: {now[0]}{attempt}{f': {task.detail}' if task.detail else ''}"
                )

    def log(self, task: str, text: str) -> None:
        """Write each line behind the name of its task."""
        for line in text.splitlines():
            self._write(f"{task} | {line}")

    def say(self, text: str) -> None:
        """Write a remark."""
        self._write(f"{_clock_time()} {text}")


class TableView:
    """A table of the tasks that changes in place; the logs pass above it."""

    def __init__(self, console: Console, opening: str) -> None:
        """Take where to print, and what to show before there is a run."""
        self._console = console
        self._run = pb.WorkflowRun()
        self._remark = ""
        self._opening = opening
        self._spinner = Spinner("dots", style="bold blue")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def show(self, run: pb.WorkflowRun) -> None:
        """Change the table."""
        self._run = run
        self._remark = ""

    def log(self, task: str, text: str) -> None:
        """Print above the table."""
        names = [each.name for each in self._run.tasks]
        width = max(map(len, [task, *names]))
        colour = _COLOURS[names.index(task) % len(_COLOURS)] if task in names else ""
        for line in text.splitlines():
            level, at, message = _parts(line)
            prefix = Text(f"{at:<9}{task:<{width}} ", style=colour)
            self._console.print(prefix + Text(message, style=_LEVELS.get(level, "")), highlight=False, soft_wrap=False)

    def say(self, text: str) -> None:
        """Show a remark below the table until the run changes, and keep it above."""
        self._remark = text
        self._console.print(Text(f"{_clock_time()} {text}", style="bold yellow"))

    def _render(self) -> RenderableType:
        run, now = self._run, SystemClock().now()
        if not run.run_id:
            return Text(self._opening, style="dim")
        grid = Table.grid(padding=(0, 2), expand=True)
        for style in ("", "", "dim", ""):
            grid.add_column(no_wrap=True, style=style)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
        for task in run.tasks:
            state = state_name(task)
            attempt = f"attempt {task.attempt}/{task.max_attempts}" if task.attempt > 1 else ""
            took = duration(lasted(task.started_at, task.finished_at, now))
            grid.add_row(task.name, self._state(state), attempt, took, task.detail)
        took = duration(lasted(run.created_at, run.finished_at, now))
        state = state_name(run)
        title = Text.assemble((run.run_id, "bold"), f"  {took}  ", (state.lower(), STYLES.get(state, "")))
        return Group("", title, grid, *([Text(self._remark, style="yellow")] if self._remark else []))

    def _state(self, name: str) -> RenderableType:
        if name == "RUNNING":
            self._spinner.update(text=state_text(name))
            return self._spinner
        return Text(f"{_MARKS.get(name, ' ')} ", style=STYLES.get(name, "")) + state_text(name)


def summary(run: pb.WorkflowRun) -> Sequence[str]:
    """Say how a run ended: why each failed task failed, and then the whole in one line."""
    lines: list[str] = []
    for task in run.tasks:
        if task.task.HasField("failure") and task.state == pb.WORKFLOW_TASK_STATE_FAILED:
            first, *rest = failure_lines(task.task.failure)
            lines += [f"{task.name}: {first}", *(f"  {line}" for line in rest)]
        elif task.state == pb.WORKFLOW_TASK_STATE_FAILED:
            lines.append(f"{task.name}: {task.detail}")
    attempts = sum(task.attempt for task in run.tasks)
    took = duration(lasted(run.created_at, run.finished_at, SystemClock().now()))
    whole = f"{len(run.tasks)} task{'s' * (len(run.tasks) != 1)}, {attempts} attempt{'s' * (attempts != 1)}"
    lines.append(f"run {run.run_id} of {run.name}: {state_name(run)} after {took}, {whole}")
    return lines


def _parts(line: str) -> tuple[str, str, str]:
    """Return level, time of day and message of a line of a log."""
    match = _STAMP.match(line)
    return (match[1], match[2], line[match.end() :]) if match else ("", "", line)


def _clock_time() -> str:
    return dt.datetime.now().astimezone().strftime("%H:%M:%S")
