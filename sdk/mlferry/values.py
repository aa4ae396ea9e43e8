"""Anything a user may log as a number -> float64, without importing numpy or torch. Owns the conversion, writes nothing.

A value whose number is not known yet (a tensor on a device that is still computing) is not waited for: whoever can wait for
it elsewhere registers a ``Later``, which takes the value and delivers its number when it is known. The record then bears
the timestamp of the call, not of the delivery.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

from mlferry.errors import BadMetric, BadStep
from mlferry.limits import MAX_INT64

__all__ = ["Later", "as_float", "as_step", "as_timestamp", "defer", "register_later", "settle"]


class Later(Protocol):
    """Waits for numbers off the training thread."""

    def take(self, value: Any, deliver: Callable[[float], None]) -> bool:
        """Take a value whose number is not known yet and call ``deliver`` once it is; False: it is none of mine."""
        ...

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything taken is delivered; False: it was not within the timeout."""
        ...


_laters: list[Later] = []


def register_later(later: Later) -> None:
    """Let ``later`` look at every value that is no plain number, before it is converted."""
    _laters.append(later)


def defer(value: Any, deliver: Callable[[float], None]) -> bool:
    """Whether somebody took the value and will deliver its number."""
    return any(later.take(value, deliver) for later in _laters)


def settle(timeout_s: float) -> bool:
    """Wait for every number that is still to come, each of their keepers for at most ``timeout_s`` seconds."""
    settled = [later.settle(timeout_s) for later in _laters]
    return all(settled)


def as_float(value: Any) -> float:
    """A number as MLflow understands it: bools are 0 and 1, texts are read, arrays and tensors hold one element.

    Raises:
        BadMetric: it is none of these.
    """
    if type(value) is float:
        return value
    if value is None:
        raise BadMetric("None")
    try:
        if hasattr(value, "detach"):
            value = value.detach()
        if hasattr(value, "item"):
            value = value.item()
        return float(value)
    except Exception as error:  # whatever somebody else's class raises when it is asked for a number
        raise BadMetric(f"{type(value).__name__}: {error!s:.200}") from None


def as_step(step: Any) -> int:
    """A step, 0 if there is none; whole floats and numpy integers count as whole. Raises BadStep."""
    return 0 if step is None else _int64("step", step)


def as_timestamp(timestamp: Any, now: int) -> int:
    """Unix milliseconds; ``now`` where none (or 0) is given, as in MLflow. Raises BadStep."""
    if timestamp is None:
        return now
    given = _int64("timestamp", timestamp)
    if given < 0:
        raise BadStep(f"timestamp {given}")
    return given or now


def _int64(what: str, value: Any) -> int:
    try:
        if hasattr(value, "item"):
            value = value.item()
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except Exception:  # whatever somebody else's class raises when it is asked for a number
        raise BadStep(f"{what} {value!r:.60}") from None
    if not -MAX_INT64 - 1 <= number <= MAX_INT64:
        raise BadStep(f"{what} {number!r:.60}")
    return number
