"""A writing process of the simulation: it makes the files that the real writer makes, where and when the day says.

Owns the bytes of one writer's log: what of it stands in the file now, what of that a power cut would take, and what
another host sees of it so far. The records are the real ones; the frames too. The real ``Writer`` has its own tests: here
its threads, its disk and its clock would make another history each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mlferry_spool import liveness
from mlferry_spool.codec import KIND_OF, pack
from mlferry_spool.frames import encode, preamble
from mlferry_spool.layout import segment_name
from mlferry_spool.records import Open, Record, RunEnd, SegmentEnd

__all__ = ["Process"]


class Process:
    """One writer.

    Args:
        directory: the run's directory, or the store's.
        salt: of its segments.
        true_ns: Unix nanoseconds, by which the file system stamps files.
        is_here: whether it runs under the agent's own kernel, so that its lock can be seen.
    """

    def __init__(
        self, directory: Path, opening: Open, salt: int, true_ns: Callable[[], int], *, is_here: bool = True
    ) -> None:
        self.directory = directory / opening.writer_id
        self.directory.mkdir(parents=True, exist_ok=True)
        self.opening = opening
        self.is_here, self.is_alive, self.is_hidden = is_here, True, False
        self._salt, self._true_ns = salt, true_ns
        self._lock = liveness.hold(self.directory) if is_here and opening.locked else None
        self._frames: list[Record] = []
        self._synced = 0
        self._base = self._sequence = 0
        self._hidden = b""
        self.signs: list[int] = []
        self._begin(0)

    @property
    def unsynced(self) -> list[Record]:
        """Records that a power cut would take."""
        return self._frames[self._synced :]

    def put(self, *records: Record) -> None:
        """One call of the logging program each."""
        self._write(b"".join(map(self._frame, records)))

    def sync(self) -> None:
        self._synced = len(self._frames)

    def rotate(self) -> None:
        old, base = self._path, self._base + self._sequence + 1
        self.show()
        last = self._frame(SegmentEnd(base))
        self._begin(base)
        self._append(old, last)

    def end(self, end: RunEnd | None) -> None:
        """End in order, with or without saying how the run ended."""
        self.show()
        if end is not None:
            self.put(end)
        self._write(self._frame(SegmentEnd(None)))
        self.sync()
        self._leave()

    def die(self, torn: int = 0) -> None:
        """SIGKILL, in the middle of writing the so many first bytes of a frame."""
        self.show()
        if torn:
            self._append(self._path, encode(4, self._sequence, bytes(40), self._salt)[:torn])
        self._leave()

    def lose_power(self) -> list[Record]:
        """Its machine loses power: what was not synced is gone. Returns it, in order."""
        lost = self.unsynced
        gone = sum(len(encode(KIND_OF[type(record)], 0, pack(record), 0)) for record in lost)
        if gone:
            os.truncate(self._path, self._path.stat().st_size - gone)
            os.utime(self._path, ns=(self.signs[-1], self.signs[-1]))
            self._frames, self._sequence = self._frames[: self._synced], self._sequence - len(lost)
        self._leave()
        return lost

    # -- what another host sees ---------------------------------------------------------------------------------------------

    def hide(self) -> None:
        """From now on other hosts see that the file grows, and zeros where the new bytes are (NFS, Lustre)."""
        self.is_hidden = True

    def show(self) -> None:
        """Everything that was written is seen."""
        self.is_hidden = False
        if self._hidden:
            with self._path.open("r+b") as file:
                file.seek(-len(self._hidden), os.SEEK_END)
                file.write(self._hidden)
            self._hidden = b""
            self._stamp(self._path)

    # -- files --------------------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self.directory / segment_name(self._base)

    def _begin(self, base: int) -> None:
        self._base, self._sequence, self._salt = base, 0, self._salt + 1
        self._frames, self._synced = [], 0
        self._append(self._path, preamble(self._salt) + self._frame(self.opening))
        self.sync()

    def _frame(self, record: Record) -> bytes:
        frame = encode(KIND_OF[type(record)], self._sequence, pack(record), self._salt)
        self._sequence += 1
        self._frames.append(record)
        return frame

    def _write(self, data: bytes) -> None:
        if self.is_hidden:
            self._hidden += data
            data = bytes(len(data))
        self._append(self._path, data)

    def _append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)
        self._stamp(path)

    def _stamp(self, path: Path) -> None:
        now = self._true_ns()
        self.signs.append(now)
        os.utime(path, ns=(now, now))

    def _leave(self) -> None:
        self.is_alive = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
