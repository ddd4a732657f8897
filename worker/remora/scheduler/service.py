# ruff: noqa: N802, D102
# (the names of the methods are gRPC's, and the protos document them)
"""SchedulerService and WorkflowService: thin translations of the coordinator and of the runs.

What comes in is checked here; what it means is decided in :mod:`remora.scheduler.state`.
"""

from __future__ import annotations

from collections.abc import Iterable

from remora import rpc, wire
from remora.errors import InvalidRequest
from remora.plugin import TaskKey
from remora.scheduler.coordinator import Coordinator, Held
from remora.scheduler.fleet import Introduction
from remora.scheduler.runlogs import RunLogs
from remora.scheduler.runs import Runs
from remora.scheduler.state import Command, Node, NodeState, Run, RunState
from remora.task import Stop, StopCause, TaskRecord
from remora.v1 import scheduler_service_pb2 as worker_pb
from remora.v1 import scheduler_service_pb2_grpc as worker_grpc
from remora.v1 import task_pb2
from remora.v1 import workflow_service_pb2 as pb
from remora.v1 import workflow_service_pb2_grpc as pb_grpc

SCHEDULER_SERVICE = worker_pb.DESCRIPTOR.services_by_name["SchedulerService"].full_name
WORKFLOW_SERVICE = pb.DESCRIPTOR.services_by_name["WorkflowService"].full_name

_MOST_RUNS = 1000
_MOST_LOG = 512 * 1024
_LARGEST_ANSWER = 3 * 1024 * 1024
"""Bytes; a message may have 4 MiB."""

_NODE_STATES = {state: pb.WorkflowTaskState.Value(f"WORKFLOW_TASK_STATE_{state}") for state in NodeState}
_RUN_STATES = {state: pb.WorkflowRunState.Value(f"WORKFLOW_RUN_STATE_{state}") for state in RunState}
_CAUSES = {task_pb2.STOP_CAUSE_TIMEOUT: StopCause.TIMEOUT}


class SchedulerServicer(worker_grpc.SchedulerServiceServicer):
    """For workers."""

    def __init__(self, coordinator: Coordinator, lease: float) -> None:
        """Take the lease in seconds."""
        self._coordinator = coordinator
        self._lease = lease

    async def RegisterWorker(
        self, request: worker_pb.RegisterWorkerRequest, context: rpc.Context
    ) -> worker_pb.RegisterWorkerResponse:
        del context
        worker = _introduction(request)
        held = [
            Held(key=_key(task.key, f"held[{index}].key"), fencing_token=task.fencing_token)
            for index, task in enumerate(request.held)
        ]
        session, fenced = await self._coordinator.register(worker, held)
        return worker_pb.RegisterWorkerResponse(
            session_id=session.session_id, lease=wire.duration(self._lease), fenced=map(wire.key_message, fenced)
        )

    async def PollCommands(
        self, request: worker_pb.PollCommandsRequest, context: rpc.Context
    ) -> worker_pb.PollCommandsResponse:
        commands = await self._coordinator.poll(request.session_id, rpc.patience(request.wait, context))
        return worker_pb.PollCommandsResponse(commands=map(_command_message, commands))

    async def ReportTasks(
        self, request: worker_pb.ReportTasksRequest, context: rpc.Context
    ) -> worker_pb.ReportTasksResponse:
        del context
        records = [_record(task, f"tasks[{index}]") for index, task in enumerate(request.tasks)]
        taken, fenced = await self._coordinator.report(request.session_id, records)
        return worker_pb.ReportTasksResponse(
            acknowledged=[
                worker_pb.AcknowledgedTask(key=wire.key_message(key), sequence=sequence) for key, sequence in taken
            ],
            fenced=map(wire.key_message, fenced),
        )

    async def AppendTaskLogs(
        self, request: worker_pb.AppendTaskLogsRequest, context: rpc.Context
    ) -> worker_pb.AppendTaskLogsResponse:
        del context
        key = _key(request.key, "key")
        if request.offset < 0:
            raise rpc.wrong_field("offset", f"must not be negative, is {request.offset}")
        if len(request.text.encode()) > _MOST_LOG:
            raise rpc.wrong_field("text", f"must have at most {_MOST_LOG} bytes")
        end = await self._coordinator.append_log(request.session_id, key, request.offset, request.text)
        return worker_pb.AppendTaskLogsResponse(next_offset=end)

    async def DeregisterWorker(
        self, request: worker_pb.DeregisterWorkerRequest, context: rpc.Context
    ) -> worker_pb.DeregisterWorkerResponse:
        del context
        self._coordinator.deregister(request.session_id, request.reason)
        return worker_pb.DeregisterWorkerResponse()


