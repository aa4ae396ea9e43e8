"""From the waiting directory into the spool: made durable first, then renamed, blobs before the logs that name them.

A run that is new comes as a whole directory, in one rename. The order is such that whatever is in place makes sense without
the rest, so that an agent may deliver meanwhile, and an import that is killed here is completed by importing again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlferry_spool.files import make_directory, sync_directory
from mlferry_spool.layout import BLOBS
from mlferry_spool.trust import check_root, open_directory

__all__ = ["make_durable", "place"]


def make_durable(waiting: Path) -> None:
    """Every file below, and the names in every directory. Raises OSError."""
    for directory, _, names in os.walk(waiting):
        for name in names:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # noqa: PTH118
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        sync_directory(Path(directory))


def place(waiting: Path, root: Path) -> None:
    """Put runs and store into the spool at ``root``.

    Raises:
        UntrustedFile: a link stands where one of its directories must be. OSError: the disk.
    """
    _merge(waiting / "experiments" / "store", root / "store")
    for run in _directories(waiting / "runs"):
        to = root / "runs" / run.name
        if to.exists() or not _move(run, to):
            _merge(run, to)
    _merge(waiting / "store", root / "store")


def _merge(waiting: Path, to: Path) -> None:
    """The files of one run (or of the store) beside those that are there."""
    if not waiting.is_dir():
        return
    blobs = waiting / BLOBS
    if blobs.is_dir():
        for blob in sorted(blobs.iterdir()):
            _move(blob, to / BLOBS / blob.name)
    for writer in _directories(waiting):
        if writer.name != BLOBS:
            _move(writer, to / writer.name)


def _directories(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if path.is_dir())


def _move(source: Path, to: Path) -> bool:
    """Rename into a directory of the spool; False: a directory with something in it stands there by now."""
    check_root(to.parent)
    make_directory(to.parent)
    above = open_directory(to.parent)
    try:
        os.rename(source, to.name, dst_dir_fd=above)
    except OSError:
        if not (source.is_dir() and to.is_dir()):
            raise
        return False
    finally:
        os.close(above)
    sync_directory(to.parent)
    return True
