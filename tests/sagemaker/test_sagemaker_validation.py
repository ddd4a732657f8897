"""Requests checked against botocore's model."""

from __future__ import annotations

import botocore.validate
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from remora_sagemaker.validation import MAX_VIOLATIONS, nearest

START = "StartPipelineExecution"


@pytest.fixture
def check(validator):
    def violations(request, operation=START):
        return validator.violations(operation, request, "request")

    return violations


def with_parameter(**parameter):
    return {"PipelineName": "Abalone", "PipelineParameters": [{"Name": "A", "Value": "1"}, parameter]}


def test_a_good_request_has_no_violations(check):
    assert (
        check(
            {
                "PipelineName": "arn:aws:sagemaker:eu-west-1:123456789012:pipeline/Abalone",
                "PipelineExecutionDisplayName": "nightly-1",
                "PipelineParameters": [{"Name": "Epochs", "Value": ""}],
                "PipelineExecutionDescription": "two\nlines",
                "ClientRequestToken": "x" * 32,
                "ParallelismConfiguration": {"MaxParallelExecutionSteps": 2},
                "SelectiveExecutionConfig": {"SelectedSteps": [{"StepName": "Train"}]},
                "PipelineVersionId": 3,
                "MlflowExperimentName": "abalone",
            }
        )
        == {}
    )


