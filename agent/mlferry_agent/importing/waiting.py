"""A directory of its own in the spool, where an import is made ready before any of it is put into its place.

It is locked while its import lives. What an import that was killed left behind, the next one takes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mlferry_spool.files import make_directory

__all__ = ["waiting_directory"]

_PREFIX = ".import-"

#: Seconds after which nobody works in a directory any more, where the file system knows no locks.
_ABANDONED_S = 86_400.0


@contextlib.contextmanager
def waiting_directory(root: Path) -> Iterator[Path]:
    """A new directory in the spool at ``root``, taken away at the end with all that is still in it. Raises OSError."""
    make_directory(root)
    _sweep(root)
    waiting, fd = _make(root)
    try:
        yield waiting
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
        os.close(fd)


def _make(root: Path) -> tuple[Path, int]:
    while True:
        waiting = root / f"{_PREFIX}{os.urandom(8).hex()}"
        waiting.mkdir(mode=0o700)
        fd = os.open(waiting, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if waiting.is_dir():
            return waiting, fd
        os.close(fd)  # another import swept it before it was locked


def _sweep(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _is_abandoned(fd):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


def _is_abandoned(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(fd).st_mtime > _ABANDONED_S
    return True
