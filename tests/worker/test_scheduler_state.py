from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remora.plugin import Failure, FailureKind, TaskKey
from remora.scheduler import dagfile, state
from remora.scheduler.state import NodeState, RunState
from remora.task import Stop, StopCause, TaskRecord, TaskState

DIAMOND = """
workflow: {name: diamond}
tasks:
  - {name: top, task_type: X, fail_retry_times: 1, fail_retry_interval: 1, timeout: 2}
  - {name: left, task_type: X, deps: [top]}
  - {name: right, task_type: X, deps: [top], delay_time: 1}
  - {name: bottom, task_type: X, deps: [left, right]}
"""


def begin(dag=DIAMOND):
    return state.started("run", "1", dagfile.parse(dag), {}, 0.0)


def give(run, name="top", worker="w1", now=1.0):
    return state.handed_over(run, name, worker, "{}", now)


def record(name="top", task_state=TaskState.RUNNING, *, attempt=1, sequence=1, token=1, **more):
    key = TaskKey(task_id=f"run~1/{name}", attempt=attempt)
    return TaskRecord(
        key=key,
        door="",
        state=task_state,
        sequence=sequence,
        created_at=1.0,
        updated_at=1.0,
        fencing_token=token,
        **more,
    )


def failure(kind=FailureKind.EXECUTION):
    return Failure(kind=kind, message="it broke")


def states(run):
    return {name: node.state.value for name, node in run.nodes.items()}


def succeed(run, name, now=5.0):
    run = give(run, name, now=now)
    return state.reported(run, record(name, TaskState.SUCCEEDED), "w1", now)


def test_a_run_begins_with_the_tasks_that_wait_for_nothing():
    run = begin()
    assert states(run) == {"top": "READY", "left": "WAITING", "right": "WAITING", "bottom": "WAITING"}
    assert (run.state, run.version) == (RunState.RUNNING, 1)
    assert [task.name for task in state.ready(run, 0.0)] == ["top"]


def test_tasks_follow_those_before_them_and_the_run_ends_with_the_last():
    run = succeed(begin(), "top", now=5)
    assert [task.name for task in state.ready(run, 5)] == ["left"]
    assert state.due(run, 5) == 65
    run = succeed(succeed(run, "left"), "right")
    assert states(run)["bottom"] == "READY"
    run = succeed(run, "bottom", now=9)
    assert (run.state, run.finished_at) == (RunState.SUCCEEDED, 9)


def test_every_change_has_a_higher_version():
    run = begin()
    versions = [run.version]
    for change in (
        give,
        lambda run: state.reported(run, record(), "w1", 2.0),
        lambda run: state.cancelled(run, "", 3.0),
    ):
        run = change(run)
        versions.append(run.version)
    assert versions == sorted(set(versions))


def test_an_assignment_says_what_was_asked_for():
    (command,) = state.commands(give(begin()), "w1")
    definition = command.dispatch.definition
    assert definition.key == TaskKey(task_id="run~1/top", attempt=1)
    assert (definition.task_type, definition.parameters, definition.timeout) == ("X", "{}", 120)
    assert definition.labels == {"workflow": "diamond", "run_id": "run", "task": "top"}
    assert (command.dispatch.fencing_token, command.dispatch.handle) == (1, None)


def test_a_command_is_for_the_worker_that_has_the_task():
    assert not list(state.commands(give(begin()), "w2"))


def test_a_dispatch_is_commanded_until_a_report_confirms_it():
    run = give(begin())
    assert len(list(state.commands(run, "w1"))) == 1
    run = state.reported(run, record(task_state=TaskState.ACCEPTED), "w1", 2.0)
    assert states(run)["top"] == "DISPATCHED"
    assert not list(state.commands(run, "w1"))


def test_reports_move_the_task_and_repeated_or_late_ones_do_not():
    run = state.reported(give(begin()), record(sequence=3, detail="step 2"), "w1", 2.0)
    assert (states(run)["top"], run.nodes["top"].detail) == ("RUNNING", "step 2")
    assert state.reported(run, record(sequence=3), "w1", 3.0) is run
    assert state.reported(run, record(task_state=TaskState.ACCEPTED, sequence=1), "w1", 3.0) is run


