"""The process that reads what a training prints: passes it on at once, has it stored, and outlives who is killed.

Owns the loop, and the agreement with the training over a socket: the training sends the end (``E``), perhaps with text for
the artifact alone; the answer is ``D`` when all is stored. A socket that is closed, or a training that is gone, is the end
as well. After it what others print into the pipe (a daemon that the training left) is passed on, not stored.

Of the two processes the first does nothing but wait for the second, which works. If that dies, the first tells the training
(``L``) and passes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from mlferry.console.descriptors import copy_size

__all__ = ["main"]

_CHUNK = 1 << 16

#: Pieces that a full pipe may be read in, and some more: a terminal gives 4 KiB at once.
_PIECES = 1024

#: Seconds between two looks at the size of the terminal.
_LOOK_S = 1.0

#: Where something was printed: the number of the stream, and what.
Take = Callable[[int, bytes], None]


class Pump:
    """Reads each source and writes it to its original, until nobody is left who could print."""

    def __init__(self, ways: Sequence[tuple[int, int]]) -> None:
        self._ways = list(enumerate(ways))
        self._poll = select.poll()
        for _, (source, _) in self._ways:
            self._poll.register(source, select.POLLIN)

    @property
    def is_over(self) -> bool:
        return not self._ways

    def watch(self, fd: int) -> None:
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """The descriptors that have something to say."""
        return {fd for fd, _ in self._poll.poll(seconds * 1000)}

    def step(self, ready: set[int], take: Take | None) -> bool:
        """Pass on one piece of each source that has some. False: none had."""
        moved = False
        for index, (source, original) in list(self._ways):
            if source in ready:
                data = _read(source)
                if not data:
                    self.forget(source)
                    self._ways.remove((index, (source, original)))
                    continue
                moved = True
                _write(original, data)
                if take is not None:
                    take(index, data)
        return moved

    def drain(self, take: Take) -> None:
        """What stands in the sources now: more than a pipe holds was printed since, by somebody who does not stop."""
        for _ in range(_PIECES):
            if not self.step(self.wait(0), take):
                return

    def follow_sizes(self) -> None:
        for _, (source, original) in self._ways:
            copy_size(original, source)


def main() -> None:
    """``argv[1]``: the order as JSON, with ``ways`` (pairs of source and original), ``socket`` and ``pid``."""
    given = json.loads(sys.argv[1])
    sys.argv[0] = "mlferry.console"  # what the log says of its program
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # it ends when its training has
    os.chdir("/")
    channel = socket.socket(fileno=given["socket"])
    if os.fork():
        os._exit(0)  # the training sees no child of its own for longer than a moment: a program may wait for any child
    worker = os.fork()
    if not worker:
        _work(given, channel)
        os._exit(0)
    _, status = os.waitpid(worker, 0)
    if status:
        with contextlib.suppress(OSError):
            channel.send(b"L")
        channel.close()
        pump = Pump(given["ways"])
        while not pump.is_over:
            pump.step(pump.wait(_LOOK_S), None)


def _work(given: dict[str, object], channel: socket.socket) -> None:
    ways: list[tuple[int, int]] = [tuple(way) for way in given["ways"]]  # type: ignore[attr-defined]
    pump = Pump(ways)
    from mlferry.console.storing import Order, Store

    store = Store(Order(**given["order"]), len(ways))  # type: ignore[arg-type]
    training = _watch(given["pid"])  # type: ignore[arg-type]
    pump.watch(channel.fileno())
    if training is not None:
        pump.watch(training)
    while not pump.is_over:
        ready = pump.wait(_LOOK_S)
        pump.step(ready, store.take)
        pump.follow_sizes()
        if channel.fileno() in ready or (training is not None and training in ready):
            break
    _finish(pump, store, channel, training)


def _finish(pump: Pump, store: object, channel: socket.socket, training: int | None) -> None:
    """Store what was printed by now; then go on to pass on, for as long as anybody prints."""
    from mlferry.console.storing import Store

    assert isinstance(store, Store)
    pump.drain(store.take)
    said = _heard(channel)
    for fd in (channel.fileno(), training):
        if fd is not None:
            pump.forget(fd)
    stored = store.end(said, 0.0)
    while not stored or not pump.is_over:
        pump.step(pump.wait(0.01 if not stored else _LOOK_S), None)
        if not stored and store.end(b"", 0.0):
            stored = True
        if stored:
            with contextlib.suppress(OSError):
                channel.send(b"D")
            channel.close()
            if pump.is_over:
                return


def _heard(channel: socket.socket) -> bytes:
    """What the training says at the end: nothing if it is gone. It is bounded by the time that it may take."""
    channel.settimeout(1.0)
    said = bytearray()
    with contextlib.suppress(OSError):
        while data := channel.recv(_CHUNK):
            said += data
    return bytes(said[1:])


def _watch(pid: int) -> int | None:
    """A descriptor that tells when a process is gone; None: the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:  # a pseudo terminal whose last writer is gone: EIO
        return b""


def _write(fd: int, data: bytes) -> None:
    """A terminal that is gone, or a reader that is, is no reason to stop."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)
        except OSError:
            return
