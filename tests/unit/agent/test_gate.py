"""The gate: so many at once, in their order, whoever gives up."""

from __future__ import annotations

import asyncio
import random

import pytest

from mlferry_agent.gate import Gate
from mlferry_agent.pacing import Window


def opened(most: int) -> Gate:
    return Gate(Window(most, random.Random(1), size=most))


async def test_so_many_at_once_and_the_others_in_the_order_in_which_they_came() -> None:
    gate, order, inside, most = opened(3), [], 0, 0

    async def ask(number: int) -> None:
        nonlocal inside, most
        async with gate.passed():
            order.append(number)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(ask(number) for number in range(20)))
    assert (order, most, gate.has_room) == (list(range(20)), 3, True)


async def test_nobody_goes_before_those_who_wait() -> None:
    gate, leaves = opened(1), [asyncio.Event() for _ in range(3)]

    async def ask(leave: asyncio.Event) -> None:
        async with gate.passed():
            await leave.wait()

    tasks = [asyncio.create_task(ask(leave)) for leave in leaves[:2]]
    await asyncio.sleep(0)
    leaves[0].set()
    await tasks[0]
    assert not gate.has_room
    tasks.append(asyncio.create_task(ask(leaves[2])))
    await asyncio.sleep(0)
    leaves[2].set()
    leaves[1].set()
    await asyncio.gather(*tasks)
    assert gate.has_room


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_gives_up_while_waiting_or_inside_leaves_no_place_taken(seed: int) -> None:
    dice, gate = random.Random(seed), opened(2)

    async def ask() -> None:
        async with gate.passed():
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(ask()) for _ in range(30)]
    while not all(task.done() for task in tasks):
        dice.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.has_room
    async with gate.passed(), gate.passed():
        assert not gate.has_room


async def test_whoever_waits_goes_before_a_newcomer_also_when_more_are_allowed_meanwhile() -> None:
    gate, order, leave = opened(2), [], asyncio.Event()
    gate.pace.limit = 1

    async def ask(number: int) -> None:
        async with gate.passed():
            order.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(ask(number)) for number in range(2)]
    await asyncio.sleep(0)
    gate.pace.limit = 2
    tasks.append(asyncio.create_task(ask(2)))
    await asyncio.sleep(0)
    leave.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_fewer_are_let_in_when_the_pace_says_so() -> None:
    gate = opened(4)
    async with gate.passed(), gate.passed():
        gate.pace.limit = 2
        assert not gate.has_room
        gate.pace.limit = 3
        assert gate.has_room
