"""Columns of numbers: little-endian bytes of 8 a number, or for integers that are regular the first and the stride. Pure."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, TypeAlias

__all__ = ["Integers", "cut", "floats", "integers"]

Integers: TypeAlias = "bytes | tuple[int, int]"


def floats(column: bytes) -> Iterator[float]:
    """The float64 values of a column."""
    return iter(_little_endian("d", column))


def integers(column: Integers, length: int) -> Iterator[int]:
    """The int64 values of a column; ``length``: how many a regular one has."""
    if isinstance(column, bytes):
        return iter(_little_endian("q", column))
    first, stride = column
    return islice(count(first, stride), length)


def cut(column: Integers, start: int, end: int) -> Integers:
    """The column of the values from ``start`` to before ``end``."""
    if isinstance(column, bytes):
        return column[8 * start : 8 * end]
    first, stride = column
    return first + stride * start, stride


def _little_endian(code: str, data: bytes) -> array[Any]:
    numbers = array(code, data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
