"""The process between the training and where its output goes. ``python -c`` runs ``main``; nobody else imports this.

What comes is handed on first and kept then. It has no terminal, and takes no notice of the signals that end a job: the
training ends it, by closing its end of the socket between them or by dying. Until everybody has closed the pipes it goes on
to hand on (a subprocess may outlive the run that it was started in), but keeps nothing more.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from mlferry.console.recorder import Recorder
from mlferry_spool.codec import decode
from mlferry_spool.records import Kind, Open
from mlferry_spool.settings import Fsync

__all__ = ["main"]

_CHUNK = 1 << 16

#: Seconds between two looks at whether the training lives, where nothing tells so at once: a forked child of it may hold the
#: other end of the socket.
_ALIVE_EVERY_S = 0.5


class Stream:
    """One descriptor of the training: what comes by the pipe goes to where it would have gone."""

    def __init__(self, name: str, pipe: int, target: int) -> None:
        self.name, self.pipe, self._target = name, pipe, target
        self._is_there = True
        os.set_blocking(pipe, False)

    def read(self) -> bytes | None:
        """What has come, and was handed on; None if there is nothing now, no bytes if nothing will come any more."""
        try:
            data = os.read(self.pipe, _CHUNK)
        except BlockingIOError:
            return None
        self.hand_on(data)
        return data

    def hand_on(self, data: bytes) -> None:
        """Wait as long as the target makes the training wait. A target that is gone takes nothing more."""
        view = memoryview(data)
        while view and self._is_there:
            try:
                view = view[os.write(self._target, view) :]
            except BlockingIOError:  # somebody else has made the terminal so
                time.sleep(0.01)
            except OSError:
                self._is_there = False


class Relay:
    """Hands on and keeps, until the run has ended; then hands on alone."""

    def __init__(self, streams: list[Stream], control: socket.socket, recorder: Recorder, parent: int) -> None:
        self._control, self._recorder, self._parent = control, recorder, parent
        self._selector = selectors.DefaultSelector()
        for stream in streams:
            self._selector.register(stream.pipe, selectors.EVENT_READ, stream)
        self._selector.register(control, selectors.EVENT_READ)
        self._goes_on = True

    def _lives(self) -> bool:
        """Whether the training does; a zombie does not, but then its socket has told so."""
        try:
            os.kill(self._parent, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def run(self) -> None:
        """Until the run has ended and nothing more stands in the pipes."""
        while self._goes_on and self._lives():
            self._turn(_ALIVE_EVERY_S)
        while self._turn(0):
            pass

    def hand_on(self) -> None:
        """Until nobody can write any more."""
        while self._selector.get_map():
            for key, _ in self._selector.select():
                if key.data.read() == b"":
                    self._selector.unregister(key.fileobj)

    def end(self) -> None:
        """Nothing more is kept: tell so."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._control)
        self._recorder.close()
        self._control.close()

    def _turn(self, seconds: float) -> bool:
        """Take what there is. Whether there was anything."""
        there = False
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._told()
                continue
            data = key.data.read()
            if data:
                there = True
                self._recorder.feed(key.data.name, data)
            elif data == b"":
                self._selector.unregister(key.fileobj)
        return there

    def _told(self) -> None:
        """The training says something for the record, or that the run has ended."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._control.recv(_CHUNK)
        if data:
            self._recorder.feed("note", data)
        else:
            self._goes_on = False
            self._selector.unregister(self._control)


def main(given: str) -> None:
    """``given``: JSON, as ``capturing`` makes it. Returns in the process that stays, when nobody prints any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    words: dict[str, Any] = json.loads(given)
    if os.fork():
        os._exit(0)  # all that it needs is there: the training may go on
    control = socket.socket(fileno=words["control"])
    opening = decode(Kind.OPEN, base64.b64decode(words["opening"]))
    assert isinstance(opening, Open)
    streams = [Stream(*stream) for stream in words["streams"]]

    def complain(text: str) -> None:
        with contextlib.suppress(OSError):
            control.send(text.encode() + b"\n", socket.MSG_DONTWAIT)

    directory, fsync = Path(words["directory"]), Fsync(words["fsync"])
    recorder = Recorder(directory, opening, words["folder"], fsync, complain, words["max_bytes"])
    relay = Relay(streams, control, recorder, words["parent"])
    relay.run()
    relay.end()
    relay.hand_on()
