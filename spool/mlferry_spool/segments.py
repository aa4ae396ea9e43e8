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
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.records import Kind, Open, SegmentEnd
from mlferry_spool.tailer import Cursor, Entry, scan

__all__ = ["Segment", "begin", "try_again"]

_CLOSED = -1


@dataclass(slots=True)
class Segment:
    """An open segment. ``base`` is the offset of its first frame; ``position`` its length in bytes, ``sequence`` the next
    frame's number; ``synced`` is how much of it a power cut cannot take, as (bytes, frames). ``broken``: a torn frame at its
    end could not be cut off, so nothing is written to it any more."""

    path: Path
    fd: int
    base: int
    salt: int
    position: int
    sequence: int
    begun_at: float
    synced: tuple[int, int] = field(default=(PREAMBLE_BYTES, 0))
    broken: bool = False

    @property
    def is_open(self) -> bool:
        return self.fd != _CLOSED

    def add(self, kind: int, payload: bytes, files: Files) -> None:
        """Write one frame. Raises OSError, and then there is none."""
        self.write(encode(kind, self.sequence, payload, self.salt), 0, files)

    def write(self, frame: bytes, part: int, files: Files) -> None:
        """Write a frame whose first ``part`` bytes a short write has left there. Raises OSError, and then there is none.

        A short write does not say why it was short; to write the rest does (write(2)). The counters go ahead of the write,
        so that they are right, too, where a signal handler raises after it.
        """
        start, size = self.position, len(frame)
        if part and os.fstat(self.fd).st_size != start + part:
            self.broken = True
            raise OSError(errno.EIO, "the segment's length is not what was written")
        self.sequence += 1
        self.position = start + size
        try:
            while part < size:
                written = files.write(self.fd, frame[part:] if part else frame)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                part += written
        except OSError as error:
            self.sequence -= 1
            self.position = start
            raise self._cut_off(part, error, files) from None

    def take_back(self, size: int) -> None:
        """The last frame, of this many bytes, was counted and not written."""
        self.sequence -= 1
        self.position -= size

    def measure(self) -> None:
        """Count the bytes that are there, whosever they are."""
        self.position = os.fstat(self.fd).st_size

    @property
    def answers(self) -> bool:
        """Whether the descriptor is still one."""
        try:
            os.fstat(self.fd)
        except OSError:
            return False
        return True

    def _cut_off(self, part: int, error: OSError, files: Files) -> OSError:
        """Take back the ``part`` of a frame that was written before the error. Returns the error to handle.

        The file is cut only where it is as long as it must be: should the counters ever disagree with the file (a signal
        handler has logged meanwhile, another program has our descriptor), torn bytes cost less than a kept frame.
        """
        if not part:
            return error
        try:
            if os.fstat(self.fd).st_size == self.position + part:
                files.truncate(self.fd, self.position)
                return error
        except OSError:
            pass
        self.broken = True
        return OSError(errno.EIO, f"{error.strerror}, and a half-written frame could not be cut off")

    def end(self, next_segment: int | None, files: Files) -> None:
        """Write SEGMENT_END if the disk takes it; a reader does without."""
        if not self.broken:
            with contextlib.suppress(OSError):
                self.add(Kind.SEGMENT_END, pack(SegmentEnd(next_segment)), files)

    def close(self, files: Files) -> None:
        fd, self.fd = self.fd, _CLOSED
        if fd != _CLOSED:
            with contextlib.suppress(OSError):
                files.close(fd)

    def forget_descriptor(self) -> None:
        """Its number may be another file's by now."""
        self.fd = _CLOSED

    def unsynced(self) -> tuple[list[Entry], int]:
        """The records not known to be safe, read back from the page cache, and how many of them cannot be read."""
        byte, sequence = self.synced
        try:
            with self.path.open("rb") as file:
                file.seek(byte)
                found, _ = scan(Cursor(self.base, byte, sequence), file.read(MAX_SEGMENT_BYTES), self.salt)
        except OSError:
            found = []
        entries = [event for event in found if isinstance(event, Entry)]
        lost = max(self.sequence - sequence - len(entries), 0)
        return [entry for entry in entries if entry.kind not in _OF_THE_SEGMENT], lost


#: What belongs to a segment rather than to the log, and is not carried into another one.
_OF_THE_SEGMENT = frozenset({Kind.OPEN, Kind.SEGMENT_END, Kind.HEARTBEAT})


def begin(directory: Path, base: int, opening: Open, now: float, files: Files) -> Segment:
    """Create a segment with its preamble and OPEN frame. Raises OSError, and then leaves no file behind if it can."""
    salt = int.from_bytes(os.urandom(4), "big")
    path = directory / segment_name(base)
    head = preamble(salt) + encode(Kind.OPEN, 0, pack(opening), salt)
    fd = files.create(path)
    try:
        if files.write(fd, head) != len(head):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            files.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return Segment(path, fd, base, salt, len(head), 1, now)


def try_again() -> OSError:
    """Nothing is known to be wrong with the segment that is open now."""
    return OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
