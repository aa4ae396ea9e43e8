"""Hundreds of days of agent, server, files and clocks under one seed each; ``make simulate SEEDS=n`` lives through
thousands.

Whatever happens on the way, when all is well again spool, ledger and server agree, nothing stands there twice, and
nothing was closed that lived (``world`` says what that means). A day that fails is printed as the shortest list of
actions that fails alike.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation import world
from tests.simulation.__main__ import examined
from tests.simulation.days import Action, Day, draw, shrink
from tests.simulation.world import live_through

from mlferry_agent.closing import Verdict
from mlferry_agent.feeds import Feed
from mlferry_agent.identity import Identity
from mlferry_agent.models import Models
from mlferry_agent.news import News
from mlferry_agent.registrations import Registrations

SEEDS = 240
SEEDS_A_TEST = 30


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_whatever_happens_each_thing_arrives_once_and_nothing_that_lives_is_closed(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        assert not (told := examined(seed)), told


def test_one_seed_gives_one_history(monkeypatch: pytest.MonkeyPatch) -> None:
    histories: list[list[Any]] = []
    whole = world.World.live

    async def live(self: world.World) -> None:
        await whole(self)
        histories.append(self.server.heard)

    monkeypatch.setattr(world.World, "live", live)
    for seed in range(10):
        assert live_through(draw(seed)) == live_through(draw(seed))
        first, second = histories[-2:]
        assert first and first == second


def test_a_day_is_shortened_to_what_it_takes_to_fail() -> None:
    actions = tuple(Action(verb, number, 0) for number, verb in enumerate("abcdefghijklmnop"))

    def found_in(day: Day) -> list[str]:
        verbs = "".join(action.verb for action in day.actions)
        return (
            [f"day {len(verbs)}: lost"] if "c" in verbs and "k" in verbs else ["something else"] if "a" in verbs else []
        )

    shortest = shrink(Day(1, "drop", False, actions), found_in)
    assert "".join(action.verb for action in shortest.actions) == "ck"


# -- what it would find: agents that are broken in one way each -------------------------------------------------------------


def fails() -> bool:
    return any(live_through(draw(seed)) for seed in range(60))


async def _finds_nothing(*given: Any, **told: Any) -> Any:
    return None


async def _finds_no_run(*given: Any, **told: Any) -> list[Any]:
    return []


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Identity, "_search", _finds_no_run),
        (Identity, "settle_doubt", _finds_nothing),
        (Models, "_search", _finds_nothing),
        (Registrations, "_search", _finds_nothing),
        (Feed, "_covered", lambda self, lane, queue: self._handled),
        (News, "was_delivered", lambda self, run: None),
    ],
)
def test_an_agent_that_is_broken_is_found_out(
    owner: type, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert fails()


def test_an_agent_that_closes_what_lives_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlferry_agent.deliveries.is_alive", lambda *given, **told: False)
    assert fails()


def test_an_agent_that_takes_any_end_for_the_end_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlferry_agent.deliveries.verdict", lambda writers: Verdict("FINISHED", 1))
    assert fails()
