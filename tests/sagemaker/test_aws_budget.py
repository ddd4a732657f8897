"""Rates, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest
from remora.testing import settle
from remora_sagemaker.budget import Budget, OutOfBudgetError
from remora_sagemaker.rotation import Rotation


async def test_as_many_calls_as_fit_into_a_second_go_at_once(clock):
    budget = Budget(3, clock)

    for _ in range(3):
        await budget.spend(until=0)
    with pytest.raises(OutOfBudgetError):
        await budget.spend(until=0)


async def test_a_rate_below_one_a_second_still_lets_a_call_through(clock):
    budget = Budget(0.5, clock)
    await budget.spend(until=0)

    waiting = asyncio.create_task(budget.spend(until=10), name="waits")
    await clock.advance(1.9)
    assert not waiting.done()
    await clock.advance(0.2)
    assert waiting.done()


async def test_callers_are_served_in_turn_until_their_patience_ends(clock):
    budget = Budget(1, clock)
    served: list[int] = []

    async def caller(number):
        await budget.spend(until=2.5)
        served.append(number)

    callers = [asyncio.create_task(caller(number), name=f"caller {number}") for number in range(6)]
    await settle()
    assert served == [0]
    await clock.advance(1)
    await clock.advance(1)
    assert served == [0, 1, 2]
    await clock.advance(1)

    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[3:]] == [OutOfBudgetError] * 3
    assert served == [0, 1, 2]


async def test_who_cannot_wait_does_not_queue_behind_those_who_can(clock):
    budget = Budget(1, clock)
    await budget.spend(until=0)
    patient = asyncio.create_task(budget.spend(until=100), name="patient")
    await settle()

    with pytest.raises(OutOfBudgetError):
        await budget.spend(until=clock.monotonic())

    await clock.advance(1)
    assert patient.done()


async def test_throttling_slows_down_and_success_speeds_up_again(clock):
    budget = Budget(8, clock)

    budget.throttled()
    assert budget.rate == 4
    for _ in range(100):
        budget.succeeded()
    assert budget.rate == 8


def test_those_never_served_come_first_then_those_served_longest_ago():
    rotation = Rotation(10)
    for key in ("b", "a", "b"):
        rotation.served(key)

    assert rotation.order(["b", "a", "c"], str) == ["c", "a", "b"]
    rotation.forget("b")
    assert rotation.order(["b", "a", "c"], str) == ["b", "c", "a"]


def test_a_rotation_forgets_the_oldest_when_it_is_full():
    rotation = Rotation(2)
    for key in ("a", "b", "c"):
        rotation.served(key)

    assert rotation.order(["c", "b", "a"], str) == ["a", "b", "c"]
