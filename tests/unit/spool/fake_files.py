"""Real files whose verbs fail on request: ``FakeFiles`` fails the Nth call of a verb, once or for a while.

Syncs are counted, not done: no test here cuts the power, and hundreds of real ones take minutes.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mlferry_spool.files import OsFiles


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls ``first`` to ``first + times - 1`` (from 1) of a verb fail. ``short``: a write takes only so many bytes (a
    negative number: all but so many) and says so; the next write fails with ``errno``, if that is not 0."""

    verb: str
    errno: int = errno.EIO
    first: int = 1
    times: int = 1
    short: int | None = None

    def hits(self, verb: str, call: int) -> bool:
        return verb == self.verb and self.first <= call < self.first + self.times


class FakeFiles:
    """Passes every verb on to the file system, but for the faults. ``calls`` counts; ``hits`` says how many faults came."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self.calls: Counter[str] = Counter()
        self.hits = 0
        self._next_errno = 0
        self._files = OsFiles()

    def heal(self) -> None:
        self.faults = ()

    def _fault(self, verb: str) -> Fault | None:
        self.calls[verb] += 1
        for fault in self.faults:
            if fault.hits(verb, self.calls[verb]):
                self.hits += 1
                return fault
        return None

    def _fail(self, verb: str) -> None:
        fault = self._fault(verb)
        if fault is not None:
            raise OSError(fault.errno, os.strerror(fault.errno))

    def create(self, path: Path) -> int:
        self._fail("create")
        return self._files.create(path)

    def write(self, fd: int, data: bytes, /) -> int:
        fault, follows = self._fault("write"), self._next_errno
        self._next_errno = 0
        if follows:
            raise OSError(follows, os.strerror(follows))
        if fault is None or fd < 0:
            return os.write(fd, data)
        if fault.short is None:
            raise OSError(fault.errno, os.strerror(fault.errno))
        self._next_errno = fault.errno
        return os.write(fd, data[: fault.short])

    def truncate(self, fd: int, length: int) -> None:
        self._fail("truncate")
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        self._fail("sync")
        os.fstat(fd)

    def sync_directory(self, path: Path) -> None:
        self._fault("sync_directory")

    def close(self, fd: int) -> None:
        os.close(fd)
        self._fail("close")

    def make_directory(self, path: Path) -> None:
        self._fail("make_directory")
        self._files.make_directory(path)

    def reserve(self, path: Path, size: int) -> None:
        self._fail("reserve")
        self._files.reserve(path, size)
