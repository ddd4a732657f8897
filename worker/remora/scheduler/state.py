"""A run of a workflow, and every way it can move. Pure: a function takes a run and gives the next one.

::

    WAITING ──► READY ──► DISPATCHED ──► RUNNING ──► SUCCEEDED
       │         ▲ │          │             ├──────► FAILED, or READY for the next attempt
       │         │ │          └─────────────┴──────► CANCELLED
       │         │ └─ parameters do not resolve ───► FAILED
       │         └─── the worker was lost: the same attempt, for another worker
       └──► UPSTREAM_FAILED | CANCELLED | SUCCEEDED (skipped)

An attempt is one remote job. Each hand-over of an attempt to a worker has a higher fencing token than the one before,
and only reports under the latest one count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import JsonValue

from remora.plugin import FailureKind, TaskDefinition, TaskKey
from remora.scheduler.workflow import TaskSpec, Workflow
from remora.task import Assignment, TaskRecord, TaskState


class NodeState(StrEnum):
    """Where a task of a run is. See the drawing above."""

    WAITING = "WAITING"
    READY = "READY"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the task."""
        return self not in _UNFINISHED

    @property
    def held(self) -> bool:
        """Whether a worker has it."""
        return self in (NodeState.DISPATCHED, NodeState.RUNNING)


_UNFINISHED = frozenset({NodeState.WAITING, NodeState.READY, NodeState.DISPATCHED, NodeState.RUNNING})
_LOST = frozenset({NodeState.FAILED, NodeState.UPSTREAM_FAILED, NodeState.CANCELLED})


