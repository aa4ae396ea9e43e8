"""When a writer begins, beside those that were there before it.

Who takes over a run from an earlier attempt is told by times: the later one begins after the last sign of life of the one
before. A clock that was set back in between (a node that booted without the time, a correction by hours) would turn that
round, and the run of a requeued job would end as KILLED although its last attempt finished. So a writer never begins before
what it finds: it looks when the logs of its own rank were last written, and begins just after that.

Only those of its own rank, since of a thousand ranks each would look at a thousand directories.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from mlferry_spool.introductions import now_ms
from mlferry_spool.layout import segment_name, writer_names
from mlferry_spool.reader import segment_offsets
from mlferry_spool.records import Open

__all__ = ["begins_at"]

_RANK = re.compile(r"\d{8}T\d{9}-r(\d+)-")

#: Milliseconds by which a clock is taken for one that was set back; what was written later than that says nothing.
#: Beyond: the writer begins by its own clock.
#: Test: tests/unit/spool/test_succession.py::test_a_time_that_cannot_be_is_not_believed
_MOST_BACK_MS = 30 * 86_400_000


#: Logs of one rank that are looked at, those that began last by their own clocks.
#: Beyond: the others are not looked at.
#: Test: tests/unit/spool/test_succession.py::test_of_very_many_logs_the_last_are_looked_at
_MOST_WRITERS = 64


def begins_at(run_directory: Path, opening: Open) -> int:
    """Unix milliseconds: now, or just after the last write of an earlier writer of this rank. What belongs to no run has no
    attempts: now."""
    now, last = now_ms(), 0
    if opening.run_id is None:
        return now
    with contextlib.suppress(OSError):
        names = [name for name in writer_names(run_directory) if _rank_of(name) == opening.rank]
        others = (name for name in sorted(names)[-_MOST_WRITERS:] if name != opening.writer_id)
        last = max((_written_at(run_directory / name) for name in others), default=0)
    return last + 1 if now <= last < now + _MOST_BACK_MS else now


def _rank_of(writer_id: str) -> int | None:
    found = _RANK.match(writer_id)
    return None if found is None else int(found[1])


def _written_at(writer: Path) -> int:
    """Unix milliseconds; 0 if nothing was."""
    with contextlib.suppress(OSError, ValueError):
        return os.stat(writer / segment_name(max(segment_offsets(writer)))).st_mtime_ns // 1_000_000  # noqa: PTH116
    return 0
