"""``log_metric`` and ``log_metrics``: the calls that a training loop makes at every step. Owns the hot path of the SDK.

Theory of operation
-------------------
*The fast path* asks whether everything is as it nearly always is: plain numbers, names met before, no explicit timestamp.
Then one point goes through the template of its name (``mlferry_spool.templates``), several as their dictionary, straight to
``Writer.append``. Every other case is ``_log_slowly``, which also makes a name or a type of number known. What is cheap
here is what runs few bytecodes: behind each system call the caches are cold, and a plain call costs more than a checksum.

*One class, two users.* ``Run`` logs to itself; ``mlferry.fluent`` to the run that is active in the calling thread, which is
one more attribute to look up, and not one more call.

*No value is waited for.* Only the types in ``_POINT`` and ``_ROW`` are converted here: a tensor on a GPU is never asked for
its number.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlferry.limits import MAX_INT64
from mlferry.validation import KNOWN_KEYS, TEMPLATES, entries
from mlferry_spool.errors import SpoolError
from mlferry_spool.records import Kind
from mlferry_spool.templates import HEAD, STEP

if TYPE_CHECKING:
    from mlferry.errors import MlferryError

__all__ = ["MetricLog", "learn_type"]

_METRICS = int(Kind.METRICS)  # a plain int packs faster than an enum's member
_known = KNOWN_KEYS.issuperset
_time_ns = time.time_ns

#: Types whose values ``struct`` takes as float64, as MLflow reads them; those of numpy join when they are met.
_POINT: set[type] = {float, int, bool}

#: Types whose values msgpack takes, and whose sum tells that there was none of another type among them.
_ROW: set[type] = {float, int, bool}


def _learn(kind: type) -> None:
    """A value of this type was converted. If it is a number of numpy's, the next goes the fast path."""
    if any(base.__module__ == "numpy" and base.__name__ == "generic" for base in kind.__mro__):
        _POINT.add(kind)
        if issubclass(kind, float):
            _ROW.add(kind)


learn_type: Callable[[type], None] = functools.lru_cache(64)(_learn)  # a tensor's type is met again with each value


class MetricLog:
    """What logs metrics: to a run, or to the active one. ``_append`` is that of its writer, None where there is none yet."""

    _append: Callable[[int, Any], bool] | None

    def log_metric(
        self,
        key: str,
        value: Any,
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
    ) -> None:
        """Log one point of a metric; ``value`` is a number, a text that reads as one, or a one-element array or tensor.

        Args:
            step: a whole number, 0 if not given.
            timestamp: Unix milliseconds, now if not given.
            synchronous: accepted as MLflow does and ignored: no call waits.
        """
        append, now = self._append, _time_ns  # as locals: CPython looks longer for attributes that are called
        if append is not None and timestamp is None and type(value) in _POINT and (type(step) is int or step is None):
            try:
                pack, name = TEMPLATES[key]
                payload = pack(HEAD, now() // 1_000_000, STEP, step or 0, name, value)
            except Exception:  # a name not met before, a step that is none: the slow path looks closer
                pass
            else:
                return None if append(_METRICS, payload) else self._not_stored()
        self._log_slowly([(key, value)], [], step, timestamp)

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
    ) -> None:
        """Log points of several metrics at one step and time; a bad one stops only itself. Else as ``log_metric``."""
        append, checked = self._append, False
        try:
            if append is not None and timestamp is None and (type(step) is int or step is None) and _known(metrics):
                values = metrics.values()
                # Plain numbers have one for their sum: one call instead of a look at each. Only where the first is one:
                # what else could be summed may be tensors on a GPU.
                for first in values:
                    if type(first) in _ROW and type(sum(values)) in _ROW and (step := step or 0) <= MAX_INT64:
                        checked = True
                        if append(_METRICS, (_time_ns() // 1_000_000, step, metrics)):
                            return
                        return self._not_stored()
                    break
        except SpoolError:  # a step below int64, a number that msgpack does not know
            pass
        except Exception:  # not all numbers, or no mapping at all, unless this is asked for, or a signal handler's
            if checked:
                raise
        self._log_slowly(*entries(metrics), step, timestamp)

    def _log_slowly(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError], step: Any, timestamp: Any) -> None:
        """Look at each name and value on its own; what is good is written, what is not yet known will be."""
        raise NotImplementedError

    def _not_stored(self) -> None:
        """A record was not kept."""
        raise NotImplementedError
