"""Pipeline definitions, their expressions and conditions, and the parameters of an execution."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from remora_sagemaker.simulator.conditions import all_hold
from remora_sagemaker.simulator.definition import DefinitionError, parse_definition
from remora_sagemaker.simulator.expressions import UNKNOWN, evaluate, references, without_unknown
from remora_sagemaker.simulator.parameters import bind
from remora_sagemaker.simulator.scenario import parse_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"


def document(*steps, parameters=(), **changes):
    return json.dumps({"Version": "2020-12-01", "Parameters": list(parameters), "Steps": list(steps), **changes})


def processing(name, **more):
    return {"Name": name, "Type": "Processing", "Arguments": {}, **more}


def condition(name, *conditions, if_steps=(), else_steps=()):
    arguments = {"Conditions": list(conditions), "IfSteps": list(if_steps), "ElseSteps": list(else_steps)}
    return {"Name": name, "Type": "Condition", "Arguments": arguments}


def test_a_step_depends_on_what_it_names_and_on_what_it_refers_to():
    definition = parse_definition(
        document(
            processing("c", Arguments={"deep": [{"Std:Join": {"On": "/", "Values": [{"Get": "Steps.b.Name"}]}}]}),
            processing("b", DependsOn=["a"]),
            processing("a"),
        )
    )
    assert {step.name: set(step.depends_on) for step in definition.steps} == {"a": set(), "b": {"a"}, "c": {"b"}}
    assert [step.name for step in definition.steps] == ["a", "b", "c"]


def test_steps_in_branches_stand_beside_the_others_and_wait_for_their_condition():
    inner = condition("inner", if_steps=[processing("deep")])
    definition = parse_definition(document(condition("outer", if_steps=[inner], else_steps=[processing("other")])))
    steps = {step.name: step for step in definition.steps}
    assert steps["outer"].branch is None
    assert (steps["other"].branch.condition, steps["other"].branch.outcome) == ("outer", False)
    assert (steps["deep"].branch.condition, steps["deep"].branch.outcome) == ("inner", True)
    assert steps["deep"].depends_on == {"inner"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "Version: Field required"),
        (document(processing("a"), Version="2019-01-01"), "Version: Input should be '2020-12-01'"),
        (document(), "Steps: Tuple should have at least 1 item"),
        (document({"Type": "Processing"}), "Steps.0.Name: Field required"),
        (document(processing("bad name")), "Steps.0.Name: String should match pattern"),
        (document({"Name": "a", "Type": "Dance"}), "step 'a' has the type 'Dance'; the simulator knows AutoML"),
        (document(processing("a"), processing("a")), "two steps have the same name"),
        (document(processing("a", DependsOn=["b"])), "step 'a' depends on the step 'b', which does not exist"),
        (
            document(processing("a", DependsOn=["b"]), processing("b", DependsOn=["a"])),
            "the steps a -> b -> a wait for each other",
        ),
        (
            document(processing("a", Arguments={"x": {"Get": "Parameters.None"}})),
            "step 'a' refers to the parameter 'None', which is not declared",
        ),
        (
            document(processing("a", Arguments={"x": {"Get": "Something"}})),
            "step 'a' refers to 'Something', which is neither a parameter, a step nor the execution",
        ),
        (
            document(processing("a"), parameters=[{"Name": "p", "Type": "String"}, {"Name": "p", "Type": "String"}]),
            "two parameters have the same name",
        ),
        (
            document(processing("a"), parameters=[{"Name": "p", "Type": "Date"}]),
            "Parameters.0.Type: Input should be 'String', 'Integer', 'Float' or 'Boolean'",
        ),
        (document(condition("c", {"Type": "Like"})), "Conditions.0: Input tag 'Like'"),
    ],
)
def test_a_wrong_definition_is_refused_with_the_place(text, message):
    with pytest.raises(DefinitionError) as caught:
        parse_definition(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_example_pipelines_are_sound(path):
    definition = parse_definition(path.read_text(encoding="utf-8"))
    assert len(definition.steps) >= 3


def test_there_are_three_example_pipelines():
    assert {path.stem for path in EXAMPLES.glob("*.json")} == {"FeaturePipeline", "RegisterPipeline", "TrainPipeline"}


KNOWN = {"Parameters.n": 3, "Parameters.s": "x"}


def lookup(reference):
    return KNOWN.get(reference, UNKNOWN)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (7, 7),
        ({"Get": "Parameters.n"}, 3),
        ({"Get": "Steps.a.b"}, UNKNOWN),
        ({"Get": "Parameters.n", "more": 1}, {"Get": "Parameters.n", "more": 1}),
        ({"Std:Join": {"On": "-", "Values": ["a", {"Get": "Parameters.n"}]}}, "a-3"),
        ({"Std:Join": {"Values": ["a", {"Get": "Steps.a.b"}]}}, UNKNOWN),
        ({"Std:Join": "nonsense"}, {"Std:Join": "nonsense"}),
        ({"Std:JsonGet": {"Path": "a"}}, UNKNOWN),
        ({"list": [{"Get": "Parameters.s"}]}, {"list": ["x"]}),
    ],
)
def test_expressions_are_evaluated_as_far_as_they_are_known(expression, value):
    assert evaluate(expression, lookup) == value


def test_references_are_found_wherever_they_are():
    assert list(references({"a": [{"Get": "Steps.x.y"}], "b": {"c": {"Get": "Parameters.p"}}})) == [
        "Steps.x.y",
        "Parameters.p",
    ]


def test_what_is_unknown_can_be_left_out():
    assert without_unknown({"a": UNKNOWN, "b": [1, UNKNOWN, {"c": UNKNOWN}]}) == {"b": [1, {}]}


def comparison(kind, left, right):
    return {"Type": kind, "LeftValue": left, "RightValue": right}


UNKNOWABLE = comparison("Equals", {"Get": "Steps.a.b"}, 1)
TRUE = comparison("Equals", 1, 1)
FALSE = comparison("Equals", 1, 2)


@pytest.mark.parametrize(
    ("conditions", "outcome"),
    [
        ([comparison("GreaterThan", {"Get": "Parameters.n"}, 2)], True),
        ([comparison("GreaterThanOrEqualTo", {"Get": "Parameters.n"}, 4)], False),
        ([comparison("LessThan", 1, {"Get": "Parameters.n"})], True),
        ([comparison("LessThanOrEqualTo", 4, {"Get": "Parameters.n"})], False),
        ([{"Type": "In", "QueryValue": {"Get": "Parameters.s"}, "Values": ["x", "y"]}], True),
        ([{"Type": "In", "QueryValue": "z", "Values": ["x", {"Get": "Steps.a.b"}]}], None),
        ([{"Type": "Not", "Expression": FALSE}], True),
        ([{"Type": "Not", "Expression": UNKNOWABLE}], None),
        ([{"Type": "Or", "Conditions": [FALSE, TRUE, UNKNOWABLE]}], True),
        ([{"Type": "Or", "Conditions": [FALSE, UNKNOWABLE]}], None),
        ([{"Type": "Or", "Conditions": [FALSE]}], False),
        ([TRUE, FALSE, UNKNOWABLE], False),
        ([TRUE, UNKNOWABLE], None),
        ([TRUE], True),
    ],
)
def test_conditions_hold_do_not_hold_or_are_not_known(conditions, outcome):
    definition = parse_definition(document(processing("a"), condition("c", *conditions), parameters=DECLARED))
    (step,) = [step for step in definition.steps if step.name == "c"]
    assert all_hold(step.conditions, lookup) is outcome


DECLARED = [
    {"Name": "s", "Type": "String", "DefaultValue": "x", "EnumValues": ["x", "y"]},
    {"Name": "n", "Type": "Integer", "DefaultValue": 1},
    {"Name": "f", "Type": "Float", "DefaultValue": 0.5},
    {"Name": "b", "Type": "Boolean", "DefaultValue": True},
]
PARAMETERS = parse_definition(document(processing("a"), parameters=DECLARED)).parameters
REQUIRED = parse_definition(document(processing("a"), parameters=[{"Name": "r", "Type": "String"}])).parameters


def given(**values):
    return [{"Name": name, "Value": value} for name, value in values.items()]


def test_parameters_get_their_type_and_their_default():
    assert bind(PARAMETERS, given(s="y", n="7", b="false")) == {"s": "y", "n": 7, "f": 0.5, "b": False}


def test_controls_of_the_scenario_are_taken_though_no_pipeline_declares_them():
    values = bind(PARAMETERS, given(SimStepSeconds="2.5", SimFailTimes="1", SimFailStep="a"))
    scenario = parse_scenario(values)
    assert (scenario.step_seconds, scenario.fail_times, scenario.fail_step) == (2.5, 1, "a")


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        (PARAMETERS, given(other="1"), "Unknown pipeline parameters: [other]. The pipeline declares [s, n, f, b]."),
        ({}, given(other="1"), "Unknown pipeline parameters: [other]. The pipeline declares none."),
        (PARAMETERS, given(SimStepSecond="1"), "Unknown pipeline parameters: [SimStepSecond]"),
        (REQUIRED, [], "Pipeline parameters without a default value must be given: [r]."),
        (PARAMETERS, given(n="1") * 2, "may be given only once"),
        (PARAMETERS, given(n="many"), "The value 'many' of the pipeline parameter n is not of type Integer."),
        (PARAMETERS, given(b="maybe"), "The value 'maybe' of the pipeline parameter b is not of type Boolean."),
        (PARAMETERS, given(s="z"), "The value 'z' of the pipeline parameter s is not one of [x, y]."),
        (PARAMETERS, given(s=""), '[string "" is too short (length: 0, required minimum: 1)]'),
    ],
)
def test_wrong_parameters_are_refused_with_their_names(declared, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bind(declared, values)


@pytest.mark.parametrize(
    "values",
    [{"SimStepSeconds": "long"}, {"SimStepSeconds": "-1"}, {"SimStepSeconds": "nan"}, {"SimFailTimes": "x"}],
)
def test_a_control_with_a_wrong_value_is_named(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        parse_scenario(values)
