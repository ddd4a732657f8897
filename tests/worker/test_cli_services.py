"""worker, scheduler, check and plugins, and the file that lists every property."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import javaproperties
import pytest
from click.testing import CliRunner
from pydantic_core import PydanticUndefined
from remora.cli import cli, services
from remora.cli.group import ExitCode, Failed
from remora.cli.processes import Programs
from remora.config import WorkerSettings
from remora.errors import ConfigurationError, WorkerSuperseded
from remora.pace import SystemClock
from remora.plugin import Failure, FailureKind
from remora.scheduler import SchedulerSettings
from remora.server import GrpcSettings
from remora.session import SchedulerDoorSettings
from remora_example import ExamplePlugin

PROPERTIES = Path(__file__).parents[2] / "config" / "common.properties"
MODELS = (WorkerSettings, GrpcSettings, SchedulerDoorSettings, SchedulerSettings)


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    """The loggers of this process are not the command line's."""
    monkeypatch.setattr("remora.log.configure", lambda *_: None)


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Run a command with a file of properties; the example plugin is the only one."""
    monkeypatch.chdir(tmp_path)

    def run(command, *options, **properties):
        chosen = {"worker.plugins": "example", "worker.data.dir": "data"}
        chosen |= {name.replace("_", "."): value for name, value in properties.items()}
        text = "".join(f"{name}={value}\n" for name, value in chosen.items())
        Path("test.properties").write_text(text)
        return CliRunner().invoke(cli, [command, "--config", "test.properties", *options])

    return run


def test_a_default_is_written_out_where_there_is_one():
    written = javaproperties.loads(PROPERTIES.read_text())
    fields = [field for model in MODELS for field in model.model_fields.values()]
    plain = [field for field in fields if isinstance(field.validation_alias, str)]
    assert [field.validation_alias for field in plain if field.default not in (None, "", PydanticUndefined)] == [
        field.validation_alias for field in plain if written[field.validation_alias]
    ]


def test_the_file_of_properties_begins_with_those_of_dolphinscheduler():
    assert list(javaproperties.loads(PROPERTIES.read_text()))[:3] == [
        "resource.aws.access.key.id",
        "resource.aws.secret.access.key",
        "resource.aws.region",
    ]


def test_check_tells_what_is_fine(configured):
    result = configured("check")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ok    configuration: test.properties",
        next(
            line for line in result.stdout.splitlines() if line.startswith("ok    worker.data.dir: data will be made")
        ),
        "ok    door grpc: 127.0.0.1:50051 without TLS",
        "ok    plugin example: runs EXAMPLE",
        "ok    plugin example, tried out: its credentials work",
    ]


def test_check_tells_every_wrong_property(configured):
    result = configured("check", worker_capasity="1", worker_capacity="many", scheduler_lease_seconds="-1")
    assert result.exit_code == ExitCode.CONFIGURATION
    for key in ("worker.capasity", "worker.capacity", "scheduler.lease.seconds"):
        assert f"test.properties: {key}" in result.stdout


def test_check_tells_of_a_directory_that_is_a_file(configured):
    Path("data").touch()
    result = configured("check", "--json")
    assert result.exit_code == ExitCode.CONFIGURATION
    findings = json.loads(result.stdout)
    assert not findings["ok"]
    wrong = [finding for finding in findings["findings"] if not finding["ok"]]
    assert [finding["subject"] for finding in wrong] == ["worker.data.dir"]
    assert "is no directory" in wrong[0]["message"]


def test_check_tells_of_a_directory_that_cannot_be_written(configured, monkeypatch):
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    result = configured("check")
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "cannot be written by this user" in result.stdout


def test_check_tells_of_tls_files_that_cannot_be_used(configured):
    Path("key.pem").write_text("no key")
    properties = {"door_grpc_tls_certificate": "nowhere.pem", "door_grpc_tls_key": "key.pem"}
    result = configured("check", **properties)
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "nowhere.pem: cannot be read: No such file or directory" in result.stdout


def test_check_tells_who_has_to_act_on_credentials_that_do_not_work(configured, monkeypatch):
    async def refused(plugin, settings):
        return [Failure(kind=FailureKind.DENIED, code="AccessDenied", message="the keys are expired")]

    monkeypatch.setattr(ExamplePlugin, "check", refused)
    result = configured("check")
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "AccessDenied: the keys are expired (who acts: the operator of the worker" in result.stdout
    assert configured("check", "--offline").exit_code == 0


def test_plugins_shows_parameters_permissions_and_doors(configured):
    result = configured("plugins")
    assert result.exit_code == 0
    for text in ("EXAMPLE  A file that is a job", "seconds: number", "How long the job runs.", "write the directory"):
        assert text in result.stdout
    assert "doors: grpc, scheduler (not in worker.doors)" in result.stdout


def test_plugins_gives_programs_the_schema(configured):
    found = json.loads(configured("plugins", "--json").stdout)
    assert found["task_types"][0]["name"] == "EXAMPLE"
    assert found["task_types"][0]["schema"]["properties"]["fail"]["default"] == ""
    assert {"name": "grpc", "open": True} in found["doors"]


def test_plugins_shows_what_is_there_and_names_a_plugin_that_cannot_work(configured, monkeypatch):
    monkeypatch.setattr(ExamplePlugin, "open", _without_region)
    result = configured("plugins")
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "doors: grpc" in result.stdout
    assert "plugin example: no region" in result.stderr


def _without_region(plugin, settings, clock):
    raise ValueError("no region")


@pytest.mark.parametrize("command", ["worker", "scheduler", "check", "plugins"])
def test_a_file_that_is_missing_is_a_problem_of_the_configuration(command):
    result = CliRunner().invoke(cli, [command, "--config", "nowhere.properties"])
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "nowhere.properties: there is no such file" in result.output


@pytest.mark.parametrize("command", ["worker", "scheduler"])
def test_a_misspelt_key_is_named_before_anything_starts(configured, command):
    result = configured(command, scheduler_leese_seconds="5")
    assert result.exit_code == ExitCode.CONFIGURATION
    assert "scheduler.leese.seconds is not a known key. Did you mean scheduler.lease.seconds?" in result.stderr


def test_a_configuration_that_turns_out_wrong_late_is_told_as_one():
    group = ExceptionGroup("door", [ExceptionGroup("deeper", [ConfigurationError("door.scheduler.token: refused")])])
    assert services._told(group).problems == ("door.scheduler.token: refused",)


def test_a_worker_whose_place_was_taken_says_so():
    told = services._told(ExceptionGroup("door", [WorkerSuperseded("w1 runs elsewhere")]))
    assert isinstance(told, Failed)
    assert "another process runs under the same worker.id" in told.message
    assert told.exit_code == ExitCode.FAILED


def test_what_a_door_died_of_is_told_in_a_line():
    told = services._told(ExceptionGroup("door", [OSError(5, "Input/output error")]))
    assert told.message == "stopped: OSError: [Errno 5] Input/output error; the log has more"


async def test_a_program_that_dies_ends_the_others_and_its_last_words_are_told(tmp_path):
    started = []

    async def play():
        async with Programs.open(tmp_path, {}) as programs:
            started.append(await programs.start("lasting", sys.executable, "-c", "import signal; signal.pause()"))
            started.append(
                await programs.start("dying", sys.executable, "-c", "print('last words'); raise SystemExit(7)")
            )
            await asyncio.Event().wait()

    with pytest.raises(Failed, match=r"the dying died with exit code 7\. Its last words:\n  last words"):
        await play()
    assert [program.pid for program in started] == [0, 0]


async def test_a_program_is_heard_killed_and_heard_again(tmp_path):
    async with Programs.open(tmp_path, {}) as programs:
        script = "import os, signal; print(f'I am {os.getpid()}', flush=True); signal.pause()"
        program = await programs.start("talking", sys.executable, "-c", script)

        def heard(line):
            return int(line.removeprefix("I am ")) if line.startswith("I am ") else None

        first = await program.said(heard, SystemClock())
        assert first == program.pid
        await program.kill()
        await programs.restart(program)
        second = await program.said(heard, SystemClock())
        assert second == program.pid
        assert second != first


async def test_a_program_that_says_nothing_is_not_waited_for_for_ever(tmp_path, clock, eventually):
    async def play():
        async with Programs.open(tmp_path, {}) as programs:
            program = await programs.start("silent", sys.executable, "-c", "import signal; signal.pause()")
            await program.said(lambda line: line or None, clock)

    playing = asyncio.create_task(play(), name="play")
    await eventually(playing.done, step=10.0)
    with pytest.raises(Failed, match="the silent is not ready after 60 s"):
        await playing


async def test_a_program_that_ignores_the_request_to_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("remora.cli.processes._STOP_SECONDS", 0.0)
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    async with Programs.open(tmp_path, {}) as programs:
        program = await programs.start("deaf", sys.executable, "-c", script)
        await program.said(lambda line: line == "deaf" or None, SystemClock())
        process = program._process
    assert process.returncode == -9
