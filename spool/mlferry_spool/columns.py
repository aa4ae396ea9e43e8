"""Columns of numbers as SERIES records hold them: how they are read and cut. Pure.

float64 values are little-endian bytes, eight each. Integers are the same, or, where they are regular, the first and the
stride: ``(first, stride)``; or, where they stay near such a line, what each lies above it, too: ``(first, stride, above)``,
unsigned little-endian integers of 1, 2 or 4 bytes each. All three can be cut at any place.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, TypeAlias

__all__ = ["WIDTHS", "Integers", "Narrow", "check_length", "cut", "floats", "integers"]

Narrow: TypeAlias = tuple[int, int, bytes]
Integers: TypeAlias = bytes | tuple[int, int] | Narrow

#: Bytes of an unsigned integer above the line -> its code in ``array``.
WIDTHS = {1: "B", 2: "H", 4: "I"}


def floats(column: bytes) -> Iterator[float]:
    """The float64 values of a column."""
    return iter(_little_endian("d", column))


def integers(column: Integers, length: int) -> Iterator[int]:
    """The int64 values of a column; ``length``: how many it has."""
    if isinstance(column, bytes):
        return iter(_little_endian("q", column))
    line = islice(count(column[0], column[1]), length)
    if len(column) == 2 or not length:
        return line
    above = _little_endian(WIDTHS[len(column[2]) // length], column[2])
    return (least + more for least, more in zip(line, above, strict=True))


def cut(column: Integers, start: int, end: int, length: int) -> Integers:
    """Of a column of ``length`` values those from ``start`` to before ``end``."""
    if isinstance(column, bytes):
        return column[8 * start : 8 * end]
    first, stride = column[0] + column[1] * start, column[1]
    if len(column) == 2:
        return first, stride
    width = len(column[2]) // length
    return first, stride, column[2][width * start : width * end]


def check_length(column: Integers, length: int) -> None:
    """Raises ValueError: the column does not have so many values, or could leave 64 bits."""
    if isinstance(column, bytes):
        if len(column) != 8 * length:
            raise ValueError("the columns of a series have one length")
        return
    highest = 0
    if len(column) == 3:
        width, over = divmod(len(column[2]), length or 1)
        if over or (width not in WIDTHS if length else column[2]):
            raise ValueError("the columns of a series have one length")
        highest = (1 << 8 * width) - 1
    ends = (column[0], column[0] + column[1] * max(length - 1, 0))
    if length and not (min(ends) >= -(1 << 63) and max(ends) + highest < 1 << 63):
        raise ValueError("a column stays within 64 bits")


def _little_endian(code: str, data: bytes) -> array[Any]:
    numbers = array(code, data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
