"""What the simulator answers over HTTP to requests that are right, wrong, or not requests at all."""

from __future__ import annotations

import asyncio
import io
import json
import urllib.parse

import aiohttp
import pytest
from remora_sagemaker.simulator import SimulatedClock, Simulator
from remora_sagemaker.simulator.model import SAGEMAKER
from remora_sagemaker.simulator.shapes import ShapeChecks, Unmodelled, Violation
from structlog.testing import capture_logs

ARN = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/P/execution/abc"
TOKEN = "t" * 32


@pytest.fixture
def simulator():
    simulator = Simulator(clock=SimulatedClock(frozen=True))
    simulator.create_pipeline("P", {"Version": "2020-12-01", "Steps": [{"Name": "a", "Type": "Processing"}]})
    return simulator


@pytest.fixture
async def post(simulator):
    async with simulator.serve() as url, aiohttp.ClientSession(url) as session:

        async def post(target, body, *, method="POST", path="/"):
            data = body if isinstance(body, bytes | io.BytesIO) else json.dumps(body).encode()
            headers = {"X-Amz-Target": target} if target is not None else {}
            async with session.request(method, path, data=data, headers=headers) as response:
                assert response.content_type == "application/x-amz-json-1.1"
                assert response.headers["x-amzn-RequestId"]
                return response.status, await response.json(content_type=None)

        yield post


async def test_an_operation_is_found_by_its_target_and_answered(post):
    status, answer = await post("SageMaker.DescribePipeline", {"PipelineName": "P"})
    assert status == 200
    assert answer["PipelineArn"] == "arn:aws:sagemaker:us-east-1:123456789012:pipeline/P"


@pytest.mark.parametrize("target", ["SageMaker.Dance", "Other.DescribePipeline", "SageMaker", "", None])
async def test_an_operation_that_sagemaker_does_not_have_is_unknown(post, target):
    status, answer = await post(target, {})
    assert (status, answer["__type"]) == (400, "UnknownOperationException")
    assert "X-Amz-Target must be SageMaker.<operation>" in answer["message"]


async def test_an_operation_that_is_not_simulated_says_so(post):
    status, answer = await post("SageMaker.CreateEndpoint", {})
    assert (status, answer["__type"]) == (400, "UnsupportedOperationException")
    assert "CreateEndpoint" in answer["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_every_method_and_path_gets_an_answer_of_the_protocol(post, method):
    status, answer = await post(None, b"", method=method, path="/some/where")
    assert (status, answer["__type"]) == (400, "UnknownOperationException")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x00\xff", "The request is not JSON"),
        (b"{", "The request is not JSON"),
        (b"[" * 100_000, "The request is not JSON"),
        ([], "LIST_VALUE can not be converted to a structure"),
        (None, "NULL_VALUE can not be converted to a structure"),
        ({"PipelineName": 7}, "NUMBER_VALUE at 'pipelineName' can not be converted to a String"),
        ({"PipelineName": "P", "MaxResults": "7"}, "STRING_VALUE at 'maxResults' can not be converted to an Integer"),
        ({"PipelineName": "P", "MaxResults": True}, "BOOLEAN_VALUE at 'maxResults' can not be converted to an Integer"),
        (
            {"PipelineName": "P", "CreatedAfter": "today"},
            "STRING_VALUE at 'createdAfter' can not be converted to a Timestamp (seconds since 1970)",
        ),
    ],
)
async def test_a_request_that_cannot_be_read_is_a_serialization_error(post, body, message):
    status, answer = await post("SageMaker.ListPipelineExecutions", body)
    assert (status, answer["__type"]) == (400, "SerializationException")
    assert message in answer["message"]


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        ({}, {"Value null at 'pipelineName'": "Member must not be null"}),
        (
            {"PipelineName": "-bad-"},
            {
                "Value '-bad-' at 'pipelineName'": (
                    "Member must satisfy regular expression pattern: "
                    "(arn:aws[a-z\\-]*:sagemaker:[a-z0-9\\-]*:([0-9]{12}|aws):pipeline/.*)?"
                    "([a-zA-Z0-9](-*[a-zA-Z0-9]){0,255})"
                )
            },
        ),
        (
            {"PipelineName": "P", "MaxResults": 0},
            {"Value '0' at 'maxResults'": "Member must have value greater than or equal to 1"},
        ),
        (
            {"PipelineName": "P", "MaxResults": 101, "SortOrder": "Sideways"},
            {
                "Value '101' at 'maxResults'": "Member must have value less than or equal to 100",
                "Value 'Sideways' at 'sortOrder'": "Member must satisfy enum value set: [Ascending, Descending]",
            },
        ),
    ],
)
async def test_a_request_that_breaks_the_model_is_refused_in_the_words_of_aws(post, request_, problems):
    status, answer = await post("SageMaker.ListPipelineExecutions", request_)
    assert (status, answer["__type"]) == (400, "ValidationException")
    count = "1 validation error" if len(problems) == 1 else f"{len(problems)} validation errors"
    lines = [f"{value} failed to satisfy constraint: {rule}" for value, rule in problems.items()]
    assert answer["message"] == f"{count} detected: {'; '.join(lines)}"


