"""Brings what was printed into the spool: the thread of ``relay`` that may wait for a disk.

Its log is a helper's of the run, beside that of the training. What comes faster than the disk takes it waits in memory, up
to a bound; beyond that it is not kept, and the output says how much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlferry.console.lines import Lines
from mlferry.console.parts import MAX_BYTES, File, Parts
from mlferry.errors import ConsoleNotKept
from mlferry_spool.blobs import Blobs
from mlferry_spool.records import Artifact, Kind, Open
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer

__all__ = ["Recorder"]

#: Bytes that wait for the disk.
#: Beyond: what comes then is not kept, but handed on; the output says how much is missing.
#: Test: tests/unit/sdk/test_console_recorder.py::test_what_comes_faster_than_the_disk_takes_it_is_counted
_MAX_WAITING_BYTES = 8 << 20

#: Seconds between two looks at what has come.
_LOOK_S = 0.5


class Recorder:
    """Keeps what it is fed, in a run.

    Args:
        opening: the log's, of a helper.
        folder: where in the run's artifacts.
        complain: told once of each kind of trouble.
    """

    def __init__(
        self,
        run_directory: Path,
        opening: Open,
        folder: str,
        fsync: Fsync,
        complain: Callable[[str], None],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._blobs = Blobs(run_directory, durable=fsync is not Fsync.NEVER)
        self._writer = Writer(
            run_directory, replace(opening, role="helper"), Settings(fsync=fsync), on_trouble=complain
        )
        self._folder, self._complain = folder, complain
        self._lines, self._parts = Lines(), Parts(max_bytes)
        self._hurry, self._is_over = threading.Event(), False
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, bytes]] = []
        self._waiting_bytes = self._missed = 0
        self._thread = threading.Thread(target=self._run, name="mlferry-console", daemon=True)
        self._thread.start()

    def feed(self, stream: str, data: bytes) -> None:
        """Take what came by a stream. Never waits for the disk."""
        with self._lock:
            if self._waiting_bytes + len(data) > _MAX_WAITING_BYTES:
                self._missed += len(data)
            else:
                self._waiting.append((stream, data))
                self._waiting_bytes += len(data)
            if self._waiting_bytes > _MAX_WAITING_BYTES / 8:
                self._hurry.set()

    def close(self) -> None:
        """Store the rest and end the log."""
        self._is_over = True
        self._hurry.set()
        self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        while not self._is_over:
            self._hurry.wait(_LOOK_S)
            self._hurry.clear()
            self._take()
            self._store(self._parts.look(time.monotonic(), self._lines.begun))
        self._take()
        self._store(self._parts.end(self._lines.begun))

    def _take(self) -> None:
        with self._lock:
            waiting, missed = self._waiting, self._missed
            self._waiting, self._waiting_bytes, self._missed = [], 0, 0
        lines = b"".join(self._lines.feed(stream, data) for stream, data in waiting)
        if missed:
            lines += f"[mlferry: {missed:,} bytes were not kept: they came faster than the disk took them]\n".encode()
        self._store(self._parts.add(lines, time.monotonic()))

    def _store(self, files: list[File]) -> None:
        for file in files:
            try:
                blob = self._blobs.put_bytes(file.content)
                self._writer.put(_artifact(f"{self._folder}/{file.name}", blob.sha256, blob.size))
            except OSError as error:
                said = str(ConsoleNotKept(str(error)))
                self._writer.count_dropped(Kind.ARTIFACT, said[:300])
                self._complain(said)


def _artifact(path: str, sha256: bytes, size: int) -> Artifact:
    return Artifact(time.time_ns() // 1_000_000, path, sha256, size)
