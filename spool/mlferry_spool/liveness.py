"""Is a writer alive? The lock that a writer holds, and what a reader may conclude from it.

A writer holds ``flock`` on its ``writer.lock`` for as long as its process lives; the kernel gives it back on any death,
SIGKILL included. The lock speaks only for writers under the reader's own kernel (same boot id): across hosts it may be
local to each of them (Lustre without ``flock``), so there only the age of the last sign of life counts. A pid is never
asked: it may have been reused, and inside a hardened service other processes are invisible.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlferry_spool.layout import LOCK

__all__ = ["Lock", "Machine", "hold", "probe", "this_machine"]

_TRIES, _PAUSE_S = 20, 0.005


class Lock(enum.Enum):
    """What a probe of a writer's lock found."""

    HELD = "held"
    FREE = "free"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine a process runs on: host name, installation and boot."""

    host: str
    machine_id: str
    boot_id: str


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """This machine; ids that cannot be read are empty and match nothing."""
    return Machine(os.uname().nodename, _read("/etc/machine-id"), _read("/proc/sys/kernel/random/boot_id"))


def hold(directory: Path) -> int | None:
    """Take the writer's lock in its own directory, for the life of the returned descriptor.

    Returns None where the file system knows no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made.
    """
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _take(fd)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        os.close(fd)
        return None
    return fd


def _take(fd: int) -> None:
    """A reader's ``probe`` holds the lock for an instant, so one refusal proves no writer."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_PAUSE_S)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def probe(directory: Path) -> Lock:
    """Whether some process holds the writer's lock. It is taken shared for an instant and never waited for."""
    try:
        # A text, since an agent asks of a hundred writers twice a second.
        fd = os.open(f"{directory}/{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Lock.UNKNOWN
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.HELD if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else Lock.UNKNOWN
    finally:
        os.close(fd)
    return Lock.FREE


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
