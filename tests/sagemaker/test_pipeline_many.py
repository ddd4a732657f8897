"""Many executions looked at with few calls, and with fewer than there should be."""

from __future__ import annotations

import pytest
from botocore.exceptions import EndpointConnectionError
from remora.plugin import FailureKind, JobState, Observation
from structlog.testing import capture_logs


@pytest.fixture
def account(aws, arn_of):
    """Answer for many executions of one pipeline, newest first: a mapping of name to status."""

    def make(statuses, page=100):
        names = list(statuses)

        def list_page(request):
            assert request["MaxResults"] == 100
            assert (request["SortBy"], request["SortOrder"]) == ("CreationTime", "Descending")
            begin = int(request.get("NextToken", 0))
            summaries = [
                {"PipelineExecutionArn": arn_of(name), "PipelineExecutionStatus": statuses[name]}
                for name in names[begin : begin + page]
            ]
            more = {"NextToken": str(begin + page)} if begin + page < len(names) else {}
            return {"PipelineExecutionSummaries": summaries, **more}

        def describe(request):
            name = request["PipelineExecutionArn"].rsplit("/", 1)[-1]
            return {"PipelineExecutionStatus": statuses[name]}

        aws.on("ListPipelineExecutions", list_page)
        aws.on("DescribePipelineExecution", describe)
        aws.on("ListPipelineExecutionSteps", {"PipelineExecutionSteps": []})

    return make


async def test_executions_of_one_pipeline_are_found_page_by_page(handler, aws, account, running):
    account({f"n{number}": "Executing" for number in range(250)})

    answers = await handler.observe([running(f"n{number}") for number in (3, 120, 249, *range(20, 60))])

    assert all(isinstance(answer, Observation) and answer.state is JobState.RUNNING for answer in answers)
    assert len(aws.requests["ListPipelineExecutions"]) == 3
    assert not aws.requests["DescribePipelineExecution"]


async def test_paging_ends_with_the_last_one_found(handler, aws, account, running):
    account({f"n{number}": "Executing" for number in range(1000)})

    await handler.observe([running(f"n{number}") for number in range(95)])

    assert len(aws.requests["ListPipelineExecutions"]) == 1


async def test_paging_ends_where_describing_costs_less(handler, aws, account, running):
    account({f"n{number}": "Executing" for number in range(5000)})

    answers = await handler.observe([running(f"n{number}") for number in range(4000, 4020)])

    assert all(isinstance(answer, Observation) for answer in answers)
    assert len(aws.requests["ListPipelineExecutions"]) == 2
    assert len(aws.requests["DescribePipelineExecution"]) == 20


async def test_an_end_seen_in_a_list_is_described(handler, aws, account, running, arn_of):
    account({"n1": "Executing", "n2": "Failed", "n3": "Succeeded"})

    answers = await handler.observe([running("n1"), running("n2"), running("n3")])

    assert [answer.state for answer in answers] == [JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED]
    described = {request["PipelineExecutionArn"] for request in aws.requests["DescribePipelineExecution"]}
    assert described == {arn_of("n2"), arn_of("n3")}


async def test_the_same_execution_under_two_handles_is_looked_at_once(handler, aws, account, running):
    account({"n1": "Executing"})

    answers = await handler.observe([running("n1"), running("n1")])

    assert [answer.state for answer in answers] == [JobState.RUNNING] * 2
    assert not aws.requests["ListPipelineExecutions"]
    assert len(aws.requests["DescribePipelineExecution"]) == 1


async def test_without_the_permission_to_list_everything_is_described(handler, aws, account, running, refusal):
    account({"n1": "Executing", "n2": "Succeeded"})
    aws.on("ListPipelineExecutions", refusal("AccessDeniedException"))

    with capture_logs() as logs:
        answers = await handler.observe([running("n1"), running("n2")])

    assert [answer.state for answer in answers] == [JobState.RUNNING, JobState.SUCCEEDED]
    assert "executions_not_listed" in [entry["event"] for entry in logs]


async def test_when_aws_cannot_be_reached_for_the_list_nothing_more_is_tried(handler, aws, account, running):
    account({"n1": "Executing", "n2": "Executing"})
    aws.on("ListPipelineExecutions", EndpointConnectionError(endpoint_url="x"))

    answers = await handler.observe([running("n1"), running("n2")])

    assert [answer.kind for answer in answers] == [FailureKind.TRANSIENT] * 2
    assert not aws.requests["DescribePipelineExecution"]


async def test_who_had_no_turn_has_no_news_and_comes_first_next_time(handler, aws, account, running, arn_of):
    account({f"n{number}": "Executing" for number in range(4)})
    handles = [running(f"n{number}", pipeline=f"P{number}", execution_arn=arn_of(f"n{number}")) for number in range(4)]

    aws.allowed["DescribePipelineExecution"] = 3
    first = await handler.observe(handles)
    assert [answer is None for answer in first] == [False, False, False, True]

    aws.allowed["DescribePipelineExecution"] = 3
    second = await handler.observe(handles)
    assert [answer is None for answer in second] == [False, False, True, False]


async def test_without_budget_for_steps_the_status_is_news_enough(handler, aws, account, running, arn_of):
    account({"n1": "Executing", "n2": "Executing"})
    aws.allowed["ListPipelineExecutionSteps"] = 1

    answers = await handler.observe([running("n1"), running("n2")])
    assert [answer.state for answer in answers] == [JobState.RUNNING] * 2
    aws.allowed["ListPipelineExecutionSteps"] = 1
    await handler.observe([running("n1"), running("n2")])

    read = [request["PipelineExecutionArn"] for request in aws.requests["ListPipelineExecutionSteps"]]
    assert sorted(read) == [arn_of("n1"), arn_of("n2")]


async def test_ends_come_before_the_steps_of_what_runs(handler, aws, account, running, arn_of):
    account({"n1": "Executing", "n2": "Succeeded"})
    aws.allowed["ListPipelineExecutionSteps"] = 1

    answers = await handler.observe([running("n1"), running("n2")])

    assert [answer.state for answer in answers] == [JobState.RUNNING, JobState.SUCCEEDED]
    (read,) = aws.requests["ListPipelineExecutionSteps"]
    assert read["PipelineExecutionArn"] == arn_of("n2")
