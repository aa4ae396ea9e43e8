"""The training's side: leads its descriptors 1 and 2 through ``relay``, and gives them back.

One capture a process: what is printed belongs to the first run that asks for it, until that ends; a nested run prints
into its parent's. Where both descriptors are one file (``2>&1``, a log of Slurm) they share one pipe, so that nothing is
put out of order.

``relay`` is no child of this process (a program that waits for its children must not wait for it): it forks once more
when it is ready, and only then are the descriptors led to it.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mlferry.console.parts import MAX_BYTES
from mlferry.errors import ConsoleLost, ConsoleNotCaptured
from mlferry_spool.codec import pack
from mlferry_spool.layout import writer_name
from mlferry_spool.records import Open
from mlferry_spool.settings import Fsync

__all__ = ["Capture", "begin"]

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path'];"
    " from mlferry.console.relay import main; main(sys.argv[1])"
)

#: Bytes that a program may print before ``relay`` gets a turn, where the system allows so many.
_PIPE_BYTES = 1 << 20

#: Seconds that the start of a run waits for ``relay``.
#: Beyond: `ConsoleNotCaptured`: the run goes on without.
#: Test: tests/unit/sdk/test_console.py::test_a_relay_that_does_not_start_is_no_reason_not_to_train
_START_S = 10.0


@dataclass(slots=True)
class _Stream:
    """Descriptors of this process that share a pipe, its reading end, and where they led before."""

    fds: tuple[int, ...]
    pipe: int
    inode: int
    target: int


class Capture:
    """What this process prints, on its way into a run. ``begin`` makes one."""

    def __init__(self, streams: list[_Stream], control: socket.socket, complain: Callable[[str], None]) -> None:
        self._streams, self._control, self._complain = streams, control, complain
        self._lock = threading.Lock()
        self._is_given_back = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mlferry-console", daemon=True)
        self._thread.start()

    def stop(self, seconds: float, *, failed: bool = False) -> None:
        """Give the descriptors back and wait, for so long, until what was printed is in the run. Idempotent.

        ``failed``: an exception that is on its way through the caller, and will be printed after the end, belongs to it.
        """
        global _live
        if _live is not self:
            return
        _live = None
        _flush()
        self._give_back()
        with contextlib.suppress(OSError):  # it has died
            if failed and (error := sys.exc_info()[1]) is not None:
                self._control.settimeout(seconds)
                self._control.sendall("".join(traceback.format_exception(error)).encode(errors="replace"))
            self._control.shutdown(socket.SHUT_WR)
        if self._over.wait(seconds):
            self.let_go()

    def let_go(self) -> None:
        """Close what this process has of it, but for the descriptors that print."""
        self._control.close()
        for stream in self._streams:
            os.close(stream.pipe)
            os.close(stream.target)

    def _give_back(self) -> bool:
        """Let what is printed go where it went before, unless somebody else has led it elsewhere since. Whether it was this
        call that did it."""
        with self._lock:
            done, self._is_given_back = self._is_given_back, True
        for stream in () if done else self._streams:
            for fd in stream.fds:
                with contextlib.suppress(OSError):  # closed by the program
                    if os.fstat(fd).st_ino == stream.inode:
                        os.dup2(stream.target, fd)
        return not done

    def _watch(self) -> None:
        """In a thread of its own: hear what ``relay`` complains of, and whether it has ended."""
        said = b""
        with contextlib.suppress(OSError):
            while heard := self._control.recv(1 << 16):
                *lines, said = (said + heard).split(b"\n")
                for line in lines:
                    self._complain(line.decode(errors="replace"))
        if self._give_back():
            self._complain(str(ConsoleLost()))
            self._hand_on()
        self._over.set()

    def _hand_on(self) -> None:
        """``relay`` has died, and this process does its work, for who waits for room in a pipe: keeping nothing."""
        pipes = {stream.pipe: stream.target for stream in self._streams}
        while pipes:
            for pipe in select.select(list(pipes), [], [])[0]:
                data = os.read(pipe, 1 << 16)
                if not data:
                    del pipes[pipe]
                while data:
                    data = data[os.write(pipes[pipe], data) :]


_live: Capture | None = None
_begin = threading.Lock()


def begin(
    run_directory: Path,
    opening: Open,
    fsync: Fsync,
    complain: Callable[[str], None],
    max_bytes: int = MAX_BYTES,
) -> Capture | None:
    """Capture what this process prints from now on; None where that is done already, or cannot be.

    Args:
        opening: of the training's own log in the run.
        complain: told, once, why something is not captured.
    """
    global _live
    with _begin:
        if _live is not None:
            return None
        streams = _open_streams()
        try:
            control = _start_relay(run_directory, opening, fsync, streams, max_bytes)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            complain(str(ConsoleNotCaptured(str(error))))
            for stream, write in streams:
                for fd in (stream.pipe, stream.target, write):
                    os.close(fd)
            return None
        _flush()
        for stream, write in streams:
            for fd in stream.fds:
                os.dup2(write, fd)
            os.close(write)
        _live = Capture([stream for stream, _ in streams], control, complain)
        return _live


def _open_streams() -> list[tuple[_Stream, int]]:
    """A pipe, with its writing end, for each file that this process prints to."""
    files: dict[tuple[int, int, int], list[int]] = {}
    for fd in (1, 2):
        with contextlib.suppress(OSError):  # a program without an output
            if not os.get_inheritable(fd):
                continue  # it was closed, and the number is another file's by now: such a one's of the spool, perhaps
            found = os.fstat(fd)
            files.setdefault((found.st_dev, found.st_ino, found.st_rdev), []).append(fd)
    streams = []
    for fds in files.values():
        read, write = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ if hasattr(fcntl, "F_SETPIPE_SZ") else 1031, _PIPE_BYTES)
        streams.append((_Stream(tuple(fds), read, os.fstat(read).st_ino, os.dup(fds[0])), write))
    return streams


def _start_relay(
    run_directory: Path, opening: Open, fsync: Fsync, streams: list[tuple[_Stream, int]], max_bytes: int
) -> socket.socket:
    """The socket to it. Raises OSError, ValueError, SubprocessError: it did not start."""
    if not sys.executable:
        raise ValueError("this program does not say which Python runs it")
    now = time.time_ns() // 1_000_000
    helper = replace(opening, writer_id=writer_name(now, opening.rank, os.urandom(8).hex()), role="helper")
    ours, theirs = socket.socketpair()
    with theirs:
        words = {
            "path": [str(Path(place).absolute()) for place in sys.path],
            "parent": os.getpid(),
            "control": theirs.fileno(),
            "directory": str(run_directory.absolute()),
            "opening": base64.b64encode(pack(helper)).decode(),
            "folder": _folder(now, opening.rank),
            "fsync": fsync.value,
            "max_bytes": max_bytes,
            "streams": [("+".join(map(str, stream.fds)), stream.pipe, stream.target) for stream, _ in streams],
        }
        passed = [theirs.fileno(), *(fd for stream, _ in streams for fd in (stream.pipe, stream.target))]
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps(words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
                timeout=_START_S,
                check=True,
            )
        except BaseException:
            ours.close()
            raise
    return ours


def _folder(now_ms: int, rank: int | None) -> str:
    """Sorts by the time of the start; one for each process that ever prints into the run."""
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ms // 1000))
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname().partition(".")[0])
    return f"console/{began}-{f'rank{rank}' if rank is not None else f'{host}-{os.getpid()}'}"


def _flush() -> None:
    """What Python and C have not written yet belongs to whom it was printed for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


def _after_fork_in_child() -> None:
    """The child prints into its parent's run, and ends nothing."""
    global _live, _begin
    if _live is not None:
        with contextlib.suppress(OSError):
            _live.let_go()
    _live, _begin = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