class WorkflowServicer(pb_grpc.WorkflowServiceServicer):
    """For people."""

    def __init__(self, runs: Runs, logs: RunLogs) -> None:
        self._runs = runs
        self._logs = logs

    async def SubmitWorkflow(
        self, request: pb.SubmitWorkflowRequest, context: rpc.Context
    ) -> pb.SubmitWorkflowResponse:
        del context
        run = await self._runs.submit(request.workflow_yaml, request.parameters, request.run_id)
        return pb.SubmitWorkflowResponse(run=_run_message(run))

    async def GetWorkflowRun(
        self, request: pb.GetWorkflowRunRequest, context: rpc.Context
    ) -> pb.GetWorkflowRunResponse:
        run = await self._runs.get_after(request.run_id, request.after_version, rpc.patience(request.wait, context))
        return pb.GetWorkflowRunResponse(run=_run_message(run))

    async def ListWorkflowRuns(
        self, request: pb.ListWorkflowRunsRequest, context: rpc.Context
    ) -> pb.ListWorkflowRunsResponse:
        del context
        runs = await self._runs.latest(rpc.bounded(request.page_size, "page_size", default=100, most=_MOST_RUNS))
        return pb.ListWorkflowRunsResponse(runs=_fitting(_run_message(run, snapshots=False) for run in runs))

    async def CancelWorkflowRun(
        self, request: pb.CancelWorkflowRunRequest, context: rpc.Context
    ) -> pb.CancelWorkflowRunResponse:
        del context
        if len(request.reason) > wire.MAX_TEXT:
            raise rpc.wrong_field("reason", f"must have at most {wire.MAX_TEXT} characters, has {len(request.reason)}")
        run = await self._runs.cancel(request.run_id, request.reason)
        return pb.CancelWorkflowRunResponse(run=_run_message(run))

    async def ReadWorkflowTaskLogs(
        self, request: pb.ReadWorkflowTaskLogsRequest, context: rpc.Context
    ) -> pb.ReadWorkflowTaskLogsResponse:
        for field in ("attempt", "offset"):
            if getattr(request, field) < 0:
                raise rpc.wrong_field(field, f"must not be negative, is {getattr(request, field)}")
        page = await self._logs.read(
            request.run_id,
            request.task_name,
            request.attempt,
            offset=request.offset,
            limit=rpc.bounded(request.max_bytes, "max_bytes", default=64 * 1024, most=_MOST_LOG),
            wait=rpc.patience(request.wait, context),
        )
        return pb.ReadWorkflowTaskLogsResponse(
            text=page.text, next_offset=page.next_offset, done=page.done, attempt=page.attempt
        )


# Outwards ----------------------------------------------------------------------------------------------------------


def _command_message(command: Command) -> worker_pb.Command:
    assignment = command.dispatch
    if assignment is None:
        return worker_pb.Command(
            cancel=worker_pb.CancelCommand(
                key=wire.key_message(command.key), fencing_token=command.fencing_token, reason=command.reason
            )
        )
    return worker_pb.Command(
        dispatch=task_pb2.Assignment(
            definition=wire.definition_message(assignment.definition),
            fencing_token=assignment.fencing_token,
            handle_json=assignment.handle or "",
        )
    )


