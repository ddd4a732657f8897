"""How messages are shown to programs and people."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from remora.cli.output import duration, failure_lines, lasted, plain, state_name
from remora.v1 import task_pb2 as pb


def test_json_speaks_the_words_of_the_proto_and_unpacks_what_is_json():
    task = pb.Task(
        key=pb.TaskKey(task_id="t", attempt=2),
        state=pb.TASK_STATE_FAILED,
        sequence=7,
        labels={"team": "a"},
        handle_json='{"arn":"x"}',
        outputs_json='{"count":3}',
        failure=pb.Failure(kind=pb.FAILURE_KIND_EXECUTION, message="it broke", details={"step": "Train"}),
        created_at=Timestamp(seconds=1),
    )
    assert plain(task) == {
        "key": {"task_id": "t", "attempt": 2},
        "state": "FAILED",
        "sequence": 7,
        "labels": {"team": "a"},
        "handle": {"arn": "x"},
        "outputs": {"count": 3},
        "failure": {"kind": "EXECUTION", "message": "it broke", "details": {"step": "Train"}},
        "created_at": "1970-01-01T00:00:01Z",
    }


def test_json_has_durations_in_seconds():
    definition = pb.TaskDefinition(timeout=Duration(seconds=1, nanos=500_000_000))
    assert plain(definition) == {"timeout": 1.5}


def test_a_state_of_a_later_version_is_its_number():
    assert state_name(pb.Task(state=99)) == "99"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0.0s"), (9.94, "9.9s"), (12, "12s"), (192, "3m12s"), (7500, "2h05m")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_what_has_not_begun_has_not_lasted():
    assert lasted(Timestamp(), Timestamp(), 100.0) is None


def test_what_has_not_ended_lasts_until_now_and_never_less_than_nothing():
    assert lasted(Timestamp(seconds=90), Timestamp(), 100.0) == 10.0
    assert lasted(Timestamp(seconds=190), Timestamp(), 100.0) == 0.0
    assert lasted(Timestamp(seconds=90), Timestamp(seconds=95), 100.0) == 5.0


def test_a_failure_says_who_acts_and_repeats_no_fact():
    failure = pb.Failure(
        kind=pb.FAILURE_KIND_DENIED,
        code="AccessDenied",
        message="step Train may not read s3://b",
        details={"step": "Train", "jobArn": "arn:1"},
    )
    assert failure_lines(failure) == [
        "AccessDenied: step Train may not read s3://b",
        "who acts: the operator of the worker corrects credentials or permissions",
        "jobArn: arn:1",
    ]
