"""log_series: whatever holds numbers becomes the same columns."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.spools import only, read_run, told

import mlferry
from mlferry.errors import BadSeries
from mlferry.series import series_records
from mlferry_spool.limits import MAX_SERIES_POINTS
from mlferry_spool.records import Series

NOW = 1_700_000_000_000
INT64 = st.integers(-(2**63), 2**63 - 1)


def points(*arguments: Any) -> list[tuple[float, int, int]]:
    return [point for record in series_records("s", *arguments, NOW) for point in record.points()]


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 1, 2.5],
        (0.5, 1.0, 2.5),
        array("d", [0.5, 1.0, 2.5]),
        array("f", [0.5, 1.0, 2.5]),
        memoryview(array("d", [0.5, 1.0, 2.5])),
        np.array([0.5, 1.0, 2.5]),
        np.array([0.5, 1.0, 2.5], dtype=">f4"),
        np.array([0.5, 0, 1.0, 0, 2.5], dtype="f2")[::2],
        torch.tensor([0.5, 1.0, 2.5], requires_grad=True),
        torch.tensor([0.5, 1.0, 2.5], dtype=torch.bfloat16),
        pandas.Series([0.5, 1.0, 2.5]),
        (value for value in (0.5, 1.0, 2.5)),
    ],
    ids=lambda values: type(values).__name__,
)
def test_any_row_of_numbers_is_a_series(values: Any) -> None:
    assert points(values, None, None) == [(0.5, 0, NOW), (1.0, 1, NOW), (2.5, 2, NOW)]


@pytest.mark.parametrize("steps", [[10, 20, 30], np.array([10, 20, 30]), torch.tensor([10, 20, 30]), range(10, 40, 10)])
def test_even_steps_take_no_room(steps: Any) -> None:
    assert next(series_records("s", [1.0, 2.0, 3.0], steps, None, NOW)).steps == (10, 10)


@given(st.lists(st.tuples(st.floats(), INT64, st.integers(0, 2**63 - 1)), max_size=50))
def test_points_come_back_as_they_were(rows: list[tuple[float, int, int]]) -> None:
    values, steps, times = ([row[at] for row in rows] for at in range(3))
    assert repr(points(values, steps, times)) == repr(rows)


@pytest.mark.parametrize("count", [MAX_SERIES_POINTS, MAX_SERIES_POINTS + 1, 100_000])
def test_a_long_series_is_cut_into_frames(spool: Path, count: int) -> None:
    irregular = np.arange(count) ** 2
    with mlferry.start_run() as run:
        mlferry.log_series("even", np.arange(count) / 8, steps=range(5, 5 + 3 * count, 3), timestamps=irregular)
    records = only(Series, read_run(spool, run.info.run_id))
    assert len(records) == -(-count // MAX_SERIES_POINTS)
    found = told(spool, run.info.run_id).points
    assert found == [("even", at / 8, 5 + 3 * at, at**2) for at in range(count)]


def test_an_empty_series_is_no_record() -> None:
    assert list(series_records("s", [], None, None, NOW)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ([1.0, 2.0], [1], None),
        ([1.0], [1, 2], None),
        ([1.0, 2.0], None, [1]),
        ([1.0, "x"], None, None),
        ([[1.0]], None, None),
        (np.ones((2, 2)), None, None),
        (torch.ones(2, 2), None, None),
        ([1.0], [0.5], None),
        ([1.0], np.array([0.5]), None),
        ([1.0], [2**63], None),
        ([1.0], None, [-1]),
        ([1.0, 2.0], None, [1, -1]),
        (3, None, None),
    ],
    ids=str,
)
def test_what_is_no_series_is_refused(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(BadSeries):
        series_records("s", *arguments, NOW)
