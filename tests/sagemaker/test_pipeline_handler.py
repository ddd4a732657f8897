"""Naming, starting and stopping an execution."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ConnectionClosedError
from remora.plugin import FailureKind, InvalidTask
from remora_sagemaker.aws import Target
from remora_sagemaker.errors import UnexpectedAnswerError
from remora_sagemaker.handle import PipelineHandle
from remora_sagemaker.pipeline import PipelineHandler
from remora_sagemaker.settings import SageMakerSettings
from remora_sagemaker.status import CompletedWithFailures

REQUEST = {
    "PipelineName": "Abalone",
    "PipelineParameters": [{"Name": "Epochs", "Value": "10"}],
    "ParallelismConfiguration": {"MaxParallelExecutionSteps": 2},
}


def test_the_same_attempt_always_has_the_same_token(handler, make_task):
    first = handler.prepare(*make_task(REQUEST, task_id="a", attempt=1))
    again = handler.prepare(*make_task(json.dumps(REQUEST), task_id="a", attempt=1))

    assert first == again
    assert 32 <= len(first.token) <= 128
    assert 32 <= len(first.stop_token) <= 128
    assert first.stop_token != first.token
    assert first.execution_arn == ""


def test_another_task_or_attempt_has_another_token(handler, make_task):
    tokens = {
        handler.prepare(*make_task(REQUEST, task_id=task_id, attempt=attempt)).token
        for task_id, attempt in [("a", 1), ("a", 2), ("a1", 1), ("b", 1)]
    }

    assert len(tokens) == 4


def test_a_token_of_the_user_is_made_part_of_ours(handler, make_task):
    own = {"ClientRequestToken": "written-once-in-the-workflow-by-hand"}
    plain = handler.prepare(*make_task(REQUEST))
    mixed = handler.prepare(*make_task(REQUEST | own))
    retried = handler.prepare(*make_task(REQUEST | own, attempt=2))

    assert len({plain.token, mixed.token, retried.token}) == 3
    assert (plain.token_mixed, mixed.token_mixed) == (False, True)


def test_every_wrong_field_of_the_request_is_told_by_its_path(handler, make_task):
    request = {"PipelineNam": "Abalone", "PipelineParameters": [{"Name": "A", "Value": 5}]}

    with pytest.raises(InvalidTask) as caught:
        handler.prepare(*make_task(request))

    assert set(caught.value.violations) == {
        "sagemakerRequestJson.PipelineNam",
        "sagemakerRequestJson.PipelineName",
        "sagemakerRequestJson.PipelineParameters[0].Value",
    }


def test_the_policy_comes_from_the_task_or_else_from_the_settings(aws, validator, clock, make_task):
    lenient = SageMakerSettings.model_validate({"plugin.sagemaker.completed.with.failures": "succeed"})
    handler = PipelineHandler(aws, validator, lenient, "eu-west-1", clock)

    assert handler.prepare(*make_task()).completed_with_failures is CompletedWithFailures.SUCCEED
    strict = handler.prepare(*make_task(completedWithFailures="fail"))
    assert strict.completed_with_failures is CompletedWithFailures.FAIL


async def test_the_request_is_sent_as_it_is_under_our_token(handler, aws, make_task, arn_of):
    aws.on("StartPipelineExecution", {"PipelineExecutionArn": arn_of("x1")})
    definition, parameters = make_task(REQUEST | {"ClientRequestToken": "u" * 40})
    handle = handler.prepare(definition, parameters)

    started = await handler.submit(definition, parameters, handle)

    assert aws.requests["StartPipelineExecution"] == [REQUEST | {"ClientRequestToken": handle.token}]
    assert aws.targets == [Target(region="eu-west-1")]
    assert started == handle.model_copy(update={"execution_arn": arn_of("x1")})


async def test_a_start_whose_answer_was_lost_is_repeated_under_the_same_token(handler, aws, make_task, arn_of):
    aws.on("StartPipelineExecution", ConnectionClosedError(endpoint_url="x"), {"PipelineExecutionArn": arn_of("x1")})
    definition, parameters = make_task(REQUEST)
    handle = handler.prepare(definition, parameters)

    with pytest.raises(ConnectionClosedError) as lost:
        await handler.submit(definition, parameters, handle)
    assert handler.classify(lost.value).kind is FailureKind.TRANSIENT
    await handler.submit(definition, parameters, handle)

    first, second = aws.requests["StartPipelineExecution"]
    assert first == second


async def test_an_execution_that_is_known_is_not_started_again(handler, aws, make_task, running):
    definition, parameters = make_task(REQUEST)

    assert await handler.submit(definition, parameters, running()) == running()
    assert not aws.requests


async def test_an_answer_without_an_arn_is_asked_for_again(handler, aws, make_task):
    aws.on("StartPipelineExecution", {})
    definition, parameters = make_task(REQUEST)

    with pytest.raises(UnexpectedAnswerError) as caught:
        await handler.submit(definition, parameters, handler.prepare(definition, parameters))
    assert handler.classify(caught.value).kind is FailureKind.TRANSIENT


async def test_a_pipeline_that_does_not_exist_is_told_with_the_region(handler, aws, refusal, make_task):
    aws.on("StartPipelineExecution", refusal("ResourceNotFound", "Pipeline does not exist"))
    definition, parameters = make_task(REQUEST)

    with pytest.raises(Exception, match="does not exist") as caught:
        await handler.submit(definition, parameters, handler.prepare(definition, parameters))

    failure = handler.classify(caught.value)
    assert failure.kind is FailureKind.INVALID
    assert "check the name, the region and the account" in failure.message
    assert "eu-west-1" in failure.message


async def test_role_and_endpoint_of_the_settings_go_with_every_call(aws, validator, clock, make_task, arn_of):
    role, endpoint = "arn:aws:iam::123456789012:role/worker", "https://vpce.example"
    settings = SageMakerSettings.model_validate(
        {"plugin.sagemaker.role.arn": role, "plugin.sagemaker.endpoint": endpoint}
    )
    handler = PipelineHandler(aws, validator, settings, "us-east-1", clock)
    aws.on("StartPipelineExecution", {"PipelineExecutionArn": arn_of("x1")})
    definition, parameters = make_task(REQUEST)

    handle = await handler.submit(definition, parameters, handler.prepare(definition, parameters))

    assert aws.targets == [Target(region="us-east-1", role_arn=role, endpoint=endpoint)]
    assert role not in handle.model_dump_json()
    assert endpoint not in handle.model_dump_json()


async def test_a_stop_goes_under_a_token_of_its_own_and_the_same_each_time(handler, aws, running):
    aws.on("StopPipelineExecution", {})

    await handler.cancel(running())
    await handler.cancel(running())

    first, second = aws.requests["StopPipelineExecution"]
    assert (
        first
        == second
        == {
            "PipelineExecutionArn": running().execution_arn,
            "ClientRequestToken": running().stop_token,
        }
    )


@pytest.mark.parametrize("code", ["ValidationException", "ConflictException"])
@pytest.mark.parametrize("status", ["Stopping", "Stopped", "Succeeded", "Failed", "CompletedWithFailures"])
async def test_stopping_what_does_not_execute_any_more_is_success(handler, aws, refusal, running, code, status):
    aws.on("StopPipelineExecution", refusal(code, "Only pipelines with 'Executing' status can be stopped."))
    aws.on("DescribePipelineExecution", {"PipelineExecutionStatus": status})

    await handler.cancel(running())

    assert len(aws.requests["DescribePipelineExecution"]) == 1


async def test_a_stop_that_is_refused_while_it_executes_is_an_error(handler, aws, refusal, running):
    aws.on("StopPipelineExecution", refusal("ConflictException", "another change is in progress"))
    aws.on("DescribePipelineExecution", {"PipelineExecutionStatus": "Executing"})

    with pytest.raises(Exception, match="another change"):
        await handler.cancel(running())


@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException", "InternalFailure"])
async def test_a_stop_that_did_not_reach_the_execution_is_an_error(handler, aws, refusal, running, code):
    aws.on("StopPipelineExecution", refusal(code, "no"))

    with pytest.raises(Exception, match=code):
        await handler.cancel(running())
    assert not aws.requests["DescribePipelineExecution"]


async def test_stopping_what_is_gone_or_never_began_is_success(handler, aws, refusal, running):
    aws.on("StopPipelineExecution", refusal("ResourceNotFound"))

    await handler.cancel(running())
    await handler.cancel(running(execution_arn=""))

    assert len(aws.requests["StopPipelineExecution"]) == 1


def test_a_handle_of_a_newer_version_is_read_and_kept_whole(running):
    text = json.dumps(running().model_dump(mode="json") | {"invented_later": {"a": 1}})

    handle = PipelineHandle.model_validate_json(text).model_copy(update={"status": "Executing"})

    assert json.loads(handle.model_dump_json())["invented_later"] == {"a": 1}


def test_a_handle_of_an_older_version_lacks_nothing_needed():
    handle = PipelineHandle.model_validate_json('{"pipeline": "A", "token": "t", "region": "r"}')

    assert (handle.status, handle.steps, handle.completed_with_failures) == ("", {}, CompletedWithFailures.FAIL)


def test_every_call_of_the_handler_is_among_its_permissions(model):
    for permission in PipelineHandler.permissions:
        service, operation = permission.split(":")
        assert service == "sagemaker"
        assert operation in model.operation_names