def test_the_end_of_an_attempt_is_final():
    run = state.reported(give(begin()), record(task_state=TaskState.SUCCEEDED, sequence=3), "w1", 2.0)
    assert state.reported(run, record(task_state=TaskState.RUNNING, sequence=4), "w1", 3.0) is run


def test_a_failed_task_is_tried_again_after_its_interval_as_a_new_attempt():
    run = state.reported(give(begin()), record(task_state=TaskState.FAILED, failure=failure()), "w1", 10.0)
    top = run.nodes["top"]
    assert top.state is NodeState.READY
    assert top.detail == "attempt 1 of 2 failed: it broke; the next one follows in 60 s"
    assert (list(state.ready(run, 69.9)), state.due(run, 69.9)) == ([], 70)
    run = give(run, now=70)
    assert [(attempt.number, attempt.fencing_token) for attempt in run.nodes["top"].attempts] == [(1, 1), (2, 1)]
    (command,) = state.commands(run, "w1")
    assert (command.key.attempt, command.dispatch.handle) == (2, None)
    assert run.nodes["top"].started_at == 1


def test_with_the_last_attempt_the_task_fails_and_what_depends_on_it_never_runs():
    run = begin()
    for attempt in (1, 2):
        run = give(run, now=100)
        run = state.reported(run, record(task_state=TaskState.FAILED, attempt=attempt, failure=failure()), "w1", 100.0)
    assert states(run) == {
        "top": "FAILED",
        "left": "UPSTREAM_FAILED",
        "right": "UPSTREAM_FAILED",
        "bottom": "UPSTREAM_FAILED",
    }
    assert run.nodes["top"].detail == "it broke"
    assert run.nodes["left"].detail == "never ran: the task top failed"
    assert run.nodes["bottom"].detail == "never ran: the task left did not run"
    assert run.state is RunState.FAILED


def test_a_task_whose_definition_is_wrong_is_not_tried_again():
    invalid = record(task_state=TaskState.FAILED, failure=failure(FailureKind.INVALID))
    assert states(state.reported(give(begin()), invalid, "w1", 2.0))["top"] == "FAILED"


def test_other_branches_go_on_when_one_fails():
    run = give(succeed(begin(), "top"), "left")
    run = state.reported(run, record("left", TaskState.FAILED, failure=failure()), "w1", 6.0)
    assert states(run) == {"top": "SUCCEEDED", "left": "FAILED", "right": "READY", "bottom": "UPSTREAM_FAILED"}
    assert run.state is RunState.RUNNING
    assert succeed(run, "right").state is RunState.FAILED


def test_a_skipped_task_counts_as_a_success_when_its_turn_comes():
    run = begin(
        "workflow: {name: w}\ntasks:\n  - {name: a, task_type: X}\n  - {name: b, task_type: X, deps: [a], flag: NO}\n"
        "  - {name: c, task_type: X, deps: [b]}"
    )
    assert states(run)["b"] == "WAITING"
    run = succeed(run, "a")
    assert states(run) == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "READY"}
    assert run.nodes["b"].detail == "skipped: its flag is NO"


def test_the_tasks_of_a_lost_worker_go_to_another_under_a_higher_token_with_the_handle():
    run = state.reported(give(begin()), record(handle='{"arn": "x"}', sequence=7), "w1", 2.0)
    run = state.worker_lost(run, "w1", 3.0)
    assert (states(run)["top"], run.nodes["top"].detail) == ("READY", "worker w1 was lost; waits for another")
    run = give(run, worker="w2")
    (command,) = state.commands(run, "w2")
    assert (command.key.attempt, command.dispatch.fencing_token) == (1, 2)
    assert command.dispatch.handle == '{"arn": "x"}'
    assert state.fenced(run, command.key, 1, "w1")
    assert state.fenced(run, command.key, 2, "w1")
    assert not state.fenced(run, command.key, 2, "w2")
    assert not list(state.commands(run, "w1"))


def test_a_worker_that_takes_over_counts_from_one_again():
    run = state.reported(give(begin()), record(sequence=7), "w1", 2.0)
    run = give(state.worker_lost(run, "w1", 3.0), worker="w2")
    run = state.reported(run, record(sequence=1, token=2, detail="mine"), "w2", 4.0)
    assert (states(run)["top"], run.nodes["top"].detail) == ("RUNNING", "mine")
    assert state.attempt_of(run, record().key).worker_id == "w2"


