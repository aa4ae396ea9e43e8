"""One background thread a process that tends its writers: fsync, heartbeat, rotation by age, another try of a full disk.

None of that runs on a thread that logs. The thread is a daemon and ends when there is nobody left to tend; a forked child
has none until it opens a writer of its own.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol
from weakref import WeakSet

__all__ = ["Caretaker", "caretaker"]


class Tended(Protocol):
    """What the caretaker calls about once an interval; it must not raise."""

    def tend(self, now: float) -> None: ...

    @property
    def tend_every_s(self) -> float: ...


class Caretaker:
    """Calls ``tend`` of each registered writer; ``now`` is ``time.monotonic()`` in seconds."""

    def __init__(self) -> None:
        self._writers: WeakSet[Tended] = WeakSet()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def register(self, writer: Tended) -> None:
        with self._lock:
            self._writers.add(writer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlferry-caretaker", daemon=True)
                self._thread.start()

    def forget(self, writer: Tended) -> None:
        with self._lock:
            self._writers.discard(writer)
        self._wake.set()

    def wake(self) -> None:
        """Tend now; never blocks."""
        self._wake.set()

    def forget_all(self) -> None:
        """Start anew: in a forked child neither the thread nor the locks of the parent are of use."""
        self.__init__()  # type: ignore[misc]

    def _run(self) -> None:
        while True:
            with self._lock:
                writers = list(self._writers)
                if not writers:
                    self._thread = None
                    return
            self._wake.wait(min(writer.tend_every_s for writer in writers))
            self._wake.clear()
            now = time.monotonic()
            for writer in writers:
                writer.tend(now)
            del writers, writer


caretaker = Caretaker()
os.register_at_fork(after_in_child=caretaker.forget_all)
