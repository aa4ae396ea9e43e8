"""A pure tailer: from a place in a log and the bytes that stand there, to frames and to the place where to go on.

Owns the rules for what is skipped and how much that cost. It never reads a file, waits, or decides that a writer is dead:
``mlferry_spool.reader`` does the first, the agent the rest.

A ``Cursor`` always points just past an intact frame (or damage), never into one, and nothing is buffered between two calls:
bytes of an unfinished frame are read again. So a writer may cut a torn frame off and write another in its place, and a
cursor may be stored, lost, or moved to another machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlferry_spool.frames import Damage, Frame, find_header, next_frame, sequence_at

__all__ = ["Cursor", "Entry", "Lost", "resync", "scan"]


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in a writer's log.

    ``segment`` is the offset of the segment's first frame (its file name), ``byte`` a position in that file,
    ``sequence`` the frame expected there. ``segment + sequence`` is the offset of the next frame in the whole log.
    """

    segment: int = 0
    byte: int = 0
    sequence: int = 0

    @property
    def offset(self) -> int:
        """Offset in the log of the frame that this cursor points at."""
        return self.segment + self.sequence


@dataclass(frozen=True, slots=True)
class Entry:
    """An intact frame at its place: ``offset`` counts the writer's frames from 0 and, with the writer's id, names it."""

    offset: int
    kind: int
    payload: bytes
    after: Cursor


@dataclass(frozen=True, slots=True)
class Lost:
    """Bytes that hold no frame. ``frames`` is how many are missing, or None where nothing after them tells."""

    segment: int
    start: int
    end: int
    frames: int | None
    after: Cursor


def scan(cursor: Cursor, window: bytes, salt: int) -> tuple[list[Entry | Lost], Cursor]:
    """Everything complete in ``window``, the bytes of the segment from ``cursor.byte`` on, and where to go on."""
    found: list[Entry | Lost] = []
    origin, here = cursor.byte, cursor
    while True:
        piece = next_frame(window, here.byte - origin, salt)
        if piece is None:
            return found, here
        if isinstance(piece, Damage):
            event: Entry | Lost = _lost(here, origin + piece.end, sequence_at(window, piece.end))
        else:
            event = _entry(piece, here, origin)
        found.append(event)
        here = event.after


def resync(cursor: Cursor, window: bytes, start: int, salt: int) -> Lost | None:
    """Damage from the cursor to the first good header in ``window``, the bytes of the segment from ``start`` on.

    For a reader that knows no frame to begin at the cursor and looks, window by window, for the one to go on with.
    """
    found = find_header(window, 0, salt)
    return None if found is None else _lost(cursor, start + found, sequence_at(window, found))


def _entry(frame: Frame, here: Cursor, origin: int) -> Entry | Lost:
    after = Cursor(here.segment, origin + frame.end, frame.sequence + 1)
    if frame.sequence == here.sequence:
        return Entry(here.segment + frame.sequence, frame.kind, frame.payload, after)
    if frame.sequence > here.sequence:
        # Whole frames vanished without a trace of damage; say so first, the frame itself comes with the next step.
        found = Cursor(here.segment, here.byte, frame.sequence)
        return Lost(here.segment, here.byte, here.byte, frame.sequence - here.sequence, found)
    # A frame from before the cursor was read already: never deliver it twice.
    return Lost(here.segment, here.byte, origin + frame.end, 0, Cursor(here.segment, origin + frame.end, here.sequence))


def _lost(here: Cursor, end: int, sequence: int) -> Lost:
    """Damage up to byte ``end``, where a frame with this number stands."""
    after = Cursor(here.segment, end, max(sequence, here.sequence))
    return Lost(here.segment, here.byte, end, after.sequence - here.sequence, after)
