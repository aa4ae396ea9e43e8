"""The directory of one writer: made for its owner alone, locked while the writer lives, with a ballast file for the end.

Owns the lock's descriptor and the ballast. It writes no segment.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mlferry_spool.files import Files
from mlferry_spool.layout import BALLAST
from mlferry_spool.limits import BALLAST_BYTES
from mlferry_spool.liveness import hold
from mlferry_spool.trust import check_root

__all__ = ["Home"]


class Home:
    """A writer's directory, which it shares with nobody."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._directory: Path | None = None
        self._lock_fd: int | None = None

    @property
    def locked(self) -> bool:
        return self._lock_fd is not None

    def enter(self, directory: Path) -> None:
        """Make the directory and take its lock, where the file system has locks.

        Raises:
            BlockingIOError: another process lives there.
            PermissionError: the spool is one that others could put files into.
            OSError: the disk does not take it.
        """
        if directory != self._directory:
            self.leave()
        check_root(directory)
        self._files.make_directory(directory)
        check_root(directory)  # it may have been made by somebody else in between
        self._directory = directory
        if not self.locked:
            self._lock_fd = hold(directory)

    def leave(self) -> None:
        """Give the lock back; in a forked child, the parent keeps it."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def lock_again(self) -> None:
        """Somebody closed our descriptors; their numbers may be in use again, so they are forgotten, not closed."""
        self._lock_fd = None
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._lock_fd = hold(self._directory)

    def lay_ballast(self) -> None:
        """Keep room for the last words, if there is any."""
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._files.reserve(self._directory / BALLAST, BALLAST_BYTES)

    def lift_ballast(self) -> None:
        if self._directory is not None:
            with contextlib.suppress(OSError):
                (self._directory / BALLAST).unlink(missing_ok=True)
