"""One writer's log -> the lanes of its run. Owns how far the log was read, and what is known of the writer's life.

Reading is bounded by the lanes: nothing is read while they are full, so a spool of a week costs no more memory than one of
a minute. After a restart the log is read again from a stored cursor; records that their lane had acknowledged are passed
over, and so are those that only count something (DROPPED, damage), by a lane of their own.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from mlferry_agent.lanes import CONTROL, LANE_OF, Item, Lane, LaneQueue
from mlferry_agent.ledger import Quarantined, WriterRow
from mlferry_agent.translation import Refusal, translate
from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import decode
from mlferry_spool.errors import BlobMismatch, CorruptRecord, SpoolError, UnsupportedKind, UnsupportedVersion
from mlferry_spool.layout import segment_name
from mlferry_spool.reader import LogReader, open_trusted, segment_offsets
from mlferry_spool.records import BlobRef, Dropped, Heartbeat, Inputs, Kind, Open, Record, RunEnd
from mlferry_spool.tailer import Cursor, Entry, Lost

__all__ = ["Feed", "Queues", "read_blob", "written_at"]

Queues = Mapping[Lane, LaneQueue]


#: Bytes of log read at a time.
_WINDOW_BYTES = 256 << 10

_CONTROL_LANE = "control"

#: The longest text that MLflow keeps (a dataset's profile), in bytes of UTF-8.
_MAX_TEXT_BYTES = 64 << 20

#: A sign of life is not younger than the file it stands in, give or take this (milliseconds). Records carry times that
#: users gave, and a metric of the year 3000 must not keep a dead writer alive.
_CLOCK_SKEW_MS = 60_000


class Feed:
    """Reads one writer's log into queues. ``row`` is what the ledger remembers of it."""

    def __init__(self, directory: Path, row: WriterRow, *, patience_s: float = 0.0) -> None:
        self.row = row
        self.opening = None if row.opening is None else _opening(row.opening)
        self.ending = None if row.ending is None else RunEnd(*row.ending)
        self.stuck = False
        self._damage = row.trouble if row.lost else None
        self._failed = row.trouble is not None and not row.lost
        self._patience_s = patience_s
        self._reader = LogReader(directory, row.cursor, patience_s=patience_s, window_bytes=_WINDOW_BYTES)
        self._horizon: tuple[int, int] | None = None
        self._written_at = 0
        self._events: deque[Entry | Lost] = deque()
        self._checkpoints: deque[Cursor] = deque([row.cursor])
        self._handled = row.cursor.offset
        self._acknowledged = dict(row.lanes)
        self.finished = row.finished and not self._reader.pending_bytes()

    def __repr__(self) -> str:
        return f"Feed({self.row.writer_id!r}, offset={self._handled}, finished={self.finished}, stuck={self.stuck})"

    @property
    def writer_id(self) -> str:
        return self.row.writer_id

    @property
    def directory(self) -> Path:
        return self._reader.directory

    def pending_bytes(self) -> int:
        """Bytes of the log that were not read yet."""
        return self._reader.pending_bytes()

    def fill(self, queues: Queues, now_s: float) -> list[Quarantined]:
        """Read on until a lane is full or nothing is there. Returns what cannot be delivered, to be set aside."""
        aside: list[Quarantined] = []
        while not self.stuck and not any(queue.is_full for queue in queues.values()):
            if not self._events and (self._is_at_horizon() or not self._read(now_s)):
                break
            try:
                aside += self._handle(self._events[0], queues)
            except UnsupportedKind as error:
                self._stick(error)
                break
            self._handled = self._events.popleft().after.offset
        return aside

    def read_no_further(self) -> None:
        """Leave what is written from now on to a later look, so that a busy writer cannot keep its run's turn for ever."""
        last = max(segment_offsets(self.directory), default=0)
        try:
            self._horizon = (last, (self.directory / segment_name(last)).stat().st_size)
        except OSError:
            self._horizon = None

    def believe(self) -> None:
        """The writer is dead: what looks damaged now will not mend itself."""
        if self._patience_s and not self.finished:
            self._reader = LogReader(self.directory, self._reader.cursor, window_bytes=_WINDOW_BYTES)

    def finish(self) -> None:
        """The writer is dead and everything readable was read: a torn tail is counted and the log is over."""
        if not self.stuck and not self.finished:
            for event in self._reader.finish():
                assert isinstance(event, Lost)
                self._count_lost(event)
            self.finished = True

    def acknowledge(self, records: int) -> None:
        """Count records as delivered."""
        self.row = replace(self.row, acknowledged=self.row.acknowledged + records)

    def snapshot(self, queues: Queues) -> WriterRow:
        """What the ledger should remember now: nothing it covers is lost by a restart, and nothing counts twice."""
        lanes = {lane.value: self._covered(lane, queue) for lane, queue in queues.items()}
        lowest = min([self._handled, *lanes.values()])
        if not self._events and lowest >= self._handled:
            self._checkpoints = deque([self._reader.cursor])
        while len(self._checkpoints) > 1 and self._checkpoints[1].offset <= lowest:
            self._checkpoints.popleft()
        self.row = replace(
            self.row,
            cursor=self._checkpoints[0],
            lanes={**lanes, _CONTROL_LANE: max(self._handled, self._acknowledged.get(_CONTROL_LANE, 0))},
            opening=None if self.opening is None else asdict(self.opening),
            ending=None if self.ending is None else (self.ending.end_time, self.ending.status),
            finished=self.finished and not self._events,
        )
        return self.row

    def _covered(self, lane: Lane, queue: LaneQueue) -> int:
        return max(queue.acknowledged(self.writer_id, self._handled), self._acknowledged.get(lane.value, 0))

    def _is_at_horizon(self) -> bool:
        cursor = self._reader.cursor
        return self._horizon is not None and (cursor.segment, cursor.byte) >= self._horizon

    def _read(self, now_s: float) -> bool:
        before = self._reader.cursor
        try:
            events = self._reader.read(now_s)
        except (SpoolError, OSError) as error:
            self._stick(error)
            return False
        # A log that was over stays so until something new stands in it.
        self.finished = self._reader.ended or (self.finished and not events)
        if self._failed:
            self.row, self._failed = replace(self.row, trouble=self._damage), False
        if events:
            self._written_at = written_at(self.directory)
            last = self._checkpoints[-1]
            if before.segment != last.segment or before.byte - last.byte >= _WINDOW_BYTES:
                self._checkpoints.append(before)
            self._events.extend(events)
        return bool(events)

    def _stick(self, error: Exception) -> None:
        """The log cannot be read on. A newer format waits for a newer agent, a file system that fails for better times;
        what is no log, or not ours, never will be, and is over once its writer is."""
        self.row, self._failed = replace(self.row, trouble=str(error)), True
        self.stuck = isinstance(error, (UnsupportedVersion, UnsupportedKind, OSError))

    def _handle(self, event: Entry | Lost, queues: Queues) -> list[Quarantined]:
        if isinstance(event, Lost):
            if event.after.offset > self._acknowledged.get(_CONTROL_LANE, 0):
                self._count_lost(event)
            return []
        try:
            record = decode(event.kind, event.payload)
        except CorruptRecord as error:
            return [self._aside(event, "record", f"kind {event.kind}", str(error))]
        if record is None:
            return []
        if event.kind in CONTROL:
            self._note(event, record)
            return []
        return self._queue(event, record, queues)

    def _queue(self, entry: Entry, record: Record, queues: Queues) -> list[Quarantined]:
        lane = LANE_OF[entry.kind]
        self._live(getattr(record, "timestamp", 0))
        if entry.offset < self._acknowledged.get(lane.value, 0):
            return []
        if lane is Lane.OTHER:
            kind = Kind(entry.kind).name.lower().replace("_", " ")
            return [self._aside(entry, kind, kind, "this release of mlferry does not deliver records of this kind")]
        item = Item(self.writer_id, entry.offset, entry.kind)
        done = translate(item, self._resolve(record))
        if done.pieces:
            queues[lane].add(item, done.pieces)
        return [self._refused(entry, refusal) for refusal in done.refusals]

    def _note(self, entry: Entry, record: Record) -> None:
        if isinstance(record, Open):
            self.opening = record
            self._live(record.opened)
        elif isinstance(record, RunEnd):
            self.ending = record
            self._live(record.end_time)
        elif isinstance(record, Heartbeat):
            self._live(record.timestamp)
        elif isinstance(record, Dropped) and entry.offset >= self._acknowledged.get(_CONTROL_LANE, 0):
            self.row = replace(self.row, dropped=self.row.dropped + record.count)

    def _resolve(self, record: Record) -> Record:
        """Long texts of datasets, from the run's blobs; one that cannot be read stays a reference and is refused."""
        if not isinstance(record, Inputs):
            return record
        blobs = Blobs(self.directory.parent)
        datasets = [
            replace(
                dataset,
                source=_text(blobs, dataset.source),
                schema=None if dataset.schema is None else _text(blobs, dataset.schema),
                profile=None if dataset.profile is None else _text(blobs, dataset.profile),
            )
            for dataset in record.datasets
        ]
        return replace(record, datasets=tuple(datasets))

    def _live(self, timestamp: int) -> None:
        timestamp = min(timestamp, self._written_at + _CLOCK_SKEW_MS)
        if timestamp > self.row.last_sign:
            self.row = replace(self.row, last_sign=timestamp)

    def _count_lost(self, lost: Lost) -> None:
        frames = lost.frames or 0
        where = f"{self.directory.name}/{lost.segment:020d}.seg"
        what = f"{frames} records lost to damage" if frames else "a torn tail (a call that never returned)"
        self.row = replace(self.row, lost=self.row.lost + frames)
        if frames:
            self._damage = f"{what} at bytes {lost.start} to {lost.end} of {where}; the file was kept"
            self.row = replace(self.row, trouble=self._damage)

    def _refused(self, entry: Entry, refusal: Refusal) -> Quarantined:
        return self._aside(entry, refusal.action, refusal.name, refusal.reason)

    def _aside(self, entry: Entry, action: str, name: str, reason: str) -> Quarantined:
        return Quarantined(self.row.run_id, self.writer_id, entry.offset, action, name[:300], reason)


def written_at(directory: Path) -> int:
    """When something was last written in a writer's directory, Unix milliseconds; 0 if it cannot be told."""
    try:
        return max(entry.stat().st_mtime_ns for entry in directory.glob("*.seg")) // 1_000_000
    except (OSError, ValueError):
        return 0


def read_blob(blobs: Blobs, sha256: bytes, limit: int) -> bytes:
    """A blob's bytes, checked against its digest. Raises ``BlobMismatch``, ``UntrustedFile`` or OSError."""
    path = blobs.path(sha256)
    with os.fdopen(open_trusted(path), "rb") as file:
        data = file.read(limit)
    if hashlib.sha256(data).digest() != sha256:
        raise BlobMismatch(path=path)
    return data


def _text(blobs: Blobs, text: str | BlobRef) -> str | BlobRef:
    if not isinstance(text, BlobRef):
        return text
    try:
        return read_blob(blobs, text.sha256, _MAX_TEXT_BYTES).decode()
    except (SpoolError, OSError, UnicodeDecodeError):
        return text


def _opening(stored: Mapping[str, object]) -> Open:
    known = {item.name for item in fields(Open)}
    return Open(**{name: value for name, value in stored.items() if name in known})  # type: ignore[arg-type]
