from __future__ import annotations

import json

import pytest
from remora.scheduler import dagfile
from remora.scheduler.parameters import check_circles, expanded, value_at
from remora.scheduler.placeholders import UnresolvableText

DAG = """
workflow:
  name: flow
  timezone: Asia/Tokyo
  param: {who: global, only: global, n: 3}
tasks:
  - name: first
    task_type: Example
    output_params: {who: name, arn: ""}
  - name: second
    task_type: Example
    deps: [first]
    output_params: {arn: deeper.arn}
  - name: third
    task_type: SageMaker
    deps: [second]
    local_params: [{prop: mine, value: "local ${who}"}]
    sagemaker_request_json: %s
"""
OUTPUTS = {
    "first": {"name": "from first", "arn": "arn:first", "list": [{"x": 'a"b'}], "flag": True, "none": None},
    "second": {"deeper": {"arn": "arn:second"}},
}


def request(text, *, start=None, outputs=OUTPUTS):
    workflow = dagfile.parse(DAG % json.dumps(text))
    parameters = expanded(
        workflow,
        workflow.tasks["third"],
        run_id="run-1",
        task_id="run-1/third",
        created_at=1_700_000_000.0,
        start=start or {},
        outputs=outputs,
    )
    return json.loads(parameters)["sagemakerRequestJson"]


def test_outputs_by_name_hide_global_parameters_and_are_hidden_by_start_parameters():
    assert request("${who} ${only}") == "from first global"
    assert request("${who}", start={"who": "start"}) == "start"


def test_local_parameters_hide_outputs_and_may_use_them():
    assert request("${mine}") == "local from first"


def test_of_two_outputs_with_one_name_the_nearer_task_has_the_word():
    assert request("${arn}") == "arn:second"


def test_outputs_are_reached_by_the_name_of_the_task_and_a_path():
    assert request("${first.arn} ${second.deeper.arn}") == "arn:first arn:second"


def test_outputs_are_escaped_inside_strings_and_json_outside():
    text = '{"a": "${first.list.0.x}", "b": ${first.list}, "c": ${first.flag}, "d": "${first.none}"}'
    assert json.loads(request(text)) == {"a": 'a"b', "b": [{"x": 'a"b'}], "c": True, "d": ""}


@pytest.mark.parametrize("name", ["first.nothing", "first.list.7", "first.list.x", "first.arn.x", "second.arn"])
def test_an_output_that_a_task_does_not_have_is_told_with_those_it_has(name):
    with pytest.raises(UnresolvableText, match=r"put out no .*; it put out (name, arn|deeper)"):
        request(f"${{{name}}}")


def test_a_named_output_that_is_missing_is_told_only_where_it_is_used():
    outputs = {"first": {"arn": "x"}, "second": {}}
    assert request("${only}", outputs=outputs) == "global"
    with pytest.raises(UnresolvableText, match=r"the task second put out no deeper\.arn; it put out nothing"):
        request("${arn}", outputs=outputs)


def test_outputs_of_a_task_that_was_skipped_are_missing():
    with pytest.raises(UnresolvableText, match="first put out no arn"):
        request("${first.arn}", outputs={})


def test_the_built_in_names_say_what_runs_and_when_in_the_zone_of_the_workflow():
    names = ["biz.date", "biz.curdate", "datetime", "task.instance.id", "task.definition.name", "workflow.instance.id"]
    assert request(" ".join(f"${{system.{name}}}" for name in names)) == (
        "20231114 20231115 20231115071320 run-1/third third run-1"
    )
    assert request("$[yyyyMMddHH]") == "2023111507"


def test_a_circle_is_found_before_anything_runs():
    workflow = dagfile.parse(DAG % "'${who}'")
    check_circles(workflow, {"a": "${who}"})
    with pytest.raises(UnresolvableText, match="circle"):
        check_circles(workflow, {"a": "${b}", "b": "${a}"})


def test_a_path_leads_through_objects_and_lists():
    assert value_at({"a": [{"b": 1}, {"b": 2}]}, "a.1.b") == 2
    for path in ("a.2.b", "b", "a.b", "a.1.b.c", "a.-1"):
        with pytest.raises(LookupError):
            value_at({"a": [{"b": 1}, {"b": 2}]}, path)
