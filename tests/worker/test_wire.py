"""Records, assignments and errors to messages and back."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from remora import errors, wire
from remora.door import TaskTypeInfo
from remora.errors import CallError, InvalidRequest
from remora.plugin import Failure, FailureKind, TaskDefinition, TaskKey
from remora.task import MAX_JSON_BYTES, Assignment, Stop, StopCause, TaskRecord, TaskState
from remora.v1 import task_pb2 as pb

KEY = TaskKey(task_id="train", attempt=2)


def record(**changes):
    values = {"key": KEY, "door": "grpc", "state": TaskState.RUNNING, "sequence": 3, "created_at": 10.25} | changes
    return TaskRecord(updated_at=11.5, **values)


def assignment(**definition):
    values = {
        "key": pb.TaskKey(task_id="train", attempt=1),
        "task_type": "EXAMPLE",
        "parameters_json": '{"seconds": 1}',
    } | definition
    return pb.Assignment(definition=pb.TaskDefinition(**values), fencing_token=7)


def violations_of(message):
    with pytest.raises(InvalidRequest) as caught:
        wire.read_assignment(message, door="grpc")
    assert caught.value.reason == "ASSIGNMENT_INVALID"
    return caught.value.violations


def as_seen_by_a_client(error, metadata=None):
    status = rpc_status.to_status(wire.status_of(error, metadata))
    return grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), status.details
    )


def every_call_error(parent=CallError):
    yield parent
    for child in parent.__subclasses__():
        yield from every_call_error(child)


def test_a_running_record_becomes_a_snapshot_with_unset_fields_left_unset():
    task = wire.task_message(record(labels={"team": "a"}, handle='{"name":"x"}', fencing_token=4, started_at=10.5))

    assert (task.key.task_id, task.key.attempt, task.sequence, task.fencing_token) == ("train", 2, 3, 4)
    assert task.state == pb.TASK_STATE_RUNNING
    assert dict(task.labels) == {"team": "a"}
    assert task.handle_json == '{"name":"x"}'
    assert wire.seconds(task.created_at) == 10.25
    assert wire.seconds(task.started_at) == 10.5
    assert not any(task.HasField(name) for name in ("finished_at", "failure", "stop"))


def test_a_failed_record_carries_who_has_to_act_and_why_it_was_stopped():
    failure = Failure(kind=FailureKind.TIMEOUT, code="Timeout", message="too slow", details={"step": "Train"})
    stop = Stop(cause=StopCause.TIMEOUT, reason="too slow", requested_at=12.0)

    task = wire.task_message(record(state=TaskState.FAILED, failure=failure, stop=stop, finished_at=13.0))

    assert wire.read_failure(task.failure) == failure
    assert task.stop.cause == pb.STOP_CAUSE_TIMEOUT
    assert wire.seconds(task.stop.requested_at) == 12.0


@pytest.mark.parametrize("state", TaskState)
def test_every_state_has_a_number_and_comes_back(state):
    assert wire.read_state(wire.task_message(record(state=state)).state) is state


@pytest.mark.parametrize("kind", FailureKind)
def test_every_failure_kind_has_a_number_and_comes_back(kind):
    assert wire.read_failure(wire.failure_message(Failure(kind=kind, message="m"))).kind is kind


def test_values_of_a_later_version_are_understood_as_far_as_possible():
    assert wire.read_state(99) is None
    assert wire.read_failure(pb.Failure(kind=99)).kind is FailureKind.INTERNAL


def test_states_of_a_filter_must_be_known():
    assert wire.read_states([3, 5]) == {TaskState.RUNNING, TaskState.FAILED}
    with pytest.raises(InvalidRequest) as caught:
        wire.read_states([3, 0, 99])
    assert set(caught.value.violations) == {"states[1]", "states[2]"}


@given(st.floats(min_value=0, max_value=4e9))
def test_times_and_durations_keep_their_microseconds(seconds):
    assert wire.seconds(wire.timestamp(seconds)) == pytest.approx(seconds, abs=1e-6)
    assert wire.seconds(wire.duration(seconds)) == pytest.approx(seconds, abs=1e-6)
    assert 0 <= wire.timestamp(seconds).nanos < 1_000_000_000


def test_a_task_type_keeps_its_schema_and_permissions():
    info = TaskTypeInfo(name="EXAMPLE", title="An example", schema="{}", permissions=("a:B",))
    message = wire.task_type_message(info)
    assert (message.name, message.title, message.parameters_schema_json) == ("EXAMPLE", "An example", "{}")
    assert list(message.permissions) == ["a:B"]


def test_an_assignment_is_read_with_all_its_fields():
    message = assignment(name="Train", timeout=Duration(seconds=1, nanos=500_000_000), labels={"a": "b"})
    message.handle_json = '{"name": "job"}'

    assert wire.read_assignment(message, door="scheduler") == Assignment(
        definition=TaskDefinition(
            key=TaskKey(task_id="train", attempt=1),
            task_type="EXAMPLE",
            parameters='{"seconds": 1}',
            name="Train",
            timeout=1.5,
            labels={"a": "b"},
        ),
        door="scheduler",
        fencing_token=7,
        handle='{"name": "job"}',
    )


def test_an_assignment_without_the_optional_fields_has_no_timeout_and_no_handle():
    read = wire.read_assignment(assignment(), door="grpc")
    assert (read.definition.timeout, read.handle, read.definition.name) == (None, None, "")


def test_a_definition_survives_the_way_out_and_in():
    definition = TaskDefinition(
        key=KEY, task_type="EXAMPLE", parameters="{}", timeout=90.5, labels={"a": "b"}, name="n"
    )
    message = pb.Assignment(definition=wire.definition_message(definition))
    assert wire.read_assignment(message, door="grpc").definition == definition


@pytest.mark.parametrize(
    ("definition", "path", "words"),
    [
        ({"key": pb.TaskKey(attempt=1)}, "key.task_id", "1 to 256 characters, has 0"),
        ({"key": pb.TaskKey(task_id="x" * 257, attempt=1)}, "key.task_id", "has 257"),
        ({"key": pb.TaskKey(task_id="a\nb", attempt=1)}, "key.task_id", "U+000A at 1"),
        ({"key": pb.TaskKey(task_id="a\x85", attempt=1)}, "key.task_id", "U+0085"),
        ({"key": pb.TaskKey(task_id="a")}, "key.attempt", "at least 1, is 0"),
        ({"key": pb.TaskKey(task_id="a", attempt=-3)}, "key.attempt", "is -3"),
        ({"task_type": ""}, "task_type", "has 0"),
        ({"task_type": "x" * 300}, "task_type", "has 300"),
        ({"name": "x" * 1025}, "name", "has 1025"),
        ({"parameters_json": ""}, "parameters_json", "must be a JSON object"),
        ({"parameters_json": "[]"}, "parameters_json", "another JSON value"),
        ({"parameters_json": '{"a":\n 1,}'}, "parameters_json", "line 2 column 4"),
        ({"parameters_json": '{"a": NaN}'}, "parameters_json", "line 1 column 7"),
        ({"parameters_json": "{" * 500}, "parameters_json", "must be a JSON object"),
        ({"timeout": Duration()}, "timeout", "longer than 0 s"),
        ({"timeout": Duration(seconds=-1)}, "timeout", "longer than 0 s"),
        ({"labels": {str(n): "" for n in range(65)}}, "labels", "at most 64 pairs, has 65"),
        ({"labels": {"x" * 129: ""}}, "labels", "one has 129"),
        ({"labels": {"": "a"}}, "labels", "one has 0"),
        ({"labels": {"a": "x" * 1025}}, "labels['a']", "has 1025"),
    ],
)
def test_each_wrong_field_of_a_definition_is_named_by_its_path(definition, path, words):
    violations = violations_of(assignment(**definition))
    assert list(violations) == [f"assignment.definition.{path}"]
    assert words in violations[f"assignment.definition.{path}"]


def test_what_is_wrong_beside_the_definition_is_named_too():
    message = assignment()
    message.fencing_token = -1
    message.handle_json = "7"
    assert violations_of(message) == {
        "assignment.fencing_token": "must not be negative, is -1",
        "assignment.handle_json": "must be a JSON object, is another JSON value",
    }
    assert violations_of(pb.Assignment()) == {"assignment.definition": "must be set"}


def test_all_wrong_fields_are_told_at_once():
    violations = violations_of(assignment(task_type="", parameters_json="x", key=pb.TaskKey()))
    assert len(violations) == 4


def test_parameters_are_measured_in_bytes_and_may_be_as_large_as_the_limit():
    frame = len('{"a":""}')
    wire.read_assignment(assignment(parameters_json='{"a":"%s"}' % ("x" * (MAX_JSON_BYTES - frame))), door="grpc")
    wire.read_assignment(assignment(parameters_json='{"a":"%s"}' % ("ü" * (MAX_JSON_BYTES // 2 - frame))), door="grpc")

    too_large = violations_of(assignment(parameters_json='{"a":"%s"}' % ("ü" * (MAX_JSON_BYTES // 2))))

    assert too_large == {
        "assignment.definition.parameters_json": "must have at most 262144 bytes of UTF-8, has 262152",
    }


def test_a_key_alone_is_checked_too():
    assert wire.read_key(pb.TaskKey(task_id="a", attempt=1)) == TaskKey(task_id="a", attempt=1)
    with pytest.raises(InvalidRequest, match=r"key\.task_id: must have"):
        wire.read_key(pb.TaskKey())


def test_every_call_error_has_a_code_of_its_own_in_the_table():
    assert set(every_call_error()) == set(wire._CODES)


@pytest.mark.parametrize("kind", sorted(every_call_error(), key=lambda kind: kind.__name__))
def test_a_call_error_reaches_the_client_as_itself(kind):
    raised = kind({"a.b": "is wrong"}) if kind is InvalidRequest else kind("what to do")

    read = wire.error_of(as_seen_by_a_client(raised))

    assert type(read) is kind
    assert (str(read), read.reason) == (str(raised), raised.reason)


def test_wrong_fields_reach_the_client_with_their_paths_and_the_reason():
    error = wire.error_of(as_seen_by_a_client(InvalidRequest({"cursor": "is none"}, reason="CURSOR_INVALID")))
    assert isinstance(error, InvalidRequest)
    assert (error.violations, error.reason) == ({"cursor": "is none"}, "CURSOR_INVALID")


def test_a_full_worker_says_when_to_come_back():
    status = wire.status_of(errors.WorkerFull("full"))
    info, retry = ErrorInfo(), RetryInfo()
    assert status.code == code_pb2.RESOURCE_EXHAUSTED
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.domain, info.reason) == ("remora", "WORKER_FULL")
    assert retry.retry_delay.seconds == 5


def test_a_status_fits_into_the_trailers_of_a_call_however_much_is_wrong():
    many = InvalidRequest({f"request.field{n}": "ü" * 500 for n in range(400)})

    status = wire.status_of(many)

    bad_request = BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert bad_request.field_violations[-1].description == "398 more fields are wrong"
    assert len(status.message.encode()) <= 1024
    # The message is sent percent-encoded and, within the details, in base64.
    assert 3 * len(status.message.encode()) + 4 / 3 * status.ByteSize() < 8192


@pytest.mark.parametrize(
    "answer",
    [
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no route"),
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="never connected"),
        grpc.aio.AioRpcError(
            grpc.StatusCode.CANCELLED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(("grpc-status-details-bin", wire.status_of(errors.Fenced("x")).SerializeToString())),
            "x",
        ),
    ],
)
def test_answers_of_others_are_not_taken_for_ours(answer):
    assert wire.error_of(answer) is None