def test_a_worker_that_comes_back_in_time_just_goes_on():
    run = state.worker_lost(state.reported(give(begin()), record(), "w1", 2.0), "w1", 3.0)
    run = state.resumed(run, record().key, 4.0)
    assert states(run)["top"] == "RUNNING"
    assert not list(state.commands(run, "w1"))
    assert state.resumed(run, record().key, 5.0) is run


def test_a_worker_that_comes_back_without_having_said_anything_is_asked_to_confirm():
    run = state.resumed(state.worker_lost(give(begin()), "w1", 3.0), record().key, 4.0)
    assert states(run)["top"] == "DISPATCHED"
    assert len(list(state.commands(run, "w1"))) == 1


def test_what_a_worker_still_has_is_kept_when_the_rest_is_taken_back():
    run = give(give(succeed(begin(), "top"), "left"), "right", now=100)
    kept = frozenset({run.key("left", 1)})
    assert states(state.worker_lost(run, "w1", 101, keep=kept)) == {
        "top": "SUCCEEDED",
        "left": "DISPATCHED",
        "right": "READY",
        "bottom": "WAITING",
    }


@pytest.mark.parametrize(
    "key",
    [
        TaskKey(task_id="run~1/top", attempt=2),
        TaskKey(task_id="run~1/left", attempt=1),
        TaskKey(task_id="run~1/gone", attempt=1),
        TaskKey(task_id="other~1/top", attempt=1),
        TaskKey(task_id="top", attempt=1),
    ],
)
def test_what_was_never_handed_over_is_fenced(key):
    assert state.fenced(give(begin()), key, 99, "w1")
    assert state.attempt_of(give(begin()), key) is None


def test_a_task_that_a_worker_let_go_of_is_handed_on():
    run = state.reported(give(begin()), record(task_state=TaskState.RELEASED, sequence=2), "w1", 2.0)
    assert states(run)["top"] == "READY"
    (command,) = state.commands(give(run, worker="w2"), "w2")
    assert command.dispatch.fencing_token == 2


def test_a_token_that_the_scheduler_forgot_is_believed():
    run = state.reported(give(begin()), record(token=5), "w1", 2.0)
    (command,) = state.commands(give(state.worker_lost(run, "w1", 3.0)), "w1")
    assert command.dispatch.fencing_token == 6


def test_a_cancelled_run_ends_at_once_where_no_worker_has_anything():
    run = state.cancelled(begin(), "enough", 2.0)
    assert set(states(run).values()) == {"CANCELLED"}
    assert (run.state, run.finished_at, run.nodes["top"].detail) == (RunState.CANCELLED, 2, "cancelled: enough")
    assert state.cancelled(run, "again", 3.0) is run


def test_cancelling_stops_what_runs_and_starts_nothing_more():
    run = state.cancelled(state.reported(give(begin()), record(), "w1", 2.0), "enough", 3.0)
    assert states(run) == {"top": "RUNNING", "left": "CANCELLED", "right": "CANCELLED", "bottom": "CANCELLED"}
    (command,) = state.commands(run, "w1")
    assert (command.dispatch, command.reason, command.fencing_token) == (None, "enough", 1)
    stopping = record(sequence=2, stop=Stop(cause=StopCause.CANCEL, reason="enough", requested_at=3.0))
    run = state.reported(run, stopping, "w1", 4.0)
    assert not list(state.commands(run, "w1"))
    assert run.state is RunState.RUNNING
    run = state.reported(run, replace(stopping, state=TaskState.CANCELLED, sequence=3), "w1", 5.0)
    assert run.state is RunState.CANCELLED


def test_a_task_is_dispatched_before_it_is_cancelled():
    run = state.cancelled(give(begin()), "enough", 2.0)
    assert [command.dispatch is not None for command in state.commands(run, "w1")] == [True, False]


def test_a_task_whose_worker_was_lost_is_handed_on_only_to_be_stopped():
    run = state.worker_lost(state.reported(give(begin()), record(handle="{}"), "w1", 2.0), "w1", 3.0)
    run = state.cancelled(run, "enough", 4.0)
    assert states(run)["top"] == "READY"
    run = give(run, worker="w2")
    dispatch, cancel = state.commands(run, "w2")
    assert (dispatch.dispatch.handle, cancel.reason, cancel.fencing_token) == ("{}", "enough", 2)


