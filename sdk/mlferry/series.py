"""Arrays, tensors, buffers and sequences -> SERIES records. Owns the conversion; ``narrowing`` owns the integers' columns.

Theory of operation. What is given is looked at as a whole first, so that a series is refused before any of it is written,
and then converted frame by frame: a frame's columns fit into the processor's cache, and a series of any length needs no
memory of its own. What has a way to become a numpy array takes it (then numpy is there already); everything else becomes
an ``array`` of the standard library.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlferry import narrowing
from mlferry.errors import BadSeries
from mlferry_spool.columns import Integers
from mlferry_spool.limits import MAX_SERIES_POINTS
from mlferry_spool.records import NarrowSeries, Series

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Row: TypeAlias = array[Any] | NDArray[Any]

__all__ = ["series_records"]


def series_records(key: str, values: Any, steps: Any, timestamps: Any, now: int) -> Iterator[Series]:
    """The records that hold a series, each of at most ``MAX_SERIES_POINTS`` points; made while they are asked for.

    Args:
        steps: one for each value; None: 0, 1, 2...
        timestamps: Unix milliseconds, one for each value; None: ``now`` for all.

    Raises:
        BadSeries: a column is not one-dimensional, holds something else than numbers, or has another length. At once.
    """
    numbers = _row("values", values, "d")
    step_row = None if steps is None else _whole("steps", steps, len(numbers))
    time_row = None if timestamps is None else _whole("timestamps", timestamps, len(numbers))
    if time_row is not None and len(time_row) and _least(time_row) < 0:
        raise BadSeries("a timestamp is negative")
    return _records(key, numbers, step_row, time_row, now)


def _records(key: str, values: Row, steps: Row | None, timestamps: Row | None, now: int) -> Iterator[Series]:
    for at in range(0, len(values), MAX_SERIES_POINTS):
        end = min(at + MAX_SERIES_POINTS, len(values))
        step_column = (at, 1) if steps is None else narrowing.narrowest(steps[at:end])
        time_column = (now, 0) if timestamps is None else narrowing.narrowest(timestamps[at:end])
        kind = NarrowSeries if _is_narrow(step_column) or _is_narrow(time_column) else Series
        yield kind(key, _bytes(values[at:end]), step_column, time_column)


def _is_narrow(column: Integers) -> bool:
    return isinstance(column, tuple) and len(column) == 3


def _whole(what: str, given: Any, points: int) -> Row:
    row = _row(what, given, "q")
    if len(row) != points:
        raise BadSeries(f"{points} values, {len(row)} {what}")
    return row


def _row(what: str, given: Any, code: str) -> Row:
    """What is given as an array of float64 ("d") or int64 ("q"), or of something that each frame can turn into them."""
    try:
        if hasattr(given, "detach"):
            given = _from_tensor(given)
        if hasattr(given, "to_numpy"):  # a pandas column
            given = given.to_numpy()
        if hasattr(given, "astype"):
            return _checked(given, code)
        return array(code, given)
    except BadSeries:
        raise
    except Exception as error:  # whatever somebody else's array raises when it is converted
        raise BadSeries(f"{what}: {error!s:.200}") from None


def _from_tensor(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point and tensor.element_size() < 4:
        tensor = tensor.float()  # numpy knows no bfloat16
    try:
        return tensor.numpy()
    except RuntimeError:  # a torch without numpy, or a conjugate or negative view
        return tensor.tolist()


def _checked(given: Any, code: str) -> NDArray[Any]:
    """Numbers of a kind that fits; integers and floats are left as they are, and converted frame by frame."""
    import numpy as np

    numbers = np.asarray(given)
    if numbers.ndim != 1:
        raise BadSeries(f"{numbers.ndim} dimensions")
    if (numbers.dtype.kind in ("f", "i", "b") and code == "d") or numbers.dtype.kind in ("i", "b"):
        return numbers
    converted = numbers.astype("f8" if code == "d" else "i8")
    if code == "q" and not (converted == numbers).all():
        raise BadSeries("steps and timestamps are whole numbers")
    return converted


def _least(row: Row) -> int:
    return int(min(row) if isinstance(row, array) else row.min())


def _bytes(row: Row) -> bytes:
    if isinstance(row, array):
        return narrowing.little_endian(row)
    return bytes(row.astype("<f8", copy=False).tobytes())
