"""How many requests at once: what serves best is found, and found anew when it changes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import pytest

from mlferry_agent.pace import Pace, work_of

#: Requests a second that a server carries, by how many it has at once.
Server = Mapping[int, float]

SQLITE: Server = {1: 9.7, 2: 8.2, 4: 8.0}
ONE_PROCESS: Server = {1: 70.0, 2: 80.0, 4: 81.0}
MANY_PROCESSES: Server = {1: 5.0, 2: 9.5, 4: 18.0}


def drive(pace: Pace, server: Callable[[float], Server], seconds: float, began: float = 0.0) -> set[int]:
    """A backlog: as many requests as allowed are on their way all the time. Returns the limits of the last quarter."""
    now, seen = began, set()
    on_their_way: list[tuple[float, float]] = []
    while now < began + seconds:
        while len(on_their_way) < pace.limit:
            at_once = len(on_their_way) + 1
            known = server(now)
            heapq.heappush(on_their_way, (now + at_once / known[min(known, key=lambda one: abs(one - at_once))], now))
        now, sent = heapq.heappop(on_their_way)
        pace.note(100_000, sent, now)
        if now > began + seconds * 0.75:
            seen.add(pace.limit)
    return seen


@pytest.mark.parametrize(
    ("server", "best"), [(SQLITE, {1}), (ONE_PROCESS, {2}), (MANY_PROCESSES, {4})], ids=["sqlite", "one", "many"]
)
def test_the_number_that_serves_best_is_found_and_only_trials_leave_it(server: Server, best: set[int]) -> None:
    pace = Pace(4)
    limits: list[int] = []

    def note(now: float) -> Server:
        limits.append(pace.limit)
        return server

    drive(pace, note, 600.0)
    late = limits[len(limits) // 2 :]
    assert sum(limit in best for limit in late) / len(late) > 0.8


@pytest.mark.parametrize(("server", "best"), [(MANY_PROCESSES, 4), (SQLITE, 1)], ids=["many", "sqlite"])
def test_it_begins_with_one_and_goes_on_with_more_within_seconds_where_they_serve_better(
    server: Server, best: int
) -> None:
    pace = Pace(4)
    assert pace.limit == 1
    assert drive(pace, lambda now: server, 8.0) == {best}


def test_a_server_that_gets_more_processes_is_noticed() -> None:
    pace = Pace(4)
    drive(pace, lambda now: SQLITE, 300.0)
    assert pace.limit in (1, 2)
    assert 4 in drive(pace, lambda now: MANY_PROCESSES, 1_000.0, began=300.0)


@pytest.mark.parametrize("begin", [2, 4])
def test_in_quiet_times_nothing_is_learnt(begin: int) -> None:
    pace = Pace(4, begin)
    for number in range(10_000):
        pace.note(work_of(b"x"), number * 0.1, number * 0.1 + 0.01)
    assert pace.limit == begin


def test_what_was_counted_while_the_server_was_unwell_does_not_count() -> None:
    pace = Pace(4, 4)
    for number in range(10_000):
        pace.note(work_of(b"x"), number * 0.1, number * 0.1 + 0.4)
        if number % 5 == 4:
            pace.forget()
    assert pace.limit == 4


def test_at_least_one_and_at_most_as_many_as_allowed() -> None:
    for most in (1, 2, 3, 5):
        pace = Pace(most)
        seen = drive(pace, lambda now: {1: 9.0, 5: 9.0 if now < 200 else 45.0}, 400.0)
        assert seen <= set(range(1, most + 1))
