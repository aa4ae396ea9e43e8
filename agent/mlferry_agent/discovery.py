"""What is in a spool: runs, and in each the logs of its writers. Only names are read here, never a record.

Several directories may hold one run (two ranks that began at once, two nodes with a disk each): they are one ``RunLog``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlferry_spool.layout import run_directories, run_id_of, segment_name, store_directory, writer_directories
from mlferry_spool.reader import segment_offsets

__all__ = ["STORE", "RunLog", "Runs", "discover", "log_end", "signature", "store_log", "written"]

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


class Runs:
    """The runs of a spool, kept up to date: a look that finds nothing new costs the listing of one directory."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "runs"
        self._runs: dict[str, RunLog] = {}
        self._names: set[str] = set()

    def look(self) -> dict[str, RunLog]:
        """Every run by its id, in order of start time, what came later behind it. Raises OSError."""
        try:
            names = {name for name in os.listdir(self._directory) if name in self._names or self._is_run(name)}
        except (FileNotFoundError, NotADirectoryError):
            names = set()
        if names != self._names:
            self._update(names)
        return self._runs

    def _is_run(self, name: str) -> bool:
        if run_id_of(name) is None:
            return False
        try:
            return stat.S_ISDIR((self._directory / name).lstat().st_mode)
        except OSError:
            return False

    def _update(self, names: set[str]) -> None:
        """Those who have the runs as they were keep them."""
        runs = dict(self._runs)
        for name in sorted(names ^ self._names):
            run_id = run_id_of(name)
            assert run_id is not None
            held = {path.name for path in runs[run_id].directories} if run_id in runs else set()
            directories = tuple(self._directory / held_name for held_name in sorted((held | {name}) & names))
            if directories:
                runs[run_id] = RunLog(run_id, directories)
            else:
                runs.pop(run_id, None)
        self._runs, self._names = runs, names


def store_log(root: Path) -> RunLog | None:
    """What belongs to no run (experiments, registered models, traces), if the spool has any of it."""
    log = RunLog(STORE, (store_directory(root),))
    return log if next(log.writers(), None) is not None else None


def signature(run: RunLog) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever something was written: writer, last segment and its size."""
    return tuple(written(writer) for writer in run.writers())


def written(writer: Path) -> tuple[str, int, int]:
    """How far a writer has come: its name, its last segment and the size of that."""
    return (writer.name, *log_end(str(writer)))


def log_end(writer: str) -> tuple[int, int]:
    """The last segment in a writer's directory, and its size; -1 if it cannot be told."""
    offset = max(segment_offsets(writer), default=0)
    try:
        return offset, os.stat(f"{writer}/{segment_name(offset)}").st_size  # noqa: PTH116 - asked of every run
    except OSError:
        return offset, -1
