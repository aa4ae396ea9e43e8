"""Arrays, buffers and sequences -> SERIES records. Owns the columns; imports neither numpy nor torch.

A column is little-endian bytes, eight an element. Steps or timestamps that rise evenly are stored as [first, stride], which
is what most training loops have.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Any

from mlferry.errors import BadSeries
from mlferry_spool.limits import MAX_SERIES_POINTS
from mlferry_spool.records import Series

__all__ = ["series_records"]

Column = bytes | tuple[int, int]


def series_records(key: str, values: Any, steps: Any, timestamps: Any, now: int) -> list[Series]:
    """The records that hold a series, each of at most ``MAX_SERIES_POINTS`` points.

    Args:
        steps: one for each value; None: 0, 1, 2...
        timestamps: Unix milliseconds, one for each value; None: ``now`` for all.

    Raises:
        BadSeries: a column is not one-dimensional, holds something else than numbers, or has another length.
    """
    numbers = _bytes("values", values, "d")
    points = len(numbers) // 8
    step_column = (0, 1) if steps is None else _integers("steps", steps, points)
    time_column = (now, 0) if timestamps is None else _integers("timestamps", timestamps, points)
    if isinstance(time_column, tuple) and points and min(time_column[0], _last(time_column, points)) < 0:
        raise BadSeries("a timestamp is negative")
    return [
        Series(key, numbers[at * 8 : end * 8], _cut(step_column, at, end), _cut(time_column, at, end))
        for at, end in _chunks(points)
    ]


def _chunks(points: int) -> Iterator[tuple[int, int]]:
    for at in range(0, points, MAX_SERIES_POINTS):
        yield at, min(at + MAX_SERIES_POINTS, points)


def _cut(column: Column, at: int, end: int) -> Column:
    if isinstance(column, bytes):
        return column[at * 8 : end * 8]
    first, stride = column
    return first + at * stride, stride


def _last(column: tuple[int, int], points: int) -> int:
    return column[0] + (points - 1) * column[1]


def _integers(what: str, given: Any, points: int) -> Column:
    data = _bytes(what, given, "q")
    if len(data) != points * 8:
        raise BadSeries(f"{points} values, {len(data) // 8} {what}")
    numbers = _swapped(array("q", data))
    if what == "timestamps" and points and min(numbers) < 0:
        raise BadSeries("a timestamp is negative")
    if points < 2:
        return data
    first, stride = numbers[0], numbers[1] - numbers[0]
    even = (
        stride
        and numbers[-1] == first + stride * (points - 1)
        and numbers == array("q", _evenly(first, stride, points))
    )
    return (first, stride) if even or (not stride and numbers.count(first) == points) else data


def _evenly(first: int, stride: int, points: int) -> range:
    return range(first, first + stride * points, stride)


def _bytes(what: str, given: Any, code: str) -> bytes:
    """The column's bytes: through the array's own conversion where there is one, else element by element."""
    try:
        if hasattr(given, "detach"):  # a tensor
            given = given.detach().cpu()
            given = given.numpy() if given.dtype.is_floating_point and given.element_size() >= 4 else given.tolist()
        if hasattr(given, "to_numpy"):  # a pandas column
            given = given.to_numpy()
        if hasattr(given, "astype"):
            return _from_numpy(given, code)
        return _swapped(array(code, given)).tobytes()
    except BadSeries:
        raise
    except Exception as error:  # whatever somebody else's array raises when it is converted
        raise BadSeries(f"{what}: {error!s:.200}") from None


def _from_numpy(given: Any, code: str) -> bytes:
    if given.ndim != 1:
        raise BadSeries(f"{given.ndim} dimensions")
    if code == "q":
        converted = given.astype("<i8")
        if not (converted == given).all():
            raise BadSeries("steps and timestamps are whole numbers")
        return bytes(converted.tobytes())
    return bytes(given.astype("<f8").tobytes())


def _swapped(numbers: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
