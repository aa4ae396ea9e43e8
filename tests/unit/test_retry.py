"""Waits and attempts: jitter, Retry-After, and who is allowed to give up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.answers import Judgement, Verdict
from mlferry_agent.retry import Attempts, Backoff, attempts_allowed

RETRY = Judgement(Verdict.RETRY, "busy", None, 503)
BAD_REQUEST = Judgement(Verdict.SUSPECT, "sql", None, 400)
INTERNAL = Judgement(Verdict.SUSPECT, "oops", None, 500)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def attempts(seed: int = 1) -> Attempts:
    return Attempts(Backoff(), random.Random(seed), Clock())


@given(st.integers(1, 10**9), st.integers())
def test_a_wait_is_never_longer_than_the_cap(attempt: int, seed: int) -> None:
    assert 0 <= Backoff().delay_s(attempt, random.Random(seed)) <= 60


def test_the_bound_doubles_from_the_base_to_the_cap() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    waits = [Backoff().delay_s(attempt, Highest()) for attempt in range(1, 10)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_agents_that_failed_together_do_not_come_back_together() -> None:
    waits = [Backoff().delay_s(8, random.Random(seed)) for seed in range(200)]
    in_each_quarter = [sum(start <= wait < start + 15 for wait in waits) for start in (0, 15, 30, 45)]
    assert min(in_each_quarter) > 25


@given(st.floats(0, 1e12), st.integers())
def test_retry_after_is_the_least_wait_up_to_an_hour(asked: float, seed: int) -> None:
    wait, asked = Backoff().delay_s(3, random.Random(seed), asked), min(asked, 3600)
    assert asked <= wait <= asked + min(max(asked, 2), 60)


def test_agents_told_the_same_time_come_back_spread_over_as_long_again() -> None:
    waits = [Backoff().delay_s(1, random.Random(seed), 30) for seed in range(200)]
    in_each_third = [sum(start <= wait < start + 10 for wait in waits) for start in (30, 40, 50)]
    assert min(in_each_third) > 40


def test_a_transient_answer_is_retried_for_ever() -> None:
    tries = attempts()
    assert all(tries.again(RETRY) is not None for _ in range(10_000))


@pytest.mark.parametrize(("judgement", "allowed"), [(BAD_REQUEST, 3), (INTERNAL, 8)])
def test_a_suspect_answer_is_retried_a_bounded_number_of_times(judgement: Judgement, allowed: int) -> None:
    tries = attempts()
    waits = [tries.again(judgement) for _ in range(allowed)]
    assert None not in waits[:-1] and waits[-1] is None
    assert attempts_allowed(judgement) == allowed


def test_an_outage_before_a_suspect_answer_does_not_use_up_its_attempts() -> None:
    tries = attempts()
    for _ in range(50):
        tries.again(RETRY)
    assert tries.again(BAD_REQUEST) is not None
    tries.again(RETRY)
    assert tries.again(BAD_REQUEST) is not None
    assert tries.again(BAD_REQUEST) is None


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.RETRY, Verdict.SUSPECT)])
def test_a_final_verdict_is_never_retried(verdict: Verdict) -> None:
    assert attempts().again(Judgement(verdict, "", 5.0, 400)) is None


def test_the_same_seed_waits_the_same() -> None:
    one, other = attempts(7), attempts(7)
    assert [one.again(INTERNAL) for _ in range(5)] == [other.again(INTERNAL) for _ in range(5)]
    assert one.made == 5


def test_what_fails_while_others_pass_waits_by_itself_and_ever_longer() -> None:
    tries = attempts()
    assert [tries.again(RETRY, 999.0) for _ in range(5)] == [0.0] * 5
    waits = [tries.again(RETRY, 1000.0) or 0.0 for _ in range(200)]
    assert 0 < waits[0] <= 0.5 and max(waits) > 50
