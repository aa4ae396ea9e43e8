"""One writer's log -> the lanes of its run. Owns how far the log was read, and what is known of the writer's life.

Reading is bounded by the lanes: nothing is read while they are full, so a spool of a week costs no more memory than one of
a minute. After a restart the log is read again from a stored cursor; records that their lane had acknowledged are passed
over, and so are those that only count something (DROPPED, damage), by a lane of their own.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from mlferry_agent.lanes import CONTROL, Item, Lane, LaneQueue, Piece, lane_of
from mlferry_agent.ledger import Quarantined, WriterRow
from mlferry_agent.rows import quarantine_name
from mlferry_agent.translation import Refusal, translate
from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import decode
from mlferry_spool.errors import BlobMismatch, CorruptRecord, SpoolError, UnsupportedKind, UnsupportedVersion
from mlferry_spool.layout import segment_name
from mlferry_spool.reader import LogReader, segment_offsets
from mlferry_spool.records import BlobRef, Dropped, Heartbeat, Inputs, Kind, Open, Record, RunEnd, RunUpdate, Series
from mlferry_spool.tailer import Cursor, Entry, Lost
from mlferry_spool.trust import open_trusted

__all__ = ["Feed", "Queues", "opening_from", "read_blob", "resolved", "written_at"]

Queues = Mapping[Lane, LaneQueue]


#: A place to go on from after a restart is noted about every so many bytes of log.
_CHECKPOINT_BYTES = 256 << 10

_CONTROL_LANE = "control"

#: Points of a series that are made ready at once: a request's worth.
_PART_POINTS = 1_000

#: The longest text that MLflow keeps (a dataset's profile), in bytes of UTF-8.
#: Beyond: it is no such text: the input is set aside.
#: Test: tests/unit/agent/test_limits.py::test_a_text_longer_than_any_that_mlflow_keeps_is_not_read
_MAX_TEXT_BYTES = 64 << 20

#: A sign of life is not younger than the file it stands in, give or take this (milliseconds). Records carry times that
#: users gave, and a metric of the year 3000 must not keep a dead writer alive.
#: Beyond: the time of the file counts.
#: Test: tests/unit/agent/test_feeds.py::test_a_time_that_a_user_made_up_is_no_sign_of_life
_CLOCK_SKEW_MS = 60_000


class Feed:
    """Reads one writer's log into queues. ``row`` is what the ledger remembers of it; ``dropped`` is what is not to be sent
    again, as (offset, action, name)."""

    def __init__(
        self,
        directory: Path,
        row: WriterRow,
        *,
        patience_s: float = 0.0,
        dropped: Collection[tuple[int, str, str]] = (),
    ) -> None:
        self.row = row
        self._dropped = dropped
        self.opening, self._opened = None if row.opening is None else opening_from(row.opening), row.opening
        self.ending = None if row.ending is None else RunEnd(*row.ending)
        self.stuck = False
        self._damage = row.trouble if row.lost else None
        self._failed = row.trouble is not None and not row.lost
        self._patience_s = patience_s
        self._reader = LogReader(directory, row.cursor, patience_s=patience_s)
        self._horizon: tuple[int, int] | None = None
        self._written_at = 0
        self._events: deque[Entry | Lost] = deque()
        self._parts: deque[Series] = deque()
        self._item: Item | None = None
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
        """Read on until a lane is full or nothing is there; but who writes is read in any case, since it tells whether
        the run lives. Returns what cannot be delivered, to be set aside."""
        aside: list[Quarantined] = []
        while not self.stuck and (self._is_unknown() or not any(queue.is_full for queue in queues.values())):
            if not self._events and (self._is_at_horizon() or not self._read(now_s)):
                break
            try:
                aside += self._handle(self._events[0], queues)
            except UnsupportedKind as error:
                self._stick(error)
                break
            if not self._parts:
                self._handled = self._events.popleft().after.offset
        return aside

    def _is_unknown(self) -> bool:
        """Whether the log's OPEN may be the next thing in it."""
        head = self._events[0] if self._events else None
        return self.opening is None and (not isinstance(head, Entry) or head.kind in CONTROL)

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
            self._reader = LogReader(self.directory, self._reader.cursor)

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

    def give_up(self, records: int) -> None:
        """Count records as passed over for good."""
        self.row = replace(self.row, given_up=self.row.given_up + records)

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
            opening=self._opened,
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
        if self._reader.ended:
            self.row = replace(self.row, in_order=True)
        if self._failed:
            self.row, self._failed = replace(self.row, trouble=self._damage), False
        if events:
            self._written_at = written_at(self.directory)
            last = self._checkpoints[-1]
            if before.segment != last.segment or before.byte - last.byte >= _CHECKPOINT_BYTES:
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
        if self._parts:
            return self._queue_part(event, queues)
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

    def _queue_part(self, entry: Entry, queues: Queues) -> list[Quarantined]:
        """The next part of a series: as one it would fill the memory, and the time of everything else."""
        assert self._item is not None
        part = self._parts.popleft()
        done = translate(self._item, part)
        pieces = [piece for piece in done.pieces if not self._is_dropped(entry, piece)]
        self.acknowledge(queues[Lane.METRICS].add(self._item, pieces, more=bool(self._parts)))
        return [self._refused(entry, refusal) for refusal in done.refusals]

    def _queue(self, entry: Entry, record: Record, queues: Queues) -> list[Quarantined]:
        lane = lane_of(entry.kind, record)
        self._live(getattr(record, "timestamp", 0))
        if isinstance(record, RunUpdate):
            self._note_update(record)
        if entry.offset < self._acknowledged.get(lane.value, 0):
            return []
        if lane is Lane.OTHER:
            kind = Kind(entry.kind).name.lower().replace("_", " ")
            return [self._aside(entry, kind, kind, "a record of this kind does not belong into a run's log")]
        item = Item(self.writer_id, entry.offset, entry.kind)
        if isinstance(record, Series) and len(record) > _PART_POINTS:
            self._item, self._parts = item, deque(record.parts(_PART_POINTS))
            return self._queue_part(entry, queues)
        done = translate(item, resolved(record, self.directory.parent))
        pieces = (
            [piece for piece in done.pieces if not self._is_dropped(entry, piece)] if self._dropped else done.pieces
        )
        if pieces:
            queues[lane].add(item, pieces)
        return [self._refused(entry, refusal) for refusal in done.refusals]

    def _is_dropped(self, entry: Entry, piece: Piece) -> bool:
        return (entry.offset, piece.action.value, quarantine_name(piece.name)) in self._dropped

    def _note(self, entry: Entry, record: Record) -> None:
        if isinstance(record, Open):
            self.opening, self._opened = record, asdict(record)
            self._live(record.opened)
        elif isinstance(record, RunEnd):
            self.ending = record
            self._live(record.end_time)
        elif isinstance(record, Heartbeat):
            self._live(record.timestamp)
        elif isinstance(record, Dropped) and entry.offset >= self._acknowledged.get(_CONTROL_LANE, 0):
            self.row = replace(self.row, dropped=self.row.dropped + record.count)

    def _note_update(self, update: RunUpdate) -> None:
        """Whether the run is deleted is said last of all; that it runs again takes back an end that this log said before."""
        if update.lifecycle is not None:
            self.row = replace(self.row, lifecycle=(update.timestamp, update.lifecycle))
        if update.status == "RUNNING":
            self.ending = None

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
        return Quarantined(self.row.run_id, self.writer_id, entry.offset, action, quarantine_name(name), reason)


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


def resolved(record: Record, directory: Path) -> Record:
    """A record with the long texts of its datasets, from the blobs in a run's directory; one that cannot be read stays a
    reference and is refused."""
    if not isinstance(record, Inputs):
        return record
    blobs = Blobs(directory)
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


def _text(blobs: Blobs, text: str | BlobRef) -> str | BlobRef:
    if not isinstance(text, BlobRef):
        return text
    try:
        return read_blob(blobs, text.sha256, _MAX_TEXT_BYTES).decode()
    except (SpoolError, OSError, UnicodeDecodeError):
        return text


def opening_from(stored: Mapping[str, object]) -> Open:
    """The OPEN record that the ledger remembers, whichever release wrote it there."""
    known = {item.name for item in fields(Open)}
    return Open(**{name: value for name, value in stored.items() if name in known})  # type: ignore[arg-type]
