"""Looking at a run's logs without reading them: when they last grew, and what their first record is.

For looks at every run of a large spool that are about a few of them. Nothing here raises for what it finds.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError
from mlferry_spool.frames import (
    BEYOND_LENGTH,
    EXT32,
    HEADER,
    OVERHEAD,
    PREAMBLE_BYTES,
    Frame,
    next_frame,
    read_preamble,
)
from mlferry_spool.layout import segment_name, segment_offset, writer_directories
from mlferry_spool.records import Kind, Record
from mlferry_spool.trust import open_trusted

__all__ = ["are_heartbeats", "changed", "first_record", "newest_change"]

#: An opening is far smaller.
_PEEK_BYTES = 16 << 10


def changed(directory: Path) -> int:
    """When an entry of a directory was made or taken away, Unix nanoseconds; 0 if that cannot be told."""
    try:
        return os.stat(directory).st_mtime_ns  # noqa: PTH116 - asked for a thousand runs at a time
    except OSError:
        return 0


def newest_change(run: Path) -> int:
    """When a run's logs last grew, Unix milliseconds, by the clock of the file system."""
    newest = changed(run)
    for writer in writer_directories(run):
        try:
            with os.scandir(writer) as entries:
                times = [entry.stat().st_mtime_ns for entry in entries if segment_offset(entry.name) is not None]
        except OSError:
            continue
        newest = max(newest, *times, changed(writer))
    return newest // 1_000_000


def first_record(run: Path) -> Record | None:
    """The first record of the run's first log; None where it cannot be told so cheaply."""
    writer = next(iter(writer_directories(run)), None)
    if writer is None:
        return None
    try:
        fd = open_trusted(writer / segment_name(0))
        try:
            data = os.pread(fd, _PEEK_BYTES, 0)
        finally:
            os.close(fd)
        preamble = read_preamble(data)
        frame = None if preamble is None else next_frame(data, PREAMBLE_BYTES, preamble.salt)
        return decode(frame.kind, frame.payload) if isinstance(frame, Frame) and frame.sequence == 0 else None
    except (SpoolError, OSError):
        return None


def are_heartbeats(segment: Path, start: int, end: int) -> bool:
    """Whether these bytes of a segment are heartbeats and nothing else, by their headers alone."""
    try:
        fd = open_trusted(segment)
        try:
            data = os.pread(fd, end - start, start)
        finally:
            os.close(fd)
    except (SpoolError, OSError):
        return False
    at = 0
    while len(data) - at >= OVERHEAD:
        mark, length, kind, _ = HEADER.unpack_from(data, at)
        if mark != EXT32 or kind != Kind.HEARTBEAT:
            return False
        at += OVERHEAD + length - BEYOND_LENGTH
    return at == len(data) == end - start
