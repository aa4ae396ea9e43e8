"""Core dumps: none of this process, since one would hold the token; of what it becomes, as it was."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["allow_cores", "leave_none"]

_before = resource.getrlimit(resource.RLIMIT_CORE)


def leave_none() -> None:
    """This process, and those that it starts, leave no core dump."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, _before[1]))


def allow_cores() -> None:
    """As it was before ``leave_none``."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, _before)
