"""``remora demo`` as people run it: a process that starts others, and leaves none of them behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("simulator", "scheduler", "worker")


def start(*options):
    command = [sys.executable, "-m", "remora", "demo", "--speed", "20", *options]
    # In a session of its own, as from a terminal of its own: a signal to its group is that terminal's Ctrl-C.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, bufsize=1
    )


def finish(demo):
    try:
        output, errors = demo.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        demo.kill()
        raise
    return demo.returncode, output, errors


def children(parent):
    """The process ids of what a process has started, in that order."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class Demo:
    """A demo that has started its programs and its run."""

    def __init__(self, *options):
        self._process = start(*options)
        self._read = []
        for line in self._process.stdout:
            self._read.append(line)
            if "RUNNING" in line:
                break
        self.programs = children(self._process.pid)
        assert len(self.programs) == len(PROGRAMS)

    def signal(self, number):
        os.killpg(self._process.pid, number)

    def finish(self):
        code, output, errors = finish(self._process)
        return code, "".join(self._read) + output, errors

    def end(self):
        for pid in alive([*self.programs, self._process.pid]):
            os.kill(pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    demo = Demo("--keep")
    yield demo
    demo.end()


def test_the_demo_runs_to_its_end_with_one_execution_for_each_attempt_and_leaves_nothing_running(demo, tmp_path):
    code, output, errors = demo.finish()
    assert (code, errors) == (0, "")
    assert alive(demo.programs) == []
    assert "the worker is back and goes on from its journal" in output
    assert re.search(r"^run demo of train_and_register: SUCCEEDED after .*, 4 tasks, 5 attempts$", output, re.MULTILINE)
    assert output.endswith(
        "SageMaker counted 5 executions: exactly one for each attempt, although the worker was killed in the middle\n"
    )
    executions = re.findall(r"^(\w+Pipeline) +(\w+) ", output, re.MULTILINE)
    assert sorted(executions) == [
        ("FeaturePipeline", "Succeeded"),
        ("RegisterPipeline", "Succeeded"),
        ("TrainPipeline", "Failed"),
        ("TrainPipeline", "Succeeded"),
        ("TrainPipeline", "Succeeded"),
    ]
    (directory,) = tmp_path.iterdir()
    assert f"logs, journals and properties are in {directory}" in output
    assert {f"{name}.log" for name in PROGRAMS} <= {path.name for path in directory.iterdir()}
    kept = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"Traceback" not in kept
    assert b"from-the-environment" not in kept


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGHUP)])
def test_an_interrupted_demo_leaves_nothing_running(demo, first, second):
    demo.signal(first)
    demo.signal(second)
    code, _, errors = demo.finish()
    assert code == 130
    assert errors == "interrupted\n"
    assert alive(demo.programs) == []


def test_a_program_of_the_demo_that_dies_is_told_with_its_last_words(demo):
    os.kill(demo.programs[PROGRAMS.index("scheduler")], signal.SIGKILL)
    code, _, errors = demo.finish()
    assert code == 1
    assert errors.startswith("error: the scheduler died with exit code -9. Its last words:\n  {")
    assert alive(demo.programs) == []


def test_without_examples_the_demo_says_what_to_do(tmp_path):
    code, _, errors = finish(start("--examples", str(tmp_path)))
    assert code == 1
    assert "run `make demo` there, or name their directory with --examples" in errors
