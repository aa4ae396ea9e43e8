"""How a process ends, and what that means for its open runs. Owns the hooks: exit, uncaught exception, SIGTERM, fork.

* A normal exit ends what is open as implied (FINISHED, unless something below said otherwise).
* An uncaught exception implies FAILED, Ctrl-C implies KILLED.
* SIGTERM (a preemption, ``scancel``, ``kill``) ends runs as KILLED; then whoever was to handle it before does, or the
  process dies of it, so that its exit status stays what it was. If the program's own handler lets it go on, so do the runs,
  and their implied end is KILLED.
* ``os._exit`` and SIGKILL say nothing here; the agent finds a writer that is dead.

The signal handler never touches a writer. It runs between two bytecodes of the main thread, which may be inside one, and a
lock that the interrupted code holds cannot be waited for. A thread does the work and the handler waits for it a moment; if
that is not enough, the handler returns, the main thread leaves whatever it was in, the work gets done, and the signal is
sent to the main thread once more. All waits are bounded: a process always dies of SIGTERM in the end.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlferry.runs import Run

__all__ = ["forget", "install", "open_runs", "status_of", "watch"]

#: Seconds that a handler of SIGTERM keeps the main thread, which may hold what the end of the runs needs.
_HANDLER_WAITS_S = 0.1

#: Seconds that a program which was told to end is given to write the end of its runs.
#: Beyond: it dies of the signal; the agent closes the run.
#: Test: tests/unit/sdk/test_endings.py::test_sigterm_ends_a_program_whose_writer_is_stuck
_AT_MOST_S = 5.0

_open: dict[int, Run] = {}


def watch(run: Run) -> None:
    """End this run with the process, unless it is ended before."""
    _open[id(run)] = run


def forget(run: Run) -> None:
    _open.pop(id(run), None)


def open_runs() -> list[Run]:
    """Every open run of the process, the ones opened last first: children end before their parents."""
    return list(_open.values())[::-1]


def status_of(error: BaseException) -> str:
    """What leaving by this exception makes of a run; ``sys.exit`` with 0 or nothing is a normal end."""
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


class Hooks:
    """The process's hooks, installed once and by the main thread only (Python lets no other set a signal handler)."""

    def __init__(self) -> None:
        self._installed = False
        self._before: Any = signal.SIG_DFL
        self._excepthook: Callable[..., Any] = sys.excepthook
        self._done: threading.Event | None = None

    def install(self) -> None:
        """Idempotent. A SIGTERM that is ignored, or handled outside Python, stays so."""
        if self._installed:
            return
        self._installed = True
        atexit.register(_end_all)
        self._excepthook, sys.excepthook = sys.excepthook, self._on_uncaught
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGTERM)
            if before is signal.SIG_DFL or callable(before):
                self._before = before
                signal.signal(signal.SIGTERM, self._on_sigterm)

    def after_fork(self) -> None:
        self._done = None

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        for run in open_runs():
            run.imply(status_of(error))
        self._excepthook(kind, error, traceback)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        done, again = self._done, self._done is not None
        if done is None:
            done = self._done = threading.Event()
            if not _start(self._tell_runs, done):
                done.set()
        if not done.wait(0 if again else _HANDLER_WAITS_S) and not again and _start(self._send_again, done, signum):
            return
        self._done = None
        self._pass_on(signum, frame)

    def _tell_runs(self, done: threading.Event) -> None:
        """In a thread of its own."""
        try:
            for run in open_runs():
                if callable(self._before):
                    run.foretell("KILLED")
                else:
                    run.imply("KILLED")
                    run.end()
        finally:
            done.set()

    def _send_again(self, done: threading.Event, signum: int) -> None:
        """In a thread of its own: once the runs are told, wake the main thread with the signal."""
        done.wait(_AT_MOST_S)
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signum)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if callable(self._before):
            self._before(signum, frame)
            return
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _start(work: Callable[..., None], *args: Any) -> bool:
    """A bare thread: ``threading.Thread`` takes locks that the interrupted code may hold. False: it is too late for one."""
    try:
        _thread.start_new_thread(work, args)
    except RuntimeError:
        return False
    return True


def _end_all() -> None:
    for run in open_runs():
        run.end()


_hooks = Hooks()
install = _hooks.install
os.register_at_fork(after_in_child=_hooks.after_fork)
