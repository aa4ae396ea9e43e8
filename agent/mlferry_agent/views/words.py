"""Numbers as people say them: counts, bytes, spans of time, a moment that has passed."""

from __future__ import annotations

import time

__all__ = ["ago", "bytes_said", "counted", "duration", "number"]


def counted(count: int, what: str) -> str:
    """ "1 run", "1,200 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """ "3 s", "12 min", "5 h", "8 d"; empty for None."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(time_ms: int | None, now_s: float | None = None) -> str:
    """How long a moment (Unix milliseconds) is past; after a month its date. Empty for None."""
    if time_ms is None:
        return ""
    now_s = time.time() if now_s is None else now_s
    past = now_s - time_ms / 1000
    if not -60 <= past < 30 * 86400:
        return time.strftime("%Y-%m-%d", time.localtime(max(0, min(time_ms, 253_402_300_799_999)) / 1000))
    return f"{duration(max(0.0, past))} ago"


def bytes_said(count: int) -> str:
    """In decimal units, as disks are sold and `ls -h --si` says."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number(value: float) -> str:
    """A metric's value, short: six digits that count."""
    return f"{value:.6g}"
