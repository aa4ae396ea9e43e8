"""Parts of a console -> artifacts of the run. Owns the log of its own in which they are named, and the thread that waits
for the disk.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlferry.console.text import Lines, Part, Parts
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import writer_name
from mlferry_spool.records import Artifact, Kind, Open
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer

__all__ = ["Order", "Store"]

#: Seconds between two looks at whether something is due.
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Order:
    """What the training asks for. ``name``: of the artifact, without number and suffix; ``limit``: bytes."""

    directory: str
    run_id: str
    name: str
    rank: int | None
    limit: int
    fsync: str


class Store:
    """Keeps what ``take`` is given. Nothing here makes the caller wait for a disk."""

    def __init__(self, order: Order, streams: int) -> None:
        self._order = order
        self._lines = [Lines() for _ in range(streams)]
        self._parts = Parts(order.limit, time.monotonic())
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="mlferry-console", daemon=True)
        self._thread.start()

    def take(self, stream: int, data: bytes) -> None:
        """What a stream has printed."""
        with self._lock:
            if not self._ended and self._parts.add(self._lines[stream].feed(data)):
                self._wake.set()

    def end(self, more: bytes = b"", wait_s: float | None = None) -> bool:
        """Nothing more comes but ``more``; wait until all is stored. False: it is not by now."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._parts.end(b"".join(lines.open for lines in self._lines) + more)
        self._wake.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            fsync = Fsync(self._order.fsync)
            log = Writer(Path(self._order.directory), _opening(self._order), Settings(fsync=fsync), on_trouble=_say)
            blobs = Blobs(Path(self._order.directory), durable=fsync is not Fsync.NEVER)
            self._until_the_end(lambda part: self._keep(part, log, blobs))
            log.close()
        except Exception as error:  # what is printed is shown all the same
            _say(f"{type(error).__name__}: {error}")

    def _until_the_end(self, keep: Callable[[Part], None]) -> None:
        while True:
            self._wake.wait(_LOOK_S)
            with self._lock:
                self._wake.clear()
                ended = self._ended
                tail = b"" if ended else b"".join(lines.open for lines in self._lines)
                due = self._parts.due(time.monotonic(), tail)
            for part in due:
                keep(part)
            if ended:
                return

    def _keep(self, part: Part, log: Writer, blobs: Blobs) -> None:
        path = f"{self._order.name}.{part.number:04d}.log"
        try:
            blob = blobs.put_bytes(part.content)
        except OSError as error:
            _say(f"{path} could not be stored: {error.strerror or error}; what is printed is shown all the same")
            log.count_dropped(Kind.ARTIFACT, f"{path}: {error.strerror or error}"[:300])
            return
        log.put(Artifact(time.time_ns() // 1_000_000, path, blob.sha256, blob.size))


def _opening(order: Order) -> Open:
    """A guest's: the run is somebody else's."""
    now = time.time_ns() // 1_000_000
    return Open(
        writer_id=writer_name(now, order.rank, os.urandom(8).hex()),
        run_id=order.run_id,
        start_time=now,
        resumed=True,
        role="guest",
        attempt=os.urandom(16).hex(),
        rank=order.rank,
    )


_said: set[str] = set()


def _say(sentence: str) -> None:
    """To the standard error that the training had, once."""
    if "console capture" not in _said:
        _said.add("console capture")
        sys.stderr.write(f"mlferry: console capture: {sentence}\n")
        sys.stderr.flush()
