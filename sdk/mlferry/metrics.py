"""``log_metric`` and ``log_metrics``: the calls that a training loop makes at every step. Owns the hot path of the SDK.

Theory of operation
-------------------
*The fast path* is for what nearly always is: plain numbers, names met before, no explicit timestamp. The writer's appender
takes those, and says None to all others. Every other case is ``_log_slowly``, which also makes a name or a type of number
known. What is cheap here is what runs few bytecodes: behind each system call the caches are cold.

*One class, two users.* ``Run`` logs to itself; ``mlferry.fluent`` to the run that is active in the calling thread, which is
one more attribute to look up, and not one more call.

*No value is waited for.* Only the types in ``_POINT`` and ``_ROW`` are converted here: a tensor on a GPU is never asked for
its number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlferry.validation import TEMPLATES, entries

if TYPE_CHECKING:
    from mlferry.errors import MlferryError
    from mlferry_spool.appender import Appender

__all__ = ["MetricLog", "learn_type"]

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
    """What logs metrics: to a run, or to the active one. ``_appender`` is its writer, None where there is none yet."""

    _appender: Appender | None

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
        appender = self._appender
        if appender is not None and timestamp is None:
            kept = appender.append_point(TEMPLATES, _POINT, key, value, step)
            if kept:
                return None
            if kept is not None:
                return self._not_stored()
        self._log_slowly([(key, value)], [], step, timestamp)

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
    ) -> None:
        """Log points of several metrics at one step and time; a bad one stops only itself. Else as ``log_metric``."""
        appender = self._appender
        if appender is not None and timestamp is None:
            kept = appender.append_points(TEMPLATES, _ROW, metrics, step)
            if kept:
                return None
            if kept is not None:
                return self._not_stored()
        self._log_slowly(*entries(metrics), step, timestamp)

    def _log_slowly(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError], step: Any, timestamp: Any) -> None:
        """Look at each name and value on its own; what is good is written, what is not yet known will be."""
        raise NotImplementedError

    def _not_stored(self) -> None:
        """A record was not kept."""
        raise NotImplementedError
