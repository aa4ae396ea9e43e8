"""An event loop in which time passes by itself: nothing sleeps, nothing runs in a thread, and one seed gives one history.

Owns the clocks. Virtual seconds pass where everything waits; the loop's own clock, ``time.monotonic`` and the wall clock of
the agent's machine all follow them, the last one with an offset that a test may move (a clock that was set wrongly). What
would go to a thread is done in place, a step later. Tasks are hashed by their number, so that a set of them has one order.

``alarm`` calls back after so many steps: at any await whatsoever, which is where a process may be killed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from asyncio import base_events
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

__all__ = ["VirtualLoop", "in_virtual_time"]

#: Unix seconds when a virtual loop begins: long before any file of this machine was made.
_BEGINNING_S = 1_700_000_000


class _Task(asyncio.Task[Any]):
    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(base_events.BaseEventLoop):
    """``clock_offset_s`` is how wrong the wall clock of the agent's machine is."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-6
        self._selector = self
        self._steps = 0
        self._alarm: tuple[int, Callable[[], None]] | None = None
        self.clock_offset_s = 0.0
        self.set_task_factory(_as_task)

    def time(self) -> float:
        return self._now

    def true_ns(self) -> int:
        """Unix nanoseconds by a clock that is right."""
        return _BEGINNING_S * 10**9 + int(self._now * 1e9)

    def wall_ns(self) -> int:
        """Unix nanoseconds by the clock of the agent's machine."""
        return self.true_ns() + int(self.clock_offset_s * 1e9)

    def alarm(self, steps: int, callback: Callable[[], None]) -> None:
        """Call once, after so many steps of the loop."""
        self._alarm = (self._steps + steps, callback)

    def disarm(self) -> None:
        self._alarm = None

    # -- what the base class asks of a loop --------------------------------------------------------------------------------

    def select(self, timeout: float | None) -> list[Any]:
        self._steps += 1
        if self._alarm is not None and self._steps >= self._alarm[0]:
            callback, self._alarm = self._alarm[1], None
            callback()
            return []
        if timeout is None:
            raise AssertionError("everything waits, and nothing will ever happen")
        self._now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        self.call_soon(_fulfil, future, function, args)
        return future


def _as_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
    return _Task(coroutine, loop=loop, **kwargs)


def _fulfil(future: asyncio.Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        future.set_result(function(*args))
    except Exception as error:
        future.set_exception(error)


@contextmanager
def _clocks_of(loop: VirtualLoop) -> Iterator[None]:
    with (
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch.object(time, "time_ns", loop.wall_ns),
        mock.patch.object(time, "time", lambda: loop.wall_ns() / 1e9),
    ):
        yield


def in_virtual_time(main: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` to its end."""
    _Task._numbers = itertools.count()
    loop = VirtualLoop()
    try:
        with _clocks_of(loop):
            loop.run_until_complete(main(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
