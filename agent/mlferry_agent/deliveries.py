"""Delivers one run, as far as it can be delivered now.

Plan synchronously, execute asynchronously: ``feeds`` read records into lanes, ``planner`` takes the next request from a
lane, a courier carries it, and the ledger commits what was acknowledged. Here is the loop that turns these, and what is
done about a refusal: halve until the one bad entity is found, set that aside with the server's words, go on.

Two things run side by side: small requests, one at a time and in the order of the lanes, and a few file transfers. Within
a run the server gains nothing by more (its row locks serialise), and order is what makes tags and params come out right.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Verdict
from mlferry_agent.closing import WriterFacts, is_alive, verdict
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import NotProxied, RunParked, UndeliverableName, Unencodable, UnreadableFile
from mlferry_agent.feeds import Feed, Queues
from mlferry_agent.identity import Identity
from mlferry_agent.lanes import Action, Lane, LaneQueue
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, WriterRow
from mlferry_agent.planner import Batch, Target, next_batch, next_transfer, request_for, split
from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.errors import BlobMismatch, SpoolError
from mlferry_spool.liveness import Machine, probe, this_machine
from mlferry_spool.reader import open_trusted

__all__ = ["Delivery", "Terms"]

_SMALL = (Lane.PARAMS, Lane.ATTRIBUTES, Lane.METRICS, Lane.INPUTS)

#: Files of one run on their way at once; the transport bounds those of all runs together.
_TRANSFERS = 4

_DONE = (Verdict.ACCEPTED, Verdict.ALREADY)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a delivery needs to know of its surroundings. ``local_disk``: no other machine writes to this spool."""

    stale_after_s: float = 900.0
    local_disk: bool = True
    machine: Machine = this_machine()  # noqa: RUF009 - cached, the same for the life of the process

    @property
    def patience_s(self) -> float:
        """Seconds that damage must persist before it is believed: pages of network file systems arrive out of order."""
        return 0.0 if self.local_disk else 10.0


