"""The simulator as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from remora_sagemaker.simulator.__main__ import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
COMMAND = [sys.executable, "-m", "remora_sagemaker.simulator"]


@contextmanager
def running(*arguments):
    process = subprocess.Popen([*COMMAND, "--port", "0", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("simulator ready on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def post(url, body, target=""):
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"X-Amz-Target": target})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_serves_and_ends_at_once_on_a_signal(number):
    arguments = ("--pipelines", str(EXAMPLES), "--speed", "100", "--region", "eu-west-1", "--account", "000000000042")
    with running(*arguments) as (process, url):
        assert get(f"{url}/_sim/health")["region"] == "eu-west-1"
        listed = post(url, {"SortBy": "Name", "SortOrder": "Ascending"}, "SageMaker.ListPipelines")
        assert [each["PipelineArn"] for each in listed["PipelineSummaries"]] == [
            f"arn:aws:sagemaker:eu-west-1:000000000042:pipeline/{name}"
            for name in ("FeaturePipeline", "RegisterPipeline", "TrainPipeline")
        ]
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        assert process.stdout.read() == ""


def test_it_ends_at_once_even_while_a_request_is_held():
    with running() as (process, url):
        post(f"{url}/_sim/faults", {"operation": "ListPipelines", "hold": "door"})
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            body = b"{}"
            head = (
                f"POST / HTTP/1.1\r\nHost: {host}\r\nX-Amz-Target: SageMaker.ListPipelines\r\nContent-Length: 2\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            assert get(f"{url}/_sim/holds/door") == {"waiting": 1}
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
            assert connection.recv(1) == b""


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_bad_definition_is_one_clear_line_with_the_file(tmp_path):
    (tmp_path / "Broken.json").write_text("{}")
    ended = run("--port", "0", "--pipelines", str(tmp_path))
    assert ended.exit_code == 1
    assert len(ended.stderr.splitlines()) == 1
    assert str(tmp_path / "Broken.json") in ended.stderr
    assert "Unable to parse pipeline definition. Version: Field required" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--account", "me"),
        ("--region", "the moon"),
        ("--port", "many"),
        ("--speed", "0"),
        ("--pipelines", "/does/not/exist"),
        ("--latency-ms", "-1"),
        ("--dance",),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_names_it(arguments):
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert arguments[0] in ended.stderr


def test_help_names_every_option_and_where_to_read_more():
    ended = run("--help")
    assert ended.exit_code == 0
    for word in ("--host", "--port", "--speed", "--region", "--account", "--pipelines", "--latency-ms", "pydoc"):
        assert word in ended.stdout
