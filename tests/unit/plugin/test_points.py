"""One look over a batch tells what MLflow's validators would, and makes the records that the long way makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_batch_log_data, _validate_batch_log_limits

from mlferry.plugin import points

NAMES = ["loss", "acc", "train/f1"]

_numbers = st.one_of(
    st.sampled_from([0, 1, 7, True, 1.0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, None, "1", float("nan")]),
    st.integers(0, 3),
)
_values = st.one_of(st.floats(), st.sampled_from([1, True, None, "1", "x"]))
_keys = st.one_of(st.sampled_from(NAMES), st.sampled_from(["", "new", None, 3, "../up"]))


@st.composite
def _metrics(draw: st.DrawFn) -> Metric:
    links: dict[str, Any] = {}
    if draw(st.integers(0, 7)) == 0:
        links = draw(st.sampled_from([{"model_id": "m-1"}, {"dataset_name": "d", "dataset_digest": "e"}]))
    ordinary = draw(st.integers(0, 3)) > 0
    key = draw(st.sampled_from(NAMES) if ordinary else _keys)
    value = draw(st.floats() if ordinary else _values)
    timestamp = 1_790_000_000_000 if ordinary else draw(_numbers)
    return Metric(key, value, timestamp, 3 if ordinary else draw(_numbers), **links)


def passes(metrics: list[Metric]) -> bool:
    try:
        _validate_batch_log_limits(*_validate_batch_log_data(metrics, [], []))
        return True
    except (MlflowException, TypeError):
        return False


@given(st.lists(_metrics(), max_size=5))
def test_a_plain_batch_is_one_that_the_validators_pass_and_one_record(metrics: list[Metric]) -> None:
    found = points.plain(metrics, frozenset(NAMES))
    if found is not None:
        assert passes(metrics)
        assert repr([found]) == repr(list(points.records(metrics)))  # repr: a NaN is none other


def test_what_a_training_logs_is_plain() -> None:
    metrics = [Metric("loss", 0.5, 1_790_000_000_000, 3), Metric("acc", float("nan"), 1_790_000_000_000, 3)]
    found = points.plain(metrics, {"loss", "acc"})
    assert repr(found) == "(1790000000000, 3, {'loss': 0.5, 'acc': nan})"


@pytest.mark.parametrize(
    "odd",
    [
        Metric("new", 0.5, 1, 3),
        Metric("loss", 0.5, 1, 3),
        Metric("acc", 1, 1, 3),
        Metric("acc", 0.5, 2, 3),
        Metric("acc", 0.5, 1, 4),
        Metric("acc", 0.5, 1, None),
        Metric("acc", 0.5, 1, 3, model_id="m-1"),
        Metric("acc", 0.5, 1, 3, dataset_name="d", dataset_digest="e"),
        Metric([], 0.5, 1, 3),
    ],
    ids=["name", "twice", "int", "time", "step", "no step", "model", "dataset", "unhashable"],
)
def test_one_odd_point_has_the_batch_looked_at(odd: Metric) -> None:
    usual = Metric("loss", 0.5, 1, 3)
    assert points.plain([usual], {"loss", "acc"}) == (1, 3, {"loss": 0.5})
    assert points.plain([usual, odd], {"loss", "acc"}) is None


@pytest.mark.parametrize("timestamp", [-1, 1 << 63, True, 1.0, None])
def test_a_time_that_is_no_count_of_milliseconds_is_looked_at(timestamp: Any) -> None:
    assert points.plain([Metric("loss", 0.5, timestamp, 3)], {"loss"}) is None


def test_no_batch_and_more_than_mlflow_takes_are_looked_at() -> None:
    many = [Metric(f"m{number}", 0.5, 1, 3) for number in range(1001)]
    names = {metric.key for metric in many}
    assert points.plain(many[:1000], names) is not None
    assert points.plain(many, names) is None
    assert points.plain([], names) is None
    assert points.plain(["m1"], names) is None  # type: ignore[list-item]
    assert points.plain(iter(many[:1]), names) is None  # type: ignore[arg-type]
