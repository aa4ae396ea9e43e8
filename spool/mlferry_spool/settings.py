"""How a log is kept. Owns the choices and their defaults; the reasons for the numbers are in ``limits``."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mlferry_spool import limits

__all__ = ["Fsync", "Settings"]


class Fsync(enum.Enum):
    """What survives a power cut: nothing is promised, all but the last interval, or every call that returned."""

    NEVER = "never"
    INTERVAL = "interval"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a log is kept; bytes and seconds. Reasons for the defaults: ``mlferry_spool.limits``."""

    fsync: Fsync = Fsync.INTERVAL
    segment_bytes: int = limits.SEGMENT_BYTES
    segment_age_s: float = limits.SEGMENT_AGE_S
    heartbeat_s: float = limits.HEARTBEAT_S
    fsync_interval_s: float = limits.FSYNC_INTERVAL_S
    retry_s: float = limits.RETRY_S
