"""What is in a spool: runs, and in each the logs of its writers. Only names are read here, never a record.

Several directories may hold one run (two ranks that began at once, two nodes with a disk each): they are one ``RunLog``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlferry_spool.layout import run_directories, run_id_of, segment_name, store_directory, writer_directories
from mlferry_spool.reader import segment_offsets

__all__ = ["STORE", "RunLog", "discover", "signature", "store_log", "written"]

#: Stands where a run's id stands for what belongs to no run; no run can be called that.
STORE = "(store)"


@dataclass(frozen=True, slots=True)
class RunLog:
    """A run in the spool: its offline id and the directories that hold it, in order of start time."""

    run_id: str
    directories: tuple[Path, ...]

    def writers(self) -> Iterator[Path]:
        """The directories of its writers, those that have begun a segment."""
        for directory in self.directories:
            for writer in writer_directories(directory):
                if segment_offsets(writer):
                    yield writer


def discover(root: Path) -> list[RunLog]:
    """Every run of a spool, in order of start time. A root that is not there holds none."""
    found: dict[str, list[Path]] = {}
    for directory in run_directories(root):
        run_id = run_id_of(directory.name)
        assert run_id is not None
        found.setdefault(run_id, []).append(directory)
    return [RunLog(run_id, tuple(directories)) for run_id, directories in found.items()]


def store_log(root: Path) -> RunLog | None:
    """What belongs to no run (experiments, registered models, traces), if the spool has any of it."""
    log = RunLog(STORE, (store_directory(root),))
    return log if next(log.writers(), None) is not None else None


def signature(run: RunLog) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever something was written: writer, last segment and its size."""
    return tuple(written(writer) for writer in run.writers())


def written(writer: Path) -> tuple[str, int, int]:
    """How far a writer has come: its name, its last segment and the size of that."""
    offset = max(segment_offsets(writer), default=0)
    try:
        size = (writer / segment_name(offset)).stat().st_size
    except OSError:
        size = -1
    return writer.name, offset, size
