"""Delivers one run, as far as it can be delivered now.

Plan synchronously, execute asynchronously: ``feeds`` read records into lanes, ``planner`` takes the next request from a
lane, a courier carries it, and the ledger commits what was acknowledged. Here is the loop that turns these, and what is
done about a refusal: halve until the one bad entity is found, set that aside with the server's words, go on.

Two things run side by side: small requests, in the order of the lanes, and a few file transfers. Of a backlog of points
several requests may be on their way (``planner`` says why that changes nothing), as many as the gate lets to the server and
one that waits there, ready made; but only while nobody else waits there. They are acknowledged in any order, and
noted as far as none is missing (``lanes``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path

from mlferry_agent import requests
from mlferry_agent.answers import Verdict
from mlferry_agent.closing import WriterFacts, is_alive, verdict
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.discovery import RunLog, signature
from mlferry_agent.errors import (
    NotProxied,
    RecordRefused,
    RunDelayed,
    RunDeleted,
    RunGone,
    RunParked,
    UndeliverableName,
    Unencodable,
    UnreadableFile,
)
from mlferry_agent.feeds import Feed, Queues, written_at
from mlferry_agent.identity import Identity
from mlferry_agent.lanes import Action, Lane, LaneQueue
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, WriterRow
from mlferry_agent.models import Models
from mlferry_agent.planner import Batch, Target, next_small, next_transfer, request_for, split, texts_with_ids
from mlferry_agent.rows import quarantine_name, shortfall
from mlferry_agent.terms import Terms
from mlferry_agent.translation import RUN_ID_TAG
from mlferry_agent.uploads import Uploads
from mlferry_spool.errors import SpoolError
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.records import Inputs, ModelStart, ModelUpdate, Outputs

__all__ = ["Delivery"]

_SMALL = (Lane.PARAMS, Lane.ATTRIBUTES, Lane.MODELS, Lane.METRICS, Lane.INPUTS)

#: What takes more than one request.
_MODEL_ACTIONS = (Action.MODEL, Action.MODEL_LINK)

#: Files of one run that are opened, sent or settled at once. The courier sends fewer, those of all runs together: so it
#: need not wait while the next one is opened.
#: Beyond: the others wait, while records go their way.
#: Test: tests/unit/agent/test_limits.py::test_a_few_files_of_a_run_are_on_their_way_at_once
_TRANSFERS = 8

_DONE = (Verdict.ACCEPTED, Verdict.ALREADY)


class Delivery:
    """One run's way to the server.

    Args:
        on_progress: called with the number of records just acknowledged.
        before: what to wait for between reading the run and sending it. What its records name, its experiment above all,
            was logged before them, and must be on the server before them.
    """

    def __init__(
        self,
        run: RunLog,
        ledger: Ledger,
        courier: Courier,
        identity: Identity,
        models: Models,
        terms: Terms,
        on_progress: Callable[[int], None] = lambda records: None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._run = run
        self._before = before
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._models = models
        self._terms = terms
        self._on_progress = on_progress
        self._queues: Queues = {lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}
        self._feeds: dict[str, Feed] = {}
        self._alive: dict[str, bool] = {}
        self._stored: dict[str, WriterRow] = {}
        self._seen: object = ()
        self._target: Target | None = None
        self._missing: list[str] = []
        self._files = Uploads(ledger, courier, identity, models)

    async def deliver(self) -> None:
        """Deliver everything that is in the spool now; close the run if it is over.

        Raises:
            GaveUp, Misconfigured: as ``Courier.ask``. What was acknowledged until then is in the ledger.
            RunDelayed: the server is too unwell to tell whose fault it is. LedgerUnusable: nothing can be noted.
            RunGone: the run was deleted on the server, and the terms have an answer to that (see ``deletions``).
        """
        self._open_feeds()
        if self._before is not None:
            await self._before()
        opening = next((feed.opening for feed in self._feeds.values() if feed.opening is not None), None)
        row = self._ledger.run(self._run.run_id)
        if opening is None or (row is not None and row.parked is not None):
            self._commit()
            return
        if row is not None and row.given_up is not None:
            await self._pass_over(row, opening.workspace)
            return
        try:
            if opening.run_id != self._run.run_id:
                raise RunParked(f"its directory says run {self._run.run_id}, its records say {opening.run_id}")
            if self._is_news(row):
                self._target = await self._identity.target(opening, self._run.directories[0].name)
                await self._undelete()
                await self._drain()
                if self._missing:
                    raise RunDelayed(f"{len(self._missing)} files are not in the spool yet, {self._missing[0]!r} first")
                await self._close()
        except (RunParked, Unencodable) as error:
            if self._is_answered(error):
                raise
            self._park(error.reason)
        finally:
            self._commit()

    def _is_answered(self, error: RunParked | Unencodable) -> bool:
        """Whether the terms say what to do about it. What a server does not know at all is not dropped by itself: it may
        be the wrong server."""
        if self._terms.deleted == "recreate":
            return isinstance(error, RunGone)
        return self._terms.deleted == "drop" and isinstance(error, RunDeleted)

    # -- reading --------------------------------------------------------------------------------------------------------

    def _open_feeds(self) -> None:
        """Look who lives *before* the last read, so that nothing written between the two is taken for missing."""
        self._seen = signature(self._run)
        known = self._ledger.writers(self._run.run_id)
        dropped: dict[str, set[tuple[int, str, str]]] = {}
        for entry in self._ledger.dropped(self._run.run_id):
            dropped.setdefault(entry.writer_id, set()).add((entry.offset, entry.action, entry.name))
        for directory in self._run.writers():
            row = known.get(directory.name) or WriterRow(self._run.run_id, directory.name)
            feed = Feed(directory, row, patience_s=self._terms.patience_s, dropped=dropped.get(directory.name, ()))
            self._feeds[directory.name] = feed
        self._fill()
        self._alive = {name: self._lives(feed) for name, feed in self._feeds.items()}
        for name, feed in self._feeds.items():
            if not self._alive[name]:
                feed.believe()
            feed.read_no_further()
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
        if feed.finished:
            return False
        lock, terms = probe(feed.directory), self._terms
        last_sign, now = max(feed.row.last_sign, written_at(feed.directory)), time.time_ns() // 1_000_000
        if feed.opening is None:  # one that is about to write it, or that is seen late
            return lock is Lock.HELD or (not terms.local_disk and now - last_sign <= terms.stale_after_s * 1000)
        return is_alive(
            feed.opening,
            lock,
            terms.machine,
            local_disk=terms.local_disk,
            last_sign=last_sign,
            now=now,
            stale_after_s=terms.stale_after_s,
        )

    def _is_news(self, row: RunRow | None) -> bool:
        """Whether the server has to be told anything."""
        if row is None or row.server_run_id is None or any(queue.outstanding for queue in self._queues.values()):
            return True
        if (row.lifecycle == "deleted") != self._deleted() or (row.in_doubt and not any(self._alive.values())):
            return True
        return (row.status, row.end_time) != self._standing() or row.reported != self._report()

    # -- sending --------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        running: dict[asyncio.Task[None], Batch] = {}
        try:
            while True:
                self._fill()
                if self._start(running):
                    await asyncio.sleep(0)  # until it stands at the gate, where the next one sees it
                    continue
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

    def _start(self, running: dict[asyncio.Task[None], Batch]) -> bool:
        """Begin what may run now, if anything may: a small request, or a file whose path is not on its way."""
        batch = self._next_small(running.values()) or self._next_transfer(running.values())
        if batch is not None:
            running[asyncio.create_task(self._carry(batch))] = batch
        return batch is not None

    def _next_small(self, on_their_way: Collection[Batch]) -> Batch | None:
        small = [batch for batch in on_their_way if batch.lane is not Lane.ARTIFACTS]
        gate = self._courier.gate
        if small and (len(small) > gate.limit or gate.is_waited_for):
            return None
        lanes = (lane for lane in _SMALL if lane is not Lane.MODELS or not self._awaits_files(on_their_way))
        return next_small(self._queues, lanes, small)

    def _next_transfer(self, on_their_way: Collection[Batch]) -> Batch | None:
        names = {batch.pieces[0].name for batch in on_their_way if batch.lane is Lane.ARTIFACTS}
        return None if len(names) == _TRANSFERS else next_transfer(self._queues[Lane.ARTIFACTS], names)

    def _awaits_files(self, on_their_way: Collection[Batch]) -> bool:
        """Whether the next thing to say of a model is that it is ready, and files of it are not there yet."""
        queue = self._queues[Lane.MODELS]
        update = queue.ready[0].entity if queue.ready else None
        if not isinstance(update, ModelUpdate) or update.status is None:
            return False
        files = [batch.pieces[0] for batch in on_their_way if batch.lane is Lane.ARTIFACTS]
        names = [*(piece.name for piece in (*files, *self._queues[Lane.ARTIFACTS].ready)), *self._missing]
        return any(name.startswith(f"{update.model_id}/") for name in names)

    async def _carry(self, batch: Batch) -> None:
        """Have a batch delivered, or find and set aside what stands in its way."""
        assert self._target is not None
        try:
            if batch.action in _MODEL_ACTIONS:
                await self._tell_of_model(batch.pieces[0].entity)
                self._settle(batch, delivered=True)
                return
            reply = await self._send(batch)
        except FileNotFoundError as error:
            if self._alive[batch.pieces[0].item.writer_id]:
                self._missing.append(batch.pieces[0].name)  # still being copied here; it stays unacknowledged
            else:
                await self._refuse(batch, str(error))
            return
        except (
            Unencodable,
            UndeliverableName,
            NotProxied,
            UnreadableFile,
            SpoolError,
            OSError,
            RecordRefused,
        ) as error:
            if batch.action is Action.MODEL_LINK and (loss := await self._identity.loss(self._target)) is not None:
                raise loss from error  # the run's trouble, not the record's
            await self._refuse(batch, getattr(error, "reason", None) or str(error))
            return
        if reply.verdict in _DONE or (reply.verdict is Verdict.GONE and batch.action is Action.DELETE_ARTIFACT):
            self._settle(batch, delivered=True)
        elif reply.verdict is Verdict.GONE and (loss := await self._identity.loss(self._target)) is not None:
            raise loss
        elif reply.verdict is Verdict.SUSPECT and not await self._takes_anything():
            raise RunDelayed(reply.reason)
        else:
            await self._refuse(batch, reply.reason)

    async def _tell_of_model(self, record: ModelStart | ModelUpdate | Inputs | Outputs) -> None:
        assert self._target is not None
        workspace = self._target.workspace
        if isinstance(record, ModelStart):
            await self._models.begin(record, workspace)
        elif isinstance(record, ModelUpdate):
            await self._models.change(record, workspace)
        else:
            await self._models.link(self._target.server_run_id, record, workspace)

    async def _send(self, batch: Batch) -> Reply:
        assert self._target is not None
        if batch.action is Action.MODEL_FILE:
            return await self._files.upload_of_model(
                batch.pieces[0].entity, self._directory(batch), self._target.workspace
            )
        if batch.action is Action.UPLOAD:
            return await self._files.upload(batch.pieces[0].entity, self._directory(batch), self._target)
        for text in texts_with_ids(batch):
            await self._files.know(text, self._target.workspace)
        return await self._courier.ask(request_for(batch, self._target, self._files.ids))

    async def _takes_anything(self) -> bool:
        """Whether the server takes what it has taken before, our own tag: only then is a batch to blame for an answer that
        may as well be the server's illness."""
        assert self._target is not None
        sign = requests.set_tag(
            self._target.server_run_id, RUN_ID_TAG, self._run.run_id, workspace=self._target.workspace
        )
        return (await self._courier.ask(sign)).verdict in _DONE

    async def _refuse(self, batch: Batch, reason: str) -> None:
        """The one bad piece is found by halves, and set aside."""
        if len(batch.pieces) == 1:
            self._set_aside(batch, reason)
            return
        for half in split(batch):
            await self._carry(half)

    def _directory(self, batch: Batch) -> Path:
        """Where the blobs are that a batch names."""
        return self._feeds[batch.pieces[0].item.writer_id].directory.parent

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
        name = quarantine_name(piece.name)
        entry = Quarantined(self._run.run_id, item.writer_id, item.offset, piece.action.value, name, reason)
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
        self._put(replace(row, directory=row.directory or directory, parked=reason))

    async def _pass_over(self, row: RunRow, workspace: str | None) -> None:
        """The run was given up: acknowledge what is there of it without sending anything, and count it."""
        while True:
            for queue in self._queues.values():
                self._give_up(queue)
            self._commit()
            self._fill()
            if not any(queue.ready for queue in self._queues.values()):
                break
        for name, feed in self._feeds.items():
            if not self._alive[name]:
                feed.finish()
        self._commit()
        with self._ledger.transaction():
            self._ledger.drop(self._ledger.quarantined(self._run.run_id))
        report = self._report()
        if row.server_run_id is not None and report != row.reported:
            reply = await self._courier.ask(requests.set_report(row.server_run_id, row.reported, report, workspace))
            # A run that is deleted there cannot be told, and need not be.
            if reply.verdict in _DONE:
                self._put(replace(row, reported=report))

    def _give_up(self, queue: LaneQueue) -> None:
        records = 0
        while queue.ready:
            piece = queue.ready.popleft()
            queue.settle(piece, delivered=False)
            if piece.item.is_settled:
                self._feeds[piece.item.writer_id].give_up(1)
                records += 1
        self._on_progress(records)

    # -- closing --------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Everything was delivered: say how the run stands, its end last of all."""
        target = self._target
        assert target is not None
        for name, feed in self._feeds.items():
            if not self._alive[name]:
                feed.finish()
        row = self._ledger.run(self._run.run_id)
        assert row is not None
        status, end_time = self._standing()
        report = self._report()
        if report != row.reported:
            await self._tell(requests.set_report(target.server_run_id, row.reported, report, target.workspace))
            row = self._put(replace(row, reported=report))
        if end_time is not None and self._has_spoken():
            return
        if not any(self._alive.values()):  # over, also where its program named no end
            await self._identity.settle_doubt(row, target)
            row = self._ledger.run(self._run.run_id) or row
        if (row.status, row.end_time) != (status, end_time):
            request = requests.update_run(target.server_run_id, status, end_time, workspace=target.workspace)
            if end_time is None:
                await self._tell(request)
            elif not await self._tell_end(request, row):
                return
            row = self._put(replace(row, status=status, end_time=end_time))
        if self._deleted() and row.lifecycle != "deleted":
            await self._tell(requests.delete_run(target.server_run_id, target.workspace))
            self._put(replace(row, lifecycle="deleted"))

    def _has_spoken(self) -> bool:
        """Whether somebody has logged to the run, or resumed it, since we looked: that is news for the next look."""
        return signature(self._run) != self._seen

    async def _tell_end(self, request: requests.Request, row: RunRow) -> bool:
        """Say that the run is over, unless that is no longer so: a server may be away for hours. Raises as ``_tell``."""
        attempts = self._courier.attempts()
        # From here on what the server has is unknown until it answers: whatever ends this, it is told at the next look.
        self._put(replace(row, status=None), durable=True)
        while reply := await self._courier.ask_unless(self._has_spoken, request, attempts):
            if reply.verdict is not Verdict.RETRY:
                await self._judge(reply)
                return True
        return False

    async def _undelete(self) -> None:
        """A run that its program deleted, and we on the server with it, takes nothing more until it is restored."""
        row = self._ledger.run(self._run.run_id)
        if row is not None and row.lifecycle == "deleted" and self._target is not None:
            await self._tell(requests.restore_run(self._target.server_run_id, self._target.workspace))
            self._put(replace(row, lifecycle=None))

    def _deleted(self) -> bool:
        """What the run's program said last of its being there."""
        said = [feed.row.lifecycle for feed in self._feeds.values() if feed.row.lifecycle is not None]
        return max(said, default=(0, "active"))[1] == "deleted"

    async def _tell(self, request: requests.Request) -> None:
        await self._judge(await self._courier.ask(request))

    async def _judge(self, reply: Reply) -> None:
        if reply.verdict is Verdict.GONE:
            assert self._target is not None
            raise await self._identity.loss(self._target) or RunParked(reply.reason)
        if reply.verdict is Verdict.SUSPECT:
            raise RunDelayed(reply.reason)
        if reply.verdict not in _DONE:
            raise RunParked(f"the server refuses the end of the run: {reply.reason}")

    def _standing(self) -> tuple[str, int | None]:
        """MLflow's status and the end time. A run with a log that only a newer agent can read is not over."""
        if any(feed.stuck or (feed.opening is None and self._alive[name]) for name, feed in self._feeds.items()):
            return "RUNNING", None
        facts = [
            WriterFacts(
                feed.opening, feed.ending, feed.finished, feed.row.last_sign, self._alive[name], feed.row.in_order
            )
            for name, feed in self._feeds.items()
            if feed.opening is not None
        ]
        stands = verdict(facts)
        return stands.status, stands.end_time

    def _report(self) -> dict[str, str]:
        """Tags that tell on the server what is missing there; none if nothing is."""
        run_id = self._run.run_id
        rows = (feed.row for feed in self._feeds.values())
        return shortfall(rows, len(self._ledger.quarantined(run_id)), len(self._ledger.dropped(run_id)))

    def _put(self, row: RunRow, *, durable: bool = False) -> RunRow:
        with self._ledger.transaction(durable=durable):
            self._ledger.put_run(row)
        return row
