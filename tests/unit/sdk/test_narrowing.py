"""Integers become the narrowest column that holds them, and come back as they were, with numpy and without."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry.narrowing import narrowest
from mlferry_spool.codec import KIND_OF, decode, pack
from mlferry_spool.columns import Integers
from mlferry_spool.records import NarrowSeries, Series

INT64 = st.integers(-(2**63), 2**63 - 1)
SPREADS = st.sampled_from([0, 1, 2**8 - 1, 2**8, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**62, 2**63])

Make = Callable[[list[int]], Any]
both = pytest.mark.parametrize(
    "make", [lambda row: array("q", row), lambda row: np.array(row, "i8")], ids=["array", "numpy"]
)


@st.composite
def rows(draw: st.DrawFn) -> list[int]:
    """Anything, or numbers near a line, at the edges of 64 bits too."""
    count = draw(st.integers(1, 40))
    if draw(st.booleans()):
        return draw(st.lists(INT64, min_size=count, max_size=count))
    first, stride, spread = draw(INT64), draw(st.integers(-(2**57), 2**57) | st.integers(-9, 9)), draw(SPREADS)
    line = (first + stride * at + draw(st.integers(0, spread)) for at in range(count))
    return [min(max(number, -(2**63)), 2**63 - 1) for number in line]


def kept(column: Integers, count: int) -> list[int]:
    """What a reader of the spool makes of a column."""
    narrow = isinstance(column, tuple) and len(column) == 3
    record = (NarrowSeries if narrow else Series)("s", bytes(8 * count), column, (0, 1))
    read = decode(KIND_OF[type(record)], pack(record))
    assert isinstance(read, Series)
    return [step for _, step, _ in read.points()]


@both
@given(row=rows())
def test_integers_come_back_as_they_were(make: Make, row: list[int]) -> None:
    assert kept(narrowest(make(row)), len(row)) == row


@both
@pytest.mark.parametrize(
    ("row", "size"),
    [
        ([5], 0),
        ([7, 7, 7], 0),
        ([3, 1, -1], 0),
        ([2**63 - 1, -(2**63)], 16),
        ([0, 255, 3, 0], 4),
        ([-3, 253, 9, -3], 8),
        ([10**15, 10**15 + 65_535, 10**15], 6),
        ([0, 65_536, 9, 0], 16),
        ([-(2**31), 0, 2**31 - 1, 5], 16),
        ([0, 2**32, 1, 0], 32),
    ],
    ids=str,
)
def test_a_column_takes_no_more_bytes_than_its_spread_needs(make: Make, row: list[int], size: int) -> None:
    column = narrowest(make(row))
    assert kept(column, len(row)) == row
    assert len(column if isinstance(column, bytes) else b"".join(column[2:])) == size


def test_a_clock_that_jitters_takes_a_byte_a_point_however_long_it_runs() -> None:
    jitter = np.random.default_rng(1).integers(0, 200, 30_000)
    column = narrowest(1_700_000_000_000 + 60_000 * np.arange(30_000) + jitter)
    assert len(column) == 3
    assert len(column[2]) <= 2 * 30_000  # the line goes from the first to the last point, not through the middle of all


@pytest.mark.parametrize("code", ["i1", "u1", "<i2", ">i4", ">i8", "<u4", "?"])
def test_integers_of_every_width_and_byte_order_are_the_same_column(code: str) -> None:
    row = np.array([1, 0, 1, 1, 0], code)
    assert narrowest(row) == narrowest(array("q", [1, 0, 1, 1, 0])) == (0, 0, b"\1\0\1\1\0")
