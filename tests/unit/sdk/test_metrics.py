"""``log_metric`` and ``log_metrics`` on their fast path and beside it: the record is the same."""

from __future__ import annotations

import pickle  # noqa: TID251 - what other programs do with our functions
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.spools import only, read_run, run_ids

import mlferry
from mlferry import metrics
from mlferry.errors import MlferryError
from mlferry.values import Call
from mlferry_spool.records import Metrics, Open

NUMBERS = [0.5, 3, True, np.float64(0.25), np.float32(0.1), np.float16(2), np.int64(-7), np.uint8(255), 1 << 60]


def points(spool: Path) -> list[tuple[str, int, float]]:
    (run_id,) = run_ids(spool)
    found = only(Metrics, read_run(spool, run_id))
    return [(key, record.step, value) for record in found for key, value in record.values.items()]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_the_first_and_the_second_time_a_number_is_logged_its_record_is_the_same(spool: Path, value: Any) -> None:
    with mlferry.start_run():
        for step in (1, 2, 3):
            mlferry.log_metric("number", value, step)
            mlferry.log_metrics({"first": 0.5, "second": value}, step)
            mlferry.log_metrics({"third": value}, step)
    told = points(spool)
    as_float = float(value)
    assert [point for point in told if point[0] == "number"] == [("number", step, as_float) for step in (1, 2, 3)]
    assert [point for point in told if point[0] == "second"] == [("second", step, as_float) for step in (1, 2, 3)]
    assert [point for point in told if point[0] == "third"] == [("third", step, as_float) for step in (1, 2, 3)]


def test_numbers_of_numpy_are_learnt_and_nothing_else_is(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.learn_type.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(metrics, "_POINT", {float})
    monkeypatch.setattr(metrics, "_ROW", {float})

    class Mine(float):
        pass

    with mlferry.start_run():
        for value in (np.float64(1), np.float32(1), "1.5", np.array([2.0]), Mine(3)):
            mlferry.log_metric("m", value)
    assert {float, np.float64, np.float32} == metrics._POINT
    assert {float, np.float64} == metrics._ROW


class Waiting:
    """What a tensor on a GPU is to the training thread: whoever asks it for its number waits."""

    asked = 0

    def __radd__(self, other: float) -> Waiting:
        return self

    __add__ = __radd__

    def __float__(self) -> float:
        type(self).asked += 1
        return 1.0


class Waiter:
    def takes(self, value: Any) -> bool:
        return isinstance(value, Waiting)

    def take(self, values: Mapping[str, Any], call: Call) -> list[MlferryError]:
        return []

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        return True


def test_a_value_that_would_have_to_be_waited_for_is_never_asked(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlferry.values._laters", [Waiter()])
    with mlferry.start_run():
        for _ in range(2):
            mlferry.log_metric("m", Waiting())
            mlferry.log_metrics({"a": 0.5, "b": Waiting()})
            mlferry.log_metrics({"b": Waiting(), "a": 0.5})
            mlferry.log_metrics({"b": Waiting()})
    assert Waiting.asked == 0
    assert [key for key, _, _ in points(spool)] == ["a"] * 4


@pytest.mark.parametrize("step", [None, 5, 5.0, np.int32(5), True])
def test_a_step_is_the_same_whole_number_on_every_path(spool: Path, step: Any) -> None:
    expected = int(step or 0)
    with mlferry.start_run():
        for _ in range(3):
            mlferry.log_metric("m", 1.0, step)
    assert points(spool) == [("m", expected, 1.0)] * 3


def test_the_first_metric_starts_the_run_that_it_is_logged_to(spool: Path) -> None:
    metrics.TEMPLATES.clear()
    for _ in range(2):
        mlferry.log_metric("m", 1.0)
        mlferry.end_run()
    for run_id in run_ids(spool):
        opening, *others = read_run(spool, run_id)
        (metric,) = only(Metrics, others)
        assert isinstance(opening, Open)
        assert metric.timestamp >= opening.start_time


def test_each_thread_logs_to_its_own_run(spool: Path) -> None:
    def other() -> None:
        with mlferry.start_run(run_name="other"):
            for step in range(3):
                mlferry.log_metric("m", 2.0, step)

    with mlferry.start_run(run_name="this"):
        mlferry.log_metric("m", 1.0)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        mlferry.log_metric("m", 1.0)
    values = [
        [v for r in only(Metrics, read_run(spool, run_id)) for v in r.values.values()] for run_id in run_ids(spool)
    ]
    assert sorted(values) == [[1.0, 1.0], [2.0, 2.0, 2.0]]


def test_the_function_can_be_sent_to_another_process() -> None:
    for call in (mlferry.log_metric, mlferry.log_metrics):
        assert pickle.loads(pickle.dumps(call)) == call  # noqa: S301
