"""The rate of the last minutes, counted as records are acknowledged."""

from __future__ import annotations

from mlferry_agent.web.pulse import BUCKET_S, Pulse


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    assert (pulse.per_second(), pulse.history()) == (0.0, [])
    for _ in range(24):
        pulse.add("r", 10)
        pulse.add("r", 40)
        clock.now += BUCKET_S
    assert pulse.per_second() == 10.0
    clock.now += 30
    assert pulse.per_second() == 5.0
    clock.now += 60
    assert (pulse.per_second(), pulse.records) == (0.0, 24 * 50)


def test_silence_is_told_as_silence_and_history_is_bounded() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    pulse.add("r", 7)
    clock.now += 3 * BUCKET_S
    pulse.add("r", 2)
    assert pulse.history() == [7, 0, 0]
    for _ in range(1_000):
        clock.now += BUCKET_S
        pulse.add("r", 1)
    assert pulse.history() == [1] * 120
