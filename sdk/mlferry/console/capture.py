"""The training's side of a capture: begin it, end it, and put the descriptors back should its child be gone.

One capture a process. It belongs to the run that began it, which is the outermost one that asks for it; what is printed
during the runs inside is in there, too. Nothing here raises.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlferry.console.descriptors import Diverted, above_standard, is_open
from mlferry.errors import CaptureLost, MlferryError
from mlferry.trouble import warn

__all__ = ["Capture", "Target", "begin"]

#: Seconds that the end of a run waits until what was printed is stored.
#: Beyond: the run ends, and the child goes on to store; what it stores is delivered after the end.
#: Test: tests/unit/sdk/test_console.py::test_a_child_that_hangs_delays_the_end_for_no_longer_than_is_said
_MOST_S = 10.0

#: MiB of text that are kept of one process.
#: Beyond: the last part says that it ends here, and how much came after; the terminal shows all of it.
#: Test: tests/unit/sdk/test_console_text.py::test_at_its_limit_the_text_says_how_much_came_after
MAX_CAPTURE_MIB = 64

#: Seconds between two looks into the pipe, where that is the training's own business.
_PASS_ON_S = 0.1

#: Of an error that ends the run, the last so many bytes: what a socket takes without waiting.
_TRACEBACK_BYTES = 32 << 10

_BOOTSTRAP = "import sys; sys.path[:0] = {places!r}; from mlferry.console.child import main; main()"


@dataclass(frozen=True, slots=True)
class Target:
    """The run that a console becomes part of. ``lose`` counts and says what is lost."""

    directory: Path
    run_id: str
    rank: int | None
    fsync: str
    lose: Callable[[MlferryError], None]


def begin(target: Target) -> Capture | None:
    """Capture this process's console from now on; None: another run does already, or it cannot be."""
    global _current
    with _lock:
        if _current is not None:
            return None
        capture = Capture(target)
        try:
            capture.start()
        except Exception as error:  # no process, no descriptor left
            target.lose(CaptureLost(f"it could not begin: {error}"))
            return None
        _current = capture
        return capture


class Capture:
    """A console that is being captured."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._diverted = Diverted()
        self._channel: socket.socket | None = None
        self._over = threading.Event()
        self._answer = b""
        self._given_up = False

    def start(self) -> None:
        """Raises OSError and what starting a process raises; then nothing has changed."""
        ours, theirs = (socket.socket(fileno=above_standard(end.detach())) for end in socket.socketpair())
        self._channel = ours
        try:
            with theirs:
                self._diverted.prepare()
                process = self._spawn(theirs.fileno())
            self._diverted.divert()
        except BaseException:
            self._diverted.close()
            ours.close()
            raise
        _thread.start_new_thread(self._guard, (ours, process))

    def _spawn(self, channel: int) -> subprocess.Popen[bytes]:
        ways = [(way.source, way.original) for way in self._diverted.ways]
        order = {"ways": ways, "socket": channel, "pid": os.getpid(), "order": self._order()}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP.format(places=_places()), json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if is_open(2) else subprocess.DEVNULL,
            pass_fds=[channel, *(fd for way in ways for fd in way)],
            start_new_session=True,  # Ctrl-C is for the training
        )

    def _order(self) -> dict[str, Any]:
        target = self._target
        began = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        return {
            "directory": str(target.directory.absolute()),
            "run_id": target.run_id,
            "name": f"console/rank-{target.rank or 0}-{began}-{os.urandom(2).hex()}",
            "rank": target.rank,
            "limit": _limit(os.environ) << 20,
            "fsync": target.fsync,
        }

    def _guard(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """In a thread of its own: wait for what the child says, or for its death."""
        with channel:
            process.wait()  # it leaves at once; those who work are its children
            with contextlib.suppress(OSError):
                self._answer = channel.recv(1)
            if self._answer != b"D":
                self._diverted.restore()
                if not self._given_up:
                    self._target.lose(CaptureLost("its process has died"))
            self._over.set()
            while not self._answer and self._diverted.ways:  # nobody else reads, and forked children print into it
                self._diverted.pass_on()
                time.sleep(_PASS_ON_S)

    def stop(self, wait_s: float = _MOST_S) -> None:
        """Put the descriptors back, and wait until what was printed is in the run. Idempotent; in a forked child nothing."""
        global _current
        with _lock:
            if _current is not self:
                return
            _current = None
        self._diverted.restore()
        if self._channel is not None and not self._over.is_set():
            with contextlib.suppress(OSError):
                self._channel.send(b"E" + _uncaught(), socket.MSG_DONTWAIT)
                self._channel.shutdown(socket.SHUT_WR)
        if not self._over.wait(wait_s):
            self._given_up = True
            self._target.lose(CaptureLost(f"not all of it was stored within {wait_s:g} s; the rest follows if it can"))
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        if not self._answer:
            self._diverted.pass_on()
        self._diverted.close()

    def leave_to_parent(self) -> None:
        """In a forked child: it prints into the parent's capture and has no part in it."""
        self._diverted.abandon()
        if self._channel is not None:
            self._channel.close()


def _uncaught() -> bytes:
    """The error that ends the run: Python shows it when the run is over, and who reads the artifact looks for it."""
    error = sys.exc_info()[1]
    if error is None or isinstance(error, (SystemExit, GeneratorExit)):
        return b""
    with contextlib.suppress(Exception):
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return told.encode(errors="replace")[-_TRACEBACK_BYTES:]
    return b""


def _limit(environ: Mapping[str, str]) -> int:
    given = environ.get("MLFERRY_CAPTURE_MIB", "").strip()
    if not given:
        return MAX_CAPTURE_MIB
    if given.isascii() and given.isdigit() and 0 < len(given) < 7:
        return int(given)
    warn(f"MLFERRY_CAPTURE_MIB={given!r} is no whole number of MiB; {MAX_CAPTURE_MIB} is used")
    return MAX_CAPTURE_MIB


def _places() -> list[str]:
    """Where the child finds what it imports, and nothing else beyond the standard library."""
    import msgpack

    import mlferry
    import mlferry_spool

    found = [str(Path(str(module.__file__)).absolute().parents[1]) for module in (mlferry, mlferry_spool, msgpack)]
    return list(dict.fromkeys(found))


_current: Capture | None = None
_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _current.leave_to_parent()
        _current = None


os.register_at_fork(after_in_child=_after_fork_in_child)
