"""An artifact that is written straight into the spool: a file for ``torch.save`` and its like. Owns what its writer sees.

Whoever writes must not learn that the disk is unwell: a checkpoint that cannot be stored is lost as a checkpoint, not as a
training. So a file whose disk has failed goes on to take bytes and to tell positions, keeps none of them, gives back at once
the room that it took, and says at the end why. Nothing can be read from it, and it has no descriptor to offer: what is
written past it (by ``numpy.ndarray.tofile``) would be missed by the digest that follows the writing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

from mlferry.errors import BadMode, MlferryError
from mlferry.guard import explained
from mlferry.validation import artifact_path
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.following import FollowingDigest

__all__ = ["check_mode", "written"]

#: Bytes that small writes (a pickle's, a line's) are gathered to.
_BUFFER_BYTES = 1 << 20


def check_mode(mode: str) -> None:
    """Raises BadMode: it is no mode in which bytes are written to a new file."""
    if mode not in ("wb", "bw"):
        raise BadMode(f"{mode!r:.20}")


@contextlib.contextmanager
def written(
    blobs: Blobs,
    artifact_file: str,
    keep: Callable[[str, Blob], object],
    refuse: Callable[[MlferryError], object],
) -> Iterator[IO[bytes]]:
    """A file to write an artifact to. At the end ``keep`` gets its path and the blob, complete and durable.

    Where there is none ``refuse`` gets the reason, at the beginning if it is known by then. Neither is called where an
    exception ends the writing; it goes on, and nothing is left of the file.
    """
    with contextlib.ExitStack() as stack:
        raw, incoming, path = RawArtifact(), None, ""
        try:
            path = artifact_path(artifact_file)
            incoming = stack.enter_context(blobs.incoming())
            raw.begin(path, incoming.file.fileno())
            stack.callback(_close, incoming.file)
        except Exception as error:  # a directory that is no directory, no room for a name
            refuse(explained(error))
            raw.fail(error)
        file = stack.enter_context(io.BufferedWriter(raw, _BUFFER_BYTES))
        stack.callback(raw.leave)  # before the file is closed
        yield file
        if incoming is None:
            return
        if not file.closed:
            file.flush()
        try:
            blob = blobs.keep(incoming, raw.finish(partial(blobs.settle, incoming)))
            incoming.file.close()  # on NFS it may tell of what could not be written
        except Exception as error:
            refuse(explained(error))
        else:
            keep(path, blob)


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.close()


class RawArtifact(io.RawIOBase):
    """The file below the buffer. Nothing raises what the disk does but ``finish``."""

    name, mode = "", "wb"

    def __init__(self) -> None:
        self._fd: int | None = None
        self._digest: FollowingDigest | None = None
        self._failure: Exception | None = None
        self._at = self._size = 0

    def begin(self, name: str, fd: int) -> None:
        """Write to this descriptor, which is readable, too, and stays its owner's."""
        self.name, self._fd, self._digest = name, fd, FollowingDigest(fd)

    def fail(self, failure: Exception) -> None:
        """From now on nothing is kept; what was is not worth its room."""
        self._failure = failure
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)

    def finish(self, meanwhile: Callable[[], None]) -> Blob:
        """What was written; ``meanwhile`` is called while the digest catches up. Raises what has kept it from being so."""
        if self._failure is not None:
            raise self._failure
        assert self._digest is not None
        meanwhile()
        return self._digest.finish()

    def leave(self) -> None:
        """The descriptor is going to be closed: nothing is written to it any more, whatever still lies in the buffer."""
        self._fd, self._failure = None, ValueError("the artifact is closed")
        if self._digest is not None:
            self._digest.abandon()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            size, start = len(view), self._at
            self._try(self._write, view, start)
        self._at += size
        self._size = max(self._size, self._at)
        return size

    def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._failure is None:
            try:
                work(*arguments)
            except OSError as error:
                self.fail(error)

    def _write(self, view: memoryview, start: int) -> None:
        assert self._fd is not None
        assert self._digest is not None
        done = 0
        while done < len(view):
            wrote = os.pwrite(self._fd, view[done:], start + done)
            if not wrote:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += wrote
        self._digest.wrote(start, start + done)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._at if size is None else size
        self._try(self._truncate, self._size)
        return self._size

    def _truncate(self, size: int) -> None:
        assert self._fd is not None
        assert self._digest is not None
        os.ftruncate(self._fd, size)
        self._digest.wrote(size, size)
