"""Faults, limits, holds and the clock, over HTTP as a test of another process uses them."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from pydantic import ValidationError
from remora_sagemaker.simulator import Fault, SimulatedClock, Simulator

STEPS = [{"Name": "a", "Type": "Processing"}]


@pytest.fixture
def simulator():
    simulator = Simulator(clock=SimulatedClock(frozen=True, start=1_700_000_000.0))
    simulator.create_pipeline("P", {"Version": "2020-12-01", "Steps": STEPS})
    return simulator


class Client:
    def __init__(self, session):
        self._session = session

    async def control(self, method, path, body=None):
        async with self._session.request(method, f"/_sim/{path}", json=body) as response:
            return response.status, await response.json()

    async def call(self, operation, request):
        headers = {"X-Amz-Target": f"SageMaker.{operation}"}
        async with self._session.post("/", data=json.dumps(request), headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def start(self, token="t" * 32, name="P"):
        return await self.call("StartPipelineExecution", {"PipelineName": name, "ClientRequestToken": token})

    async def describe(self):
        return await self.call("DescribePipeline", {"PipelineName": "P"})

    async def executions(self):
        _, answer = await self.control("GET", "executions")
        return answer["executions"]


@pytest.fixture
async def client(simulator):
    async with simulator.serve() as url, aiohttp.ClientSession(url) as session:
        yield Client(session)


async def test_health_says_who_it_is(client):
    assert await client.control("GET", "health") == (
        200,
        {"status": "ok", "region": "us-east-1", "account": "123456789012"},
    )


async def test_the_clock_can_be_advanced_frozen_and_sped_up(client):
    assert await client.control("POST", "clock", {"advance": 30}) == (
        200,
        {"now": 1_700_000_030.0, "speed": 1.0, "frozen": True},
    )
    _, running = await client.control("POST", "clock", {"speed": 60, "frozen": False})
    assert (running["speed"], running["frozen"]) == (60, False)
    _, frozen = await client.control("POST", "clock", {"frozen": True})
    assert frozen["now"] >= running["now"]
    assert await client.control("GET", "clock") == (200, frozen)


@pytest.mark.parametrize("change", [{"advance": -1}, {"speed": 0}, {"fast": True}, {"advance": "soon"}, []])
async def test_a_wrong_change_of_the_clock_is_refused_and_changes_nothing(client, change):
    before = await client.control("GET", "clock")
    status, answer = await client.control("POST", "clock", change)
    assert status == 400
    assert answer["error"]
    assert await client.control("GET", "clock") == before


async def test_an_injected_error_is_served_so_many_times_and_to_that_operation_only(client):
    fault = {"operation": "DescribePipeline", "error": "ThrottlingException", "message": "Slow down", "times": 2}
    status, armed = await client.control("POST", "faults", [fault])
    assert (status, len(armed["faults"])) == (200, 1)
    assert (await client.start())[0] == 200
    assert await client.describe() == (400, {"__type": "ThrottlingException", "message": "Slow down"})
    _, left = await client.control("GET", "faults")
    assert [each["times"] for each in left["faults"]] == [1]
    assert (await client.describe())[0] == 400
    assert (await client.describe())[0] == 200
    _, calls = await client.control("GET", "calls")
    assert calls == {
        "calls": {"DescribePipeline": 3, "StartPipelineExecution": 1},
        "faults": {"DescribePipeline": 2},
        "throttled": {},
        "waiting": {},
    }


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"error": "InternalFailure"}, 500),
        ({"error": "ServiceUnavailable"}, 503),
        ({"error": "AccessDeniedException"}, 400),
        ({"error": "Odd", "status": 418}, 418),
    ],
)
async def test_an_injected_error_has_the_status_of_its_code_or_the_one_given(client, fault, status):
    await client.control("POST", "faults", fault)
    assert (await client.describe())[0] == status


async def test_an_error_before_the_operation_leaves_nothing_behind_and_one_after_it_only_loses_the_answer(client):
    before = {"operation": "StartPipelineExecution", "error": "InternalFailure"}
    await client.control("POST", "faults", [before, {**before, "when": "after"}])
    assert (await client.start())[0] == 500
    assert await client.executions() == []
    assert (await client.start())[0] == 500
    assert len(await client.executions()) == 1
    assert (await client.start())[0] == 200
    (execution,) = await client.executions()
    assert execution == {
        "arn": execution["arn"],
        "pipeline": "P",
        "token": "t" * 32,
        "status": "Executing",
        "created_at": 1_700_000_000.0,
        "parameters": {},
        "replays": 1,
        "retries": 0,
        "stopped": False,
    }


async def test_a_reset_closes_the_connection_without_an_answer(client):
    await client.control("POST", "faults", {"reset": True, "when": "after", "operation": "StartPipelineExecution"})
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.start()
    assert len(await client.executions()) == 1
    assert (await client.start())[0] == 200
    assert len(await client.executions()) == 1


async def test_faults_can_be_chosen_by_what_the_request_contains_and_cleared(client, simulator):
    simulator.create_pipeline("Q", {"Version": "2020-12-01", "Steps": STEPS})
    await client.control("POST", "faults", {"contains": '"Q"', "error": "InternalFailure", "times": None})
    assert (await client.start())[0] == 200
    assert [(await client.start(name="Q"))[0] for _ in range(3)] == [500, 500, 500]
    assert await client.control("DELETE", "faults") == (200, {"faults": []})
    assert (await client.start(name="Q"))[0] == 200


async def test_latency_delays_and_then_lets_the_request_through(client):
    await client.control("POST", "faults", {"latency": 0.001})
    assert (await client.describe())[0] == 200


@pytest.mark.parametrize(("when", "executions"), [("before", 0), ("after", 1)])
async def test_a_held_request_waits_until_it_is_released(client, when, executions):
    await client.control("POST", "faults", {"operation": "StartPipelineExecution", "hold": "door", "when": when})
    starting = asyncio.create_task(client.start(), name="starting")
    assert await client.control("GET", "holds/door") == (200, {"waiting": 1})
    assert (await client.control("GET", "calls"))[1]["waiting"] == {"door": 1}
    assert len(await client.executions()) == executions
    assert not starting.done()
    assert await client.control("POST", "release", {"hold": "door"}) == (200, {"released": 1})
    assert (await starting)[0] == 200
    assert len(await client.executions()) == 1
    assert (await client.control("GET", "calls"))[1]["waiting"] == {}


async def test_a_held_request_takes_effect_even_if_its_client_is_gone_by_then(client, simulator):
    simulator.faults.add(Fault(operation="StartPipelineExecution", hold="door"))
    starting = asyncio.create_task(client.start(), name="starting")
    await simulator.faults.held("door")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert simulator.faults.release("door") == 1
    assert (await client.describe())[0] == 200
    assert len(await client.executions()) == 1


async def test_a_held_request_is_cut_off_by_a_reset_and_never_takes_effect(client, simulator):
    simulator.faults.add(Fault(operation="StartPipelineExecution", hold="door"))
    starting = asyncio.create_task(client.start(), name="starting")
    await simulator.faults.held("door")
    await client.control("POST", "reset")
    with pytest.raises(aiohttp.ClientConnectionError):
        await starting
    assert await client.executions() == []


async def test_several_requests_may_be_held_together(client, simulator):
    simulator.faults.add(Fault(operation="DescribePipeline", hold="door", times=2))
    first = asyncio.create_task(client.describe(), name="first")
    await simulator.faults.held("door")
    second = asyncio.create_task(client.describe(), name="second")
    while (await client.control("GET", "calls"))[1]["waiting"] != {"door": 2}:
        assert not second.done()
    assert simulator.faults.release("door") == 2
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_a_hold_that_nobody_reaches_times_out(client):
    status, answer = await client.control("GET", "holds/door?timeout=0.001")
    assert (status, answer) == (408, {"error": "nothing happened in that time"})


async def test_releasing_what_nobody_holds_releases_nobody(client):
    assert await client.control("POST", "release", {"hold": "door"}) == (200, {"released": 0})


async def test_the_server_closes_at_once_even_while_a_request_is_held(simulator):
    async with aiohttp.ClientSession() as session:
        async with simulator.serve() as url:
            simulator.faults.add(Fault(hold="door"))
            held = asyncio.create_task(Client(aiohttp_session(session, url)).describe(), name="held")
            await simulator.faults.held("door")
        with pytest.raises(aiohttp.ClientConnectionError):
            await held


def aiohttp_session(session, url):
    class Based:
        def post(self, path, **more):
            return session.post(url + path, **more)

    return Based()


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"operation": "Dance", "error": "X"}, "SageMaker has no operation 'Dance'"),
        ({"operation": "*"}, "at least one of: latency, hold, error, reset"),
        ({"error": "X", "reset": True}, "an error or a reset, not both"),
        ({"error": "X", "times": 0}, "greater than or equal to 1"),
        ({"error": "X", "when": "later"}, "'before' or 'after'"),
        ({"error": "X", "colour": "red"}, "Extra inputs are not permitted"),
    ],
)
async def test_a_wrong_fault_is_refused_with_the_reason(client, fault, problem):
    status, answer = await client.control("POST", "faults", fault)
    assert status == 400
    assert problem in answer["error"]
    with pytest.raises(ValidationError):
        Fault(**fault)


async def test_limits_throttle_by_simulated_time(client, simulator):
    assert await client.control("POST", "limits", {"DescribePipeline": 2}) == (200, {"limits": {"DescribePipeline": 2}})
    assert [(await client.describe())[0] for _ in range(3)] == [200, 200, 400]
    assert await client.describe() == (400, {"__type": "ThrottlingException", "message": "Rate exceeded"})
    assert (await client.start())[0] == 200
    simulator.clock.advance(0.5)
    assert [(await client.describe())[0] for _ in range(2)] == [200, 400]
    assert (await client.control("GET", "calls"))[1]["throttled"] == {"DescribePipeline": 3}
    assert await client.control("POST", "limits", {"DescribePipeline": None}) == (200, {"limits": {}})
    assert (await client.describe())[0] == 200


async def test_one_limit_may_be_for_all_operations_together(client):
    await client.control("POST", "limits", {"*": 1})
    assert [(await client.describe())[0], (await client.start())[0]] == [200, 400]


@pytest.mark.parametrize("limits", [{"Dance": 1}, {"DescribePipeline": 0}, {"DescribePipeline": "fast"}, []])
async def test_a_wrong_limit_is_refused_and_changes_nothing(client, limits):
    status, answer = await client.control("POST", "limits", limits)
    assert status == 400
    assert answer["error"]
    assert await client.control("GET", "limits") == (200, {"limits": {}})


async def test_the_quota_can_be_set_and_lifted(client):
    assert await client.control("POST", "quota", {"executions": 0}) == (200, {"executions": 0})
    assert (await client.start())[1]["__type"] == "ResourceLimitExceeded"
    await client.control("POST", "quota", {"executions": None})
    assert (await client.start())[0] == 200


async def test_a_reset_forgets_everything_that_happened(client):
    await client.start()
    await client.control("POST", "faults", {"error": "InternalFailure", "times": None})
    await client.control("POST", "limits", {"*": 1})
    await client.control("POST", "quota", {"executions": 0})
    assert await client.control("POST", "reset") == (200, {})
    assert await client.executions() == []
    assert (await client.start())[0] == 200
    assert (await client.describe())[0] == 200
    assert (await client.control("GET", "calls"))[1]["calls"] == {"DescribePipeline": 1, "StartPipelineExecution": 1}


@pytest.mark.parametrize(("method", "path"), [("GET", "nothing"), ("DELETE", "clock"), ("GET", "")])
async def test_an_unknown_control_is_not_found(client, method, path):
    status, answer = await client.control(method, path)
    assert status == 404
    assert f"there is no {method} /_sim/{path}" in answer["error"]


async def test_every_request_may_be_slowed_down():
    simulator = Simulator(latency=0.001)
    async with simulator.serve() as url, aiohttp.ClientSession(url) as session:
        client = Client(session)
        assert (await client.describe())[1]["__type"] == "ResourceNotFound"


def test_the_clock_follows_its_source_at_its_speed():
    real = 100.0
    clock = SimulatedClock(start=0.0, speed=10, source=lambda: real)
    real += 3
    clock.set_speed(2)
    assert clock.now() == 30
    real += 6
    clock.freeze()
    real += 1000
    assert clock.now() == 42
    clock.advance(8)
    clock.freeze(False)
    real += 2
    assert clock.now() == 54


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
def test_a_clock_needs_a_speed_above_zero(speed):
    with pytest.raises(ValueError, match="speed"):
        SimulatedClock(speed=speed)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_clock_does_not_go_back(seconds):
    with pytest.raises(ValueError, match="cannot be advanced"):
        SimulatedClock(frozen=True).advance(seconds)
