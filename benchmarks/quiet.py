"""A machine for oneself while something is timed: a lock that others who measure hold too, and priority over the rest.

Owns nothing but that. Without a lock (``--lock FILE``, of the benchmarks that have it) nothing happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

PRIORITY = 10


@contextlib.contextmanager
def quiet(lock: Path | None) -> Iterator[None]:
    """Hold a lock; meanwhile this thread, and whatever it starts, runs before everything of ordinary priority, where the
    system allows that (root)."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        try:
            yield
        finally:
            os.sched_setscheduler(0, *before)
