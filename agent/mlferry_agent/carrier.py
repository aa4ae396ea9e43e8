"""Carries a whole spool to one server: which runs have news, how many are delivered at once, when to look again.

Owns the runs' tasks. A run with news gets a task that ends when the run is caught up; so curves of small runs stay live
while a large one drains, and a run that fails stops only itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mlferry_agent.answers import printable
from mlferry_agent.courier import Courier
from mlferry_agent.deliveries import Delivery, Terms
from mlferry_agent.discovery import RunLog, discover, signature
from mlferry_agent.errors import AgentError
from mlferry_agent.feeds import Feed
from mlferry_agent.identity import Identity
from mlferry_agent.lanes import Lane, LaneQueue
from mlferry_agent.ledger import Ledger, WriterRow
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.records import Open

__all__ = ["Carrier"]

_log = logging.getLogger("mlferry.agent")

#: Runs delivered at once: each holds a few thousand records in memory.
_MAX_ACTIVE_RUNS = 32

#: Seconds between two looks at the whole spool, whatever events say (Prometheus' WAL watcher uses the same).
_FULL_SCAN_S = 15.0

Signature = tuple[tuple[str, int, int], ...]


class Carrier:
    """Delivers the runs of a spool. ``on_progress(run_id, records)`` is called as records are acknowledged."""

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        courier: Courier,
        terms: Terms,
        on_progress: Callable[[str, int], None] = lambda run_id, records: None,
    ) -> None:
        self._root = root
        self._ledger = ledger
        self._courier = courier
        self._terms = terms
        self._on_progress = on_progress
        self._identity = Identity(ledger, courier, self._opening_of)
        self._slots = asyncio.Semaphore(_MAX_ACTIVE_RUNS)
        self._active: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, Signature] = {}
        self._runs: dict[str, RunLog] = {}
        self._scanned_at = -_FULL_SCAN_S
        self.failure: AgentError | None = None

    async def deliver(self, runs: Iterable[RunLog]) -> None:
        """Deliver these runs as far as they go now. Raises the first GaveUp or Misconfigured, after all have ended."""
        for run in runs:
            self._runs[run.run_id] = run
            self._begin(run)
        await asyncio.gather(*self._active.values())
        if self.failure is not None:
            raise self.failure

    def look(self, *, everywhere: bool) -> None:
        """Begin to deliver every run with news. ``everywhere``: look for new runs and writers too."""
        now = time.monotonic()
        if everywhere or now - self._scanned_at >= _FULL_SCAN_S:
            self._runs = {run.run_id: run for run in discover(self._root)}
            self._scanned_at = now
            candidates = list(self._runs.values())
        else:
            candidates = [run for run in self._runs.values() if self._may_grow(run)]
        for run in candidates:
            if run.run_id not in self._active and self._has_news(run):
                self._begin(run)

    async def stop(self) -> None:
        """Break off what is on its way; what was acknowledged is in the ledger."""
        for task in self._active.values():
            task.cancel()
        await asyncio.gather(*self._active.values(), return_exceptions=True)

    @property
    def is_busy(self) -> bool:
        return bool(self._active)

    def _begin(self, run: RunLog) -> None:
        task = asyncio.create_task(self._carry(run), name=f"deliver {run.run_id}")
        self._active[run.run_id] = task
        task.add_done_callback(lambda _: self._active.pop(run.run_id, None))

    async def _carry(self, run: RunLog) -> None:
        async with self._slots:
            before = signature(run)
            delivery = Delivery(
                run,
                self._ledger,
                self._courier,
                self._identity,
                self._terms,
                lambda records: self._on_progress(run.run_id, records),
            )
            try:
                await delivery.deliver()
            except AgentError as error:
                self.failure = self.failure or error
                return
            except Exception:
                # A defect of ours in one run must not stop the others; it is tried again when the run changes.
                _log.exception("run %s could not be delivered", printable(run.run_id))
            self._seen[run.run_id] = before

    def _has_news(self, run: RunLog) -> bool:
        if self._seen.get(run.run_id) != signature(run):
            return True
        row = self._ledger.run(run.run_id)
        return row is not None and row.parked is None and row.end_time is None and not self._lives(run)

    def _lives(self, run: RunLog) -> bool:
        """Whether some writer still holds its lock: then only growth is news."""
        return any(probe(writer) is Lock.HELD for writer in run.writers())

    def _may_grow(self, run: RunLog) -> bool:
        row = self._ledger.run(run.run_id)
        return row is None or (row.end_time is None and row.parked is None)

    def _opening_of(self, run_id: str) -> Open | None:
        """The OPEN record of a run in this spool, for the identity of a parent."""
        run = self._runs.get(run_id) or next((found for found in discover(self._root) if found.run_id == run_id), None)
        for writer in run.writers() if run is not None else ():
            feed = Feed(writer, WriterRow(run_id, writer.name))
            feed.fill({lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}, 0.0)
            if feed.opening is not None:
                return feed.opening
        return None
