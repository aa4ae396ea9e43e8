"""Carries a whole spool to one server: how many runs are delivered at once, in which order, when to look again.

Owns the runs' tasks. A run with news (``news`` tells which have any) gets a task that ends when the run is caught up; so
curves of small runs stay live while a large one drains, and a run that fails stops only itself.

Where many runs are live, what the server takes is a number of requests a second, and what a run may have is one of them a
round. So no more runs are begun than may have a request on its way, and one to be ready: a run that waits has not been read
yet, and when its turn comes everything goes that was logged meanwhile. Read at once, all of them would wait with what they
read, and what was logged while they did would wait for a second turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mlferry_agent.answers import printable
from mlferry_agent.courier import Courier
from mlferry_agent.deletions import Deletions
from mlferry_agent.deliveries import Delivery
from mlferry_agent.discovery import STORE, RunLog, Runs, discover
from mlferry_agent.errors import AgentError, RunDelayed, RunGone
from mlferry_agent.feeds import Feed
from mlferry_agent.identity import Identity
from mlferry_agent.lanes import Lane, LaneQueue
from mlferry_agent.ledger import Ledger, WriterRow
from mlferry_agent.models import Models
from mlferry_agent.news import News
from mlferry_agent.store_delivery import StoreDelivery
from mlferry_agent.terms import Terms
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.records import ModelStart, Open

__all__ = ["Carrier", "Work"]

_log = logging.getLogger("mlferry.agent")

#: Runs delivered at once: each holds a few thousand records in memory.
#: Beyond: the others wait; those that have waited longest come next.
#: Test: tests/unit/agent/test_carrier.py::test_a_spool_of_many_runs_is_delivered_a_few_at_a_time
_MAX_ACTIVE_RUNS = 32

#: Runs that are new may begin at once however few requests may: a large one that is under way then has one turn of many, and
#: small ones do not wait for it. Of those that grow, what is sent is read shortly before their turn.
_BEGINNING = 8

#: Seconds after which a run counts as begun, whether or not anything of it was acknowledged: a request that the server
#: sits on must not keep others from being tried.
#: Beyond: the next run begins.
#: Test: tests/unit/agent/test_carrier.py::test_a_run_whose_request_hangs_holds_up_nobody_for_long
_LONGEST_BEGINNING_S = 1.0

#: Seconds between two looks at the whole spool, whatever events say (Prometheus' WAL watcher uses the same). In a spool so
#: large that a look takes long, looks are rarer, and take at most this share of the time. After an event only what is new in
#: the spool is looked for.
#: Beyond: what no event told is seen at the next look.
#: Test: tests/unit/agent/test_carrier.py::test_looks_at_everything_are_rarer_the_longer_they_take
_FULL_SCAN_S, _SCAN_SHARE = 15.0, 0.05

#: While runs grow they are looked at so many times as often as at rest, but for at most this share of the time.
#: Beyond: what was logged is seen a little later, as it is at rest.
#: Test: tests/unit/agent/test_carrier.py::test_growing_runs_are_looked_at_more_often_but_not_all_the_time
_HASTE, _LOOK_SHARE = 5, 0.1

#: Seconds without growth after which runs are looked at half as often: most of what a resting agent costs is being woken.
#: Beyond: what is logged then is seen up to a second later (twice `MLFERRY_POLL_S`).
#: Test: tests/unit/agent/test_carrier.py::test_growing_runs_are_looked_at_more_often_but_not_all_the_time
_QUIET_S = 30.0

#: One look in so many asks also for new writers of known runs, and for locks that are held no more; the others for growth.
_CAREFUL = 4

#: Seconds until runs that are over are looked at again, for each run that there is: it takes 3 microseconds, so a processor
#: is busy with it for a thousandth of the time. From 5,000 runs on they are looked at less often than all others.
_PAUSE_S_A_RUN = 0.003

#: Runs that are looked at before others get the event loop.
_RUNS_A_BREATH = 20


@dataclass(frozen=True, slots=True)
class Work:
    """What the carrier has in hand: the runs that are not known to be delivered to their end, and which of them are being
    delivered now, or delayed by what may pass. ``blind``: as the carrier's."""

    runs: Sequence[RunLog] = ()
    active: frozenset[str] = frozenset()
    delayed: Mapping[str, str] = field(default_factory=dict)
    blind: str | None = None


