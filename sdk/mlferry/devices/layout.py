"""Which values of a call lie where in a slot. Pure: it knows of a value only its type, and of a type only its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Piece", "loads"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Values of one type that lie side by side. ``offset``: bytes from the beginning of the slot."""

    dtype: Any
    offset: int
    names: tuple[str, ...]
    values: tuple[Any, ...]


def loads(values: Mapping[str, Any], room: int) -> Iterator[list[Piece]]:
    """Divide values into as few slots of ``room`` bytes as hold them: one of usually one piece.

    Values keep their own types, so that no kernel has to convert them. The widest come first, which aligns all of them.
    """
    load: list[Piece] = []
    used = 0
    for dtype, named in _by_type(values):
        size = dtype.itemsize
        while named:
            fits = (room - used) // size
            if not fits:
                yield load
                load, used = [], 0
                continue
            names, pieces = zip(*named[:fits], strict=True)
            load.append(Piece(dtype, used, names, pieces))
            used += size * len(names)
            named = named[fits:]
    if load:
        yield load


def _by_type(values: Mapping[str, Any]) -> list[tuple[Any, list[tuple[str, Any]]]]:
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for name, value in values.items():
        groups.setdefault(value.dtype, []).append((name, value))
    return sorted(groups.items(), key=lambda group: -group[0].itemsize)
