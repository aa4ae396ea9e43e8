"""Did anything change in a run since it was looked at? Told by a few ``stat`` calls, and by the ledger after a restart.

Why. Most runs of a large spool are over and delivered, and those that are being written are silent most of the time. To list
the directories of each of them at every look would keep a processor busy with nothing. So what a look has found is kept as a
glance: the times at which directories changed (a new writer or segment changes them, and nobody can set them back: it is
``ctime``) and the sizes of logs that may still grow. As long as it holds, the run's ``signature`` is what it was.

A glance claims nothing that it cannot know. A directory that changed a moment ago may change again without another time, as
clocks of file systems tick; on a shared one the clock is another machine's. Then there is no glance, and the run is looked
at again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent.discovery import RunLog, log_end
from mlferry_agent.ledger import Ledger
from mlferry_spool.layout import segment_name, writer_names
from mlferry_spool.tailer import Cursor

__all__ = ["Glance", "Settled", "delivered", "is_caught_up", "is_settled"]

#: How old the change of a directory must be to be the last one of its time (nanoseconds): kernels tick every 10 ms at most;
#: of clocks of file servers nothing is known, but that they are not far off.
_TICK_NS, _SHARED_TICK_NS = 100_000_000, 60_000_000_000

#: What the ledger knows of a run that is delivered to its end: where each of its logs ended.
Settled = Mapping[str, Cursor]


@dataclass(frozen=True, slots=True)
class Glance:
    """What stood there. ``directories``: when each last changed; ``logs``: sizes of last segments; ``writers``: whose locks
    may be held."""

    directories: tuple[tuple[str, int], ...]
    logs: tuple[tuple[str, int], ...]
    writers: tuple[Path, ...]

    @classmethod
    def of(cls, run: RunLog, over: Collection[str], *, local_disk: bool) -> Glance | None:
        """Look at a run before its signature is taken. ``over``: writers whose logs have ended, and were read to their end.
        None where nothing can be told so cheaply. Raises OSError."""
        stood = [(path, _changed(path)) for path in map(str, run.directories)]
        writers = [path for path in run.writers() if path.name not in over]
        stood += [(path, _changed(path)) for path in map(str, writers)]
        logs = [_last_segment(path) for path in map(str, writers)]
        return cls(tuple(stood), tuple(logs), tuple(writers))._if_believed(local_disk)

    @classmethod
    def of_settled(cls, run: RunLog, known: Settled, *, local_disk: bool) -> Glance | None:
        """Look at a run that is delivered to its end. None if its files are not those that were delivered, or may change
        without a sign."""
        glance = cls(tuple((path, _changed(path)) for path in map(str, run.directories)), (), ())
        return glance._if_believed(local_disk) if is_settled(run, known) else None

    def _if_believed(self, local_disk: bool) -> Glance | None:
        """Not where a directory changed so lately that it may change again without another time."""
        limit = time.time_ns() - (_TICK_NS if local_disk else _SHARED_TICK_NS)
        return self if all(0 < changed < limit for _, changed in self.directories) else None

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        for path, changed in self.directories:
            if _changed(path) != changed:
                return False
        return not self.has_grown()

    def has_grown(self) -> bool:
        """Whether a log is not as long as it was."""
        try:
            for path, size in self.logs:
                if os.lstat(path).st_size != size:
                    return True
        except OSError:
            return True
        return False


def _last_segment(writer: str) -> tuple[str, int]:
    offset, size = log_end(writer)
    return f"{writer}/{segment_name(offset)}", size


def _changed(path: str) -> int:
    """When an entry of a directory last came or went, Unix nanoseconds; 0 if that cannot be told."""
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:
        return 0


# -- what the ledger knows ----------------------------------------------------------------------------------------------

#: Runs of which the server was told the end and nothing else, all of whose logs were read to an end, and of which nothing is
#: set aside, given up, missing or to be told. Whatever is not as plain as that is looked at as if nothing were known.
_PLAIN = """
SELECT writers.run_id, writer_id, segment, byte, sequence FROM writers JOIN runs ON runs.run_id = writers.run_id
WHERE server_run_id IS NOT NULL AND end_time IS NOT NULL AND in_doubt = 0 AND parked IS NULL AND reported = '{}'
AND runs.lifecycle IS NULL AND runs.given_up IS NULL
AND NOT EXISTS (SELECT 1 FROM quarantine WHERE quarantine.run_id = runs.run_id)
AND NOT EXISTS (SELECT 1 FROM writers AS other WHERE other.run_id = runs.run_id AND (NOT finished OR opening IS NULL
    OR trouble IS NOT NULL OR lost OR dropped OR other.given_up OR other.lifecycle IS NOT NULL))
"""


def delivered(ledger: Ledger) -> dict[str, dict[str, Cursor]]:
    """Every run that is delivered to its end as far as the ledger knows, and where its logs ended. Raises
    ``LedgerUnusable``."""
    found: dict[str, dict[str, Cursor]] = {}
    for run_id, writer_id, *cursor in ledger.rows(_PLAIN):
        found.setdefault(run_id, {})[writer_id] = Cursor(*cursor)
    return found


def is_settled(run: RunLog, known: Settled) -> bool:
    """Whether the files of a run are those that were delivered: the same logs, and each ends where it was read to."""
    try:
        writers = [(path, name) for path in map(str, run.directories) for name in writer_names(path)]
        return len(writers) == len(known) and all(
            (cursor := known.get(name)) is not None and log_end(f"{path}/{name}") == (cursor.segment, cursor.byte)
            for path, name in writers
        )
    except OSError:
        return False


def is_caught_up(found: Iterable[tuple[str, int, int]], known: Mapping[str, Cursor]) -> bool:
    """Whether logs (their signature) end where they were read to. If not, something may still come of what stands there: a
    torn tail that is completed, a page of a network file system that was late."""
    return all(
        (cursor := known.get(name)) is not None and (cursor.segment, cursor.byte) == (segment, byte)
        for name, segment, byte in found
    )
