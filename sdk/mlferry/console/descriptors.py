"""Descriptors 1 and 2, exchanged and put back. Owns what they were, and the ends of the pipes that take their place.

One pipe serves both where both lead to the same place, so that the order of what is printed stays as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import threading
from dataclasses import dataclass

__all__ = ["Diverted", "Way", "above_standard", "copy_size", "is_open"]

#: Bytes that a pipe takes before its writer waits: what is printed while the child starts.
_PIPE_BYTES = 1 << 20


@dataclass(slots=True)
class Way:
    """What is written to ``numbers`` comes out of ``source``; ``original`` is where it went before."""

    numbers: tuple[int, ...]
    original: int
    source: int
    sink: int


class Diverted:
    """The standard descriptors of this process, led into pipes until ``restore``. Every other descriptor closes on exec."""

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self._line_buffering = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the pipes; nothing is printed into them yet. Raises OSError; ``close`` what there is then."""
        for numbers in _groups():
            self.ways.append(_way(numbers))

    def divert(self) -> None:
        """From now on all is printed into the pipes. Raises OSError, and then nothing is."""
        self._buffer_by_line()
        flush()
        try:
            for way in self.ways:
                for number in way.numbers:
                    os.dup2(way.sink, number)
        except OSError:
            self.restore()
            raise

    def restore(self) -> None:
        """Put back what was there, unless the program itself has exchanged it meanwhile. Idempotent."""
        flush()
        with self._lock:
            for way in reversed(self.ways):
                for number in way.numbers:
                    with contextlib.suppress(OSError):
                        if _same(number, way.sink):
                            os.dup2(way.original, number)
            for way in self.ways:
                _close(way.sink)
                way.sink = -1
        if self._line_buffering:
            self._line_buffering = False
            with contextlib.suppress(Exception):
                sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]

    def pass_on(self) -> None:
        """Write what lies in the pipes, which nobody else reads any more, to where it was to go."""
        with self._lock:
            for way in self.ways:
                with contextlib.suppress(OSError):
                    while select.select([way.source], [], [], 0)[0] and (data := os.read(way.source, 1 << 16)):
                        os.write(way.original, data)

    def close(self) -> None:
        """Forget it."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """The same in a forked child, which goes on to print into the pipe, and where a lock may be held by nobody."""
        for way in self.ways:
            for fd in (way.sink, way.source, way.original):
                _close(fd)
        self.ways = []

    def _buffer_by_line(self) -> None:
        """Python gathers 8 KiB for anything but a terminal; a log that is looked at live wants lines."""
        stream = sys.stdout
        with contextlib.suppress(Exception):  # whatever a notebook has put there
            if stream.fileno() == 1 and not stream.line_buffering:
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
                self._line_buffering = True


def _groups() -> list[tuple[int, ...]]:
    """1 and 2, as far as they are open: together where they lead to the same place."""
    numbers = [number for number in (1, 2) if is_open(number)]
    if len(numbers) == 2 and _same(1, 2):
        return [(1, 2)]
    return [(number,) for number in numbers]


def is_open(number: int) -> bool:
    """Whether this descriptor is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _same(one: int, other: int) -> bool:
    if one < 0 or other < 0:
        return False
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev)


def above_standard(fd: int) -> int:
    """The same file under a number that nobody prints to: where 1 or 2 is closed, it is the next to be given.

    Raises OSError."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _way(numbers: tuple[int, ...]) -> Way:
    original = fcntl.fcntl(numbers[0], fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        made = _terminal(original) if os.isatty(original) else _pipe()
        source, sink = above_standard(made[0]), above_standard(made[1])
    except OSError:
        _close(original)
        raise
    return Way(numbers, original, source, sink)


def _pipe() -> tuple[int, int]:
    source, sink = os.pipe()
    with contextlib.suppress(OSError):  # more than this user may have
        fcntl.fcntl(sink, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_BYTES)
    return source, sink


def _terminal(original: int) -> tuple[int, int]:
    """A terminal that changes nothing of what passes it: the real one does that."""
    import tty

    source, sink = os.openpty()
    tty.setraw(sink)
    copy_size(original, source)
    return source, sink


def copy_size(original: int, terminal: int) -> None:
    """Make a terminal as wide as another one, if both are terminals."""
    import termios

    with contextlib.suppress(OSError):
        size = fcntl.ioctl(original, termios.TIOCGWINSZ, bytes(8))
        if size != fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def flush() -> None:
    """Have Python and C write what they have gathered. Only these two of C's streams: another may be one that waits."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, none, or a class of somebody else's
            stream.flush()
    with contextlib.suppress(Exception):  # no ctypes, or another C library
        import ctypes

        libc = ctypes.CDLL(None)
        for name in ("stdout", "stderr"):
            libc.fflush(ctypes.c_void_p.in_dll(libc, name))


def _close(fd: int) -> None:
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)
