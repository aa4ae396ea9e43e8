"""A hundred agents and one server, in virtual time: nobody tramples a server that comes back, and all get their share.

``benchmarks/fleet.py simulate`` does the same with a thousand. What must hold is far from what is seen (there), so that it
is broken by a policy that is broken, and not by another seed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.simulation.fleet import Fleet, simulate

from mlferry_agent.pacing import Window
from mlferry_agent.retry import Backoff

_FLEET = Fleet(agents=100, capacity=10.0, backlog=30, places=20, away_s=(60.0, 240.0))


#: They begin together, and the server as it comes can't bear it if each has a request on its way.
_ALL_AT_ONCE = Fleet(agents=50, capacity=60.0, backlog=100, when_full="exhausts", away_s=(1e6, 1e6 + 1))


@pytest.mark.parametrize(
    "differs",
    [{}, {"when_away": "announces"}, {"when_away": "hangs"}, {"when_full": "sheds"}, {"when_full": "limits"}],
    ids=str,
)
def test_a_fleet_neither_tramples_nor_starves_a_server(differs: dict[str, Any]) -> None:
    found = simulate(dataclasses.replace(_FLEET, **differs))
    assert [len(times) for times in found.answered] == [_FLEET.backlog] * _FLEET.agents
    assert found.stampede < 4
    assert found.knocks < 12
    assert found.goodput > 0.8
    assert found.fairness() > 0.6
    assert found.lost_work < _FLEET.agents * _FLEET.backlog


def test_whoever_uses_the_server_beside_a_fleet_waits_seconds_and_not_minutes() -> None:
    found = simulate(dataclasses.replace(_FLEET, agents=200, backlog=15))
    assert found.wait_s(0.5) < 6
    assert found.fairness() > 0.8


def test_a_fleet_rarely_has_a_server_as_it_comes_wait_for_itself() -> None:
    fleets = [dataclasses.replace(_ALL_AT_ONCE, seed=seed) for seed in (1, 2, 3, 4)]
    founds = [simulate(fleet) for fleet in fleets]
    assert all(len(times) == _ALL_AT_ONCE.backlog for found in founds for times in found.answered)
    assert sum(found.exhausted for found in founds) < 100
    assert sorted(found.drained_s for found in founds)[1] < 1.5 * _ALL_AT_ONCE.work_s


def test_an_agent_alone_loses_nothing_by_its_manners() -> None:
    found = simulate(Fleet(agents=1, capacity=20.0, backlog=3000, away_s=(1e6, 1e6 + 1), workers=1))
    assert found.goodput > 0.8


def test_one_seed_gives_one_fleet() -> None:
    small = dataclasses.replace(_FLEET, agents=20, backlog=10)
    assert simulate(small).answered == simulate(small).answered


# -- what it would find ---------------------------------------------------------------------------------------------------


def test_agents_that_obey_a_time_to_the_second_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay_s", lambda self, attempt, rng, asked=None: asked or 1.0)
    assert simulate(dataclasses.replace(_FLEET, when_away="announces")).stampede > 4


def test_agents_that_do_not_back_off_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay_s", lambda self, attempt, rng, asked=None: 2.0)
    assert simulate(dataclasses.replace(_FLEET, away_s=(60.0, 125.0))).knocks > 12


def test_agents_that_do_not_make_room_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "limit_s", lambda self, usual_s: 1e9)
    assert simulate(dataclasses.replace(_FLEET, agents=200, backlog=15)).wait_s(0.5) > 6
    founds = [simulate(dataclasses.replace(_ALL_AT_ONCE, seed=seed)) for seed in (1, 2, 3, 4)]
    assert sum(found.exhausted for found in founds) > 1_000
    assert min(found.drained_s for found in founds) > 4 * _ALL_AT_ONCE.work_s
