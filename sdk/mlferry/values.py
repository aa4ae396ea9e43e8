"""Anything a user may log as a number -> float64, without importing numpy or torch. Owns the conversion, writes nothing.

A value whose number is not known yet (a tensor on a device that is still computing) is not waited for: whoever can wait for
it elsewhere registers a ``Later``, which takes the value and tells its number when it is known. The record then bears the
step and the timestamp of the call, not of the telling.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlferry.compiling import stay_out
from mlferry.errors import BadMetric, BadStep, MlferryError
from mlferry.limits import MAX_INT64
from mlferry_spool.records import Kind

if TYPE_CHECKING:
    from mlferry.trouble import Trouble

__all__ = [
    "Call",
    "Later",
    "as_float",
    "as_step",
    "as_timestamp",
    "defer",
    "later_of",
    "local",
    "register_later",
    "settle",
]


class Owner(Protocol):
    """A run, as somebody sees it who tells it numbers later."""

    trouble: Trouble

    def deliver(self, step: int, timestamp: int, values: dict[str, float]) -> None: ...

    def refuse(self, kind: Kind, error: MlferryError, count: int = 1) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a run some of whose numbers are told later, by another thread: there is nobody to raise anything to."""

    owner: Owner
    step: int
    timestamp: int

    def deliver(self, values: dict[str, float]) -> None:
        """These numbers are known now."""
        try:
            self.owner.deliver(self.step, self.timestamp, values)
        except MlferryError as error:  # asked for by MLFERRY_ON_ERROR=raise; it is counted
            self.owner.trouble.say(str(error))

    def lose(self, error: MlferryError, count: int) -> None:
        """So many numbers will not be known, for this reason."""
        try:
            self.owner.refuse(Kind.METRICS, error, count)
        except MlferryError:
            self.owner.trouble.say(str(error))


class Later(Protocol):
    """Waits for numbers off the training thread."""

    def takes(self, value: Any) -> bool:
        """Whether the value's number is not known yet, and this is who waits for it. Raises BadMetric: it has none."""
        ...

    def take(self, values: Mapping[str, Any], call: Call) -> list[MlferryError]:
        """Wait for the numbers of these, elsewhere, and tell them to ``call``; an error for each that is not taken."""
        ...

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        """Wait until everything taken (of one owner's calls) is told; False: it was not within the timeout.

        What of ``owner``'s was not told by then is lost, and that is told instead.
        """
        ...


_laters: list[Later] = []


def register_later(later: Later) -> None:
    """Let ``later`` look at every value that is no plain number, before it is converted."""
    _laters.append(later)


def later_of(value: Any) -> Later | None:
    """Who waits for the value's number; None: it can be had at once. Raises BadMetric: it has none."""
    is_cpu = getattr(value, "is_cpu", None)
    if is_cpu is not None:  # a tensor
        stay_out()
        if is_cpu:
            return None
        import mlferry.devices  # noqa: F401 - it registers itself
    for later in _laters:
        if later.takes(value):
            return later
    return None


def defer(values: Mapping[Later, Mapping[str, Any]], call: Call) -> list[MlferryError]:
    """Hand values to those who wait for them; an error for each that they do not take."""
    return [error for later, named in values.items() for error in later.take(named, call)]


def settle(timeout_s: float, owner: object | None = None) -> bool:
    """Wait for every number that is still to come (of one owner's calls), each of their keepers for at most so long."""
    settled = [later.settle(timeout_s, owner) for later in _laters]
    return all(settled)


def local(value: Any) -> Any:
    """A tensor as it is; of one that is distributed, this rank's copy of the whole.

    Raises:
        BadMetric: this rank has only a part. To ask for the rest would wait for every other rank.
    """
    if not hasattr(value, "to_local"):
        return value
    if all(placement.is_replicate() for placement in value.placements):
        return value.to_local()
    raise BadMetric("DTensor of which this rank holds a part; log its full_tensor(), which every rank has to call")


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
        if hasattr(value, "item"):
            if hasattr(value, "to_local"):
                value = local(value)
            value = value.item()  # of a tensor with a gradient too, without making another one of it
        return float(value)
    except BadMetric:
        raise
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
    if not getattr(value, "is_cpu", True):  # neither asked for nor shown: both would wait for the device
        raise BadStep(f"{what} on a device; give a Python number")
    try:
        if hasattr(value, "item"):
            value = value.item()
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except Exception:  # whatever somebody else's class raises when it is asked for a number
        raise BadStep(f"{what} {value!r:.60}") from None
    if not -MAX_INT64 - 1 <= number <= MAX_INT64:
        raise BadStep(f"{what} {number!r:.60}")
    return number