class Delivery:
    """One run's way to the server. ``on_progress`` is called with the number of records just acknowledged."""

    def __init__(
        self,
        run: RunLog,
        ledger: Ledger,
        courier: Courier,
        identity: Identity,
        terms: Terms,
        on_progress: Callable[[int], None] = lambda records: None,
    ) -> None:
        self._run = run
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._terms = terms
        self._on_progress = on_progress
        self._queues: Queues = {lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}
        self._feeds: dict[str, Feed] = {}
        self._alive: dict[str, bool] = {}
        self._stored: dict[str, WriterRow] = {}
        self._target: Target | None = None

    async def deliver(self) -> None:
        """Deliver everything that is in the spool now; close the run if it is over.

        Raises:
            GaveUp, Misconfigured: as ``Courier.ask``. What was acknowledged until then is in the ledger.
        """
        self._open_feeds()
        opening = next((feed.opening for feed in self._feeds.values() if feed.opening is not None), None)
        row = self._ledger.run(self._run.run_id)
        if opening is None or (row is not None and row.parked is not None):
            self._commit()
            return
        try:
            if opening.run_id != self._run.run_id:
                raise RunParked(f"its directory says run {self._run.run_id}, its records say {opening.run_id}")
            if self._is_news(row):
                self._target = await self._identity.target(opening, self._run.directories[0].name)
                await self._drain()
                await self._close()
        except (RunParked, Unencodable) as error:
            self._park(error.reason)
        finally:
            self._commit()

    # -- reading --------------------------------------------------------------------------------------------------------

    def _open_feeds(self) -> None:
        """Look who lives *before* the last read, so that nothing written between the two is taken for missing."""
        known = self._ledger.writers(self._run.run_id)
        for directory in self._run.writers():
            row = known.get(directory.name) or WriterRow(self._run.run_id, directory.name)
            feed = Feed(directory, row, patience_s=self._terms.patience_s)
            self._feeds[directory.name] = feed
        self._fill()
        self._alive = {name: self._lives(feed) for name, feed in self._feeds.items()}
        self._fill()

    def _fill(self) -> None:
        aside: list[Quarantined] = []
        for feed in self._feeds.values():
            aside += feed.fill(self._queues, time.monotonic())
        if aside:
            with self._ledger.transaction():
                for entry in aside:
                    self._ledger.quarantine(entry)

    def _lives(self, feed: Feed) -> bool:
        if feed.finished or feed.opening is None:
            return False
        return is_alive(
            feed.opening,
            probe(feed.directory),
            self._terms.machine,
            local_disk=self._terms.local_disk,
            last_sign=max(feed.row.last_sign, _modified(feed.directory)),
            now=time.time_ns() // 1_000_000,
            stale_after_s=self._terms.stale_after_s,
        )

    def _is_news(self, row: RunRow | None) -> bool:
        """Whether the server has to be told anything."""
        if row is None or row.server_run_id is None or any(queue.outstanding for queue in self._queues.values()):
            return True
        return (row.status, row.end_time) != self._standing() or row.reported != self._report()

    # -- sending --------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        running: dict[asyncio.Task[None], str | None] = {}
        try:
            while True:
                self._fill()
                self._start(running)
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    task.result()
                self._commit()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, running: dict[asyncio.Task[None], str | None]) -> None:
        """Begin what may run now: one small request, and transfers of files whose path is not on its way already."""
        if None not in running.values():
            batch = next((batch for lane in _SMALL if (batch := next_batch(self._queues[lane])) is not None), None)
            if batch is not None:
                running[asyncio.create_task(self._carry(batch))] = None
        while len(running) < _TRANSFERS + (None in running.values()):
            busy = {path for path in running.values() if path is not None}
            batch = next_transfer(self._queues[Lane.ARTIFACTS], busy)
            if batch is None:
                return
            running[asyncio.create_task(self._carry(batch))] = batch.pieces[0].name

    async def _carry(self, batch: Batch) -> None:
        """Have a batch delivered, or find and set aside what stands in its way."""
        assert self._target is not None
        try:
            request = request_for(batch, self._target, self._ledger.server_run_id)
            if batch.action is Action.UPLOAD:
                reply = await self._upload(request, batch)
            else:
                reply = await self._courier.ask(request)
        except (Unencodable, UndeliverableName, NotProxied, UnreadableFile, SpoolError, OSError) as error:
            self._set_aside(batch, getattr(error, "reason", None) or str(error))
            return
        if reply.verdict in _DONE or (reply.verdict is Verdict.GONE and batch.action is Action.DELETE_ARTIFACT):
            self._settle(batch, delivered=True)
        elif reply.verdict is Verdict.GONE and await self._identity.is_deleted(self._target):
            raise RunParked("the run was deleted on the server")
        elif len(batch.pieces) == 1:
            self._set_aside(batch, reply.reason)
        else:
            for half in split(batch):
                await self._carry(half)

    async def _upload(self, request: requests.Request, batch: Batch) -> Reply:
        path, artifact = self._blob(batch), batch.pieces[0].entity
        await asyncio.to_thread(_check_blob, path, Blob(artifact.sha256, artifact.size))
        return await self._courier.upload(request, path, artifact.size)

    def _blob(self, batch: Batch) -> Path:
        piece = batch.pieces[0]
        run_directory = self._feeds[piece.item.writer_id].directory.parent
        return Blobs(run_directory).path(piece.entity.sha256)

    # -- settling -------------------------------------------------------------------------------------------------------

    def _settle(self, batch: Batch, *, delivered: bool) -> None:
        queue = self._queues[batch.lane]
        total = 0
        for piece in batch.pieces:
            acknowledged = queue.settle(piece, delivered=delivered)
            if acknowledged:
                self._feeds[piece.item.writer_id].acknowledge(acknowledged)
                total += acknowledged
        self._on_progress(total)

    def _set_aside(self, batch: Batch, reason: str) -> None:
        (piece,) = batch.pieces
        item = piece.item
        entry = Quarantined(self._run.run_id, item.writer_id, item.offset, piece.action.value, piece.name[:300], reason)
        with self._ledger.transaction():
            self._ledger.quarantine(entry)
        self._settle(batch, delivered=False)

    def _commit(self) -> None:
        with self._ledger.transaction():
            for name, feed in self._feeds.items():
                row = feed.snapshot(self._queues)
                if row != self._stored.get(name):
                    self._ledger.put_writer(row)
                    self._stored[name] = row

    def _park(self, reason: str) -> None:
        directory = self._run.directories[0].name
        row = self._ledger.run(self._run.run_id) or RunRow(self._run.run_id, directory)
        with self._ledger.transaction():
            self._ledger.put_run(replace(row, directory=row.directory or directory, parked=reason))

    # -- closing --------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Everything was delivered: say how the run stands, its end last of all."""
        assert self._target is not None
        for name, feed in self._feeds.items():
            if not self._alive[name]:
                feed.finish()
        row = self._ledger.run(self._run.run_id)
        assert row is not None
        status, end_time = self._standing()
        report = self._report()
        if report != row.reported:
            tags = [encoding.tag(key, value) for key, value in report.items()]
            if tags:
                await self._tell(
                    requests.log_batch(self._target.server_run_id, tags=tags, workspace=self._target.workspace)
                )
            row = self._put(replace(row, reported=report))
        if end_time is not None:
            await self._identity.settle_doubt(row, self._target)
            row = self._ledger.run(self._run.run_id) or row
        if (row.status, row.end_time) != (status, end_time):
            server_run_id, workspace = self._target.server_run_id, self._target.workspace
            await self._tell(requests.update_run(server_run_id, status, end_time, workspace=workspace))
            self._put(replace(row, status=status, end_time=end_time))

    async def _tell(self, request: requests.Request) -> None:
        reply = await self._courier.ask(request)
        if reply.verdict is Verdict.GONE:
            raise RunParked("the run was deleted on the server")
        if reply.verdict not in _DONE:
            raise RunParked(f"the server refuses the end of the run: {reply.reason}")

    def _standing(self) -> tuple[str, int | None]:
        """MLflow's status and the end time. A run with a log that only a newer agent can read is not over."""
        if any(feed.stuck for feed in self._feeds.values()):
            return "RUNNING", None
        facts = [
            WriterFacts(feed.opening, feed.ending, feed.finished, feed.row.last_sign, self._alive[name])
            for name, feed in self._feeds.items()
            if feed.opening is not None
        ]
        stands = verdict(facts)
        return stands.status, stands.end_time

    def _report(self) -> dict[str, str]:
        """Tags that tell on the server what is missing there; none if nothing is."""
        rows = [feed.row for feed in self._feeds.values()]
        counts = {
            "mlferry.dropped": sum(row.dropped for row in rows),
            "mlferry.lost": sum(row.lost for row in rows),
            "mlferry.quarantined": len(self._ledger.quarantined(self._run.run_id)),
        }
        return {name: str(count) for name, count in counts.items() if count}

    def _put(self, row: RunRow) -> RunRow:
        with self._ledger.transaction():
            self._ledger.put_run(row)
        return row


def _check_blob(path: Path, expected: Blob) -> None:
    """Raises ``BlobMismatch``, ``UntrustedFile`` or OSError unless the blob is what its name says."""
    with os.fdopen(open_trusted(path), "rb") as file:
        if digest_of(file) != expected:
            raise BlobMismatch(path=path)


def _modified(directory: Path) -> int:
    """When something was last written in a writer's directory, Unix milliseconds."""
    try:
        return max(entry.stat().st_mtime_ns for entry in directory.glob("*.seg")) // 1_000_000
    except (OSError, ValueError):
        return 0
