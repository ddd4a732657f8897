from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remora.errors import InvalidRequest
from remora.scheduler import dagfile
from remora.scheduler.dagfile import load, parse

EXAMPLES = Path(__file__).parents[2] / "examples"

TUTORIAL = """
# A file as pydolphinscheduler's own examples are.
workflow:
  name: "tutorial"
  schedule: "0 0 0 * * ? *"
  start_time: "2021-01-01"
  release_state: "offline"
  run: true
  param:
    n: 1
    day: 2021-01-01

tasks:
  - name: parent
    task_type: Sagemaker
    description: "yaml define task"
    flag: "YES"
    task_priority: "HIGH"
    delay_time: 20
    fail_retry_times: 30
    fail_retry_interval: 5
    timeout: 60
    local_params:
      - { "prop": "n", "direct": "IN", "type": "VARCHAR", "value": "${n}" }
      - { "prop": "arn", "direct": "OUT", "type": "VARCHAR", "value": "" }
    sagemaker_request_json: '{"PipelineName": "p"}'

  - name: child
    task_type: SageMaker
    deps: [parent]
    flag: NO
    worker_group: gpu
    input_params: {a: INTEGER(3), b: text}
    output_params: {model: VARCHAR(steps.Train.model)}
    sagemaker_request_json:
      PipelineName: q
      PipelineParameters: [{Name: n, Value: "${n}"}]
"""


def mistakes(text):
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert caught.value.reason == "WORKFLOW_INVALID"
    return caught.value.violations


def tasks(*lines, head="workflow: {name: w}"):
    return "\n".join([head, "tasks:", *(f"  - {line}" for line in lines)])


def test_a_file_of_the_dialect_becomes_a_workflow():
    workflow = parse(TUTORIAL)
    assert workflow.name == "tutorial"
    assert workflow.parameters == {"n": "1", "day": "2021-01-01"}
    parent, child = workflow.tasks.values()
    assert (parent.name, parent.task_type, parent.depends_on) == ("parent", "SAGEMAKER", ())
    assert (parent.max_attempts, parent.retry_interval, parent.delay, parent.timeout) == (31, 300, 1200, 3600)
    assert (parent.inputs, parent.outputs) == ({"n": "${n}"}, {"arn": "arn"})
    assert parent.parameters == {"sagemakerRequestJson": '{"PipelineName": "p"}'}
    assert (child.depends_on, child.skipped, child.worker_group) == (("parent",), True, "gpu")
    assert (child.inputs, child.outputs) == ({"a": "3", "b": "text"}, {"model": "steps.Train.model"})
    request = {"PipelineName": "q", "PipelineParameters": [{"Name": "n", "Value": "${n}"}]}
    assert json.loads(child.parameters["sagemakerRequestJson"]) == request


def test_what_is_ignored_is_noted_with_its_line():
    notes = parse(TUTORIAL).notes
    assert "line 5: schedule is ignored: a workflow runs when it is submitted" in notes
    assert "line 18: task_priority is ignored: ready tasks start in the order of the file" in notes
    assert len(notes) == 5


def test_defaults_are_those_of_dolphinscheduler():
    (task,) = parse(tasks("{name: a, task_type: Example}")).tasks.values()
    assert (task.task_type, task.max_attempts, task.retry_interval, task.delay) == ("EXAMPLE", 1, 60, 0)
    assert (task.timeout, task.worker_group, task.skipped, task.parameters) == (None, "default", False, {})


def test_parameters_of_other_task_types_stand_under_params_and_keep_their_types():
    (task,) = parse(tasks("{name: a, task_type: Example, params: {seconds: 1.5, deep: {x: [true, ~]}}}")).tasks.values()
    assert task.parameters == {"seconds": 1.5, "deep": {"x": [True, None]}}


def test_the_request_may_stand_under_params_too():
    (task,) = parse(
        tasks("{name: a, task_type: SageMaker, params: {sagemaker_request_json: {PipelineName: p}}}")
    ).tasks.values()
    assert task.parameters == {"sagemakerRequestJson": '{"PipelineName": "p"}'}


