"""The task record: every move, legal and not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import TypeAdapter
from remora import task as moves
from remora.errors import IllegalTransition
from remora.plugin import Failure, FailureKind, JobState, Observation, TaskDefinition, TaskKey
from remora.task import (
    FINAL_STATES,
    MAX_JSON_BYTES,
    Assignment,
    Step,
    Stop,
    StopCause,
    TaskRecord,
    TaskState,
    next_step,
)

KEY = TaskKey(task_id="task", attempt=1)
NOW = 1000.0
CANCEL = Stop(cause=StopCause.CANCEL, reason="not needed", requested_at=NOW + 5)
TIMEOUT = Stop(cause=StopCause.TIMEOUT, reason="took longer than 60 s", requested_at=NOW + 60)
FAILURE = Failure(kind=FailureKind.EXHAUSTED, message="no capacity", code="Limit")


def definition(**others):
    return TaskDefinition(**{"key": KEY, "task_type": "SCRIPTED", "parameters": "{}", **others})


def assignment(token=1, **others):
    return Assignment(definition=definition(**others), door="test", fencing_token=token)


def record(state, **others):
    """Return a record in a state, as the legal moves make it."""
    accepted = moves.accepted(assignment(timeout=60.0), '{"name":"a"}', NOW)
    submitting = moves.submitting(accepted, NOW + 1)
    running = moves.running(submitting, '{"name":"a","arn":"b"}', NOW + 2)
    made = {
        TaskState.ACCEPTED: accepted,
        TaskState.SUBMITTING: submitting,
        TaskState.RUNNING: running,
        TaskState.SUCCEEDED: see(running, JobState.SUCCEEDED),
        TaskState.FAILED: moves.failed(running, FAILURE, NOW + 3),
        TaskState.CANCELLED: moves.stop_wished(accepted, CANCEL),
        TaskState.RELEASED: moves.released(running, NOW + 3),
    }[state]
    return dataclasses.replace(made, **others)


def see(before, state, now=NOW + 3, **others):
    return moves.observed(before, Observation(state=state, **others), handle=before.handle, now=now)


class TestBirth:
    def test_an_accepted_task_is_the_first_of_its_sequence(self):
        born = moves.accepted(assignment(name="n", labels={"a": "1"}, timeout=60.0), "{}", NOW)

        assert (born.state, born.sequence, born.handle) == (TaskState.ACCEPTED, 1, "{}")
        assert (born.created_at, born.updated_at, born.started_at, born.finished_at) == (NOW, NOW, None, None)
        assert (born.name, born.labels, born.task_type, born.fencing_token) == ("n", {"a": "1"}, "SCRIPTED", 1)
        assert born.deadline == NOW + 60

    def test_the_id_stands_in_for_a_name(self):
        assert moves.accepted(assignment(), "{}", NOW).name == "task"

    def test_a_task_without_timeout_has_no_deadline(self):
        assert moves.accepted(assignment(), "{}", NOW).deadline is None

    def test_a_task_whose_job_may_exist_is_never_taken_for_one_without(self):
        born = moves.adopted(assignment(token=2), '{"arn":"x"}', NOW)

        assert (born.state, born.sequence, born.handle) == (TaskState.SUBMITTING, 1, '{"arn":"x"}')
        assert moves.stop_wished(born, CANCEL).state is TaskState.SUBMITTING

    def test_a_task_that_cannot_work_is_born_failed(self):
        failure = Failure(kind=FailureKind.INVALID, message="wrong")
        born = moves.born_failed(assignment(), failure, NOW)

        assert (born.state, born.sequence, born.failure, born.finished_at) == (TaskState.FAILED, 1, failure, NOW)

    def test_a_task_that_was_cancelled_before_it_was_seen_is_a_tombstone(self):
        stone = moves.tombstone(KEY, "test", CANCEL, fencing_token=3)

        assert (stone.state, stone.sequence, stone.stop) == (TaskState.CANCELLED, 1, CANCEL)
        assert (stone.task_type, stone.fencing_token) == ("", 3)
        assert stone.finished_at == CANCEL.requested_at


class TestNextStep:
    @pytest.mark.parametrize(
        ("state", "stop", "step"),
        [
            (TaskState.ACCEPTED, None, Step.SUBMIT),
            (TaskState.SUBMITTING, None, Step.SUBMIT),
            (TaskState.SUBMITTING, CANCEL, Step.SUBMIT),
            (TaskState.RUNNING, None, Step.OBSERVE),
            (TaskState.RUNNING, CANCEL, Step.STOP),
            *((state, stop, Step.NOTHING) for state in sorted(FINAL_STATES) for stop in (None, CANCEL)),
        ],
    )
    def test_is_decided_by_state_and_wish(self, state, stop, step):
        assert next_step(record(state, stop=stop)) is step


class TestMoves:
    """Each move from each state: where it leads, or that it is refused."""

    @pytest.mark.parametrize("state", list(TaskState))
    @pytest.mark.parametrize(
        ("move", "legal"),
        [
            (lambda before: moves.submitting(before, NOW), {TaskState.ACCEPTED, TaskState.SUBMITTING}),
            (lambda before: moves.refused(before, "again in 1 s: full", NOW), {TaskState.SUBMITTING}),
            (lambda before: moves.running(before, "{}", NOW), {TaskState.SUBMITTING}),
            (lambda before: see(before, JobState.RUNNING), {TaskState.RUNNING}),
            (lambda before: see(before, JobState.SUCCEEDED), {TaskState.RUNNING}),
            (
                lambda before: moves.failed(before, FAILURE, NOW),
                {TaskState.ACCEPTED, TaskState.SUBMITTING, TaskState.RUNNING},
            ),
        ],
        ids=["submitting", "refused", "running", "observed", "ended", "failed"],
    )
    def test_illegal_ones_are_refused_by_name(self, state, move, legal):
        before = record(state)
        if state in legal:
            assert move(before).sequence >= before.sequence
        else:
            with pytest.raises(IllegalTransition, match=f"task#1 is {state}"):
                move(before)

    def test_a_refused_submission_waits_and_says_for_what(self):
        after = moves.refused(record(TaskState.SUBMITTING), "again in 1 s: full", NOW)

        assert (after.state, after.detail) == (TaskState.ACCEPTED, "again in 1 s: full")

    def test_a_refused_submission_that_was_to_stop_is_the_end(self):
        after = moves.refused(moves.stop_wished(record(TaskState.SUBMITTING), CANCEL), "again", NOW)

        assert (after.state, after.finished_at, after.detail) == (TaskState.CANCELLED, NOW, "cancelled: not needed")

    def test_a_job_that_exists_is_running_with_its_handle(self):
        after = moves.running(record(TaskState.SUBMITTING), '{"arn":"x"}', NOW + 9)

        assert (after.state, after.handle, after.started_at) == (TaskState.RUNNING, '{"arn":"x"}', NOW + 9)

    def test_the_detail_says_that_a_job_that_was_just_found_is_to_stop(self):
        after = moves.running(moves.stop_wished(record(TaskState.SUBMITTING), CANCEL), "{}", NOW)

        assert after.detail == "stopping: not needed"

    def test_a_remark_is_a_change_only_when_it_is_new(self):
        before = record(TaskState.RUNNING)
        after = moves.noted(before, "waiting", NOW)

        assert (after.sequence, after.state, after.detail) == (before.sequence + 1, before.state, "waiting")
        assert moves.noted(after, "waiting", NOW) is after

    def test_a_cursor_is_a_change_only_when_it_moved(self):
        before = record(TaskState.RUNNING)
        after = moves.log_read(before, "5", NOW)

        assert (after.log_cursor, after.sequence) == ("5", before.sequence + 1)
        assert moves.log_read(after, "5", NOW) is after


class TestStop:
    def test_where_no_job_exists_the_wish_is_the_end(self):
        after = moves.stop_wished(record(TaskState.ACCEPTED), CANCEL)

        assert (after.state, after.stop, after.finished_at) == (TaskState.CANCELLED, CANCEL, CANCEL.requested_at)

    def test_a_timeout_where_no_job_exists_is_a_failure(self):
        after = moves.stop_wished(record(TaskState.ACCEPTED), TIMEOUT)

        assert (after.state, after.failure.kind) == (TaskState.FAILED, FailureKind.TIMEOUT)
        assert after.failure.message == TIMEOUT.reason

    @pytest.mark.parametrize("state", [TaskState.SUBMITTING, TaskState.RUNNING])
    def test_where_a_job_may_exist_it_is_only_a_wish(self, state):
        after = moves.stop_wished(record(state), CANCEL)

        assert (after.state, after.stop, after.finished_at) == (state, CANCEL, None)
        assert after.detail == "stopping: not needed"

    def test_the_first_wish_stands(self):
        after = moves.stop_wished(record(TaskState.RUNNING), CANCEL)

        assert moves.stop_wished(after, TIMEOUT) is after

    @pytest.mark.parametrize("state", sorted(FINAL_STATES))
    def test_what_has_ended_is_left_alone(self, state):
        before = record(state)

        assert moves.stop_wished(before, CANCEL) is before


class TestObserved:
    def test_nothing_new_is_no_change(self):
        before = see(record(TaskState.RUNNING), JobState.RUNNING, detail="step 1")

        assert see(before, JobState.RUNNING, detail="step 1") is before
        assert see(before, JobState.RUNNING) is before

    def test_a_new_step_or_handle_is_a_change(self):
        before = record(TaskState.RUNNING)
        step = see(before, JobState.RUNNING, detail="step 1")
        handle = moves.observed(before, Observation(state=JobState.RUNNING), handle='{"arn":"new"}', now=NOW)

        assert (step.detail, step.sequence) == ("step 1", before.sequence + 1)
        assert (handle.handle, handle.sequence) == ('{"arn":"new"}', before.sequence + 1)

    def test_while_it_stops_the_detail_says_so_and_not_the_step(self):
        before = moves.stop_wished(record(TaskState.RUNNING), CANCEL)

        assert see(before, JobState.RUNNING, detail="step 2") is before

    def test_success_has_outputs_and_an_end(self):
        after = see(record(TaskState.RUNNING), JobState.SUCCEEDED, now=NOW + 9, outputs={"b": 1, "a": "ä"})

        assert (after.state, after.finished_at) == (TaskState.SUCCEEDED, NOW + 9)
        assert after.outputs == '{"a":"ä","b":1}'

    def test_success_although_a_stop_was_wished_is_success(self):
        after = see(moves.stop_wished(record(TaskState.RUNNING), CANCEL), JobState.SUCCEEDED)

        assert (after.state, after.stop) == (TaskState.SUCCEEDED, CANCEL)

    def test_a_failure_keeps_its_reason_and_what_was_left(self):
        failure = Failure(kind=FailureKind.EXECUTION, message="exit code 1", details={"step": "train"})
        after = see(record(TaskState.RUNNING), JobState.FAILED, failure=failure, outputs={"half": True})

        assert (after.state, after.failure, after.outputs) == (TaskState.FAILED, failure, '{"half":true}')

    def test_a_failure_without_reason_still_has_one(self):
        after = see(record(TaskState.RUNNING), JobState.FAILED, detail="it broke")

        assert (after.failure.kind, after.failure.message) == (FailureKind.EXECUTION, "it broke")

    def test_a_confirmed_cancel_is_cancelled(self):
        after = see(moves.stop_wished(record(TaskState.RUNNING), CANCEL), JobState.STOPPED)

        assert (after.state, after.failure, after.detail) == (TaskState.CANCELLED, None, "cancelled: not needed")

    def test_a_confirmed_timeout_is_failed_with_what_was_seen(self):
        seen = Failure(kind=FailureKind.EXECUTION, message="stopped", details={"step": "train"})
        after = see(moves.stop_wished(record(TaskState.RUNNING), TIMEOUT), JobState.STOPPED, failure=seen)

        assert (after.state, after.failure.kind) == (TaskState.FAILED, FailureKind.TIMEOUT)
        assert (after.failure.message, after.failure.details) == (TIMEOUT.reason, {"step": "train"})

    def test_a_job_that_somebody_else_stopped_has_failed(self):
        after = see(record(TaskState.RUNNING), JobState.STOPPED, detail="stopped by a person")

        assert (after.state, after.failure.code, after.failure.message) == (
            TaskState.FAILED,
            "STOPPED",
            "stopped by a person",
        )

    @pytest.mark.parametrize(("letter", "kept"), [("a", True), ("ä", False)])
    def test_outputs_are_bounded_in_bytes(self, letter, kept):
        room = MAX_JSON_BYTES - len('{"text":""}')
        after = see(record(TaskState.RUNNING), JobState.SUCCEEDED, outputs={"text": letter * room})

        assert after.state is TaskState.SUCCEEDED
        assert len(after.outputs.encode()) <= MAX_JSON_BYTES
        assert ("error" not in json.loads(after.outputs)) == kept

    @pytest.mark.parametrize(
        "outputs", [{"loss": float("nan")}, {"loss": float("inf")}, {"text": "\ud800"}, {"a\udfff": 1}]
    )
    def test_outputs_that_are_no_json_in_utf8_are_told_apart_and_do_not_hide_the_end(self, outputs):
        after = see(record(TaskState.RUNNING), JobState.SUCCEEDED, outputs=outputs)

        assert after.state is TaskState.SUCCEEDED
        assert "error" in json.loads(after.outputs.encode())


class TestReassigned:
    def test_a_higher_token_is_taken_with_its_door(self):
        other = dataclasses.replace(assignment(token=5), door="other")
        after = moves.reassigned(record(TaskState.RUNNING), other, "ignored", NOW)

        assert (after.fencing_token, after.door, after.state) == (5, "other", TaskState.RUNNING)
        assert after.handle == record(TaskState.RUNNING).handle

    def test_a_result_stays_a_result(self):
        after = moves.reassigned(record(TaskState.SUCCEEDED), assignment(token=5), "ignored", NOW)

        assert (after.state, after.fencing_token) == (TaskState.SUCCEEDED, 5)

    def test_a_released_task_is_taken_back_and_its_job_looked_for(self):
        after = moves.reassigned(record(TaskState.RELEASED), assignment(token=5), '{"name":"a"}', NOW)

        assert (after.state, after.handle, after.finished_at) == (TaskState.SUBMITTING, '{"name":"a"}', None)
        assert next_step(after) is Step.SUBMIT

    @pytest.mark.parametrize("state", list(TaskState))
    @pytest.mark.parametrize("token", [0, 1])
    def test_no_higher_token_is_no_change(self, state, token):
        before = record(state)

        assert moves.reassigned(before, assignment(token=token), "{}", NOW) is before


class TestReleased:
    @pytest.mark.parametrize("state", [TaskState.ACCEPTED, TaskState.SUBMITTING, TaskState.RUNNING])
    def test_an_unfinished_task_ends_here(self, state):
        after = moves.released(record(state), NOW + 9)

        assert (after.state, after.finished_at) == (TaskState.RELEASED, NOW + 9)

    @pytest.mark.parametrize("state", sorted(FINAL_STATES))
    def test_what_has_ended_stays_as_it_is(self, state):
        before = record(state)

        assert moves.released(before, NOW) is before


class TaskLife(RuleBasedStateMachine):
    """Any order of moves: those that are refused change nothing, and the others keep the promises below."""

    @initialize(timeout=st.one_of(st.none(), st.floats(1, 100)))
    def accept(self, timeout):
        self.now = NOW
        self.record = moves.accepted(assignment(timeout=timeout), '{"name":"a"}', self.now)
        self.history = [self.record]

    def move(self, make):
        self.now += 1.0
        before = self.record
        try:
            after = make(before)
        except IllegalTransition:
            return
        if after is before:
            return
        assert after.sequence == before.sequence + 1
        assert after.updated_at >= before.updated_at
        if before.state.final:
            taken_back = before.state is TaskState.RELEASED and after.state is TaskState.SUBMITTING
            assert taken_back or after.state is before.state
        self.record = after
        self.history.append(after)

    @rule()
    def submit(self):
        self.move(lambda before: moves.submitting(before, self.now))

    @rule()
    def refuse(self):
        self.move(lambda before: moves.refused(before, "again in 1 s: full", self.now))

    @rule(arn=st.text(max_size=3))
    def run(self, arn):
        self.move(lambda before: moves.running(before, json.dumps({"arn": arn}), self.now))

    @rule(
        state=st.sampled_from(JobState),
        detail=st.text(max_size=3),
        outputs=st.one_of(st.none(), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)),
    )
    def observe(self, state, detail, outputs):
        self.move(lambda before: see(before, state, self.now, detail=detail, outputs=outputs))

    @rule(cause=st.sampled_from(StopCause))
    def stop(self, cause):
        wish = Stop(cause=cause, reason="why", requested_at=self.now + 1)
        self.move(lambda before: moves.stop_wished(before, wish))

    @rule(kind=st.sampled_from(FailureKind))
    def fail(self, kind):
        self.move(lambda before: moves.failed(before, Failure(kind=kind, message="no"), self.now))

    @rule(token=st.integers(0, 4))
    def reassign(self, token):
        self.move(lambda before: moves.reassigned(before, assignment(token=token), before.handle, self.now))

    @rule()
    def release(self):
        self.move(lambda before: moves.released(before, self.now))

    @precondition(lambda self: not self.record.state.final)
    @rule(cursor=st.text(max_size=2))
    def read_log(self, cursor):
        self.move(lambda before: moves.log_read(before, cursor, self.now))

    @invariant()
    def a_final_task_has_an_end_and_no_other_has(self):
        assert (self.record.finished_at is not None) == self.record.state.final

    @invariant()
    def a_failed_task_says_why(self):
        assert (self.record.state is TaskState.FAILED) == (self.record.failure is not None)

    @invariant()
    def a_cancelled_task_was_wished_to_stop(self):
        if self.record.state is TaskState.CANCELLED:
            assert self.record.stop.cause is StopCause.CANCEL

    @invariant()
    def tokens_and_wishes_never_go_back(self):
        tokens = [each.fencing_token for each in self.history]
        assert tokens == sorted(tokens)
        stops = [each.stop for each in self.history if each.stop is not None]
        assert len(set(stops)) <= 1

    @invariant()
    def it_is_the_same_task_and_can_be_written_down(self):
        first = self.history[0]
        assert (self.record.key, self.record.created_at) == (first.key, first.created_at)
        adapter = TypeAdapter(TaskRecord)
        assert adapter.validate_json(adapter.dump_json(self.record)) == self.record


TestTaskLife = TaskLife.TestCase
TestTaskLife.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