def test_a_cancelled_run_whose_tasks_succeeded_all_the_same_has_succeeded():
    run = begin("workflow: {name: w}\ntasks: [{name: top, task_type: X}]")
    run = state.cancelled(give(run), "enough", 2.0)
    run = state.reported(run, record(task_state=TaskState.SUCCEEDED), "w1", 3.0)
    assert run.state is RunState.SUCCEEDED


def test_a_failure_in_a_cancelled_run_is_not_tried_again():
    run = state.cancelled(give(begin()), "enough", 2.0)
    run = state.reported(run, record(task_state=TaskState.FAILED, failure=failure()), "w1", 3.0)
    assert (states(run)["top"], run.state) == ("FAILED", RunState.CANCELLED)


def test_a_task_that_a_person_cancelled_on_the_worker_fails_the_run():
    run = state.reported(give(begin()), record(task_state=TaskState.CANCELLED, detail="by hand"), "w1", 3.0)
    assert run.nodes["left"].detail == "never ran: the task top was cancelled"
    assert run.state is RunState.FAILED


def test_a_task_that_cannot_be_handed_over_fails_with_the_reason():
    run = state.refused(begin(), "top", "no such output", 2.0)
    assert (states(run)["top"], run.nodes["top"].detail) == ("FAILED", "no such output")
    assert run.state is RunState.FAILED


def test_what_a_task_waits_for_is_a_change_only_when_it_is_news():
    run = state.noted(begin(), "top", "waits for a worker", 1.0)
    assert run.nodes["top"].detail == "waits for a worker"
    assert state.noted(run, "top", "waits for a worker", 2.0) is run


def test_outputs_are_those_of_the_tasks_before():
    run = give(begin())
    run = state.reported(run, record(task_state=TaskState.SUCCEEDED, outputs='{"a": 1}'), "w1", 2.0)
    assert run.outputs("bottom") == {"top": {"a": 1}}
    assert run.outputs("top") == {}


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["give", "give", "report", "report", "report", "lost", "back", "cancel"]),
        st.sampled_from(["top", "left", "right", "bottom"]),
        st.sampled_from(["w1", "w2"]),
        st.sampled_from(list(TaskState)),
        st.integers(1, 4),
        st.integers(1, 3),
    ),
    max_size=40,
)


def move(run, kind, name, worker, task_state, sequence, token, now):
    attempt = max(1, len(run.nodes[name].attempts))
    if kind == "give":
        return next((give(run, task.name, worker, now) for task in state.ready(run, now + 1e6)), run)
    if kind == "report":
        report = record(name, task_state, attempt=attempt, sequence=sequence, token=token, failure=failure())
        return run if state.fenced(run, report.key, token, worker) else state.reported(run, report, worker, now)
    if kind == "lost":
        return state.worker_lost(run, worker, now)
    if kind == "back":
        return state.resumed(run, run.key(name, attempt), now)
    return state.cancelled(run, "", now) if kind == "cancel" and sequence == 1 else run


def check_nodes(before, after):
    for name, node in after.nodes.items():
        earlier = before.nodes[name]
        assert node == earlier or not earlier.state.final
        assert sum(each.ended_at is None for each in node.attempts) <= 1
        assert len(node.attempts) <= after.workflow.tasks[name].max_attempts
        assert [each.number for each in node.attempts] == list(range(1, len(node.attempts) + 1))
        for then, now in zip(earlier.attempts, node.attempts, strict=False):
            assert now.fencing_token >= then.fencing_token
            assert now.fencing_token > then.fencing_token or now.worker_id == then.worker_id


@settings(deadline=None, max_examples=300)
@given(MOVES)
def test_whatever_happens_tokens_only_grow_and_ends_stay(moves):
    run = begin()
    for now, (kind, *details) in enumerate(moves, start=1):
        before, run = run, move(run, kind, *details, now)
        assert (run.version > before.version) == (run is not before)
        check_nodes(before, run)
        assert before.finished_at is None or run == before
        assert (run.state is RunState.RUNNING) == any(not node.state.final for node in run.nodes.values())
