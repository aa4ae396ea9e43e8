"""One background thread a process that tends its writers: fsync, heartbeat, rotation, another try of a full disk.

None of that runs on a thread that logs. The thread is a daemon and ends when there is nobody left to tend; a forked child
has none until it opens a writer of its own. Where no thread can be had (a process limit, an interpreter that ends), logging
goes on without one.

A signal handler may log or close a writer while its own thread is in here. So the lock is reentrant, and waking goes through
a ``SimpleQueue``, whose ``put`` may interrupt itself; ``threading.Event.set`` may not.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet

__all__ = ["Caretaker", "Tended", "caretaker"]


class Tended(Protocol):
    """What the caretaker calls about once an interval; it must not raise."""

    def tend(self, now: float) -> None: ...

    @property
    def tend_every_s(self) -> float: ...


class Caretaker:
    """Calls ``tend`` of each registered writer; ``now`` is ``time.monotonic()`` in seconds."""

    def __init__(self, new_thread: Callable[..., threading.Thread] = threading.Thread) -> None:
        self._new_thread = new_thread
        self.forget_all()

    def forget_all(self) -> None:
        """Start anew: in a forked child neither the thread nor the locks of the parent are of use."""
        self._writers: WeakSet[Tended] = WeakSet()
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def register(self, writer: Tended) -> None:
        with self._lock:
            self._writers.add(writer)
            if self._thread is None:
                self._thread = self._new_thread(target=self._run, name="mlferry-caretaker", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None

    def forget(self, writer: Tended) -> None:
        with self._lock:
            self._writers.discard(writer)
        self.wake()

    def wake(self) -> bool:
        """Tend now; never blocks. Returns whether there is a thread that will."""
        self._wake.put(None)
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _run(self) -> None:
        while (pause := self._pause()) is not None:
            self._rest(pause)
            self._tend_all(time.monotonic())

    def _pause(self) -> float | None:
        """Seconds until the next tending; None, and the thread is over, where there is nobody to tend."""
        with self._lock:
            pauses = [writer.tend_every_s for writer in self._writers]
            if not pauses:
                self._thread = None
            return min(pauses, default=None)

    def _rest(self, pause: float) -> None:
        with contextlib.suppress(Empty):
            self._wake.get(timeout=pause)
            while True:
                self._wake.get_nowait()

    def _tend_all(self, now: float) -> None:
        with self._lock:
            writers = list(self._writers)
        for writer in writers:
            writer.tend(now)


caretaker = Caretaker()
os.register_at_fork(after_in_child=caretaker.forget_all)
