"""One writer's log, read from its beginning to where it ends now: its records, and what is known of the writer's life.

A run's rows are folded from all of its records, so each log is read whole; but points and tags are written only of what came
after the place up to which an earlier import has written them (``since``). Who lives is asked before the last byte is read,
as in delivery, so that nothing that was written between the two is taken for missing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mlferry_agent.closing import WriterFacts, is_alive
from mlferry_agent.feeds import written_at
from mlferry_agent.terms import Terms
from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord, SpoolError, UnsupportedKind, UnsupportedVersion
from mlferry_spool.layout import segment_name
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader, segment_offsets
from mlferry_spool.records import Dropped, Heartbeat, Open, Record, RunEnd, RunUpdate
from mlferry_spool.tailer import Cursor, Entry, Lost

__all__ = ["WriterLog"]

#: As in ``feeds``: a sign of life is not younger than the file it stands in, give or take this (milliseconds).
_CLOCK_SKEW_MS = 60_000


class WriterLog:
    """A writer's log. ``aside`` collects (offset, what, name, reason) of what cannot be read; ``trouble`` says why the log
    cannot be read on, and ``stuck`` whether a newer mlferry or better times could."""

    def __init__(self, directory: Path, terms: Terms) -> None:
        self.directory = directory
        self.opening: Open | None = None
        self.dropped = self.lost = self.last_sign = self.records = 0
        self.trouble: str | None = None
        self.stuck = False
        self.aside: list[tuple[int, str, str, str]] = []
        self._terms = terms
        self._ending: RunEnd | None = None
        self._in_order = False
        self._reader = LogReader(directory, patience_s=terms.patience_s)
        self._events: deque[Entry | Lost] = deque()
        self._lock, self._now, self._written_at = probe(directory), time.time_ns() // 1_000_000, written_at(directory)
        self._horizon = _end_of(directory)

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def cursor(self) -> Cursor:
        """How far the log was read."""
        return self._reader.cursor

    def is_at_end(self, cursor: Cursor) -> bool:
        """Whether nothing stands behind a place up to which it was read before."""
        return (cursor.segment, cursor.byte) == self._horizon

    def look(self) -> Open | None:
        """The OPEN at the log's beginning; what is read on the way to it is kept for ``read``."""
        seen = 0
        while self.opening is None and self._fill():
            for event in list(self._events)[seen:]:
                if isinstance(event, Entry) and self.opening is None:
                    self._decode(event)
            seen = len(self._events)
        return self.opening

    def read(self) -> Iterator[tuple[int, Record]]:
        """Every record that a user logged, with its offset, as far as the log reached when it was opened."""
        while self._events or self._fill():
            event = self._events.popleft()
            if isinstance(event, Lost):
                self.lost += event.frames or 0
                continue
            record = self._decode(event, note=True)
            if record is not None:
                self.records += 1
                yield event.offset, record
        self._finish()

    def facts(self) -> WriterFacts | None:
        """What ``closing`` asks of a writer, once the log was read; None where its OPEN cannot be read."""
        if self.opening is None:
            return None
        finished = self._reader.ended
        return WriterFacts(self.opening, self._ending, finished, self.last_sign, self.lives, self._in_order)

    @property
    def lives(self) -> bool:
        """Whether its writer may go on."""
        if self._in_order:
            return False
        last_sign, terms = max(self.last_sign, self._written_at), self._terms
        if self.opening is None:
            silent = self._now - last_sign > terms.stale_after_s * 1000
            return self._lock is Lock.HELD or (not terms.local_disk and not silent)
        return is_alive(
            self.opening,
            self._lock,
            terms.machine,
            local_disk=terms.local_disk,
            last_sign=last_sign,
            now=self._now,
            stale_after_s=terms.stale_after_s,
        )

    def _fill(self) -> bool:
        """Read a window more; False at the end, which is where the log ended when it was opened."""
        place = (self._reader.cursor.segment, self._reader.cursor.byte)
        if self.trouble is not None or place >= self._horizon:
            return False
        try:
            events = self._reader.read(time.monotonic())
        except (SpoolError, OSError) as error:
            self._stick(error)
            return False
        self._in_order = self._reader.ended
        self._events.extend(events)
        return bool(events)

    def _decode(self, entry: Entry, *, note: bool = False) -> Record | None:
        """The record of an entry, if it is one that a user logged; others are kept in mind."""
        try:
            record = decode(entry.kind, entry.payload)
        except CorruptRecord as error:
            if note:
                self.aside.append((entry.offset, "record", f"kind {entry.kind}", str(error)))
            return None
        except UnsupportedKind as error:
            self._stick(error)
            self._events.clear()
            return None
        if isinstance(record, Open):
            self.opening = record
        if record is None or not note:
            return None
        return self._note(record)

    def _note(self, record: Record) -> Record | None:
        self._live(getattr(record, "timestamp", None) or getattr(record, "end_time", None) or 0)
        if isinstance(record, Open):
            self._live(record.opened)
        elif isinstance(record, RunEnd):
            self._ending = record
        elif isinstance(record, Dropped):
            self.dropped += record.count
        elif not isinstance(record, Heartbeat) and type(record).__name__ != "SegmentEnd":
            if isinstance(record, RunUpdate) and record.status == "RUNNING":
                self._ending = None
            return record
        return None

    def _live(self, timestamp: int) -> None:
        self.last_sign = max(self.last_sign, min(timestamp, self._written_at + _CLOCK_SKEW_MS))

    def _finish(self) -> None:
        """The writer is dead and everything readable was read: a torn tail stands for a call that never returned."""
        if not self.stuck and not self._in_order and not self.lives:
            self._reader.finish()

    def _stick(self, error: Exception) -> None:
        self.trouble = str(error)
        self.stuck = isinstance(error, (UnsupportedVersion, UnsupportedKind, OSError))


def _end_of(directory: Path) -> tuple[int, int]:
    """The last segment of a log and its size now."""
    last = max(segment_offsets(directory), default=0)
    try:
        return last, (directory / segment_name(last)).stat().st_size
    except OSError:
        return last, 0
