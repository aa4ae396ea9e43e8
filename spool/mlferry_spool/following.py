"""The SHA-256 of a file while it is written: a thread reads what was written from the page cache, some way behind.

A digest costs as much as the writing, or more, and the kernel holds the bytes anyway; on a second core it costs nothing.
Only what is written from start to end can be followed. Where a writer goes back over bytes that were taken already (an
archive that fills in its directory), the digest so far is void, and the file is read once more when it is complete.

Order. The thread says how far it takes bytes before it reads them, and a writer says what it has written after the write,
both under the lock: so either the read saw the write, or the writer sees that its bytes were taken before.
"""

from __future__ import annotations

import hashlib
import os
import threading

from mlferry_spool.blobs import Blob, digest_of

__all__ = ["FollowingDigest"]

_CHUNK = 1 << 20

#: Bytes of a file from which on it is followed: a thread costs as much as the digest of some of it.
_LARGE = 16 << 20


class FollowingDigest:
    """The digest of a file that one thread writes, by ``fd``, which must be readable and stay open until ``finish``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._written = self._taken = 0
        self._is_void = self._is_complete = False
        self._sha256 = hashlib.sha256()

    def wrote(self, start: int, end: int) -> None:
        """The bytes from ``start`` to before ``end`` were written, or cut off (``end`` is then the new length)."""
        with self._news:
            self._is_void |= start < self._taken
            self._written = max(self._written, end)
            self._news.notify()
        if self._thread is None and self._written >= _LARGE and not self._is_void:
            self._thread = threading.Thread(target=self._follow, name="mlferry-digest", daemon=True)
            self._thread.start()

    def abandon(self) -> None:
        """Nobody wants to know it any more. The thread has ended when this returns."""
        with self._news:
            self._is_void = self._is_complete = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> Blob:
        """Digest and size of the file, to which nothing is written any more. Raises OSError."""
        with self._news:
            self._is_complete = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
        size = os.fstat(self._fd).st_size
        if self._thread is None or self._is_void or self._taken != size:
            with os.fdopen(os.dup(self._fd), "rb") as file:
                return digest_of(file)
        return Blob(self._sha256.digest(), size)

    def _follow(self) -> None:
        buffer = bytearray(_CHUNK)
        try:
            while wanted := self._take():
                start, size = wanted
                if os.preadv(self._fd, [memoryview(buffer)[:size]], start) != size:
                    break
                self._sha256.update(memoryview(buffer)[:size])
            else:
                return
        except OSError:
            pass
        self._is_void = True  # it is read once more, and then an error is the caller's

    def _take(self) -> tuple[int, int] | None:
        """Where to read and how much; waits for that. None: there is nothing more, or it is void."""
        with self._news:
            self._news.wait_for(lambda: self._is_complete or self._is_void or self._written - self._taken >= _CHUNK)
            size = min(self._written - self._taken, _CHUNK)
            if self._is_void or size <= 0:
                return None
            self._taken += size
            return self._taken - size, size
