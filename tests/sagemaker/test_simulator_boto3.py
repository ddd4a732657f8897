"""The simulator as boto3 sees it: another thread, the real client, real retries."""

from __future__ import annotations

import asyncio
import json

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from remora_sagemaker.simulator import Account, Fault, SimulatedClock, Simulator

DEFINITION = {
    "Version": "2020-12-01",
    "Parameters": [{"Name": "Kind", "Type": "String", "DefaultValue": "tree"}],
    "Steps": [
        {"Name": "Prepare", "Type": "Processing"},
        {"Name": "Train", "Type": "Training", "DependsOn": ["Prepare"]},
    ],
}
ROLE = "arn:aws:iam::000000000042:role/Tester"


@pytest.fixture
def simulator():
    return Simulator(account=Account(region="eu-west-1", account="000000000042"), clock=SimulatedClock(frozen=True))


def connect(url, **config):
    return boto3.client(
        "sagemaker",
        endpoint_url=url,
        region_name="eu-west-1",
        aws_access_key_id="any",
        aws_secret_access_key="thing",
        config=Config(**config),
    )


async def use(simulator, story, **config):
    """Let a story run in a thread with a client."""

    def tell(url):
        client = connect(url, **config)
        try:
            return story(client)
        finally:
            client.close()

    async with simulator.serve() as url:
        return await asyncio.to_thread(tell, url)


async def test_a_pipeline_is_created_started_followed_stopped_retried_and_deleted(simulator):
    clock = simulator.clock

    def story(client):
        created = client.create_pipeline(PipelineName="Train", PipelineDefinition=json.dumps(DEFINITION), RoleArn=ROLE)
        assert created["PipelineArn"] == "arn:aws:sagemaker:eu-west-1:000000000042:pipeline/Train"
        execution = client.start_pipeline_execution(
            PipelineName=created["PipelineArn"], PipelineParameters=[{"Name": "Kind", "Value": "forest"}]
        )
        arn = {"PipelineExecutionArn": execution["PipelineExecutionArn"]}
        assert client.describe_pipeline_execution(**arn)["PipelineExecutionStatus"] == "Executing"
        clock.advance(15)
        steps = client.list_pipeline_execution_steps(**arn)["PipelineExecutionSteps"]
        assert [(step["StepName"], step["StepStatus"]) for step in steps] == [
            ("Train", "Executing"),
            ("Prepare", "Succeeded"),
        ]
        assert steps[1]["EndTime"].timestamp() - steps[1]["StartTime"].timestamp() == 10
        client.stop_pipeline_execution(**arn)
        assert client.describe_pipeline_execution(**arn)["PipelineExecutionStatus"] == "Stopping"
        clock.advance(2)
        assert client.describe_pipeline_execution(**arn)["PipelineExecutionStatus"] == "Stopped"
        client.retry_pipeline_execution(**arn)
        clock.advance(10)
        assert client.describe_pipeline_execution(**arn)["PipelineExecutionStatus"] == "Succeeded"
        client.delete_pipeline(PipelineName="Train")
        with pytest.raises(client.exceptions.ResourceNotFound):
            client.describe_pipeline(PipelineName="Train")

    await use(simulator, story)


async def test_a_token_of_the_client_makes_the_start_idempotent_and_without_one_each_start_is_new(simulator):
    simulator.create_pipeline("Train", DEFINITION)

    def story(client):
        token = {"PipelineName": "Train", "ClientRequestToken": "t" * 40}
        same = {client.start_pipeline_execution(**token)["PipelineExecutionArn"] for _ in range(2)}
        new = {client.start_pipeline_execution(PipelineName="Train")["PipelineExecutionArn"] for _ in range(2)}
        with pytest.raises(client.exceptions.ConflictException):
            client.start_pipeline_execution(**token, PipelineExecutionDisplayName="other")
        return len(same), len(new)

    assert await use(simulator, story) == (1, 2)


async def test_the_paginator_walks_all_pages(simulator):
    simulator.create_pipeline("Train", DEFINITION)

    def story(client):
        arns = {client.start_pipeline_execution(PipelineName="Train")["PipelineExecutionArn"] for _ in range(23)}
        pages = list(client.get_paginator("list_pipeline_executions").paginate(PipelineName="Train"))
        assert len(pages) == 3
        return arns == {each["PipelineExecutionArn"] for page in pages for each in page["PipelineExecutionSummaries"]}

    assert await use(simulator, story)


async def test_botocore_retries_what_it_should_and_its_own_token_keeps_the_start_single(simulator):
    simulator.create_pipeline("Train", DEFINITION)
    simulator.faults.add(
        Fault(operation="StartPipelineExecution", error="ThrottlingException"),
        Fault(operation="StartPipelineExecution", reset=True, when="after"),
    )

    def story(client):
        answer = client.start_pipeline_execution(PipelineName="Train")
        return answer["ResponseMetadata"]["RetryAttempts"]

    assert await use(simulator, story, retries={"mode": "standard", "total_max_attempts": 3}) == 2
    (execution,) = simulator.executions
    assert execution.replays == 1


async def test_errors_arrive_as_the_classes_and_codes_that_aws_has(simulator):
    simulator.create_pipeline("Train", DEFINITION)
    simulator.executions.quota = 0
    simulator.faults.add(Fault(operation="DescribePipeline", reset=True))

    def story(client):
        with pytest.raises(client.exceptions.ResourceLimitExceeded):
            client.start_pipeline_execution(PipelineName="Train")
        with pytest.raises(ConnectionClosedError):
            client.describe_pipeline(PipelineName="Train")
        with pytest.raises(ClientError) as caught:
            client.list_training_jobs()
        return caught.value.response["Error"]["Code"]

    assert await use(simulator, story, retries={"total_max_attempts": 1}) == "UnsupportedOperationException"


async def test_throttling_arrives_as_throttling(simulator):
    simulator.create_pipeline("Train", DEFINITION)
    simulator.limits.set({"DescribePipeline": 2})

    def story(client):
        codes = []
        for _ in range(4):
            try:
                client.describe_pipeline(PipelineName="Train")
            except ClientError as error:
                codes.append(error.response["Error"]["Code"])
        return codes

    assert await use(simulator, story, retries={"total_max_attempts": 1}) == ["ThrottlingException"] * 2
