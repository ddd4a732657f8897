"""Between the worker's own values and the messages of ``remora.v1``.

Three pairs, each with one way in and one way out: records and tasks, assignments and their messages, call errors and
google.rpc.Status. What comes in is checked here and nowhere else: every wrong field is named by its path. Servers and
clients of either side use the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from pydantic_core import from_json

from remora.door import TaskTypeInfo
from remora.errors import (
    CallError,
    Fenced,
    InvalidRequest,
    RunConflict,
    RunNotFound,
    SessionExpired,
    StorageUnavailable,
    TaskConflict,
    TaskNotFound,
    TokenInvalid,
    UnknownTaskType,
    WorkerDraining,
    WorkerFull,
    WorkerSuperseded,
)
from remora.plugin import Failure, FailureKind, TaskDefinition, TaskKey
from remora.task import MAX_JSON_BYTES, Assignment, Stop, TaskRecord, TaskState
from remora.v1 import task_pb2 as pb

DOMAIN = "remora"
"""Of every google.rpc.ErrorInfo."""

MAX_ID = 256
"""Characters of a task id and of a task type."""
MAX_TEXT = 1024
"""Characters of a name, of the value of a label and of a reason."""
MAX_LABELS = 64
MAX_LABEL_NAME = 128
"""Characters."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_STATES = {state: pb.TaskState.Value(f"TASK_STATE_{state}") for state in TaskState}
_STATES_BY_NUMBER: Mapping[int, TaskState] = {number: state for state, number in _STATES.items()}
_KINDS = {kind: pb.FailureKind.Value(f"FAILURE_KIND_{kind}") for kind in FailureKind}
_KINDS_BY_NUMBER: Mapping[int, FailureKind] = {number: kind for kind, number in _KINDS.items()}

_CODES: Mapping[type[CallError], int] = {
    CallError: code_pb2.INTERNAL,
    InvalidRequest: code_pb2.INVALID_ARGUMENT,
    TokenInvalid: code_pb2.UNAUTHENTICATED,
    UnknownTaskType: code_pb2.NOT_FOUND,
    TaskNotFound: code_pb2.NOT_FOUND,
    TaskConflict: code_pb2.ALREADY_EXISTS,
    Fenced: code_pb2.FAILED_PRECONDITION,
    WorkerFull: code_pb2.RESOURCE_EXHAUSTED,
    WorkerDraining: code_pb2.UNAVAILABLE,
    StorageUnavailable: code_pb2.UNAVAILABLE,
    SessionExpired: code_pb2.FAILED_PRECONDITION,
    WorkerSuperseded: code_pb2.FAILED_PRECONDITION,
    RunNotFound: code_pb2.NOT_FOUND,
    RunConflict: code_pb2.ALREADY_EXISTS,
}
_ERRORS_BY_REASON = {error.reason: error for error in _CODES if error is not InvalidRequest}

_from_call: Callable[[grpc.aio.AioRpcError], Status | None] = rpc_status.from_call  # pyright: ignore -- untyped

# A status travels in HTTP/2 trailers, its message twice. gRPC refuses trailers above 8 KiB.
_LONGEST_MESSAGE = 1024
_LONGEST_VIOLATIONS = 2048


# Times -------------------------------------------------------------------------------------------------------------


def timestamp(seconds: float) -> Timestamp:
    """Return seconds since the epoch as a message, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def duration(seconds: float) -> Duration:
    """Return seconds, not negative, as a message, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1000)


def seconds(message: Duration | Timestamp) -> float:
    """Return the seconds of a duration, or of a time since the epoch."""
    return message.seconds + message.nanos / 1_000_000_000


# Tasks, outwards ---------------------------------------------------------------------------------------------------


def key_message(key: TaskKey) -> pb.TaskKey:
    """Return the message of a key."""
    return pb.TaskKey(task_id=key.task_id, attempt=key.attempt)


def task_message(record: TaskRecord) -> pb.Task:
    """Return the snapshot of a record."""
    return pb.Task(
        key=key_message(record.key),
        task_type=record.task_type,
        name=record.name,
        labels=record.labels,
        state=_STATES[record.state],
        sequence=record.sequence,
        detail=record.detail,
        handle_json=record.handle,
        outputs_json=record.outputs,
        failure=None if record.failure is None else failure_message(record.failure),
        stop=None if record.stop is None else _stop_message(record.stop),
        fencing_token=record.fencing_token,
        created_at=timestamp(record.created_at),
        started_at=None if record.started_at is None else timestamp(record.started_at),
        finished_at=None if record.finished_at is None else timestamp(record.finished_at),
        updated_at=timestamp(record.updated_at),
    )


