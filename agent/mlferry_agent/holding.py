"""Who delivers by a ledger: the lock that a delivering process holds for its life, and whether somebody holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from mlferry_agent.errors import LedgerBusy, LedgerUnusable

__all__ = ["hold", "is_held"]

#: Who only asks holds the lock for an instant; one refusal proves no agent.
_TRIES, _PAUSE_S = 10, 0.01


def hold(path: Path) -> int:
    """Take the lock of the ledger at ``path``, for the life of the returned descriptor.

    Raises:
        LedgerBusy: another process delivers by it. LedgerUnusable: its directory cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LedgerUnusable(f"{path.parent}: {error.strerror}") from error
    for attempt in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE_S)
        except OSError as error:
            os.close(fd)
            raise LedgerUnusable(f"{path.parent}: {error.strerror}") from error
        else:
            return fd
    os.close(fd)
    raise LedgerBusy(str(path))


def is_held(path: Path) -> bool:
    """Whether a process of this machine delivers by the ledger at ``path`` now."""
    try:
        fd = os.open(_lock_of(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _lock_of(path: Path) -> str:
    return f"{path}.lock"
