"""What the spool's tests share: a writer that nobody tends but the test, and reading a whole spool back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlferry_spool.caretaker import Caretaker
from mlferry_spool.codec import decode
from mlferry_spool.layout import writer_directories
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Dropped, Kind, Open, Params, Record, RunEnd
from mlferry_spool.settings import Settings
from mlferry_spool.tailer import Cursor, Entry, Lost
from mlferry_spool.writer import Writer

FINISHED = RunEnd(99, "FINISHED")


class _NeverStarted(threading.Thread):
    def start(self) -> None:
        pass


def nobody() -> Caretaker:
    """A caretaker without a thread: the test calls ``tend``."""
    return Caretaker(_NeverStarted)


def untended(run: Path, settings: Settings | None = None, writer_id: str = "w", **more: Any) -> Writer:
    return Writer(run, Open(writer_id, run_id="r"), settings, tended_by=nobody(), **more)


def number(n: int, filler: str = "") -> list[Any]:
    """The fields of a record that is known by its number."""
    return [n, {"k": filler}]


def drain(reader: LogReader) -> Iterator[Entry | Lost]:
    while events := reader.read():
        yield from events


@dataclass(slots=True)
class Found:
    """What stands in a log: numbers of the records in order, drops stated, damage reported, the end."""

    numbers: list[int] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    ends: list[RunEnd] = field(default_factory=list)
    ended: bool = False

    def add(self, event: Entry | Lost) -> None:
        record = None if isinstance(event, Lost) else decode(event.kind, event.payload)
        if isinstance(event, Lost):
            self.lost.append(event)
        elif isinstance(record, Params):
            self.numbers.append(record.timestamp)
        elif isinstance(record, Dropped):
            self.dropped.append(record)
        elif isinstance(record, RunEnd):
            self.ends.append(record)

    @property
    def frames_lost(self) -> int:
        return sum(lost.frames or 0 for lost in self.lost)


def read_back(run: Path) -> Found:
    """Every log of a run, finished."""
    found = Found()
    for directory in writer_directories(run):
        reader = LogReader(directory)
        for event in drain(reader):
            found.add(event)
        found.ended = reader.ended
        for event in reader.finish():
            found.add(event)
    return found


def entries(directory: Path, cursor: Cursor | None = None) -> list[Entry]:
    return [event for event in drain(LogReader(directory, cursor)) if isinstance(event, Entry)]


def records(directory: Path) -> list[Record]:
    return [record for entry in entries(directory) if (record := decode(entry.kind, entry.payload)) is not None]


def kinds(directory: Path) -> list[Kind]:
    return [Kind(entry.kind) for entry in entries(directory)]


def segment_files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.seg"))
    assert all(file.stat().st_size < MAX_SEGMENT_BYTES for file in files)
    return files