class RunState(StrEnum):
    """Where a run is."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One try at a task: one remote job, whoever follows it."""

    number: int
    parameters: str
    """JSON text; the same for every worker that gets the attempt."""
    fencing_token: int
    """Of the latest hand-over."""
    worker_id: str
    """Who got it then."""
    record: TaskRecord | None = None
    """The latest snapshot that was reported, by whichever worker had the attempt."""
    ended_at: float | None = None
    """When a final snapshot came; None while the remote job may exist."""
    log_base: int = 0
    """Bytes in the log of the attempt that are not in the log of the worker that has it now."""
    log_sent: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes of their own logs that earlier workers sent, by worker id."""

    @property
    def confirmed(self) -> bool:
        """Whether the latest worker has said that it has the task."""
        return self.record is not None and self.record.fencing_token >= self.fencing_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One task of a run. Times are in seconds since the epoch."""

    state: NodeState = NodeState.WAITING
    detail: str = ""
    attempts: tuple[Attempt, ...] = ()
    not_before: float = 0.0
    """When it may be handed over, while it is READY."""
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def open_attempt(self) -> Attempt | None:
        """The attempt whose remote job may exist and has not ended."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].ended_at is None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of a workflow."""

    run_id: str
    nonce: str
    """Tells this run from another of the same id: on another scheduler, or before the data of this one was lost.
    Remote jobs are named after it, and must not be found by a run that did not start them."""
    workflow: Workflow
    created_at: float
    nodes: Mapping[str, Node]
    """By the name of the task, in the order of the file."""
    parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Start parameters."""
    version: int = 1
    """Grows with every change."""
    cancelled: str | None = None
    """Why somebody wished that the run ends."""
    finished_at: float | None = None

    @property
    def state(self) -> RunState:
        """Where the run is."""
        states = {node.state for node in self.nodes.values()}
        if self.finished_at is None:
            return RunState.RUNNING
        if self.cancelled is not None and NodeState.CANCELLED in states:
            return RunState.CANCELLED
        return RunState.FAILED if states & _LOST else RunState.SUCCEEDED

    def key(self, name: str, attempt: int) -> TaskKey:
        """Name an attempt for workers."""
        return TaskKey(task_id=f"{self.run_id}~{self.nonce}/{name}", attempt=attempt)

    def attempt_keys(self) -> list[TaskKey]:
        """Name every attempt that was ever made."""
        return [self.key(name, attempt.number) for name, node in self.nodes.items() for attempt in node.attempts]

    def outputs(self, name: str) -> Mapping[str, JsonValue]:
        """Return what the tasks before the named one put out."""
        found: dict[str, JsonValue] = {}
        for task in self.workflow.ancestors(name):
            attempts = self.nodes[task.name].attempts
            if attempts and attempts[-1].record is not None and attempts[-1].record.outputs:
                found[task.name] = json.loads(attempts[-1].record.outputs)
        return found


def names_of(task_id: str) -> tuple[str, str]:
    """Return the run id and the name of the task that a task id of ours is made of."""
    run, _, name = task_id.partition("/")
    return run.partition("~")[0], name


def started(run_id: str, nonce: str, workflow: Workflow, parameters: Mapping[str, str], now: float) -> Run:
    """Begin a run."""
    run = Run(
        run_id=run_id,
        nonce=nonce,
        workflow=workflow,
        parameters=parameters,
        created_at=now,
        nodes={name: Node() for name in workflow.tasks},
        version=0,
    )
    return _settled(run, now)


def ready(run: Run, now: float) -> Iterator[TaskSpec]:
    """Yield the tasks that may be handed over now."""
    for name, node in run.nodes.items():
        if node.state is NodeState.READY and node.not_before <= now:
            yield run.workflow.tasks[name]


def due(run: Run, now: float) -> float | None:
    """Return when the next task may be handed over that may not yet."""
    times = (node.not_before for node in run.nodes.values() if node.state is NodeState.READY)
    return min((time for time in times if time > now), default=None)


def handed_over(run: Run, name: str, worker_id: str, parameters: str, now: float, *, log_size: int = 0) -> Run:
    """Give a ready task to a worker: its open attempt again, under a higher token, or the next one.

    The log of an open attempt has so many bytes from the workers before.
    """
    node = run.nodes[name]
    attempt = node.open_attempt
    if attempt is None:
        attempt = Attempt(number=len(node.attempts) + 1, parameters=parameters, fencing_token=1, worker_id=worker_id)
        attempts = (*node.attempts, attempt)
    else:
        sent = {**attempt.log_sent, attempt.worker_id: log_size - attempt.log_base}
        attempt = replace(
            attempt,
            fencing_token=attempt.fencing_token + 1,
            worker_id=worker_id,
            log_base=log_size - sent.get(worker_id, 0),
            log_sent=sent,
        )
        attempts = (*node.attempts[:-1], attempt)
    return _changed(
        run,
        name,
        now,
        state=NodeState.DISPATCHED,
        attempts=attempts,
        detail=f"handed to worker {worker_id}",
        started_at=node.started_at or now,
    )


def noted(run: Run, name: str, detail: str, now: float) -> Run:
    """Say what a task waits for."""
    return run if run.nodes[name].detail == detail else _changed(run, name, now, detail=detail)


def refused(run: Run, name: str, problem: str, now: float) -> Run:
    """A task cannot be handed over, now or ever."""
    return _changed(run, name, now, state=NodeState.FAILED, detail=problem, finished_at=now)


def fenced(run: Run, key: TaskKey, fencing_token: int, worker_id: str) -> bool:
    """Tell whether a task that a worker has under a token belongs to another one, or to nobody."""
    attempt = attempt_of(run, key)
    if attempt is None or fencing_token < attempt.fencing_token:
        return True
    # A data directory that was given to a worker of another id takes the token with it.
    return fencing_token == attempt.fencing_token and worker_id != attempt.worker_id


def attempt_of(run: Run, key: TaskKey) -> Attempt | None:
    """Return the attempt that a key names."""
    _, name = names_of(key.task_id)
    if name not in run.nodes or run.key(name, key.attempt) != key:
        return None
    attempts = run.nodes[name].attempts
    return attempts[key.attempt - 1] if 0 < key.attempt <= len(attempts) else None


def reported(run: Run, record: TaskRecord, worker_id: str, now: float) -> Run:
    """Take a snapshot of a task that is not fenced. The same run where the snapshot is not news.

    Of two snapshots the one under the higher token is the truth, and then the one with the higher sequence: a worker
    that takes over counts from 1 again.
    """
    _, name = names_of(record.key.task_id)
    node, attempt = run.nodes[name], attempt_of(run, record.key)
    assert attempt is not None, "it would be fenced"
    before = attempt.record
    if attempt.ended_at is not None or (
        before and (record.fencing_token, record.sequence) <= (before.fencing_token, before.sequence)
    ):
        return run
    # A token that we never gave is one that we forgot: the data directory was restored from a copy.
    token = max(attempt.fencing_token, record.fencing_token)
    ended_at = now if record.state.final and record.state is not TaskState.RELEASED else None
    attempt = replace(attempt, record=record, fencing_token=token, worker_id=worker_id, ended_at=ended_at)
    attempts = (*node.attempts[:-1], attempt)  # only the last one is open
    return _changed(run, name, now, attempts=attempts, **_consequence(run, name, record, now))


def resumed(run: Run, key: TaskKey, now: float) -> Run:
    """The latest worker says that it has a task still. The same run where that is known."""
    _, name = names_of(key.task_id)
    node, attempt = run.nodes[name], attempt_of(run, key)
    if attempt is None or node.open_attempt is not attempt or node.state is not NodeState.READY:
        return run
    running = attempt.record is not None and attempt.record.state is TaskState.RUNNING
    return _changed(
        run,
        name,
        now,
        state=NodeState.RUNNING if running else NodeState.DISPATCHED,
        detail=f"worker {attempt.worker_id} is back",
    )


def worker_lost(run: Run, worker_id: str, now: float, *, keep: frozenset[TaskKey] = frozenset()) -> Run:
    """Take back what a worker has, except some tasks, for another one to go on with."""
    for name, node in run.nodes.items():
        attempt = node.open_attempt
        if not node.state.held or attempt is None or attempt.worker_id != worker_id:
            continue
        if run.key(name, attempt.number) not in keep:
            detail = f"worker {worker_id} was lost; waits for another"
            run = _changed(run, name, now, state=NodeState.READY, detail=detail, not_before=now)
    return run


def cancelled(run: Run, reason: str, now: float) -> Run:
    """Wish that a run ends. What no worker ever had ends at once; the first wish stands."""
    if run.finished_at is not None or run.cancelled is not None:
        return run
    run = replace(run, cancelled=reason, version=run.version + 1)
    for name, node in run.nodes.items():
        if node.open_attempt is not None:
            run = _changed(run, name, now, detail=f"stopping: {reason}")
        elif not node.state.final:
            run = _changed(run, name, now, state=NodeState.CANCELLED, detail=f"cancelled: {reason}", finished_at=now)
    return run


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What a worker is to do for a run until a report shows that it did."""

    key: TaskKey
    fencing_token: int
    dispatch: Assignment | None = None
    """None to stop the task."""
    reason: str = ""
    """Why it is to stop."""


