"""Places that are files of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlferry_agent.carrying.places import PARTIAL, Creation, in_the_way
from mlferry_spool.files import sync_directory

__all__ = ["LocalPlace"]

#: File systems that know no hard links (those of sticks) say so with one of these.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL}


@dataclass(frozen=True)
class LocalPlace:
    """A file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_local(self) -> bool:
        return True

    def beside(self, name: str) -> LocalPlace:
        return LocalPlace(self.path.with_name(name))

    def exists(self) -> bool:
        return self.path.exists()

    def size(self) -> int:
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def create(self, *, replace: bool = False) -> Creation:
        return _LocalCreation(self, replace)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class _LocalCreation:
    """Holds a lock on what it writes, so that what a killed process left behind is told from what is being written."""

    def __init__(self, place: LocalPlace, replace: bool) -> None:
        self._place, self._replace = place, replace
        self._partial = place.path.with_name(place.name + PARTIAL)
        if not replace and place.exists():
            raise in_the_way(place)
        self._file = os.fdopen(_open_new(self._partial), "wb")

    def write(self, data: bytes, /) -> int:
        return self._file.write(data)

    def commit(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            _publish(self._partial, self._place, self._replace)
        except BaseException:
            self.abort()
            raise
        self._file.close()
        sync_directory(self._place.path.parent)

    def abort(self) -> None:
        self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what could not be written may not be written now either
            self._file.close()


def _open_new(path: Path) -> int:
    """Raises FileExistsError: another process is writing it."""
    while True:
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        _sweep(path)


def _sweep(path: Path) -> None:
    """Take away what a killed process left. Raises FileExistsError: it is no such thing."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            raise FileExistsError(errno.EEXIST, "another process is writing it", str(path)) from None
        finally:
            os.close(fd)


def _publish(partial: Path, place: LocalPlace, replace: bool) -> None:
    """Give a file its name. Raises FileExistsError: it is taken."""
    if not replace:
        try:
            os.link(partial, place.path)
        except FileExistsError:
            raise in_the_way(place) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if place.exists():
                raise in_the_way(place) from None
        else:
            partial.unlink()
            return
    partial.rename(place.path)
