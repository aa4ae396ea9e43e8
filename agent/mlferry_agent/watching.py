"""Looking again and again, at one run or at a whole spool, without reading anything twice that has not changed.

A spool of thousands of delivered runs is looked at whole only now and then; in between, only where something may move.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

from mlferry_agent.config import Config
from mlferry_agent.contents import Contents
from mlferry_agent.destinations import read_ledger
from mlferry_agent.discovery import STORE, RunLog
from mlferry_agent.status import RunStatus, everything, run_status

__all__ = ["Rate", "RunWatch", "SpoolWatch"]

#: Seconds between two looks at what was at rest, and over which a rate is measured.
_WHOLE_S, _RATE_S = 15.0, 30.0


class Rate:
    """How fast a count grows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, count: int) -> float:
        """Note the count as it is now; returns how much it grew a second, lately."""
        now = self._clock()
        self._seen.append((now, count))
        while now - self._seen[0][0] > _RATE_S and len(self._seen) > 2:
            self._seen.popleft()
        began, first = self._seen[0]
        return (count - first) / (now - began) if now > began else 0.0


class RunWatch:
    """One run: what its logs hold, and how far it is delivered."""

    def __init__(self, config: Config, run: RunLog) -> None:
        self._config = config
        self.contents = Contents(run)
        self.rate = Rate()
        self.status = self.look()

    def look(self) -> RunStatus:
        """Read what is new."""
        self.contents.refresh()
        self.status = _statuses(self._config, [self.contents.run])[0]
        return self.status

    @property
    def is_over(self) -> bool:
        """Whether the run said its end, and nobody writes to it any more."""
        return self.contents.ended and not self.status.live


class SpoolWatch:
    """All runs of a spool."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._known: dict[str, RunStatus] = {}
        self._runs: dict[str, RunLog] = {}
        self._looked = -float("inf")
        self.rate = Rate(clock)

    def look(self) -> list[RunStatus]:
        """How the runs stand now, in order of start time."""
        runs = {run.run_id: run for run in everything(self._config.dir)}
        now = self._clock()
        whole = now - self._looked >= _WHOLE_S
        if whole:
            self._looked = now
        due = [run for run_id, run in runs.items() if whole or run_id == STORE or self._may_move(run)]
        found = {status.run_id: status for status in _statuses(self._config, due)}
        self._known = {run_id: found.get(run_id) or self._known[run_id] for run_id in runs}
        self._runs = runs
        return list(self._known.values())

    def _may_move(self, run: RunLog) -> bool:
        known = self._known.get(run.run_id)
        return known is None or known.live or known.is_pending or self._runs.get(run.run_id) != run


def _statuses(config: Config, runs: list[RunLog]) -> list[RunStatus]:
    ledger = read_ledger(config, os.environ)
    try:
        return [run_status(run, ledger) for run in runs]
    finally:
        if ledger is not None:
            ledger.close()
