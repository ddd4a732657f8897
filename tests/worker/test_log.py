"""The worker's own log."""

from __future__ import annotations

import json
import logging

import pytest
import structlog
from remora import log as logs

SECRET = "hunter2"


@pytest.fixture
def written(capsys):
    """Return what was written to standard error since the last time; the settings of this process are put back."""
    before = structlog.get_config()
    handlers = logging.root.handlers[:]
    yield lambda: capsys.readouterr().err
    structlog.configure(**before)
    logging.root.handlers[:] = handlers


def test_json_is_one_object_a_line_with_what_is_bound(written):
    logs.configure("info", "json")
    with structlog.contextvars.bound_contextvars(task_id="t", attempt=2):
        structlog.get_logger().info("task_finished", state="FAILED")
    structlog.get_logger().warning("other", text="two\nlines")

    first, second = map(json.loads, written().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "task_finished", "level": "info", "state": "FAILED", "task_id": "t", "attempt": 2}
    assert second["text"] == "two\nlines"


def test_an_exception_is_in_its_line(written):
    logs.configure("info", "json")
    structlog.get_logger().error("step_failed", exc_info=ValueError("the reason"))

    [line] = written().splitlines()
    assert "ValueError: the reason" in json.loads(line)["exception"]


def test_console_is_for_people(written):
    logs.configure("info", "console")
    structlog.get_logger().info("task_finished", state="FAILED")

    text = written()
    assert "task_finished" in text
    with pytest.raises(ValueError, match=r"Extra data|Expecting value"):
        json.loads(text)


@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_traceback_shows_no_local_variables_and_does_not_block_the_loop(written, form):
    logs.configure("info", form)
    try:
        _fail_with(SECRET)
    except ZeroDivisionError:
        structlog.get_logger().exception("step_failed")

    text = written()
    assert "ZeroDivisionError" in text
    assert SECRET not in text


def _fail_with(secret):
    return len(secret) / 0


def test_without_a_terminal_auto_is_json(written):
    logs.configure("info", "auto")
    structlog.get_logger().info("event")

    assert json.loads(written())["event"] == "event"


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_a_level_lets_through_what_is_as_bad_or_worse(written, level, heard):
    logs.configure(level, "json")
    for each in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), each)(each)

    assert [json.loads(line)["event"] for line in written().splitlines()] == heard


def test_values_with_a_secret_name_are_hidden_wherever_they_come_from(written):
    logs.configure("info", "json")
    with structlog.contextvars.bound_contextvars(session_token="hunter2"):
        structlog.get_logger().info(
            "event", secret="hunter2", Authorization="Bearer hunter2", aws_credentials=["hunter2"], fencing_token=5
        )

    text = written()
    line = json.loads(text)
    assert "hunter2" not in text
    assert (line["secret"], line["session_token"], line["fencing_token"]) == ("***", "***", 5)
