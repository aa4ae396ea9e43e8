"""Checks on decoded values: each takes what msgpack made of foreign bytes and returns it, or raises ValueError.

Owns the types that a record's fields may have. A field is declared with its check (``holds``), and ``construct`` builds a
record from a decoded array or map by them, so that no object exists before each of its fields was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from functools import cache
from typing import Any, TypeAlias, TypeVar

Check: TypeAlias = Callable[[Any], Any]
T = TypeVar("T")


def text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a text is expected, not {type(value).__name__}")
    return value


def int64(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError(f"a 64-bit integer is expected, not {value if type(value) is int else type(value).__name__}")
    return value


def unsigned(value: Any) -> int:
    if int64(value) < 0:
        raise ValueError("a count is not negative")
    return int(value)


def float64(value: Any) -> float:
    if type(value) is not float:
        raise ValueError(f"a float is expected, not {type(value).__name__}")
    return value


def number(value: Any) -> float:
    """A float64, or an integer or boolean that stands for one: a writer need not convert what a user gave."""
    return float(value) if type(value) in (int, bool) else float64(value)


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"a boolean is expected, not {type(value).__name__}")
    return value


def binary(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError(f"bytes are expected, not {type(value).__name__}")
    return value


def digest(value: Any) -> bytes:
    if len(binary(value)) != 32:
        raise ValueError("a SHA-256 digest has 32 bytes")
    return bytes(value)


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def map_of(check: Check) -> Check:
    def checked(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise ValueError(f"a map is expected, not {type(value).__name__}")
        return {text(key): check(item) for key, item in value.items()}

    return checked


def list_of(check: Check) -> Check:
    def checked(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ValueError(f"a list is expected, not {type(value).__name__}")
        return tuple(check(item) for item in value)

    return checked


def plain(value: Any) -> Any:
    """Anything that JSON could hold: the details of operations whose meaning belongs to the layers above."""
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [plain(item) for item in value]
    return _plain_map(value)


_PLAIN = frozenset({str, int, float, bool, type(None)})
_plain_map = map_of(plain)


def column(value: Any) -> bytes | tuple[int, int]:
    """int64s: their little-endian bytes, or [first, stride] for a regular column."""
    if type(value) is list and len(value) == 2:
        return int64(value[0]), int64(value[1])
    if type(value) is bytes and len(value) % 8 == 0:
        return value
    raise ValueError("a column is [first, stride] or 8-byte integers")


def narrow_column(value: Any) -> bytes | tuple[int, int] | tuple[int, int, bytes]:
    """As ``column``, or [first, stride, what each lies above that line]."""
    if type(value) is list and len(value) == 3:
        return int64(value[0]), int64(value[1]), binary(value[2])
    return column(value)


def holds(check: Check, default: Any = MISSING) -> Any:
    """Declare a record's field: its check and, for a field that may be missing, its default (``dict`` for an empty map)."""
    metadata = {"check": check}
    if default is dict:
        return field(metadata=metadata, default_factory=dict)
    return field(metadata=metadata) if default is MISSING else field(metadata=metadata, default=default)


def construct(record: type[T], values: Sequence[Any] | dict[str, Any]) -> T:
    """Build a record from a decoded array (fields in order) or map (fields by name); what is unknown is ignored.

    Raises:
        ValueError: a field is missing, of another type or out of range.
    """
    declared = _declared(record)  # type: ignore[arg-type]
    given = values if isinstance(values, dict) else dict(zip(declared, values, strict=False))
    checked, name = {}, ""
    try:
        for name, check in declared.items():
            if name in given:
                checked[name] = check(given[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        return record(**checked)
    except TypeError:
        missing = [name for name in declared if name not in given]
        raise ValueError(f"fields are missing: {', '.join(missing)}") from None


@cache
def _declared(record: type[Any]) -> dict[str, Check]:
    """A record's fields, in order, with their checks."""
    return {item.name: item.metadata["check"] for item in fields(record)}
