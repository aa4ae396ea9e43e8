"""Reads a run back from a spool, for tests: every record of every writer, and what a server would be told of it.

Owns no expectations. It fails on anything that a healthy spool does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import decode
from mlferry_spool.layout import find_run, run_directories, run_id_of, writer_directories
from mlferry_spool.reader import LogReader
from mlferry_spool.records import (
    Artifact,
    Dropped,
    Metrics,
    Open,
    Params,
    Record,
    RunEnd,
    Series,
    Tags,
    TagsDeleted,
)
from mlferry_spool.tailer import Entry

R = TypeVar("R")


def run_ids(root: Path) -> list[str]:
    """Every run of a spool, in order of start time (runs of one second in order of their ids)."""
    return [run_id for path in run_directories(root) if (run_id := run_id_of(path.name))]


def read_writers(root: Path, run_id: str) -> dict[str, list[Record]]:
    """The records of each writer of a run, by the writer's id, in the order written."""
    directory = find_run(root, run_id)
    assert directory is not None, f"no run {run_id} in {root}"
    return {path.name: _read(path) for path in writer_directories(directory)}


def read_run(root: Path, run_id: str) -> list[Record]:
    """The records of a run, writer after writer."""
    return [record for records in read_writers(root, run_id).values() for record in records]


def only(kind: type[R], records: list[Record]) -> list[R]:
    """The records of one kind."""
    return [record for record in records if isinstance(record, kind)]


def _read(directory: Path) -> list[Record]:
    reader, found = LogReader(directory), []
    while events := reader.read():
        for event in events:
            assert isinstance(event, Entry), f"damage in {directory}: {event}"
            record = decode(event.kind, event.payload)
            assert record is not None, f"unknown kind {event.kind}"
            found.append(record)
    return found


@dataclass(slots=True)
class Told:
    """What a run's records come to: points in the order logged, the last value of each tag, the last status."""

    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    dropped: int = 0
    opens: list[Open] = field(default_factory=list)
    status: str | None = None

    def values(self, key: str) -> list[float]:
        """The values of one metric, in the order logged."""
        return [value for name, value, _, _ in self.points if name == key]


def told(root: Path, run_id: str) -> Told:
    """Fold a run's records; artifacts with their bytes."""
    directory = find_run(root, run_id)
    assert directory is not None, f"no run {run_id} in {root}"
    blobs, sum_up = Blobs(directory), Told()
    for record in read_run(root, run_id):
        _fold(sum_up, record, blobs)
    return sum_up


def _fold(told: Told, record: Record, blobs: Blobs) -> None:
    match record:
        case Metrics():
            told.points += [(key, value, record.step, record.timestamp) for key, value in record.values.items()]
        case Series():
            told.points += [(record.key, value, step, timestamp) for value, step, timestamp in record.points()]
        case Params():
            told.params.update(record.values)
        case Tags():
            told.tags.update(record.values)
        case TagsDeleted():
            for key in record.keys:
                told.tags.pop(key, None)
        case Artifact():
            told.artifacts[record.path] = blobs.path(record.sha256).read_bytes()
        case Dropped():
            told.dropped += record.count
        case Open():
            told.opens.append(record)
        case RunEnd():
            told.status = record.status
        case _:
            pass
