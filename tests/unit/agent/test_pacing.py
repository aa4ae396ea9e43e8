"""How many requests at once, and how soon the next: bounds, fairness, and what a server that is away is spared."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.pacing import Breaker, Norms, Window
from mlferry_agent.retry import Backoff


def window(size: float = 1.0, most: int = 4) -> Window:
    return Window(most, random.Random(1), size=size)


def breaker(seed: int = 1) -> Breaker:
    return Breaker(Backoff(), random.Random(seed))


@given(st.integers(1, 8), st.lists(st.tuples(st.sampled_from(["answered", "refused"]), st.floats(0, 500))))
def test_a_window_has_bounds_whatever_happens(most: int, events: list[tuple[str, float]]) -> None:
    here, now = window(most=most), 0.0
    for kind, took in events:
        began, now = now, now + took
        here.refused(began, now) if kind == "refused" else here.answered(began, took, 0.1, now)
        assert 1 / 64 <= here.size <= most
        assert 1 <= here.whole <= most and 0 <= here.pause_s(now) <= 60.001


def test_answers_in_good_time_open_a_window_up_to_its_most() -> None:
    here = window(size=0.125)
    for now in range(60):
        here.answered(now, 0.01, 0.01, now)
    assert (here.size, here.whole, here.pause_s(60)) == (4, 4, 0)


def test_a_window_that_is_not_used_grows_no_further_than_one_more() -> None:
    here = window(size=0.125)
    for now in range(60):
        here.answered(now, 0.01, 0.01, now, used=1)
    assert here.size == 2
    for now in range(60):
        here.answered(now, 0.01, 0.01, now, used=2)
    assert here.size == 3


def test_the_nearer_an_answer_is_to_being_late_the_less_it_opens_a_window() -> None:
    gains = []
    for took in (0.0, 0.4, 0.8):
        here = window(0.5)
        here.answered(0, took, 0.3, took)
        gains.append(here.size - 0.5)
    assert gains[0] > gains[1] > gains[2] >= 0


def test_the_later_an_answer_the_more_a_window_closes_down_to_a_quarter() -> None:
    sizes = []
    for took in (0.375, 0.6, 31.0):
        here = window(size=1.0)
        here.answered(0, took, 0.1, took)
        sizes.append(round(here.size, 6))
    assert sizes == [0.8, 0.5, 0.25]


def test_an_answer_may_take_three_times_what_is_usual_within_bounds() -> None:
    limits = [round(window(1).limit_s(usual), 6) for usual in (0.001, 0.1, 0.3)]
    assert limits == [0.1, 0.3, 0.8]


def test_a_slow_server_is_no_crowd_up_to_four_seconds() -> None:
    limits = [window(1).limit_s(usual) for usual in (0.8, 2.0, 30.0)]
    assert limits == pytest.approx([1.2, 3.0, 4.0])
    assert window(1 / 64).limit_s(30.0) == pytest.approx(4.0 * 64**0.25)


def test_what_a_window_does_to_itself_is_no_crowd() -> None:
    assert window(2).limit_s(0.1) == 2 * window(1).limit_s(0.1)
    assert (window(4).limit_s(0.01), window(4).limit_s(0.2)) == (0.4, 0.5)


def test_the_smaller_a_window_the_more_delay_it_bears() -> None:
    sizes = []
    for size in (1.0, 0.1):
        here = window(size)
        here.answered(0.0, 0.4, 0.1, 0.4)
        sizes.append(here.size - size)
    assert sizes[0] < 0 < sizes[1]


def test_a_hang_makes_the_pause_after_it_no_longer_than_a_late_answer_does() -> None:
    pauses = []
    for took in (4.0, 30.0):
        here = window(0.1)
        here.answered(0.0, took, 0.1, took)
        pauses.append(here.pause_s(took))
    assert pauses[0] == pauses[1] < 60


def test_what_goes_wrong_together_counts_once() -> None:
    here = window(4.0)
    for _ in range(4):
        here.refused(began=0.0, now=1.0)
    assert here.size == 2.0
    here.refused(began=1.0, now=2.0)
    assert here.size == 1.0


def test_a_tenth_of_a_request_on_its_way_is_nine_times_its_duration_of_rest() -> None:
    rests = []
    for seed in range(200):
        here = Window(4, random.Random(seed), size=0.1)
        here.answered(0.0, 1.0, 1.0, 1.0)
        rests.append(here.pause_s(1.0) / (1 / here.size - 1))
    assert 0.5 <= min(rests) < 0.6 and 1.4 < max(rests) <= 1.5


def test_the_usual_is_the_shortest_of_the_last_minutes_for_each_kind() -> None:
    norms = Norms()
    assert norms.usual_s("small", 0.2, 0.0) == 0.2
    assert norms.usual_s("small", 3.0, 1.0) == 0.2
    assert norms.usual_s("large", 3.0, 1.0) == 3.0
    assert norms.usual_s("small", 3.0, 700.0) == 0.2
    assert norms.usual_s("small", 3.0, 1400.0) == 3.0


def test_requests_that_were_on_their_way_when_the_server_went_are_one_failure() -> None:
    together, alone = breaker(), breaker()
    for _ in range(30):
        together.failed(began=0.0, now=1.0)
    alone.failed(began=0.0, now=1.0)
    assert together.wait_s(1.0) == alone.wait_s(1.0) <= 0.5


def test_one_tries_and_the_others_wait_for_it() -> None:
    here = breaker()
    here.failed(0.0, 1.0)
    here.is_tried = True
    assert here.wait_s(100.0) == math.inf
    here.answered()
    assert here.wait_s(100.0) == 0


def test_a_time_that_the_server_asked_for_holds_although_another_request_passes() -> None:
    here = breaker()
    here.failed(0.0, 1.0, retry_after_s=30.0)
    here.answered()
    assert 30 <= here.wait_s(1.0) <= 60
    assert here.wait_s(62.0) == 0


def test_a_server_that_answers_now_and_then_is_asked_more_rarely_than_one_that_answers() -> None:
    def waits(*, answers: bool) -> float:
        here, now, waited = breaker(), 0.0, 0.0
        for _ in range(200):
            for _ in range(2):
                here.failed(now, now)
                waited += here.wait_s(now)
                now += here.wait_s(now)
            if answers:
                for _ in range(20):
                    here.answered()
            else:
                here.answered()
        return waited / 200

    assert waits(answers=True) < 2
    assert waits(answers=False) > 20


@given(st.lists(st.booleans(), max_size=300), st.integers())
def test_no_wait_is_longer_than_a_minute_unless_the_server_asked_for_it(fails: list[bool], seed: int) -> None:
    here, now = breaker(seed), 0.0
    for fail in fails:
        here.failed(now, now) if fail else here.answered()
        assert 0 <= here.wait_s(now) <= 60.001
        now += here.wait_s(now)