def commands(run: Run, worker_id: str) -> Iterator[Command]:
    """Yield what one worker is to do: take a task before it stops it."""
    for name, node in run.nodes.items():
        attempt = node.open_attempt
        if attempt is None or not node.state.held or attempt.worker_id != worker_id:
            continue
        key, record = run.key(name, attempt.number), attempt.record
        if not attempt.confirmed:
            assignment = Assignment(
                definition=_definition(run, name, attempt),
                door="",
                fencing_token=attempt.fencing_token,
                handle=record.handle or None if record else None,
            )
            yield Command(key=key, fencing_token=attempt.fencing_token, dispatch=assignment)
        if run.cancelled is not None and not (attempt.confirmed and record is not None and record.stop is not None):
            yield Command(key=key, fencing_token=attempt.fencing_token, reason=run.cancelled)


def _definition(run: Run, name: str, attempt: Attempt) -> TaskDefinition:
    spec = run.workflow.tasks[name]
    return TaskDefinition(
        key=run.key(name, attempt.number),
        task_type=spec.task_type,
        parameters=attempt.parameters,
        name=f"{run.workflow.name}/{name}",
        timeout=spec.timeout,
        labels={"workflow": run.workflow.name, "run_id": run.run_id, "task": name},
    )


def _consequence(run: Run, name: str, record: TaskRecord, now: float) -> Mapping[str, Any]:
    """Say what a snapshot makes of its task."""
    match record.state:
        case TaskState.ACCEPTED | TaskState.SUBMITTING:
            return {"state": NodeState.DISPATCHED, "detail": record.detail}
        case TaskState.RUNNING:
            return {"state": NodeState.RUNNING, "detail": record.detail}
        case TaskState.SUCCEEDED | TaskState.CANCELLED:
            return {"state": NodeState(record.state), "detail": record.detail, "finished_at": now}
        case TaskState.RELEASED:
            return {"state": NodeState.READY, "detail": "the worker let go of it; waits for another", "not_before": now}
        case TaskState.FAILED:
            return _failed(run, name, record, now)