def definition_message(definition: TaskDefinition) -> pb.TaskDefinition:
    """Return the message of a definition."""
    return pb.TaskDefinition(
        key=key_message(definition.key),
        task_type=definition.task_type,
        name=definition.name,
        parameters_json=definition.parameters,
        timeout=None if definition.timeout is None else duration(definition.timeout),
        labels=definition.labels,
    )


def failure_message(failure: Failure) -> pb.Failure:
    """Return the message of a failure. How long to wait is the worker's own business and stays behind."""
    return pb.Failure(kind=_KINDS[failure.kind], code=failure.code, message=failure.message, details=failure.details)


def task_type_message(info: TaskTypeInfo) -> pb.TaskType:
    """Return the message of a task type."""
    return pb.TaskType(
        name=info.name, title=info.title, parameters_schema_json=info.schema, permissions=info.permissions
    )


def _stop_message(stop: Stop) -> pb.StopRequest:
    return pb.StopRequest(
        cause=pb.StopCause.Value(f"STOP_CAUSE_{stop.cause}"),
        reason=stop.reason,
        requested_at=timestamp(stop.requested_at),
    )


# Tasks, inwards ----------------------------------------------------------------------------------------------------


def read_key(message: pb.TaskKey, path: str = "key") -> TaskKey:
    """Return a key.

    Raises:
        InvalidRequest: it is malformed.
    """
    violations = dict(_key_violations(message, path))
    if violations:
        raise InvalidRequest(violations)
    return TaskKey(task_id=message.task_id, attempt=message.attempt)


def read_assignment(message: pb.Assignment, *, door: str, path: str = "assignment") -> Assignment:
    """Return an assignment that came through a door.

    Raises:
        InvalidRequest: it is malformed; names every wrong field.
    """
    violations = dict(_assignment_violations(message, path))
    if violations:
        raise InvalidRequest(violations)
    return Assignment(
        definition=_definition(message.definition),
        door=door,
        fencing_token=message.fencing_token,
        handle=message.handle_json or None,
    )


def read_states(numbers: Iterable[int], path: str = "states") -> frozenset[TaskState]:
    """Return the states of a filter.

    Raises:
        InvalidRequest: one is unspecified, or of a later version.
    """
    chosen = list(numbers)
    unknown = [index for index, number in enumerate(chosen) if number not in _STATES_BY_NUMBER]
    if unknown:
        violations = {f"{path}[{index}]": "is not a state that this version knows" for index in unknown}
        raise InvalidRequest(violations, reason="REQUEST_INVALID")
    return frozenset(_STATES_BY_NUMBER[number] for number in chosen)


def read_state(number: int) -> TaskState | None:
    """Return the state of a snapshot; None for one of a later version."""
    return _STATES_BY_NUMBER.get(number)


def read_failure(message: pb.Failure) -> Failure:
    """Return a failure. A kind of a later version counts as INTERNAL: nobody here knows who has to act."""
    return Failure(
        kind=_KINDS_BY_NUMBER.get(message.kind, FailureKind.INTERNAL),
        code=message.code,
        message=message.message,
        details=dict(message.details),
    )


def _definition(message: pb.TaskDefinition) -> TaskDefinition:
    return TaskDefinition(
        key=TaskKey(task_id=message.key.task_id, attempt=message.key.attempt),
        task_type=message.task_type,
        parameters=message.parameters_json,
        name=message.name,
        timeout=seconds(message.timeout) if message.HasField("timeout") else None,
        labels=dict(message.labels),
    )


def _key_violations(message: pb.TaskKey, path: str) -> Iterable[tuple[str, str]]:
    if not 0 < len(message.task_id) <= MAX_ID:
        yield f"{path}.task_id", f"must have 1 to {MAX_ID} characters, has {len(message.task_id)}"
    elif control := _CONTROL.search(message.task_id):
        yield f"{path}.task_id", f"must have no control characters, has U+{ord(control[0]):04X} at {control.start()}"
    if message.attempt < 1:
        yield f"{path}.attempt", f"must be at least 1, is {message.attempt}"


