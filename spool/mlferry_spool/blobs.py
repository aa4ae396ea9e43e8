"""Artifact bytes by content: ``blobs/<sha256>`` of a run, each stored once however often it is logged.

A blob is complete before anything names it: copied to a temporary name, made durable, renamed, and the directory made
durable; only then may a frame carry its digest. Where the file system can share extents (btrfs, XFS) the copy is a reflink.
The digest is of the copy, so a source that changes meanwhile still gives a blob that is what its name says.

A process that is killed leaves a temporary file. Its lock goes with the process, so the next who brings a blob into the run
on the same machine takes it away; where locks do not tell, its age does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlferry_spool.files import make_directory, sync_directory
from mlferry_spool.layout import BLOBS
from mlferry_spool.liveness import this_machine
from mlferry_spool.trust import check_root

__all__ = ["Blob", "Blobs", "Incoming", "digest_of", "open_regular"]

_FICLONE = 0x40049409  # linux/fs.h
_CHUNK = 1 << 20
_TEMPORARY = ".tmp-"

#: Seconds without a write after which nobody is copying any more, whatever cannot be known of it.
#: Beyond: the half copy is deleted when the next blob comes into its run.
#: Test: tests/unit/spool/test_blobs.py::test_copies_cut_short_by_a_kill_are_swept_up_a_day_later
_ABANDONED_S = 86_400.0

#: Seconds without a write after which a file of this kernel that nobody has locked was left behind: it is locked at once.
#: Beyond: as above.
#: Test: tests/unit/spool/test_blobs.py::test_what_a_killed_process_left_is_swept_up_as_soon_as_its_lock_tells
_LOCKED_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored bytes: SHA-256 (32 bytes) and size in bytes."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A blob that comes in, under its temporary name: what is written to ``file`` stays where it is when it is kept."""

    file: BinaryIO
    path: Path


class Blobs:
    """The blobs of one run. Several processes may add at once; none ever changes what is there."""

    def __init__(self, run_directory: Path, *, durable: bool = True) -> None:
        self._directory = run_directory / BLOBS
        self._durable = durable
        self._swept = False

    def __repr__(self) -> str:
        return f"Blobs({str(self._directory)!r})"

    def path(self, sha256: bytes) -> Path:
        return self._directory / sha256.hex()

    def put_file(self, source: str | os.PathLike[str]) -> Blob:
        """Copy a file in. Raises OSError: the source cannot be read, or the disk does not take it."""
        with open_regular(source) as original:
            return self.put_open(original)

    def put_open(self, original: BinaryIO) -> Blob:
        """Copy an open file in, from its start. Raises as ``put_file``."""
        with self.incoming() as copy:
            cloned = _reflink(original, copy.file)
            return self.keep(copy, digest_of(copy.file) if cloned else _copy(original, copy.file))

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes. Raises OSError: the disk does not take them."""
        blob = Blob(hashlib.sha256(data).digest(), len(data))
        if self._has(blob):
            self._sync_names()
            return blob
        with self.incoming() as copy:
            copy.file.write(data)
            return self.keep(copy, blob)

    def _has(self, blob: Blob) -> bool:
        with contextlib.suppress(OSError):
            return self.path(blob.sha256).stat().st_size == blob.size
        return False

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A file for a blob that is written here from the start; what was not kept is gone at the end. Raises OSError."""
        check_root(self._directory)
        make_directory(self._directory)
        check_root(self._directory)
        self._sweep()
        path = self._directory / f"{_TEMPORARY}{_kernel()}-{os.urandom(8).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(fd, "w+b") as copy:
                yield Incoming(copy, path)
        finally:
            with contextlib.suppress(OSError):  # after the rename there is nothing under this name
                path.unlink()

    def settle(self, copy: Incoming) -> None:
        """Make what came in durable before it is known what it is, while somebody else finds that out. Raises OSError."""
        copy.file.flush()
        if self._durable:
            os.fdatasync(copy.file.fileno())

    def keep(self, copy: Incoming, blob: Blob) -> Blob:
        """What came in, and is ``blob``, is complete: give it its name, or none where it is there. Raises OSError."""
        copy.file.flush()
        if not self._has(blob):
            if self._durable:
                os.fdatasync(copy.file.fileno())
            copy.path.rename(self.path(blob.sha256))
        self._sync_names()
        return blob

    def _sync_names(self) -> None:
        """Also for a blob that was there: whoever renamed it may not have come to this yet, and a frame will name it now."""
        if self._durable:
            sync_directory(self._directory)
            sync_directory(self._directory.parent)

    def _sweep(self) -> None:
        """Take away, once, what was left behind by a kill while it came in."""
        if self._swept:
            return
        self._swept = True
        with contextlib.suppress(OSError):
            for path in self._directory.glob(f"{_TEMPORARY}*"):
                with contextlib.suppress(OSError):
                    if _is_abandoned(path):
                        path.unlink()


def _kernel() -> str:
    """Names the running kernel, whose locks speak only for its own processes (see ``liveness``)."""
    return this_machine().boot_id[:8]


def _is_abandoned(path: Path) -> bool:
    """Whether nobody is writing to it any more. Raises OSError."""
    silent_s = time.time() - path.lstat().st_mtime
    if silent_s > _ABANDONED_S or not _kernel() or not path.name.startswith(f"{_TEMPORARY}{_kernel()}-"):
        return silent_s > _ABANDONED_S
    return silent_s > _LOCKED_AFTER_S and _is_free(path)


def _is_free(path: Path) -> bool:
    """Whether its lock can be had. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(fd)
    return True


def digest_of(file: BinaryIO, go_on: Callable[[], None] = lambda: None) -> Blob:
    """Digest and size of an open file, from its start, in constant memory.

    ``go_on`` is called about a thousand times a gigabyte; what it raises ends the reading.
    """
    file.seek(0)
    sha256, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        go_on()
        sha256.update(chunk)
        size += len(chunk)
    return Blob(sha256.digest(), size)


def open_regular(source: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to copy; a pipe would block until somebody writes. Raises OSError."""
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(source))
    return os.fdopen(fd, "rb")


def _copy(original: BinaryIO, copy: BinaryIO) -> Blob:
    original.seek(0)
    sha256, size = hashlib.sha256(), 0
    while chunk := original.read(_CHUNK):
        sha256.update(chunk)
        copy.write(chunk)
        size += len(chunk)
    return Blob(sha256.digest(), size)


def _reflink(original: BinaryIO, copy: BinaryIO) -> bool:
    try:
        fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
    except OSError:
        return False
    return True
