"""What waits in the spool, run by run, within a bounded time: the part of the page that reads files.

Only runs that are not delivered to their end are looked at; of all others the ledger knows everything. Of a log that did not
change, and of which nothing was acknowledged since, the last count still holds. A survey ends after half a second: runs that
it did not come to keep their last count, and are looked at first the next time. So a spool of a million runs makes the page
old, never the agent slow. It is called in a thread; its memory belongs to whoever calls it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlferry_agent.carrier import Work
from mlferry_agent.discovery import RunLog, store_log, written
from mlferry_agent.errors import AgentError
from mlferry_agent.ledger import Ledger, WriterRow
from mlferry_agent.status import LogCount, RunStatus, count_log, run_status
from mlferry_agent.web.tallies import Tally, tally

__all__ = ["Disk", "Survey", "Surveys"]

#: Seconds of one survey of the spool for the status page.
#: Beyond: the runs that are left keep their last count, and come first in the next survey.
#: Test: tests/unit/agent/test_web_surveys.py::test_a_survey_ends_in_time_and_the_next_goes_on_from_there
_BUDGET_S = 0.5

#: Runs that are not delivered to their end and whose count is remembered.
#: Beyond: each counts as much as the usual one.
#: Test: tests/unit/agent/test_web_surveys.py::test_memory_is_bounded_however_many_runs_wait
_MOST_RUNS = 5_000

#: Bytes of a log that are counted for the status page before the rest is estimated.
_COUNT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: bytes, and the share of its inodes that is free (None where it has no such limit)."""

    of: str
    free: int
    size: int
    free_inodes: float | None


@dataclass(frozen=True, slots=True)
class Survey:
    """``at``: Unix seconds. ``uncounted``: runs that nobody came to look at yet. ``trouble``: why it is not whole."""

    at: float
    took_s: float
    work: Work
    tally: Tally
    statuses: list[RunStatus]
    uncounted: int
    disks: list[Disk]
    trouble: str | None = None


@dataclass(slots=True)
class _Known:
    """What was found the last time: when, what, and the count of each log with what it was made from."""

    looked_at: float
    status: RunStatus
    counts: dict[Path, tuple[object, LogCount]]


class Surveys:
    """Surveys of one spool and one ledger, each beginning where the last one had to end."""

    def __init__(
        self,
        root: Path,
        ledger_path: Path,
        *,
        budget_s: float = _BUDGET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._ledger_path = root, ledger_path
        self._budget_s, self._clock = budget_s, clock
        self._known: dict[str, _Known] = {}
        self._over = False

    def end(self) -> None:
        """Whoever looks comes back soon."""
        self._over = True

    def take(self, work: Work) -> Survey:
        """Look, for at most half a second and one run's time. Raises nothing that a disk or a ledger can cause."""
        began, at = self._clock(), time.time()
        found, trouble = Tally(), None
        try:
            with _reading(self._ledger_path) as ledger:
                found = tally(ledger)
                self._look(work, ledger, began + self._budget_s)
        except (AgentError, OSError) as error:
            trouble = error.reason if isinstance(error, AgentError) else str(error)
        statuses = [known.status for known in self._known.values()]
        uncounted = sum(run.run_id not in self._known for run in work.runs)
        disks = [disk for disk in (_disk("spool", self._root), _disk("state", self._ledger_path.parent)) if disk]
        return Survey(at, self._clock() - began, work, found, statuses, uncounted, disks, trouble)

    def _look(self, work: Work, ledger: Ledger | None, deadline: float) -> None:
        before, self._known = self._known, {}
        for run in self._in_order(work, before):
            known = before.get(run.run_id)
            if self._clock() < deadline and not self._over:
                counts = {} if known is None else known.counts
                known = _Known(self._clock(), run_status(run, ledger, partial(_counted, counts)), counts)
            if known is not None:
                self._known[run.run_id] = known

    def _in_order(self, work: Work, before: Mapping[str, _Known]) -> list[RunLog]:
        """What belongs to no run, then what is being delivered, then those that were not looked at for the longest time."""

        def looked_at(run: RunLog) -> float:
            return before[run.run_id].looked_at if run.run_id in before else -math.inf

        store = store_log(self._root)
        active = [run for run in work.runs if run.run_id in work.active]
        waiting = sorted((run for run in work.runs if run.run_id not in work.active), key=looked_at)
        return [*([store] if store else []), *active, *waiting][:_MOST_RUNS]


def _counted(counts: dict[Path, tuple[object, LogCount]], log: Path, row: WriterRow) -> LogCount:
    """What waits in a log; counted anew if it grew or something of it was acknowledged."""
    made_from = (row, written(log))
    known = counts.get(log)
    if known is None or known[0] != made_from:
        known = counts[log] = (made_from, count_log(log, row, _COUNT_BYTES))
    return known[1]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Ledger | None]:
    ledger = Ledger.read(path)
    try:
        yield ledger
    finally:
        if ledger is not None:
            ledger.close()


def _disk(of: str, path: Path) -> Disk | None:
    """The file system that holds ``path``, or will when it is made."""
    place = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    inodes = found.f_favail / found.f_files if found.f_files else None
    return Disk(of, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, inodes)
