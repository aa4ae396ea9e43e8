"""int64s -> the narrowest column that holds them (``mlferry_spool.columns``). Pure; numpy only for who brings it.

Steps and timestamps are nearly always regular, near a line, or close to each other: losses at every tenth step, a clock
that ticks with some jitter, sorted steps of a sampled loss. So each frame's column is one of four: the line alone; above
its least value, or above the line from its first to its last value, 1, 2 or 4 bytes each; the int64s themselves.
"""

from __future__ import annotations

import sys
from array import array
from functools import cache
from itertools import count
from operator import eq
from typing import TYPE_CHECKING, Any

from mlferry_spool.columns import WIDTHS, Integers
from mlferry_spool.limits import MAX_SERIES_POINTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["little_endian", "narrowest"]

#: Further apart than this, differences leave 64 bits: such numbers are kept as they are.
_FAR_APART = 1 << 62
_INT64 = (-(1 << 63), (1 << 63) - 1)


def narrowest(row: array[int] | NDArray[Any]) -> Integers:
    """The column of at least one integer; each is an int64's value, whatever its type."""
    return _of_array(row) if isinstance(row, array) else _of_numpy(row.astype("i8", copy=False))


def little_endian(row: array[Any]) -> bytes:
    """The bytes of a column. An array of a machine of the other kind is turned round for it, which it must not mind."""
    if sys.byteorder == "big":
        row.byteswap()
    return row.tobytes()


def _of_array(row: array[int]) -> Integers:
    first, least, most = row[0], min(row), max(row)
    stride = row[1] - first if len(row) > 1 else 0
    if most - least < _FAR_APART and all(map(eq, row, count(first, stride))):
        return first, stride
    width = _width(least, most)
    if not _is_narrow(least, 0, len(row), width):
        return little_endian(row)
    return least, 0, little_endian(array(WIDTHS[width], [number - least for number in row]))


def _of_numpy(row: NDArray[Any]) -> Integers:
    least, most = int(row.min()), int(row.max())
    if most - least < _FAR_APART:
        first, stride = int(row[0]), (int(row[-1]) - int(row[0])) // max(len(row) - 1, 1)
        above = row - (_counted()[: len(row)] * stride + first)
        low, high = int(above.min()), int(above.max())
        if low == high:
            return first, stride
        flat, sloped = _width(least, most), _width(low, high)
        if sloped < flat and _is_narrow(first + low, stride, len(row), sloped):
            return first + low, stride, _narrowed(above, low, sloped)
        if _is_narrow(least, 0, len(row), flat):
            return least, 0, _narrowed(row, least, flat)
    return bytes(row.astype("<i8", copy=False).tobytes())


def _narrowed(row: NDArray[Any], least: int, width: int) -> bytes:
    return bytes((row - least).astype(f"<u{width}").tobytes())


def _width(least: int, most: int) -> int:
    """Bytes of an unsigned integer that holds the difference; 8: none does."""
    return next((width for width in WIDTHS if most - least < 1 << 8 * width), 8)


def _is_narrow(first: int, stride: int, points: int, width: int) -> bool:
    """Whether a reader takes such a column: it must see without a look at each that none leaves 64 bits."""
    ends = (first, first + stride * (points - 1))
    return width in WIDTHS and _INT64[0] <= min(ends) and max(ends) + (1 << 8 * width) - 1 <= _INT64[1]


@cache
def _counted() -> NDArray[Any]:
    """0, 1, 2... for each point of a frame."""
    import numpy as np

    return np.arange(MAX_SERIES_POINTS, dtype="i8")