class Carrier:
    """Delivers the runs of a spool. ``on_progress(run_id, records)`` is called as records are acknowledged.

    ``blind``: why the last look at the whole spool saw nothing, None where it did.
    """

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
        recreates = terms.deleted == "recreate"
        self._identity = Identity(ledger, courier, self._opening_of, self._name_of, recreates=recreates)
        self._deletions = Deletions(ledger, self._identity, terms.deleted)
        self._catalogue = Catalogue(root)
        self._models = Models(ledger, courier, self._identity, self._start_of)
        self._store = StoreDelivery(
            root, ledger, courier, self._identity, self._models, on_progress, local_disk=terms.local_disk
        )
        self._spool = Runs(root)
        self._runs: dict[str, RunLog] = {}
        self._news = News(ledger, terms)
        self._delayed: dict[str, str] = {}
        self._due: dict[str, RunLog] = {}
        self._active: dict[str, asyncio.Task[None]] = {}
        self._looks = 0
        self._beginning: dict[str, asyncio.TimerHandle] = {}
        self._scanned_at = self._listed_at = self._swept_at = self._searched_at = -math.inf
        self._scan_took_s, self._look_took_s, self._asked = 0.0, 0.0, False
        self._grows, self._grew_at = False, time.monotonic()
        self._failure: AgentError | None = None
        self.blind: str | None = None

    async def deliver(self, runs: Iterable[RunLog]) -> None:
        """Deliver these runs as far as they go now.

        Raises:
            GaveUp, Misconfigured, LedgerUnusable: the first of them; no further run was begun after it.
        """
        wanted = {run.run_id: run for run in runs}
        self._runs = {**self._runs, **wanted}
        self._due = {run_id: run for run_id, run in wanted.items() if not self._news.is_settled(run)}
        self._start_store()
        self._start()
        while self._active:
            await asyncio.wait(self._active.values(), return_when=asyncio.FIRST_COMPLETED)
            if self._failure is not None:
                self._due.clear()
        if self._failure is not None:
            raise self._failure
        if not self._delayed:
            await self._store.settle()

    async def look(self, *, everywhere: bool) -> None:
        """Begin to deliver every run with news. ``everywhere``: look for new runs too, if it is not too soon after the last
        time."""
        began = time.monotonic()
        self._grows = self.is_busy
        self._looks += 1
        self._asked |= everywhere
        everywhere = self._may_scan(began)
        new = await self._list() if everywhere or self._may_list(began) else []
        if STORE not in self._active and (everywhere or STORE not in self._delayed) and self._store.has_news():
            self._start_store()
        changed = await self._sweep(began) if everywhere else []
        again = self._delayed if everywhere else ()
        quickly = not everywhere and self._looks % _CAREFUL != 0
        going = list(filter(self._news.may_have_grown, self._news.open)) if quickly else self._news.open
        for count, run_id in enumerate([*going, *new, *changed, *again], 1):
            run = self._runs.get(run_id)
            if run is not None and run_id not in self._active and self._has_news(run, everywhere):
                self._grows = True
                self._due.setdefault(run_id, run)
                self._start()
            if not count % _RUNS_A_BREATH:
                await asyncio.sleep(0)
        self._look_took_s = time.monotonic() - began
        if everywhere:
            self._scanned_at = time.monotonic()
            self._scan_took_s = self._scanned_at - began
            if STORE not in self._active:
                # Some run is always under way where many are logged: what waits for another one must not wait for all.
                self._start_store(settle=True)

    def pause_s(self, at_rest_s: float) -> float:
        """Seconds until the next look, given how many there are between two looks shortly after something grew."""
        now = time.monotonic()
        if not self._grows:
            return at_rest_s if now - self._grew_at < _QUIET_S else 2 * at_rest_s
        self._grew_at = now
        return min(at_rest_s, max(at_rest_s / _HASTE, self._look_took_s / _LOOK_SHARE))

    async def stop(self) -> None:
        """Break off what is on its way; what was acknowledged is in the ledger."""
        self._due.clear()
        for task in self._active.values():
            task.cancel()
        await asyncio.gather(*self._active.values(), return_exceptions=True)

    @property
    def is_busy(self) -> bool:
        return bool(self._active)

    @property
    def delayed(self) -> int:
        """Runs whose last delivery was broken off by something that may pass; the log says by what."""
        return len(self._delayed)

    def work(self) -> Work:
        """What is in hand. The lists are the caller's."""
        names = self._active | self._due | dict.fromkeys(self._news.open) | self._delayed
        runs = [run for name in names if (run := self._runs.get(name)) is not None]
        return Work(runs, frozenset(self._active), dict(self._delayed), self.blind)

    # -- when to look where -----------------------------------------------------------------------------------------------

    def _may_scan(self, now: float) -> bool:
        return now - self._scanned_at >= max(_FULL_SCAN_S, self._scan_took_s / _SCAN_SHARE)

    def _may_list(self, now: float) -> bool:
        return self._asked and now - max(self._listed_at, self._scanned_at) >= self._scan_took_s / _SCAN_SHARE

    async def _sweep(self, now: float) -> list[str]:
        """Runs that are over and changed all the same, if it is time to look for them."""
        if now - self._swept_at < len(self._news) * _PAUSE_S_A_RUN:
            return []
        self._swept_at = now
        return await asyncio.to_thread(self._news.changed)

    async def _list(self) -> list[str]:
        """Look for runs that came or went; those that were not looked at yet, as they are now, are returned."""
        self._asked, before = False, self._runs
        try:
            self._runs = await asyncio.to_thread(self._spool.look)
            self.blind = None
        except OSError as error:
            self.blind = f"the spool cannot be read: {error}"
        self._listed_at = time.monotonic()
        if self._runs is not before:
            self._news.keep(self._runs, before)
            kept = (*self._runs, STORE)
            self._delayed = {run_id: said for run_id, said in self._delayed.items() if run_id in kept}
        return self._news.unseen(self._runs)

    def _has_news(self, run: RunLog, everywhere: bool) -> bool:
        """What was delayed is tried again at a look everywhere."""
        if run.run_id in self._delayed:
            return everywhere
        try:
            return self._news.of(run, everywhere=everywhere)
        except OSError:
            return everywhere  # the delivery will say what is wrong

    # -- delivering them ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin with those that have waited longest, as far as there is room."""
        while self._due and len(self._active) < _MAX_ACTIVE_RUNS and self._may_begin():
            run = self._due.pop(next(iter(self._due)))
            due = partial(self._has_begun, run.run_id)
            self._beginning[run.run_id] = asyncio.get_running_loop().call_later(_LONGEST_BEGINNING_S, due)
            task = asyncio.create_task(self._carry(run), name=f"deliver {run.run_id}")
            self._active[run.run_id] = task
            task.add_done_callback(partial(self._ended, run.run_id))

    def _start_store(self, *, settle: bool = False) -> None:
        task = asyncio.create_task(self._carry_store(settle), name="deliver the store")
        self._active[STORE] = task
        task.add_done_callback(partial(self._ended, STORE))

    async def _carry_store(self, settle: bool) -> None:
        log = RunLog(STORE, ())
        try:
            if not settle:
                await self._store.deliver()
            if settle or (self._active.keys() == {STORE} and not self._due and not self._delayed):
                await self._store.settle()
            self._delayed.pop(STORE, None)
        except RunDelayed as error:
            self._delay(log, error.reason)
        except AgentError as error:
            self._failure = self._failure or error
            self._delay(log, error.reason)
        except OSError as error:
            self._delay(log, f"its files cannot be read: {error}")
        except Exception as error:
            self._delay(log, f"{type(error).__name__}, a defect of mlferry", error)

    def _ended(self, run_id: str, task: asyncio.Task[None]) -> None:
        del self._active[run_id]
        self._has_begun(run_id)
        self._start()

    def _may_begin(self) -> bool:
        is_new = bool(self._news.unseen([next(iter(self._due))]))
        return len(self._beginning) <= max(self._courier.gate.limit, _BEGINNING * is_new)

    def _has_begun(self, run_id: str) -> None:
        """Whatever a run still has to say, others may begin."""
        timer = self._beginning.pop(run_id, None)
        if timer is not None:
            timer.cancel()
            self._start()

    def _note_progress(self, run_id: str, records: int) -> None:
        self._has_begun(run_id)
        self._on_progress(run_id, records)

    async def _carry(self, run: RunLog) -> None:
        try:
            self._news.note(run)
            await self._deliver(run)
            self._delayed.pop(run.run_id, None)
            self._news.was_delivered(run)
        except RunDelayed as error:
            self._delay(run, error.reason)
        except AgentError as error:
            self._failure = self._failure or error
            self._delay(run, error.reason)
        except OSError as error:
            self._delay(run, f"its files cannot be read: {error}")
        except Exception as error:
            # A defect of ours in one run must not stop the others.
            self._delay(run, f"{type(error).__name__}, a defect of mlferry", error)

    async def _deliver(self, run: RunLog) -> None:
        try:
            await self._delivery(run).deliver()
        except RunGone as loss:
            _log.warning("run %s: %s: %s", printable(run.run_id), printable(loss.reason), self._terms.deleted)
            await self._deletions.settle(run.run_id, loss)
            # Whoever deletes it again at once means it.
            await self._delivery(run, replace(self._terms, deleted="quarantine")).deliver()

    def _delivery(self, run: RunLog, terms: Terms | None = None) -> Delivery:
        on_progress = partial(self._note_progress, run.run_id)
        terms = terms or self._terms
        parts = (self._ledger, self._courier, self._identity, self._models)
        return Delivery(run, *parts, terms, on_progress, self._store.catch_up)

    def _delay(self, run: RunLog, reason: str, defect: Exception | None = None) -> None:
        """Say it once, and try again at the next look everywhere."""
        if self._delayed.get(run.run_id) != reason:
            _log.warning("run %s is delayed: %s", printable(run.run_id), printable(reason), exc_info=defect)
        self._delayed[run.run_id] = reason

    def _opening_of(self, run_id: str) -> Open | None:
        """The OPEN record of a run in this spool, for the identity of a parent."""
        run = self._runs.get(run_id) or self._search(run_id)
        for writer in run.writers() if run is not None else ():
            feed = Feed(writer, WriterRow(run_id, writer.name))
            feed.fill({lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}, 0.0)
            if feed.opening is not None:
                return feed.opening
        return None

    def _start_of(self, model_id: str) -> ModelStart | None:
        """The MODEL_START of a model, wherever in the spool it stands."""
        found = self._catalogue.model(model_id)
        return None if found is None else found[0].start

    def _name_of(self, offline_id: str) -> str | None:
        """What an experiment of the spool is called now."""
        state = self._catalogue.store().experiments().get(offline_id)
        return None if state is None else state.name

    def _search(self, run_id: str) -> RunLog | None:
        """A run that was not asked for, or is newer than the last look. A thousand children of a parent that is nowhere must
        not cost a thousand walks."""
        now = time.monotonic()
        if now - self._searched_at >= _FULL_SCAN_S:
            self._runs = {**{run.run_id: run for run in discover(self._root)}, **self._runs}
            self._searched_at = now
        return self._runs.get(run_id)
