"""One open segment file as its writer sees it: begin, add a frame, cut off what was half written, read back, end.

Owns the descriptor and the counters of the file; every verb raises OSError as the file system does. What to do about that
is ``mlferry_spool.writer``'s decision.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from mlferry_spool.codec import pack
from mlferry_spool.files import Files
from mlferry_spool.frames import PREAMBLE_BYTES, encode, preamble
from mlferry_spool.layout import segment_name
from mlferry_spool.records import Kind, Open, SegmentEnd
from mlferry_spool.tailer import Cursor, Entry, scan

__all__ = ["Segment", "begin", "short_write"]


@dataclass(slots=True)
class Segment:
    """An open segment. ``base`` is the offset of its first frame; ``position`` its length in bytes, ``sequence`` the next
    frame's number; ``synced`` is how much of it a power cut cannot take, as (bytes, frames)."""

    path: Path
    fd: int
    base: int
    salt: int
    position: int
    sequence: int
    begun_at: float
    synced: tuple[int, int] = field(default=(PREAMBLE_BYTES, 0))

    def frame(self, kind: int, payload: bytes) -> bytes:
        return encode(kind, self.sequence, payload, self.salt)

    def add(self, kind: int, payload: bytes, files: Files) -> None:
        """Write one frame; on a short write cut it off and raise."""
        frame = self.frame(kind, payload)
        if files.write(self.fd, frame) != len(frame):
            raise self.cut_off(files)
        self.sequence += 1
        self.position += len(frame)

    def cut_off(self, files: Files) -> OSError:
        """Take back the part of a frame that a short write left. Returns the error to handle: EAGAIN, write again and see
        why it was short; EIO, the part is still there, so nothing may follow it in this file."""
        try:
            files.truncate(self.fd, self.position)
        except OSError as error:
            return OSError(errno.EIO, f"a half-written frame could not be cut off: {error.strerror}")
        return short_write()

    def end(self, next_segment: int | None, files: Files) -> None:
        """Write SEGMENT_END if the disk takes it; a reader does without."""
        with contextlib.suppress(OSError):
            self.add(Kind.SEGMENT_END, pack(SegmentEnd(next_segment)), files)

    def unsynced(self) -> tuple[list[Entry], int]:
        """The records not known to be safe, read back from the page cache, and how many of them cannot be read."""
        byte, sequence = self.synced
        expected = self.sequence - sequence
        try:
            with self.path.open("rb") as file:
                file.seek(byte)
                found, _ = scan(Cursor(self.base, byte, sequence), file.read(self.position - byte), self.salt)
        except OSError:
            found = []
        entries = [event for event in found if isinstance(event, Entry)]
        lost = expected - len(entries)
        return [entry for entry in entries if entry.kind not in (Kind.OPEN, Kind.SEGMENT_END)], lost


def begin(directory: Path, base: int, opening: Open, now: float, files: Files) -> Segment:
    """Create a segment with its preamble and OPEN frame. Raises OSError, and then leaves no file behind."""
    salt = int.from_bytes(os.urandom(4), "big")
    path = directory / segment_name(base)
    head = preamble(salt) + encode(Kind.OPEN, 0, pack(opening), salt)
    fd = files.create(path)
    try:
        if files.write(fd, head) != len(head):
            raise OSError(errno.ENOSPC, "the segment's first frame did not fit")
    except OSError:
        files.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return Segment(path, fd, base, salt, len(head), 1, now)


def short_write() -> OSError:
    """A write took fewer bytes than it was given; the next attempt tells why."""
    return OSError(errno.EAGAIN, "a short write")
