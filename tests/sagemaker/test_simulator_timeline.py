"""The course of an execution, worked out without a server."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remora_sagemaker.simulator.definition import Step
from remora_sagemaker.simulator.timeline import CallbackAnswer, Plan, Run, Timeline, play


def step(name, *needs, kind="Processing"):
    return Step(
        name=name,
        type=kind,
        display_name="",
        description="",
        depends_on=frozenset(needs),
        branch=None,
        arguments={},
        conditions=(),
        properties={},
        cached=False,
    )


DIAMOND = (step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c"))
BEGIN = 1000.0


def plan(*steps, **changes):
    basis = Plan(
        steps=steps or DIAMOND,
        step_seconds=10,
        stop_seconds=4,
        status="",
        fail_step="",
        failing_runs=math.inf,
    )
    return replace(basis, **changes)


def run(started_at=BEGIN, stopped_at=math.inf, parallelism=math.inf):
    return Run(started_at=started_at, stopped_at=stopped_at, parallelism=parallelism)


def spans(timeline: Timeline):
    return {each.step.name: (each.start - BEGIN, each.end - BEGIN, each.outcome.value) for each in timeline.steps}


def statuses(timeline: Timeline, now):
    return {each.step.name: each.status(now, timeline.stopped_at) for each in timeline.visible(now)}


def test_steps_run_as_soon_as_what_they_depend_on_has_ended():
    timeline = play(plan(), [run()], {})
    assert spans(timeline) == {
        "a": (0, 10, "Succeeded"),
        "b": (10, 20, "Succeeded"),
        "c": (10, 20, "Succeeded"),
        "d": (20, 30, "Succeeded"),
    }
    assert [timeline.status(BEGIN + at) for at in (0, 29.9, 30)] == ["Executing", "Executing", "Succeeded"]


def test_a_step_is_starting_then_executing_then_ended_and_absent_before():
    timeline = play(plan(), [run()], {})
    assert statuses(timeline, BEGIN) == {"a": "Starting"}
    assert statuses(timeline, BEGIN + 5) == {"a": "Executing"}
    assert statuses(timeline, BEGIN + 10) == {"a": "Succeeded", "b": "Starting", "c": "Starting"}


def test_parallelism_limits_how_many_steps_run_at_once():
    timeline = play(plan(step("a"), step("b"), step("c")), [run(parallelism=2)], {})
    assert sorted(each.start - BEGIN for each in timeline.steps) == [0, 0, 10]


def test_after_a_failure_running_steps_go_on_and_no_other_starts():
    steps = (step("a"), step("b"), step("c", "b"), step("instant", kind="Condition"), step("late", "instant"))
    timeline = play(plan(*steps, fail_step="a"), [run()], {})
    assert spans(timeline) == {
        "a": (0, 10, "Failed"),
        "b": (0, 10, "Succeeded"),
        "instant": (0, 0, "Succeeded"),
        "late": (0, 10, "Succeeded"),
    }
    assert timeline.status(BEGIN + 10) == "Failed"


def test_a_fail_step_fails_the_execution_at_once():
    timeline = play(plan(step("a"), step("no", "a", kind="Fail")), [run()], {})
    assert spans(timeline)["no"] == (10, 10, "Failed")
    assert timeline.status(BEGIN + 10) == "Failed"


def test_a_stop_is_stopping_for_a_while_and_then_stopped():
    timeline = play(plan(), [run(stopped_at=BEGIN + 15)], {})
    assert [timeline.status(BEGIN + at) for at in (14, 15, 18.9, 19)] == [
        "Executing",
        "Stopping",
        "Stopping",
        "Stopped",
    ]
    assert statuses(timeline, BEGIN + 16) == {"a": "Succeeded", "b": "Stopping", "c": "Stopping"}
    assert statuses(timeline, BEGIN + 19) == {"a": "Succeeded", "b": "Stopped", "c": "Stopped"}


def test_a_retry_keeps_what_succeeded_and_does_the_rest_again():
    runs = [run(), run(started_at=BEGIN + 100)]
    timeline = play(plan(fail_step="b", failing_runs=1), runs, {})
    assert spans(timeline) == {
        "a": (0, 10, "Succeeded"),
        "c": (10, 20, "Succeeded"),
        "b": (100, 110, "Succeeded"),
        "d": (110, 120, "Succeeded"),
    }
    assert {each.step.name: each.attempt for each in timeline.steps} == {"a": 1, "c": 1, "b": 2, "d": 1}
    assert [(each.step.name, each.attempt, each.outcome) for each in timeline.superseded] == [("b", 1, "Failed")]


def test_a_retry_fails_again_while_the_scenario_says_so():
    runs = [run(), run(started_at=BEGIN + 100), run(started_at=BEGIN + 200)]
    failing = plan(fail_step="b", failing_runs=2)
    assert [play(failing, runs[:count], {}).final_status for count in (1, 2, 3)] == ["Failed", "Failed", "Succeeded"]


def test_a_callback_is_waited_for_until_it_is_answered():
    steps = plan(step("ask", kind="Callback"), step("then", "ask"))
    assert play(steps, [run()], {}).status(BEGIN + 1e9) == "Executing"
    answered = play(steps, [run()], {("ask", 1): CallbackAnswer(at=BEGIN + 50, succeeded=True)})
    assert spans(answered)["then"] == (50, 60, "Succeeded")
    refused = play(steps, [run()], {("ask", 1): CallbackAnswer(at=BEGIN + 50, succeeded=False, reason="no")})
    assert refused.final_status == "Failed"
    assert refused.steps[0].reason == "no"


def test_a_stop_waits_for_a_callback_that_is_running():
    steps = plan(step("ask", kind="Callback"))
    stopped = [run(stopped_at=BEGIN + 5)]
    assert play(steps, stopped, {}).status(BEGIN + 1e9) == "Stopping"
    answered = play(steps, stopped, {("ask", 1): CallbackAnswer(at=BEGIN + 50, succeeded=True)})
    assert answered.status(BEGIN + 50) == "Stopped"


def test_a_reused_result_takes_no_time():
    timeline = play(plan(step("a"), step("b", "a"), reused=frozenset({"a"})), [run()], {})
    assert spans(timeline) == {"a": (0, 0, "Succeeded"), "b": (0, 10, "Succeeded")}


def test_an_execution_without_steps_ends_when_it_starts():
    nothing = Plan(steps=(), step_seconds=10, stop_seconds=4, status="", fail_step="", failing_runs=0)
    assert play(nothing, [run()], {}).status(BEGIN) == "Succeeded"


@pytest.mark.parametrize("status", ["CompletedWithFailures", "Hibernating"])
def test_the_scenario_may_force_the_final_status_but_a_stop_is_a_stop(status):
    forced = plan(status=status)
    assert play(forced, [run()], {}).status(BEGIN + 30) == status
    assert play(forced, [run(stopped_at=BEGIN + 1)], {}).status(BEGIN + 30) == "Stopped"


@st.composite
def graphs(draw):
    names = [f"s{index}" for index in range(draw(st.integers(1, 7)))]
    kinds = st.sampled_from(["Processing", "Training", "Condition"])
    return [
        step(name, *draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else (), kind=draw(kinds))
        for index, name in enumerate(names)
    ]


@given(
    steps=graphs(),
    parallelism=st.integers(1, 3),
    fails=st.integers(0, 6),
    stop=st.floats(0, 80),
    look=st.floats(0, 80),
)
def test_a_stop_never_changes_what_was_there_before_it(steps, parallelism, fails, stop, look):
    course = plan(*steps, fail_step=f"s{fails}")
    before = play(course, [run(parallelism=parallelism)], {})
    after = play(course, [run(parallelism=parallelism, stopped_at=BEGIN + stop)], {})
    now = BEGIN + min(stop, look)
    assert [each.step.name for each in before.visible(now)] == [each.step.name for each in after.visible(now)]
    if now < BEGIN + stop:
        assert statuses(before, now) == statuses(after, now)


@given(steps=graphs(), parallelism=st.integers(1, 3), fails=st.integers(0, 6))
def test_no_step_starts_before_what_it_depends_on_and_a_retry_finishes_the_rest(steps, parallelism, fails):
    course = plan(*steps, fail_step=f"s{fails}", failing_runs=1)
    first = play(course, [run(parallelism=parallelism)], {})
    runs = [run(parallelism=parallelism), run(started_at=first.end, parallelism=parallelism)]
    timeline = first if first.final_status == "Succeeded" else play(course, runs, {})
    ends = {each.step.name: each.end for each in timeline.steps}
    assert timeline.final_status == "Succeeded"
    assert ends.keys() == {each.name for each in steps}
    assert all(each.start >= ends[name] for each in timeline.steps for name in each.step.depends_on)
