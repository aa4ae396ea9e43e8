"""What a power cut may take: which segments still await ``fdatasync``, and what to do about one that failed.

Why a failed sync is special. After EIO the kernel may have marked the pages clean, so the next ``fdatasync`` of the same
file succeeds and proves nothing (the PostgreSQL "fsyncgate" of 2018). Such a segment is put on ``failed`` and never synced
again; its writer writes once more, into a new segment, what was not yet safe.

Locks. A writer's own lock may be held when this one is taken, never the other way round: the caretaker syncs without the
lock that loggers need, and a signal handler that closes a writer inside ``append`` waits for one ``fdatasync`` at most.
"""

from __future__ import annotations

import errno
import os
import threading

from mlferry_spool.files import Files
from mlferry_spool.segments import Segment
from mlferry_spool.settings import Fsync

__all__ = ["Durability"]

#: The file system has no fsync; there is nothing to wait for.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

#: Failures in a row after which nothing is written again: a disk that fails each fsync would only be filled with copies.
#: Beyond: logging goes on without a promise for a power cut, until an fsync succeeds.
#: Test: tests/unit/spool/test_writer_faults.py::test_a_disk_that_fails_every_fsync_is_not_filled_with_copies
_MAX_FAILURES = 3


class Durability:
    """The segments of one writer on their way to the disk."""

    def __init__(self, policy: Fsync, files: Files) -> None:
        self._policy = policy
        self._files = files
        self._lock = threading.RLock()
        self._retired: list[Segment] = []
        self._failures = 0
        self._named = False
        self.failed: list[tuple[Segment, OSError]] = []

    def retire(self, segment: Segment) -> None:
        """Nothing more is written to it: it is closed after its next sync."""
        self._retired.append(segment)

    def sync(self, segment: Segment | None, position: int = 0, sequence: int = 0) -> None:
        """fdatasync retired segments, then the open one, whose state under the writer's lock was ``position`` bytes and
        ``sequence`` frames. What fails is on ``failed`` afterwards."""
        with self._lock:
            while self._retired:
                retired = self._retired[0]
                self._sync_one(retired, retired.position, retired.sequence)
                self._retired.pop(0)
                retired.close(self._files)
            if segment is not None and segment.is_open and segment.synced[0] < position:
                self._sync_one(segment, position, sequence)

    def close(self, segment: Segment | None) -> None:
        """Give every descriptor back."""
        with self._lock:
            self.abandon(segment)
            self._retired.clear()

    def abandon(self, segment: Segment | None) -> None:
        """In a forked child: as ``close``, but without the lock, which a thread of the parent may have held."""
        for each in (*self._retired, *(() if segment is None else (segment,))):
            each.close(self._files)

    def _sync_one(self, segment: Segment, position: int, sequence: int) -> None:
        if self._policy is Fsync.NEVER or any(segment is failed for failed, _ in self.failed):
            return
        try:
            if not segment.is_open:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._files.sync(segment.fd)
            self._failures = 0
        except OSError as error:
            if error.errno not in _NO_SYNC and not self._tolerated():
                self.failed.append((segment, error))
                return
        self._sync_names(segment)
        segment.synced = (position, sequence)

    def _tolerated(self) -> bool:
        self._failures += 1
        return self._failures > _MAX_FAILURES

    def _sync_names(self, segment: Segment) -> None:
        """A file whose name is lost is lost: once a segment its directory, once a writer those above (run, runs, root)."""
        if segment.synced[1] == 0:
            self._files.sync_directory(segment.path.parent)
        if not self._named:
            for above in segment.path.parent.parents[:4]:
                self._files.sync_directory(above)
        self._named = True