def test_a_worker_group_of_the_workflow_is_that_of_its_tasks():
    workflow = parse(
        tasks(
            "{name: a, task_type: X}",
            "{name: b, task_type: X, worker_group: c}",
            head="workflow: {name: w, worker_group: g}",
        )
    )
    assert [task.worker_group for task in workflow.tasks.values()] == ["g", "c"]


@pytest.mark.parametrize(
    ("fields", "timeout"),
    [
        ("timeout: 1", 60),
        ("timeout: 0.5", 30),
        ("timeout: 0", None),
        ("timeout: 1, timeout_flag: CLOSE", None),
        ("timeout: 1, timeout_notify_strategy: FAILED", 60),
        ("timeout: 1, timeout_notify_strategy: WARN", None),
    ],
)
def test_a_timeout_ends_a_task_unless_it_only_warns(fields, timeout):
    (task,) = parse(tasks(f"{{name: a, task_type: X, {fields}}}")).tasks.values()
    assert task.timeout == timeout


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "document", "is empty; a DAG file has"),
        ("# nothing", "document", "is empty"),
        ("- a", "document", "line 1: is not a mapping"),
        ("a: b: c", "document", "line 1: mapping values are not allowed here"),
        ("workflow:\n\tname: a", "document", "line 2: a tab cannot indent YAML; use spaces"),
        ("workflow: {name: a}\n---\nx: y", "document", "line 2: another document begins here"),
        ("workflow: {name: 'a}", "document", "line 1: found unexpected end of stream"),
        ("workflow: !!python/name:os.system x", "workflow", "has the tag"),
        ("workflow: {name: a, name: b}", "workflow", "line 1: has 'name' twice"),
        ("workflow: &a {x: *a}", "workflow.x", "contains itself"),
        ("workflow: \x00", "document", "line 1: has a character that YAML does not allow: 0x0"),
        ("[" * 5000, "document", "is nested too deeply"),
        ('workflow: "\\ud800"', "document", "line 1: has half a character"),
        ("? [a]\n: b", "document", "has a key that is not text"),
        ("workflow: {<<: 3}", "workflow", "merges what is not a mapping"),
        ("tasks: [{name: a, task_type: X}]", "document", "has no `workflow:`"),
        ("workflow: {name: a}", "tasks", "must be a list of at least one task"),
        ("workflow: {name: a}\ntasks: []", "tasks", "line 2: must be a list of at least one task"),
        ("workflow: {name: a}\ntask: []", "task", "Did you mean tasks?"),
        ("workflow: 3\ntasks: [{name: a, task_type: X}]", "workflow", "line 1: must be a mapping of fields"),
        ("workflow: {}\ntasks: [{name: a, task_type: X}]", "workflow.name", "is missing"),
        (tasks("{name: a, task_type: X}", head="workflow: {name: w, timezone: Mars}"), "workflow.timezone", "'Mars'"),
        (tasks("{name: a, task_type: X}", head="workflow: {name: w, parm: {}}"), "workflow.parm", "mean param?"),
        (tasks("a"), "tasks[0]", "line 3: must be a mapping of fields"),
        (tasks("{name: a}"), "tasks[0].task_type", "is missing"),
        (tasks("{name: '', task_type: X}"), "tasks[0].name", "at least 1 character"),
        (tasks("{name: a, task_type: X-Y}"), "tasks[0].task_type", "should match pattern"),
        (tasks("{name: a, task_type: Switch}"), "tasks[0].task_type", "run by DolphinScheduler itself"),
        (tasks("{name: a, task_type: SageMaker}"), "tasks[0]", "needs sagemaker_request_json"),
        (
            tasks("{name: a, task_type: X, sagemaker_request_json: 3}"),
            "tasks[0].sagemaker_request_json",
            "as JSON text",
        ),
        (
            tasks("{name: a, task_type: X, sagemaker_request_json: x, params: {sagemakerRequestJson: y}}"),
            "tasks[0].sagemaker_request_json",
            "is there twice",
        ),
        (tasks("{name: a, task_type: X, fail_retry_time: 3}"), "tasks[0].fail_retry_time", "mean fail_retry_times?"),
        (tasks("{name: a, task_type: X, fail_retry_times: '3'}"), "tasks[0].fail_retry_times", "valid integer"),
        (tasks("{name: a, task_type: X, fail_retry_times: -1}"), "tasks[0].fail_retry_times", "greater than or equal"),
        (tasks("{name: a, task_type: X, timeout: soon}"), "tasks[0].timeout", "valid number"),
        (tasks("{name: a, task_type: X, flag: MAYBE}"), "tasks[0].flag", "'YES' or 'NO'"),
        (tasks("{name: a, task_type: X, deps: b}"), "tasks[0].deps", "must be a list"),
        (tasks("{name: a, task_type: X, task_group_id: 3}"), "tasks[0].task_group_id", "not supported; remove it"),
        (tasks("{name: a, task_type: X, local_params: [3]}"), "tasks[0].local_params[0]", "must be a mapping such as"),
        (
            tasks("{name: a, task_type: X, local_params: [{prop: a, valeu: 1}]}"),
            "tasks[0].local_params[0].valeu",
            "Did you mean value?",
        ),
        (
            tasks("{name: a, task_type: X, local_params: [{prop: a, direct: UP}]}"),
            "tasks[0].local_params[0].direct",
            "'IN' or 'OUT'",
        ),
        (tasks("{name: a, task_type: X}", "{name: a, task_type: X}"), "tasks[1].name", "line 4: there is a task named"),
        (
            tasks("{name: train, task_type: X}", "{name: b, task_type: X, deps: [trian]}"),
            "tasks[1].deps[0]",
            "mean train?",
        ),
        (tasks("{name: a, task_type: X, deps: [a]}"), "tasks[0].deps", "in a circle: a -> a"),
        (
            tasks(
                "{name: a, task_type: X, deps: [b]}",
                "{name: b, task_type: X, deps: [c]}",
                "{name: c, task_type: X, deps: [a]}",
            ),
            "tasks[0].deps",
            "in a circle: a -> c -> b -> a",
        ),
        (
            tasks("{name: a, task_type: X}", "{name: b, task_type: X, params: {x: '${a.arn}'}}"),
            "tasks[1]",
            "does not come after 'a'; add that to its deps",
        ),
        (tasks("{name: a, task_type: X, params: {x: '${a.arn}'}}"), "tasks[0]", "does not come after itself"),
        (
            tasks("{name: a, task_type: X, params: {x: '$WORKFLOW{\"b.yaml\"}'}}"),
            "tasks[0].params.x",
            "$WORKFLOW is not",
        ),
        (
            tasks("{name: a, task_type: X, params: {x: '${CONFIG.y}'}}"),
            "tasks[0].params.x",
            "${CONFIG.…} is not supported",
        ),
        (tasks("{name: a, task_type: X, params: {x: 'a$ENV{y}'}}"), "tasks[0].params.x", "where the file lies"),
        (tasks("{name: a, task_type: X, params: {x: '$FILE{\"y\"}'}}"), "tasks[0].params.x", "where the file lies"),
    ],
)
def test_each_mistake_is_named_by_its_path(text, path, message):
    found = mistakes(text)
    assert path in found
    assert message in found[path]