def _run_message(run: Run, *, snapshots: bool = True) -> pb.WorkflowRun:
    message = pb.WorkflowRun(
        run_id=run.run_id,
        name=run.workflow.name,
        state=_RUN_STATES[run.state],
        version=run.version,
        tasks=[_node_message(run, name, node, snapshot=snapshots) for name, node in run.nodes.items()],
        created_at=wire.timestamp(run.created_at),
        finished_at=None if run.finished_at is None else wire.timestamp(run.finished_at),
    )
    if message.ByteSize() > _LARGEST_ANSWER:
        # Outputs are what is large. The worker and the logs still have them.
        for task in message.tasks:
            task.task.ClearField("outputs_json")
    return message


def _node_message(run: Run, name: str, node: Node, *, snapshot: bool) -> pb.WorkflowTask:
    spec = run.workflow.tasks[name]
    latest = node.attempts[-1] if node.attempts else None
    record = next((attempt.record for attempt in reversed(node.attempts) if attempt.record), None) if snapshot else None
    return pb.WorkflowTask(
        name=name,
        task_type=spec.task_type,
        state=_NODE_STATES[node.state],
        attempt=latest.number if latest else 0,
        max_attempts=spec.max_attempts,
        depends_on=spec.depends_on,
        detail=node.detail,
        task=None if record is None else wire.task_message(record),
        worker_id=latest.worker_id if latest else "",
        started_at=None if node.started_at is None else wire.timestamp(node.started_at),
        finished_at=None if node.finished_at is None else wire.timestamp(node.finished_at),
    )


def _fitting(messages: Iterable[pb.WorkflowRun]) -> list[pb.WorkflowRun]:
    """Return as many as fit into an answer."""
    fitting: list[pb.WorkflowRun] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if size > _LARGEST_ANSWER:
            break
        fitting.append(message)
    return fitting


# Inwards -----------------------------------------------------------------------------------------------------------


def _introduction(request: worker_pb.RegisterWorkerRequest) -> Introduction:
    for field in ("worker_id", "instance_id"):
        if not 0 < len(getattr(request, field)) <= wire.MAX_ID:
            raise rpc.wrong_field(field, f"must have 1 to {wire.MAX_ID} characters")
    if request.capacity < 0:
        raise rpc.wrong_field("capacity", f"must not be negative, is {request.capacity}")
    return Introduction(
        worker_id=request.worker_id,
        instance_id=request.instance_id,
        capacity=request.capacity,
        task_types=frozenset(task_type.name for task_type in request.task_types),
        labels=dict(request.labels),
    )


def _key(message: task_pb2.TaskKey, path: str) -> TaskKey:
    try:
        return wire.read_key(message, path)
    except InvalidRequest as error:
        raise InvalidRequest(error.violations, reason="REQUEST_INVALID") from None


def _record(message: task_pb2.Task, path: str) -> TaskRecord:
    key = _key(message.key, f"{path}.key")
    state = wire.read_state(message.state)
    if state is None:
        raise rpc.wrong_field(f"{path}.state", "is not a state that this version knows")
    if message.sequence < 1:
        raise rpc.wrong_field(f"{path}.sequence", f"must be at least 1, is {message.sequence}")
    stop = Stop(
        cause=_CAUSES.get(message.stop.cause, StopCause.CANCEL),
        reason=message.stop.reason,
        requested_at=wire.seconds(message.stop.requested_at),
    )
    return TaskRecord(
        key=key,
        door="",
        state=state,
        sequence=message.sequence,
        created_at=wire.seconds(message.created_at),
        updated_at=wire.seconds(message.updated_at),
        task_type=message.task_type,
        name=message.name,
        labels=dict(message.labels),
        fencing_token=message.fencing_token,
        detail=message.detail,
        handle=message.handle_json,
        outputs=message.outputs_json,
        failure=wire.read_failure(message.failure) if message.HasField("failure") else None,
        stop=stop if message.HasField("stop") else None,
        started_at=wire.seconds(message.started_at) if message.HasField("started_at") else None,
        finished_at=wire.seconds(message.finished_at) if message.HasField("finished_at") else None,
    )