def _assignment_violations(message: pb.Assignment, path: str) -> Iterable[tuple[str, str]]:
    if not message.HasField("definition"):
        yield f"{path}.definition", "must be set"
        return
    yield from _definition_violations(message.definition, f"{path}.definition")
    if message.fencing_token < 0:
        yield f"{path}.fencing_token", f"must not be negative, is {message.fencing_token}"
    if message.handle_json and (problem := _json_problem(message.handle_json)):
        yield f"{path}.handle_json", problem


def _definition_violations(message: pb.TaskDefinition, path: str) -> Iterable[tuple[str, str]]:
    yield from _key_violations(message.key, f"{path}.key")
    if not 0 < len(message.task_type) <= MAX_ID:
        yield f"{path}.task_type", f"must have 1 to {MAX_ID} characters, has {len(message.task_type)}"
    if len(message.name) > MAX_TEXT:
        yield f"{path}.name", f"must have at most {MAX_TEXT} characters, has {len(message.name)}"
    if problem := _json_problem(message.parameters_json):
        yield f"{path}.parameters_json", problem
    if message.HasField("timeout") and not seconds(message.timeout) > 0:
        yield f"{path}.timeout", "must be longer than 0 s; leave it unset for no timeout"
    if len(message.labels) > MAX_LABELS:
        yield f"{path}.labels", f"must have at most {MAX_LABELS} pairs, has {len(message.labels)}"
        return
    for name, value in message.labels.items():
        if not 0 < len(name) <= MAX_LABEL_NAME:
            yield f"{path}.labels", f"names must have 1 to {MAX_LABEL_NAME} characters, one has {len(name)}"
        if len(value) > MAX_TEXT:
            yield f"{path}.labels[{name!r}]", f"must have at most {MAX_TEXT} characters, has {len(value)}"


def _json_problem(text: str) -> str:
    # UTF-8 has at least one byte a character, so that most texts need not be encoded to be measured.
    if len(text) > MAX_JSON_BYTES or (4 * len(text) > MAX_JSON_BYTES and len(text.encode()) > MAX_JSON_BYTES):
        return f"must have at most {MAX_JSON_BYTES} bytes of UTF-8, has {len(text.encode())}"
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        return f"must be a JSON object: {error}"
    return "" if isinstance(value, dict) else "must be a JSON object, is another JSON value"


# Errors ------------------------------------------------------------------------------------------------------------


def status_of(error: CallError, metadata: Mapping[str, str] | None = None) -> Status:
    """Return what a caller is told. The metadata goes into the ErrorInfo."""
    status = Status(code=_CODES.get(type(error), code_pb2.INTERNAL), message=_cut(str(error), _LONGEST_MESSAGE))
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(error, InvalidRequest):
        status.details.add().Pack(_bad_request(error.violations))
    elif isinstance(error, WorkerFull):
        status.details.add().Pack(RetryInfo(retry_delay=duration(error.retry_after)))
    return status


def error_of(error: grpc.aio.AioRpcError) -> CallError | None:
    """Return the error that a server of Remora raised, or None where the answer is not one of those."""
    try:
        status = _from_call(error)
    except ValueError:
        return None  # something between here and the server changed the answer
    info, bad_request = ErrorInfo(), BadRequest()
    for detail in status.details if status is not None else ():
        _ = detail.Unpack(info) or detail.Unpack(bad_request)
    if status is None or info.domain != DOMAIN:
        return None
    if status.code == code_pb2.INVALID_ARGUMENT:
        violations = {violation.field: violation.description for violation in bad_request.field_violations}
        return InvalidRequest(violations, reason=info.reason)
    return _ERRORS_BY_REASON.get(info.reason, CallError)(status.message)


def _bad_request(violations: Mapping[str, str]) -> BadRequest:
    message = BadRequest()
    left = _LONGEST_VIOLATIONS
    for count, (path, description) in enumerate(violations.items()):
        field, text = _cut(path, 256), _cut(description, _LONGEST_MESSAGE)
        left -= len(field.encode()) + len(text.encode())
        if left < 0:
            more = f"{len(violations) - count} more fields are wrong"
            message.field_violations.add(field="*", description=more)
            break
        message.field_violations.add(field=field, description=text)
    return message


def _cut(text: str, longest: int) -> str:
    data = text.encode()
    return text if len(data) <= longest else data[: longest - 3].decode(errors="ignore") + "..."