def test_all_mistakes_of_a_file_are_named_at_once_with_their_lines():
    found = mistakes("workflow:\n  nam: w\ntasks:\n  - name: a\n    task_type: X\n    timeout: -1\n  - b\n")
    assert found == {
        "workflow.name": "line 1: is missing",
        "workflow.nam": "line 2: is not a known field. Did you mean name?",
        "tasks[0].timeout": "line 6: Input should be greater than or equal to 0",
        "tasks[1]": "line 7: must be a mapping of fields",
    }


def test_outputs_of_tasks_further_up_may_be_used():
    workflow = parse(
        tasks(
            "{name: a.b, task_type: X, output_params: {out: ''}}",
            "{name: b, task_type: X, deps: [a.b]}",
            "{name: c, task_type: X, deps: [b], params: {x: '${a.b.arn} ${out} ${unknown.x}'}}",
        )
    )
    assert [task.name for task in workflow.ancestors("c")] == ["b", "a.b"]
    assert workflow.output_named("a.b.arn") == ("a.b", "arn")


def test_each_ancestor_of_a_diamond_comes_once():
    workflow = parse(
        tasks(
            "{name: a, task_type: X}",
            "{name: b, task_type: X, deps: [a]}",
            "{name: c, task_type: X, deps: [a, b]}",
            "{name: d, task_type: X, deps: [b, c]}",
        )
    )
    assert [task.name for task in workflow.ancestors("d")] == ["b", "c", "a"]