@pytest.mark.parametrize(
    ("request_", "path", "message"),
    [
        ({}, "request.PipelineName", "is missing"),
        ([], "request", "must be an object, not a list"),
        ({"PipelineName": None}, "request.PipelineName", "must be text, not null"),
        ({"PipelineName": ""}, "request.PipelineName", "has 0 characters; 1 to 2048 are allowed"),
        ({"PipelineName": "a b"}, "request.PipelineName", "must match the pattern"),
        ({"PipelineName": "A\n"}, "request.PipelineName", "must match the pattern"),
        ({"PipelineName": "A", "RoleArm": "x"}, "request.RoleArm", "did you mean RoleArn?"),
        ({"PipelineName": "A", "pipelineParameters": []}, "request.pipelineParameters", "mean PipelineParameters?"),
        ({"PipelineName": "A", "Zzz": 1}, "request.Zzz", "known are PipelineName, "),
        (
            {"PipelineName": "A", "PipelineParameters": {}},
            "request.PipelineParameters",
            "must be a list, not an object",
        ),
        (with_parameter(Name="B"), "request.PipelineParameters[1].Value", "is missing"),
        (with_parameter(Name="B", Value=5), "request.PipelineParameters[1].Value", "put it in quotes"),
        (with_parameter(Name="B", Value=True), "request.PipelineParameters[1].Value", "put it in quotes"),
        (with_parameter(Name="B", Value="x" * 1025), "request.PipelineParameters[1].Value", "at most 1024 are allowed"),
        (with_parameter(Name="B C", Value="x"), "request.PipelineParameters[1].Name", "must match the pattern"),
        (
            {"PipelineName": "A", "ParallelismConfiguration": {"MaxParallelExecutionSteps": "2"}},
            "request.ParallelismConfiguration.MaxParallelExecutionSteps",
            "must be a whole number, not text: remove the quotes",
        ),
        (
            {"PipelineName": "A", "ParallelismConfiguration": {"MaxParallelExecutionSteps": 0}},
            "request.ParallelismConfiguration.MaxParallelExecutionSteps",
            "must be at least 1",
        ),
        (
            {"PipelineName": "A", "ParallelismConfiguration": {"MaxParallelExecutionSteps": 2.5}},
            "request.ParallelismConfiguration.MaxParallelExecutionSteps",
            "must be a whole number",
        ),
        (
            {"PipelineName": "A", "SelectiveExecutionConfig": {"SelectedSteps": []}},
            "request.SelectiveExecutionConfig.SelectedSteps",
            "has 0 items; 1 to 50 are allowed",
        ),
        ({"PipelineName": "A", "ClientRequestToken": "short"}, "request.ClientRequestToken", "32 to 128 are allowed"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(check, request_, path, message):
    found = check(request_)

    assert list(found) == [path]
    assert message in found[path]


def test_every_wrong_field_is_told_at_once(check):
    found = check({"PipelineNam": "x", "PipelineParameters": [{"Name": 1}, {"Value": None}]})

    assert set(found) == {
        "request.PipelineName",
        "request.PipelineNam",
        "request.PipelineParameters[0].Name",
        "request.PipelineParameters[0].Value",
        "request.PipelineParameters[1].Name",
        "request.PipelineParameters[1].Value",
    }


def test_a_request_wrong_in_many_places_is_described_by_the_first(check):
    found = check({"PipelineName": "A", "PipelineParameters": [{"Name": "A"}] * 150})

    assert len(found) == MAX_VIOLATIONS + 1
    assert found["request"] == f"and {150 - MAX_VIOLATIONS} more problems"


def test_a_hostile_request_is_described_in_few_words(check):
    unknown = {f"field{number}": 1 for number in range(20_000)}
    nested = {"PipelineName": "A", "PipelineParameters": [{"x" * 1000: 1}] * 200}

    for request in (unknown, nested):
        assert len(str(check(request))) < 12_000


def test_the_values_of_parameters_are_not_repeated_in_messages(check):
    found = check(with_parameter(Name="no spaces", Value="top secret" * 200))

    assert "secret" not in str(found)
    assert "no spaces" not in str(found)


def test_enumerations_name_what_is_allowed(check):
    found = check({"PipelineName": "A", "SortOrder": "descending"}, "ListPipelineExecutions")

    assert found == {"request.SortOrder": "must be one of Ascending, Descending; did you mean Descending?"}


def test_maps_are_checked_by_key_and_value(check):
    good = {"TrainingJobName": "job", "Environment": {"A": "1"}}
    assert not [path for path in check(good, "CreateTrainingJob") if "Environment" in path]

    bad = {"TrainingJobName": "job", "Environment": {"9": "1", "B": 2}}
    found = check(bad, "CreateTrainingJob")
    assert "the key must match" in found["request.Environment.9"]
    assert "must be text" in found["request.Environment.B"]


def test_a_pattern_that_python_does_not_know_is_left_to_aws(check):
    assert check({"ResourceArn": "arn:aws:sagemaker:eu-west-1:123456789012:x", "Tags": [{"Key": "ä", "Value": "ö"}]},
                 "AddTags") == {}  # fmt: skip


def test_every_operation_of_the_model_can_be_checked(model, validator):
    for operation in model.operation_names:
        required = getattr(model.operation_model(operation).input_shape, "required_members", ())
        assert bool(validator.violations(operation, {}, "r")) <= bool(required)


def test_the_nearest_name_forgives_case_and_underscores():
    names = ("PipelineName", "PipelineParameters")

    assert nearest("pipeline_name", names) == "PipelineName"
    assert nearest("PipelineParameter", names) == "PipelineParameters"
    assert nearest("zzz", names) is None


scalars = st.none() | st.booleans() | st.integers(-2, 300) | st.floats(allow_nan=False) | st.text(max_size=40)
names = st.sampled_from(
    [
        "PipelineName",
        "PipelineParameters",
        "Name",
        "Value",
        "SelectiveExecutionConfig",
        "SelectedSteps",
        "StepName",
        "ParallelismConfiguration",
        "MaxParallelExecutionSteps",
        "ClientRequestToken",
        "PipelineVersionId",
        "Other",
    ]
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request_=anything)
def test_whatever_passes_here_passes_botocore_too(model, validator, request_):
    shape = model.operation_model(START).input_shape
    if not validator.violations(START, request_, "r"):
        complete = {"ClientRequestToken": "x" * 32, **request_}
        assert not botocore.validate.ParamValidator().validate(complete, shape).has_errors()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request_=anything)
def test_whatever_botocore_refuses_is_refused_here_with_a_path(model, validator, request_):
    complete = {"ClientRequestToken": "x" * 32, **request_} if isinstance(request_, dict) else request_
    shape = model.operation_model(START).input_shape
    if botocore.validate.ParamValidator().validate(complete, shape).has_errors():
        found = validator.violations(START, request_, "r")
        assert found
        assert all(path.startswith("r") and message for path, message in found.items())
