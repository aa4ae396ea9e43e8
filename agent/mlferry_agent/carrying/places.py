"""Where bundles, receipts and signatures lie: files of this machine, and whatever else fsspec reaches by a URL.

A place says nothing of what lies there. What is written appears under its name whole or not at all: bytes go into
``NAME.partial`` beside it first, or into an upload that an object store shows when it is complete. Nothing that is there is
replaced unless that is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mlferry_spool.files import sync_directory

__all__ = ["PARTIAL", "Creation", "LocalPlace", "Place", "in_the_way", "is_url", "place_of"]

#: How the name of a file ends that is being written.
PARTIAL = ".partial"

#: File systems that know no hard links (those of sticks) say so with one of these.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL}


class Creation(Protocol):
    """Something that is being written. It is there once it is committed; aborted, nothing of it stays."""

    def write(self, data: bytes, /) -> int: ...

    def commit(self) -> None:
        """Raises FileExistsError: something else came there meanwhile."""

    def abort(self) -> None: ...


class Place(Protocol):
    """A file that is or may be. As text it is for people: it shows no password.

    Every verb raises OSError, or PlaceTrouble where the place is one of another machine.
    """

    @property
    def name(self) -> str:
        """The last part of it."""

    @property
    def is_local(self) -> bool: ...

    def beside(self, name: str) -> Place:
        """Another one in the same folder."""

    def exists(self) -> bool: ...

    def size(self) -> int:
        """Bytes."""

    def open(self) -> BinaryIO:
        """To be read from its beginning to its end."""

    def create(self, *, replace: bool = False) -> Creation:
        """Raises FileExistsError: something is there, or somebody else is writing it."""

    def remove(self) -> None: ...


def is_url(text: str) -> bool:
    return "://" in text


def place_of(text: str | Path) -> Place:
    """A path of this machine, or a URL. Raises NeedsExtra: what reaches the URL is not installed."""
    if isinstance(text, Path) or not is_url(text):
        return LocalPlace(Path(text))
    if text.startswith("file://"):
        return LocalPlace(Path(text.removeprefix("file://")))
    from mlferry_agent.carrying.remote import RemotePlace

    return RemotePlace(text)


def in_the_way(place: Place) -> FileExistsError:
    """What is raised instead of writing over something."""
    return FileExistsError(errno.EEXIST, "is there already: choose another name, or --overwrite", str(place))


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
