"""Numbers, steps, timestamps, and values that become known later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.spools import told

import mlferry
from mlferry import values
from mlferry.errors import BadStep, MlferryError

NOW = 1_700_000_000_000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 5e-324, -0.0, 1.7976931348623157e308, 2.0**53 + 2])
def test_a_float_is_kept_to_the_bit(spool: Path, value: float) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("x", value)
        mlferry.log_metric("x", value)
        mlferry.log_metrics({"x": value})
    assert [kept.hex() for kept in told(spool, run.info.run_id).values("x")] == [value.hex()] * 3


def test_the_fast_and_the_slow_path_agree_on_what_is_no_float(spool: Path) -> None:
    import numpy as np

    mixed: dict[str, Any] = {"a": 1, "b": True, "c": np.float32(0.5), "d": np.float64(0.25), "e": "2.5"}
    with mlferry.start_run() as run:
        for _ in range(2):  # the second time every name is known
            mlferry.log_metrics(mixed)
            for key, value in mixed.items():
                mlferry.log_metric(key, value)
    found = told(spool, run.info.run_id)
    assert {key: found.values(key) for key in mixed} == {
        "a": [1.0] * 4, "b": [1.0] * 4, "c": [0.5] * 4, "d": [0.25] * 4, "e": [2.5] * 4
    }  # fmt: skip
    assert found.dropped == 0


def test_integers_and_booleans_among_floats_are_the_numbers_that_they_stand_for(spool: Path) -> None:
    mixed: dict[str, Any] = {"a": 0.5, "b": 2**53 + 1, "c": True, "d": -3}
    with mlferry.start_run() as run:
        for _ in range(2):
            mlferry.log_metrics(mixed)
    found = told(spool, run.info.run_id)
    assert {key: found.values(key) for key in mixed} == {key: [float(value)] * 2 for key, value in mixed.items()}


def test_what_is_added_to_floats_and_is_none_is_looked_at_on_its_own(spool: Path) -> None:
    import fractions

    with mlferry.start_run() as run:
        for _ in range(2):
            mlferry.log_metrics({"a": 0.5, "b": fractions.Fraction(1, 4)})
            mlferry.log_metrics({"a": 0.5, "b": 2**70})
    found = told(spool, run.info.run_id)
    assert found.values("b") == [0.25, 2.0**70, 0.25, 2.0**70]
    assert found.dropped == 0


def test_nothing_is_computed_with_values_that_are_no_plain_floats(spool: Path) -> None:
    class Scalar:
        """Like a tensor on a GPU: arithmetic with it would start a kernel."""

        def __float__(self) -> float:
            return 1.5

        def __radd__(self, other: Any) -> Any:
            raise AssertionError("computed")

    with mlferry.start_run() as run:
        for _ in range(2):
            mlferry.log_metrics({"a": Scalar(), "b": 0.5})
    assert told(spool, run.info.run_id).values("a") == [1.5, 1.5]


@pytest.mark.parametrize("step", [0, -1, 2**63 - 1, -(2**63), 3.0])
def test_a_whole_step_is_kept(raising: Path, step: Any) -> None:
    with mlferry.start_run() as run:
        for _ in range(2):
            mlferry.log_metric("x", 1.0, step)
            mlferry.log_metrics({"x": 1.0}, step)
    assert {at for _, _, at, _ in told(raising, run.info.run_id).points} == {int(step)}


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 2**64, 1.5, "1", math.inf, [1]])
def test_a_step_that_is_no_int64_is_refused(raising: Path, step: Any) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("x", 1.0)
        for call in (lambda: mlferry.log_metric("x", 1.0, step), lambda: mlferry.log_metrics({"x": 1.0}, step)):
            with pytest.raises(BadStep):
                call()
    assert len(told(raising, run.info.run_id).points) == 1


@pytest.mark.parametrize(("given", "kept"), [(None, NOW), (0, NOW), (1, 1), (5.0, 5), (2**63 - 1, 2**63 - 1)])
def test_a_timestamp_is_now_unless_it_is_given(given: Any, kept: int) -> None:
    assert values.as_timestamp(given, NOW) == kept


@pytest.mark.parametrize("given", [-1, 2**63, 0.5, "x"])
def test_a_timestamp_that_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(BadStep):
        values.as_timestamp(given, NOW)


class Slow:
    """A value whose number is not known yet."""


class Keeper:
    """Keeps such values until it is told their number."""

    def __init__(self) -> None:
        self.waiting: list[tuple[values.Call, Mapping[str, Any]]] = []

    def takes(self, value: Any) -> bool:
        return isinstance(value, Slow)

    def take(self, values: Mapping[str, Any], call: values.Call) -> list[MlferryError]:
        self.waiting.append((call, values))
        return []

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        for number, (call, names) in enumerate(self.waiting):
            call.deliver(dict.fromkeys(names, float(number)))
        self.waiting.clear()
        return True


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    values.register_later(keeper)
    yield keeper
    values._laters.remove(keeper)


def test_a_value_known_later_bears_the_time_and_step_of_its_call(spool: Path, keeper: Keeper) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("slow", Slow(), step=3, timestamp=77)
        mlferry.log_metrics({"quick": 0.5, "slow": Slow()}, step=4, timestamp=78)
        assert told(spool, run.info.run_id).points == [("quick", 0.5, 4, 78)]
        mlferry.flush()
        assert told(spool, run.info.run_id).points[1:] == [("slow", 0.0, 3, 77), ("slow", 1.0, 4, 78)]


def test_the_end_of_a_run_waits_for_what_is_not_yet_known(spool: Path, keeper: Keeper) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("slow", Slow())
    found = told(spool, run.info.run_id)
    assert found.values("slow") == [0.0]
    assert found.status == "FINISHED"
