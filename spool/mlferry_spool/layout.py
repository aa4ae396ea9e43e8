"""Names and places in a spool: which directory holds what. Owns the naming rules; it opens no file.

::

    <root>/runs/<UTC time>-<run id>/<writer id>/<offset, 20 digits>.seg
                                   /<writer id>/writer.lock
                                   /blobs/<sha256>
    <root>/store/<writer id>/...        what belongs to no run (experiments, registered models)
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mlferry_spool.limits import MAX_NAME_CHARS

__all__ = [
    "BALLAST",
    "BLOBS",
    "LOCK",
    "default_root",
    "find_run",
    "is_name",
    "new_run_directory",
    "place_in_spool",
    "run_directories",
    "run_id_of",
    "segment_name",
    "segment_offset",
    "store_directory",
    "writer_directories",
    "writer_name",
    "writer_names",
]

BLOBS = "blobs"
LOCK = "writer.lock"
BALLAST = "ballast"

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")
_RUN = re.compile(rf"(\d{{8}}T\d{{6}})-([A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}})")
#: The last times that a directory's name has room for, Unix milliseconds.
_YEAR_9999 = 253_402_300_799_999
_SEGMENT = re.compile(r"(\d{20})\.seg")


def default_root(environ: Mapping[str, str]) -> Path:
    """``MLFERRY_DIR``, else ``$XDG_DATA_HOME/mlferry``, else ``~/.local/share/mlferry`` (XDG base directories, where a
    relative path counts as unset)."""
    if environ.get("MLFERRY_DIR"):
        return _expanded(Path(environ["MLFERRY_DIR"]))
    data = Path(environ.get("XDG_DATA_HOME", ""))
    home = _expanded(Path(environ.get("HOME", "~")))
    return (data if data.is_absolute() else home / ".local" / "share") / "mlferry"


def _expanded(path: Path) -> Path:
    """``~`` made a home; as it stands where nobody has that home, since no training may fail for it."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def is_name(text: str) -> bool:
    """Whether ``text`` may be a run id or a writer id: one plain directory entry, no more."""
    return _NAME.fullmatch(text) is not None


def segment_name(offset: int) -> str:
    return f"{offset:020d}.seg"


def segment_offset(name: str) -> int | None:
    """The offset in a segment's file name, or None if it is not one. Offsets fit 63 bits, as databases want them."""
    found = _SEGMENT.fullmatch(name)
    return int(found[1]) if found and int(found[1]) < 1 << 63 else None


def run_id_of(directory: str) -> str | None:
    """The run id in the name of a run's directory, or None if it is not one."""
    found = _RUN.fullmatch(directory)
    return found[2] if found else None


def new_run_directory(root: Path, run_id: str, start_time_ms: int) -> Path:
    return root / "runs" / f"{_utc(start_time_ms)}-{run_id}"


def find_run(root: Path, run_id: str) -> Path | None:
    """The directory of a run that this spool already holds; the oldest, should two ranks have made one each."""
    held = [path for path in run_directories(root) if run_id_of(path.name) == run_id]
    return min(held, default=None)


def run_directories(root: Path) -> Iterator[Path]:
    """Every run's directory, in order of start time."""
    yield from _children(root / "runs", lambda name: run_id_of(name) is not None)


def writer_directories(run: Path) -> Iterator[Path]:
    """Every writer's directory in a run (or in the store), in order of start time."""
    yield from _children(run, _is_writer)


def writer_names(run: str | Path) -> list[str]:
    """The same, by their names."""
    return _names(run, _is_writer)


def _is_writer(name: str) -> bool:
    return name != BLOBS and is_name(name)


def store_directory(root: Path) -> Path:
    return root / "store"


def place_in_spool(directory: Path) -> tuple[Path, tuple[str, ...]]:
    """The root of the spool that a directory lies in, and the names that lead there: by its path alone. No names: it lies in
    none."""
    parts = directory.parts
    for depth, below in ((1, "store"), (2, "store"), (2, "runs"), (3, "runs")):
        if len(parts) >= depth and parts[-depth] == below and (below == "store" or run_id_of(parts[1 - depth])):
            return Path(*parts[:-depth]), parts[-depth:]
    return directory, ()


def writer_name(start_time_ms: int, rank: int | None, unique: str) -> str:
    """A writer's id: sorts by time (to the millisecond), tells the rank, and is unique by its random part.

    The order matters: where a run has several writers, the later one's tags are the run's.
    """
    return f"{_utc(start_time_ms)}{start_time_ms % 1000:03d}{'' if rank is None else f'-r{rank}'}-{unique}"


def _utc(time_ms: int) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(min(max(time_ms, 0), _YEAR_9999) // 1000))


def _children(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    for name in _names(directory, wanted):
        yield directory / name


def _names(directory: str | Path, wanted: Callable[[str], bool]) -> list[str]:
    """The directories in a directory, no links; none if it is not there. Raises OSError."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if wanted(entry.name) and entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
