"""Parameters of a SAGEMAKER task."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from remora.plugin import InvalidTask
from remora_sagemaker.parameters import SageMakerParameters
from remora_sagemaker.status import CompletedWithFailures

REQUEST = {"PipelineName": "Abalone"}


def parse(parameters):
    return SageMakerParameters.model_validate_json(json.dumps(parameters))


def violations(parameters):
    with pytest.raises(InvalidTask) as caught:
        parse(parameters)
    return caught.value.violations


@pytest.mark.parametrize("name", ["sagemakerRequestJson", "SagemakerRequestJson", "sagemaker_request_json"])
@pytest.mark.parametrize("form", [REQUEST, json.dumps(REQUEST), json.dumps(REQUEST, indent=2)])
def test_the_request_is_taken_as_text_and_as_object_in_every_spelling(name, form):
    assert parse({name: form}).request == REQUEST


def test_dolphinschedulers_own_fields_are_ignored_by_name():
    task_params = {
        "localParams": [{"prop": "p", "direct": "IN", "type": "VARCHAR", "value": "Abalone"}],
        "resourceList": [],
        "type": "SAGEMAKER",
        "datasource": 3,
        "dependence": {},
        "conditionResult": {"successNode": [""], "failedNode": [""]},
        "waitStartTimeout": {},
        "username": "",
        "password": "",
        "awsRegion": "",
        "sagemakerRequestJson": json.dumps(REQUEST),
    }

    assert parse(task_params).request == REQUEST


def test_an_unknown_field_is_refused_with_the_nearest_known_name():
    assert violations({"sagemakerRequestJson": REQUEST, "completedWithFailure": "fail"}) == {
        "completedWithFailure": "is not a field of a SAGEMAKER task; did you mean completedWithFailures?"
    }
    assert "known are" in violations({"sagemakerRequestJson": REQUEST, "retries": 3})["retries"]


def test_credentials_in_the_task_are_refused_without_repeating_them():
    found = violations({"sagemakerRequestJson": REQUEST, "username": "AKIA", "password": "pst", "awsRegion": "x"})

    assert set(found) == {"username", "password", "awsRegion"}
    assert "plugin.sagemaker.access.key.secret" in found["password"]
    assert "pst" not in str(found)


def test_a_missing_and_a_double_request_are_told():
    assert set(violations({"completedWithFailures": "fail"})) == {"sagemakerRequestJson"}
    assert set(violations({})) == {"sagemakerRequestJson"}
    both = {"sagemakerRequestJson": REQUEST, "SagemakerRequestJson": REQUEST}
    assert "give one of them" in violations(both)["SagemakerRequestJson"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"PipelineName": "A",\n "X": }', "line 2, column 7"),
        ("", "is empty"),
        ("   ", "is empty"),
        ("[1]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ('{"PipelineName": "A", "PipelineName": "B"}', "has the key 'PipelineName' more than once"),
        ('{"PipelineParameters": [{"Name": "A", "Name": "B"}]}', "has the key 'Name' more than once"),
        ('{"PipelineName": NaN}', "NaN is not a JSON number"),
        ('{"PipelineName": ' + "[" * 100_000, "nested too deeply"),
        ('{"PipelineVersionId": ' + "9" * 5000 + "}", "a number with too many digits"),
        (r'{"PipelineName": "\ud83d"}', "half of a character"),
    ],
)
def test_a_request_that_is_no_json_object_is_refused_with_the_place(text, said):
    assert said in violations({"sagemakerRequestJson": text})["sagemakerRequestJson"]


@pytest.mark.parametrize("request_json", [None, 5, ["x"], True])
def test_a_request_of_another_type_is_refused(request_json):
    assert "must be a JSON object" in violations({"sagemakerRequestJson": request_json})["sagemakerRequestJson"]


def test_a_hostile_request_is_described_in_few_words():
    fields = {f"field{number}": 1 for number in range(20_000)}
    twice = "{" + ",".join('"key": 1' for _ in range(20_000)) + "}"
    placeholders = {"PipelineName": "".join(f"${{p{number}}}" for number in range(20_000))}

    for task in (fields, {"sagemakerRequestJson": twice}, {"sagemakerRequestJson": placeholders}):
        assert len(str(violations(task))) < 5000


def test_the_policy_for_completed_with_failures_is_optional_and_checked():
    assert parse({"sagemakerRequestJson": REQUEST}).completed_with_failures is None
    given = parse({"sagemakerRequestJson": REQUEST, "completedWithFailures": "succeed"})
    assert given.completed_with_failures is CompletedWithFailures.SUCCEED
    with pytest.raises(ValidationError, match="completedWithFailures"):
        parse({"sagemakerRequestJson": REQUEST, "completedWithFailures": "ignore"})


@pytest.mark.parametrize("form", [dict, json.dumps, lambda request: json.dumps(request).replace("$", r"\u0024")])
def test_placeholders_left_by_the_scheduler_are_named_with_their_paths(form):
    request = {
        "PipelineName": "${pipeline}",
        "PipelineParameters": [
            {"Name": "Date", "Value": "$[yyyyMMdd-1]/${system.biz.date}"},
            {"Name": "Price", "Value": "5 $ and 5$"},
        ],
    }

    found = violations({"sagemakerRequestJson": form(request)})

    assert set(found) == {"sagemakerRequestJson.PipelineName", "sagemakerRequestJson.PipelineParameters[0].Value"}
    assert "${pipeline}" in found["sagemakerRequestJson.PipelineName"]
    assert "$[yyyyMMdd-1], ${system.biz.date}" in found["sagemakerRequestJson.PipelineParameters[0].Value"]


def test_a_placeholder_in_the_name_of_a_field_is_found():
    assert set(violations({"sagemakerRequestJson": {"${field}": "x"}})) == {"sagemakerRequestJson"}


def test_a_dollar_alone_is_no_placeholder():
    request = {"PipelineName": "A", "PipelineExecutionDescription": "costs 5 $, or $5 {or} $ {x}"}

    assert parse({"sagemakerRequestJson": json.dumps(request)}).request == request


def test_the_schema_tells_a_user_interface_what_to_draw():
    schema = SageMakerParameters.model_json_schema()

    assert schema["required"] == ["sagemakerRequestJson"]
    for field in schema["properties"].values():
        assert field["title"]
        assert field["description"]
    forms = schema["properties"]["sagemakerRequestJson"]["anyOf"]
    assert {form["type"] for form in forms} == {"object", "string"}
