"""The command line ``remora``.

Commands live in modules of their own, which are imported when one of their commands is called: the table below is all
that ``remora --help`` needs.
"""

from __future__ import annotations

import os

import click

import remora
from remora.cli.group import CommandGroup, Summary

__all__ = ["cli", "main"]

SECTIONS = {
    "See it work": {
        "demo": Summary("remora.cli.demo:demo", "Run a workflow on a simulated SageMaker, on this machine."),
    },
    "Workflows": {
        "run": Summary("remora.cli.run:run", "Run a DAG file and follow it to its end."),
        "runs": Summary("remora.cli.run:runs", "List the runs of the scheduler."),
    },
    "Tasks": {
        "submit": Summary("remora.cli.tasks:submit", "Hand a task to a worker."),
        "get": Summary("remora.cli.tasks:get", "Show a task."),
        "list": Summary("remora.cli.tasks:list_tasks", "List the tasks of a worker."),
        "logs": Summary("remora.cli.logs:logs", "Show the log of a task, or follow it."),
        "cancel": Summary("remora.cli.cancel:cancel", "Stop a task or a whole run."),
    },
    "Services": {
        "worker": Summary("remora.cli.services:worker", "Run the worker."),
        "scheduler": Summary("remora.cli.services:scheduler", "Run the embedded scheduler."),
        "check": Summary("remora.cli.check:check", "Say what is wrong with the configuration, and where."),
        "plugins": Summary("remora.cli.plugins:plugins", "Show what is installed: task types and doors."),
        "health": Summary("remora.cli.health:health", "Ask a server whether it is well."),
    },
}

EPILOG = """\
\b
Exit codes:
  0    it worked; a task or run that was waited for succeeded
  1    it failed: the task, the run, the check of health, a server that died
  2    the command line is wrong
  3    the configuration is wrong
  4    the server cannot be reached
  5    refused: what was asked for is wrong, or not there
  130  interrupted

\b
Environment:
  REMORA_CONFIG     properties file, in place of config/common.properties
  REMORA_WORKER     address of the worker, in place of 127.0.0.1:50051
  REMORA_SCHEDULER  address of the scheduler, in place of 127.0.0.1:50050
  REMORA_TOKEN      bearer token of either
Each property can be set there, too: worker.data.dir by REMORA_WORKER_DATA_DIR.
"""


@click.group(
    cls=CommandGroup,
    sections=SECTIONS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(remora.__version__, prog_name="remora", message="%(prog)s %(version)s")
def cli() -> None:
    """One durable task worker for every scheduler: runs jobs on Amazon SageMaker exactly once, to their true end.

    Begin with `remora demo`. `remora COMMAND --help` has an example of each command.
    """


def main() -> None:
    """Run the command line and exit the process."""
    # What gRPC's own core has to say beside that comes back as an error, and is told as one.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    cli(prog_name="remora")
