"""The few verbs by which a writer touches a file system: the seam where tests let them fail.

Owns nothing. The writer binds these once, so the seam costs the hot path no call of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

__all__ = ["Files", "OsFiles", "make_directory", "sync_directory"]


class Files(Protocol):
    """Each verb but ``sync_directory`` raises OSError as its system call does; ``write`` may write less than given."""

    def create(self, path: Path) -> int: ...

    def write(self, fd: int, data: bytes, /) -> int: ...

    def truncate(self, fd: int, length: int) -> None: ...

    def sync(self, fd: int) -> None: ...

    def sync_directory(self, path: Path) -> None: ...

    def close(self, fd: int) -> None: ...

    def make_directory(self, path: Path) -> None: ...

    def reserve(self, path: Path, size: int) -> None: ...


class OsFiles:
    """The real ones. New files are for their owner alone and are never an existing file or link."""

    write = staticmethod(os.write)
    sync = staticmethod(os.fdatasync)
    close = staticmethod(os.close)
    truncate = staticmethod(os.ftruncate)

    @staticmethod
    def create(path: Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path, flags, 0o600)

    @staticmethod
    def make_directory(path: Path) -> None:
        make_directory(path)

    @staticmethod
    def sync_directory(path: Path) -> None:
        sync_directory(path)

    def reserve(self, path: Path, size: int) -> None:
        fd = self.create(path)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            path.unlink()
            raise
        finally:
            self.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, each for its owner alone (``Path.mkdir`` gives the ones above
    whatever the umask leaves). Raises OSError."""
    if not path.is_dir():
        if path.parent != path:
            make_directory(path.parent)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:  # another rank was faster, or it is no directory
            if not path.is_dir():
                raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut; file systems that cannot are left as they are."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