async def test_paths_into_lists_are_written_as_aws_does(post):
    parameters = [{"Name": "ok", "Value": "x"}, {"Name": "not ok", "Value": "x" * 1025}]
    request = {"PipelineName": "P", "ClientRequestToken": "short", "PipelineParameters": parameters}
    _, answer = await post("SageMaker.StartPipelineExecution", request)
    assert answer["message"].startswith("3 validation errors detected: ")
    for path, rule in (
        ("clientRequestToken", "Member must have length greater than or equal to 32"),
        ("pipelineParameters.2.member.name", "Member must satisfy regular expression pattern: [A-Za-z0-9\\-_]*"),
        ("pipelineParameters.2.member.value", "Member must have length less than or equal to 1024"),
    ):
        assert f"at '{path}' failed to satisfy constraint: {rule}" in answer["message"]


async def test_members_that_the_model_does_not_know_and_nulls_are_ignored_as_the_service_does(post):
    request = {"PipelineName": "P", "Unheard": 1, "PipelineVersionId": None}
    status, _ = await post("SageMaker.DescribePipeline", request)
    assert status == 200


async def test_a_request_that_is_too_large_is_refused_with_an_error_of_the_protocol(post):
    status, answer = await post("SageMaker.DescribePipeline", io.BytesIO(b" " * (8 * 1024 * 1024 + 1)))
    assert (status, answer["__type"]) == (413, "RequestEntityTooLargeException")


async def test_half_a_surrogate_pair_in_a_token_does_no_harm(post):
    request = b'{"PipelineName": "P", "ClientRequestToken": "' + b"\\ud800" * 32 + b'"}'
    status, answer = await post("SageMaker.StartPipelineExecution", request)
    assert (status, list(answer)) == (200, ["PipelineExecutionArn"])


async def test_an_execution_that_does_not_exist_is_not_found(post):
    status, answer = await post("SageMaker.DescribePipelineExecution", {"PipelineExecutionArn": ARN})
    assert (status, answer["__type"]) == (400, "ResourceNotFound")
    assert ARN in answer["message"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"PipelineExecutionStatus": "Dancing"}, "enum value set"),
        ({"Unheard": 1}, "known to the model"),
        ({"CreationTime": "now"}, "Timestamp"),
    ],
)
async def test_an_answer_that_breaks_the_model_is_an_internal_failure_and_is_logged(simulator, post, answer, problem):
    operation = simulator._protocol.operation("SageMaker.DescribePipelineExecution")
    broken = type(operation)(
        name=operation.name,
        handler=lambda request: answer,
        request_check=operation.request_check,
        answer_check=operation.answer_check,
    )
    simulator._protocol._operations["DescribePipelineExecution"] = broken
    with capture_logs() as logs:
        status, error = await post("SageMaker.DescribePipelineExecution", {"PipelineExecutionArn": ARN})
    assert (status, error["__type"]) == (500, "InternalFailure")
    assert problem in error["message"]
    assert [line["event"] for line in logs] == ["the answer breaks the model"]


async def test_a_defect_is_an_internal_failure_without_details_and_is_logged(simulator, post, monkeypatch):
    monkeypatch.setattr(simulator.pipelines, "_pipelines", None)
    with capture_logs() as logs:
        status, error = await post("SageMaker.DescribePipeline", {"PipelineName": "P"})
    assert (status, error) == (
        500,
        {"__type": "InternalFailure", "message": "The simulator failed; its log says why."},
    )
    assert [line["event"] for line in logs] == ["the simulator failed"]


async def test_garbage_instead_of_http_does_not_harm_the_server(simulator):
    async with simulator.serve() as url, aiohttp.ClientSession(url) as session:
        address = urllib.parse.urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"\x16\x03\x01garbage\r\n\r\n")
        assert b"400" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        async with session.get("/_sim/health") as response:
            assert (await response.json())["status"] == "ok"


def test_most_patterns_of_the_model_are_checked_and_the_others_are_skipped():
    checks = ShapeChecks(closed=False)
    found: list[Violation] = []
    checks.of(SAGEMAKER.shape_for("TagKey"))("any \N{SNOWMAN}", "key", found)
    assert found == [], "its pattern is in a dialect that Python does not have"
    checks.of(SAGEMAKER.shape_for("PipelineName"))("no spaces", "name", found)
    assert len(found) == 1


def test_the_whole_model_can_be_compiled():
    checks = ShapeChecks(closed=True)
    for name in SAGEMAKER.operation_names:
        shapes = SAGEMAKER.operation_model(name)
        for shape in (shapes.input_shape, shapes.output_shape):
            assert shape is None or callable(checks.of(shape))


@pytest.mark.parametrize(
    ("shape", "value", "problems"),
    [
        ("ProcessingEnvironmentMap", {"bad key": "x"}, ["processing.key"]),
        ("ProcessingEnvironmentMap", {"KEY": "x" * 257}, ["processing.KEY.member"]),
        ("ProcessingEnvironmentMap", {f"K{index}": "x" for index in range(101)}, ["processing"]),
        ("ProcessingEnvironmentMap", [], ["processing"]),
        ("TagList", {}, ["processing"]),
        ("Boolean", 1, ["processing"]),
        ("Float", "1", ["processing"]),
        ("Float", 1.5, []),
    ],
)
def test_every_kind_of_shape_is_checked(shape, value, problems):
    found: list[Violation] = []
    ShapeChecks(closed=False).of(SAGEMAKER.shape_for(shape))(value, "processing", found)
    assert [violation.path for violation in found] == problems


def test_a_value_that_is_deliberately_unmodelled_is_let_through():
    found: list[Violation] = []
    check = ShapeChecks(closed=True).of(SAGEMAKER.shape_for("PipelineExecutionStatus"))
    check(Unmodelled("Hibernating"), "status", found)
    assert found == []