def test_too_many_tasks_and_too_much_text_are_refused(monkeypatch):
    monkeypatch.setattr(dagfile, "MAX_TASKS", 2)
    assert "at most 2" in mistakes(tasks(*(f"{{name: t{n}, task_type: X}}" for n in range(3))))["tasks"]
    monkeypatch.setattr(dagfile, "MAX_BYTES", 100)
    assert mistakes("#" * 101) == {"document": "has more than 100 bytes"}


def test_aliases_cannot_make_a_short_file_huge():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "stands for more than" in next(iter(mistakes("\n".join(levels)).values()))


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_workflow_or_refused(text):
    with pytest.raises(InvalidRequest):
        parse(text)


def test_files_and_variables_are_put_in_where_the_file_lies(tmp_path):
    (tmp_path / "request.json").write_text('{"PipelineName": "$ENV{PIPELINE}"}')
    dag = tmp_path / "dag.yaml"
    task = '{name: a, task_type: SageMaker, sagemaker_request_json: "$FILE{\\"request.json\\"}"}'
    dag.write_text(tasks(task, head="workflow: {name: 'w$ENV{N}'}"))
    workflow, source = load(dag, {"PIPELINE": "p", "N": "1"})
    assert workflow.name == "w1"
    assert workflow.tasks["a"].parameters == {"sagemakerRequestJson": '{"PipelineName": "p"}'}
    assert parse(source) == workflow


def test_a_file_that_needs_nothing_is_sent_as_it_is(tmp_path):
    dag = tmp_path / "dag.yaml"
    dag.write_text(TUTORIAL)
    assert load(dag, {}) == (parse(TUTORIAL), TUTORIAL)


def test_an_unquoted_file_is_read_as_in_the_examples_of_the_dialect(tmp_path):
    (tmp_path / "r.json").write_text('{"PipelineName": "p"}')
    dag = tmp_path / "dag.yaml"
    dag.write_text(tasks('name: a\n    task_type: SageMaker\n    sagemaker_request_json: $FILE{"r.json"}'))
    assert load(dag, {})[0].tasks["a"].parameters == {"sagemakerRequestJson": '{"PipelineName": "p"}'}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('$FILE{"gone.json"}', "gone.json: there is no such file"),
        ('$FILE{"latin.json"}', "latin.json: is not UTF-8"),
        ('$FILE{"."}', "cannot be read"),
        ('$FILE{"a"} and more', "with nothing after it"),
        ("$FILE{a}", "a file is named as"),
        ("x$ENV{LATIN}", "is not UTF-8"),
        ("x$ENV{GONE}", "$ENV{GONE}: there is no such environment variable"),
    ],
)
def test_what_a_file_refers_to_and_is_not_there_is_told(tmp_path, value, message):
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    dag = tmp_path / "dag.yaml"
    dag.write_text(tasks(f"{{name: a, task_type: X, params: {{x: '{value}'}}}}"))
    with pytest.raises(InvalidRequest) as caught:
        load(dag, {"LATIN": "\udce9"})
    assert message in caught.value.violations["tasks[0].params.x"]
    assert caught.value.violations["tasks[0].params.x"].startswith("line 3: ")


def test_a_dag_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no such file"):
        load(tmp_path / "gone.yaml", {})
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(tmp_path, {})


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_correct_and_need_no_notes(path):
    workflow, _ = load(path, {})
    assert workflow.tasks
    assert not workflow.notes