def _failed(run: Run, name: str, record: TaskRecord, now: float) -> Mapping[str, Any]:
    spec = run.workflow.tasks[name]
    problem = record.failure.message if record.failure is not None else record.detail
    hopeless = record.failure is not None and record.failure.kind is FailureKind.INVALID
    if run.cancelled is not None or hopeless or record.key.attempt >= spec.max_attempts:
        return {"state": NodeState.FAILED, "detail": problem, "finished_at": now}
    wait = f" in {spec.retry_interval:g} s" if spec.retry_interval else ""
    detail = (
        f"attempt {record.key.attempt} of {spec.max_attempts} failed: {problem.rstrip('.')}; the next one follows{wait}"
    )
    return {"state": NodeState.READY, "detail": detail, "not_before": now + spec.retry_interval}


def _changed(run: Run, name: str, now: float, **changes: Any) -> Run:  # noqa: ANN401 -- fields of Node, checked by replace
    nodes = {**run.nodes, name: replace(run.nodes[name], **changes)}
    return _settled(replace(run, nodes=nodes), now)


def _settled(run: Run, now: float) -> Run:
    """Let every task follow those before it."""
    nodes = dict(run.nodes)
    moved = True
    while moved:
        moved = False
        for name, node in nodes.items():
            if node.state is NodeState.WAITING and (following := _following(run, name, nodes, now)) is not None:
                nodes[name], moved = following, True
    finished = all(node.state.final for node in nodes.values())
    return replace(
        run,
        nodes=nodes,
        version=run.version + 1,
        finished_at=run.finished_at or (now if finished else None),
    )


def _following(run: Run, name: str, nodes: Mapping[str, Node], now: float) -> Node | None:
    spec = run.workflow.tasks[name]
    before = {dep: nodes[dep].state for dep in spec.depends_on}
    lost = next((dep for dep, state in before.items() if state in _LOST), None)
    if lost is not None:
        verb = {NodeState.FAILED: "failed", NodeState.CANCELLED: "was cancelled"}.get(before[lost], "did not run")
        return Node(state=NodeState.UPSTREAM_FAILED, detail=f"never ran: the task {lost} {verb}", finished_at=now)
    if any(state is not NodeState.SUCCEEDED for state in before.values()):
        return None
    if spec.skipped:
        return Node(state=NodeState.SUCCEEDED, detail="skipped: its flag is NO", finished_at=now)
    wait = f" for {spec.delay:g} s, its delay" if spec.delay else ""
    return Node(state=NodeState.READY, detail=f"waits{wait}" if wait else "ready", not_before=now + spec.delay)
