"""The command line as a whole: its help, its exit codes, and how quickly it answers."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
import remora
from click.testing import CliRunner
from remora.cli import SECTIONS, cli
from remora.cli.group import CommandGroup, ExitCode, Failed, Summary
from remora.cli.options import AddressType, DurationType, PairType
from remora.errors import ConfigurationError, InvalidRequest, TaskNotFound

COMMANDS = [name for commands in SECTIONS.values() for name in commands]


def run(*arguments, **options):
    return CliRunner().invoke(cli, arguments, **options)


def group_raising(error):
    """A group whose only command fails."""
    group = CommandGroup("test", sections={"All": {"fail": Summary("unused:unused", "Fails.")}})

    @click.command()
    def fail():
        raise error

    group.get_command = lambda ctx, name: fail
    return group


def test_the_help_names_every_command_and_every_exit_code():
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)
    assert all(f"  {code.value}  " in result.output for code in ExitCode)


def test_the_help_of_all_imports_no_grpc_and_no_command():
    program = "import sys; from remora.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    modules = set(output.splitlines()[-1].split())
    assert not modules & {"grpc", "pydantic", "rich", "structlog", "asyncio", "remora.cli.tasks"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"remora {name}" in result.output


def test_the_version_is_that_of_the_package():
    assert run("--version").output == f"remora {remora.__version__}\n"


def test_python_m_remora_is_the_same_program():
    command = [sys.executable, "-m", "remora", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"remora {remora.__version__}\n"


def test_an_unknown_command_is_a_usage_error():
    result = run("wrk")
    assert result.exit_code == ExitCode.USAGE
    assert "No such command 'wrk'" in result.output


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigurationError("first", "second"), ExitCode.CONFIGURATION, "error: first\nerror: second\n"),
        (TaskNotFound("t#1: never seen"), ExitCode.REFUSED, "error: t#1: never seen (TASK_NOT_FOUND)\n"),
        (InvalidRequest({"a": "wrong", "b[0]": "too"}), ExitCode.REFUSED, "error: a: wrong\nerror: b[0]: too\n"),
        (Failed("it broke", "  with this"), ExitCode.FAILED, "error: it broke\n  with this\n"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted\n"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_words(error, code, said):
    result = CliRunner().invoke(group_raising(error), ["fail"])
    assert result.exit_code == code
    assert result.stderr == said
    assert not result.stdout


def test_a_defect_is_not_put_into_words():
    result = CliRunner().invoke(group_raising(KeyError("x")), ["fail"])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("15m", 900), ("6h", 21600), ("2d", 172800)])
def test_a_duration_is_a_number_with_an_optional_unit(text, seconds):
    assert DurationType()(text) == seconds


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (DurationType(), "soon"),
        (DurationType(), "0"),
        (AddressType(), "nowhere"),
        (PairType(), "x"),
        (PairType(), "=1"),
    ],
)
def test_a_value_that_makes_no_sense_is_a_usage_error(kind, text):
    with pytest.raises(click.BadParameter, match=text):
        kind(text)


def test_a_pair_may_contain_an_equals_sign():
    assert PairType()("query=a=b") == ("query", "a=b")
