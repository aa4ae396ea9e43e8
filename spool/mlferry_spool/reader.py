"""Follows a writer's log through its segment files: the thin shell around the pure ``tailer``.

Owns opening files and the step from one segment to the next. It only reads: a spool on a read-only mount, of a living
writer, or half copied is read as far as it goes. It never decides that a writer is dead; who knows that calls ``finish``.

When is a segment over? When SEGMENT_END was read, or when a later segment stood in the directory *before* its last byte
was read: the writer begins the next file before it ends the one before. Only then are bytes left over a torn tail.

What is opened is a plain file under a name of the spool's own pattern; links, pipes, devices and other users' files are
refused without blocking (``trust``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mlferry_spool.codec import decode, pack
from mlferry_spool.errors import CorruptRecord, CorruptSegment
from mlferry_spool.frames import OVERHEAD, PREAMBLE_BYTES, Preamble, read_preamble
from mlferry_spool.layout import segment_offset
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.records import Kind, SegmentEnd
from mlferry_spool.tailer import Cursor, Entry, Lost, resync, scan
from mlferry_spool.trust import open_trusted

__all__ = ["LogReader", "segment_offsets"]

#: Bytes looked at in one step: hundreds of small records, of which each takes several times its bytes in memory; or, where
#: these hold no whole record, one of the largest with room to spare.
#: Beyond: the next step looks at the next.
#: Test: tests/unit/spool/test_damage.py::test_a_good_header_on_the_border_of_two_windows_is_found,
#: tests/unit/spool/test_damage.py::test_damage_larger_than_any_window_is_found_the_end_of
_FIRST_WINDOW_BYTES, WINDOW_BYTES = 64 << 10, 2 << 20


class LogReader:
    """Reads one writer's log from a cursor on.

    Args:
        directory: the writer's directory.
        cursor: where to go on; the start of the log by default.
        patience_s: seconds that damage in a growing segment must persist before it is believed. 0 on local file systems;
            on network file systems pages arrive out of order and holes read as zeros for a while.
    """

    def __init__(
        self,
        directory: Path,
        cursor: Cursor | None = None,
        *,
        patience_s: float = 0.0,
    ) -> None:
        self.directory = directory
        self.cursor = cursor or Cursor()
        self.ended = False
        self._patience_s = patience_s
        self._suspect: tuple[int, int, float] | None = None
        self._preamble: tuple[int, Preamble] | None = None
        self._fruitless: tuple[Cursor, int, int] | None = None

    def __repr__(self) -> str:
        return f"LogReader({self.directory.name!r}, {self.cursor}, ended={self.ended})"

    def read(self, now: float = 0.0) -> Sequence[Entry | Lost]:
        """What was written since the last call, at most a window of it; nothing means nothing new for now.

        ``now``: seconds of any monotonic clock, for ``patience_s``.

        Raises:
            UnsupportedVersion: a newer mlferry wrote this segment; the cursor stays before it.
            CorruptSegment: the segment is none, and nothing follows it; the cursor stays before it.
            UntrustedFile: what stands at the segment's name is not opened.
        """
        if self.ended:
            return []
        offsets = segment_offsets(self.directory)
        while True:
            later = [offset for offset in offsets if offset > self.cursor.segment]
            size = self.cursor.byte
            if self.cursor.segment in offsets:
                events, size = self._look(final=bool(later))
                if events:
                    return self._take(events, now, final=bool(later))
            if not later:
                return []
            if lost := self._skip_to(later[0], size):
                return [lost]

    def finish(self) -> Sequence[Entry | Lost]:
        """The writer is dead and everything readable was read: report a torn tail, if there is one, and end.

        Call it only when ``read`` returned nothing *after* the writer was found dead: a writer may have added records
        between the last ``read`` and its death.
        """
        self.ended = True
        torn = self.pending_bytes()
        if not torn:
            return []
        byte = self.cursor.byte
        return [Lost(self.cursor.segment, byte, byte + torn, None, self.cursor)]

    def pending_bytes(self) -> int:
        """Bytes of the log behind the cursor (not yet read)."""
        total = 0
        for offset in segment_offsets(self.directory):
            if offset >= self.cursor.segment:
                try:
                    size = self._path(offset).lstat().st_size
                except OSError:
                    continue
                total += min(size, MAX_SEGMENT_BYTES) - (self.cursor.byte if offset == self.cursor.segment else 0)
        return max(total, 0)

    def _path(self, offset: int) -> Path:
        return self.directory / f"{offset:020d}.seg"

    def _look(self, *, final: bool) -> tuple[list[Entry | Lost], int]:
        """What stands at the cursor, and the size of the segment."""
        try:
            fd = open_trusted(self._path(self.cursor.segment))
        except FileNotFoundError:  # deleted since the directory was listed
            return [], self.cursor.byte
        try:
            size = min(os.fstat(fd).st_size, MAX_SEGMENT_BYTES)
            preamble = self._read_preamble(fd, final)
            return ([] if preamble is None else self._scan(fd, size, preamble)), size
        finally:
            os.close(fd)

    def _read_preamble(self, fd: int, final: bool) -> Preamble | None:
        if self._preamble is None or self._preamble[0] != self.cursor.segment:
            try:
                found = read_preamble(os.pread(fd, PREAMBLE_BYTES + OVERHEAD, 0))
            except CorruptSegment as error:
                if final:
                    return None
                raise CorruptSegment(error.detail, path=self._path(self.cursor.segment)) from None
            if found is None:
                return None
            self._preamble = (self.cursor.segment, found)
        return self._preamble[1]

    def _scan(self, fd: int, size: int, preamble: Preamble) -> list[Entry | Lost]:
        if self.cursor.byte < PREAMBLE_BYTES:
            first = Cursor(self.cursor.segment, PREAMBLE_BYTES, 0)
            if preamble.damaged:
                return [Lost(first.segment, 0, PREAMBLE_BYTES, 0, first)]
            self.cursor = first
        byte = self.cursor.byte
        for window in (_FIRST_WINDOW_BYTES, WINDOW_BYTES):
            data = os.pread(fd, min(window, size - byte), byte) if size > byte else b""
            events, _ = scan(self.cursor, data, preamble.salt)
            if events or byte + len(data) >= size:
                return events
        # The larger window holds any frame whole, so where it holds none and the file goes on there is damage.
        return self._search(fd, byte + len(data), size, preamble.salt)

    def _search(self, fd: int, at: int, size: int, salt: int) -> list[Entry | Lost]:
        """Look for a good header behind byte ``at``, in windows that overlap by less than one header.

        That can take seconds in a file that somebody filled with near-headers; it is not done again before the file changes
        (but where pages may arrive late without a sign).
        """
        stamp = (self.cursor, size, os.fstat(fd).st_mtime_ns)
        if stamp == self._fruitless and self._patience_s <= 0:
            return []
        self._fruitless = stamp
        at -= OVERHEAD - 1
        while len(data := os.pread(fd, min(WINDOW_BYTES, size - at), at)) >= OVERHEAD:
            lost = resync(self.cursor, data, at, salt)
            if lost:
                return [lost]
            at += len(data) - OVERHEAD + 1
        return []

    def _take(self, events: list[Entry | Lost], now: float, *, final: bool) -> Sequence[Entry | Lost]:
        """Move past events, up to the end of the segment or to damage that may still heal."""
        taken: list[Entry | Lost] = []
        for event in events:
            if isinstance(event, Lost) and not final and not self._believed(event, now):
                break
            taken.append(event)
            self.cursor = event.after
            if isinstance(event, Entry) and event.kind == Kind.SEGMENT_END:
                self._follow(event)
                break
        return taken

    def _believed(self, lost: Lost, now: float) -> bool:
        if self._patience_s <= 0:
            return True
        place = (lost.segment, lost.start)
        if self._suspect is None or self._suspect[:2] != place:
            self._suspect = (*place, now)
        return now - self._suspect[2] >= self._patience_s

    def _follow(self, entry: Entry) -> None:
        try:
            end = decode(entry.kind, entry.payload)
        except CorruptRecord:
            return
        if isinstance(end, SegmentEnd):
            if end.next_segment is None:
                self.ended = True
            elif end.next_segment > self.cursor.segment:
                self.cursor = Cursor(end.next_segment)

    def _skip_to(self, offset: int, size: int) -> Lost | None:
        """The segment is over, or gone: go on in the next one and say what is missing in between.

        One frame's place is kept for a SEGMENT_END that a writer in trouble could not write. Bytes too few to be one may be
        one that is just being written; they stand for no record.
        """
        missing = max(offset - self.cursor.offset - 1, 0)
        start, end = self.cursor.byte, max(self.cursor.byte, size)
        lost = Lost(self.cursor.segment, start, end, missing, Cursor(offset))
        self.cursor = lost.after
        return lost if missing or end - start >= OVERHEAD + len(pack(SegmentEnd(offset))) else None


def segment_offsets(directory: str | Path) -> list[int]:
    """Offsets of the segments in a writer's directory, ascending."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(offset for offset in map(segment_offset, names) if offset is not None)
