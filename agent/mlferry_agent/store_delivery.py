"""Delivers what belongs to no run: experiments, registered models, traces, models of their own.

The logs of all writers are merged by time, since one process may give an alias to the version that another registered;
each log keeps its own order. One record is one delivery: what it became is noted before the next, so a crash costs one
repetition, which every operation bears.

Registry operations wait until the run or model that a version names has all its files on the server, so that whoever is told
of a new version can load it. Then the operations after it wait too, in a lane of their own; nothing else does. Prompts have
another lane: they are registered models without files, and runs and traces name them by the numbers that the server gives.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mlferry_agent.courier import Courier
from mlferry_agent.discovery import STORE, RunLog, signature, written
from mlferry_agent.errors import NotProxied, RecordRefused, RunParked, UndeliverableName, Unencodable, UnreadableFile
from mlferry_agent.experiments import Experiments
from mlferry_agent.glances import Glance
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger, Quarantined, WriterRow
from mlferry_agent.models import Models, settled
from mlferry_agent.registrations import Registrations
from mlferry_agent.rewriting import ids_in
from mlferry_agent.rows import quarantine_name
from mlferry_agent.status import run_status
from mlferry_agent.tracing import Tracing
from mlferry_agent.uploads import Uploads
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord, SpoolError, UnsupportedKind, UnsupportedVersion
from mlferry_spool.layout import store_directory
from mlferry_spool.reader import LogReader
from mlferry_spool.records import (
    Artifact,
    Dropped,
    ExperimentOperation,
    Kind,
    ModelStart,
    ModelUpdate,
    Open,
    Record,
    RegistryOperation,
    Spans,
    Trace,
)
from mlferry_spool.tailer import Cursor, Entry, Lost

__all__ = ["StoreDelivery"]

_REGISTRY, _PROMPTS, _REST, _CONTROL = "registry", "prompts", "rest", "control"

_IS_PROMPT = "mlflow.prompt.is_prompt"

#: Every name under which ``status`` looks up how far a log is acknowledged, but for the registry's.
_LANES = (_PROMPTS, _REST, _CONTROL, "models", "artifacts", "inputs", "attributes")

#: A run of which so much waits is not delivered; what is less is counted record by record.
_FAR_BEHIND_BYTES = 1 << 20

#: Seconds until a file that the file system would not read is tried again.
_UNREADABLE_S = 15.0

_REFUSALS = (
    Unencodable, RecordRefused, RunParked, UndeliverableName, NotProxied, UnreadableFile, SpoolError, OSError,
)  # fmt: skip

#: What it comes to when the details of an operation, which may be anything, are not those that such an operation has.
_MISSHAPEN = (TypeError, ValueError, KeyError, AttributeError, RecursionError)


@dataclass(slots=True)
class _Log:
    """One writer's log, a window of it at a time."""

    row: WriterRow
    reader: LogReader
    waiting: deque[tuple[Entry, Record]] = field(default_factory=deque)
    blocked: Cursor | None = None
    blocked_offset: int | None = None
    before: Cursor = field(default_factory=Cursor)

    @property
    def head(self) -> tuple[int, str, int]:
        entry, record = self.waiting[0]
        return getattr(record, "timestamp", 0), self.row.writer_id, entry.offset


class StoreDelivery:
    """One pass over the store's logs.

    Args:
        on_progress: called with ``STORE`` and the number of records just acknowledged.
        local_disk: no other machine writes to the spool.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        courier: Courier,
        identity: Identity,
        models: Models,
        on_progress: Callable[[str, int], None] = lambda run_id, records: None,
        *,
        local_disk: bool = False,
    ) -> None:
        self._local_disk = local_disk
        self._store = RunLog(STORE, (store_directory(root),))
        self._ledger = ledger
        self._catalogue = catalogue = Catalogue(root)
        self._models = models
        self._on_progress = on_progress
        self._uploads = Uploads(ledger, courier, identity, models)
        self._experiments = Experiments(ledger, courier, identity, lambda: catalogue.store().experiments())
        self._registrations = Registrations(ledger, courier, identity, models, self._uploads, self._experiments)
        self._tracing = Tracing(
            courier, identity, self._experiments, self._uploads, self._place_of_trace, self._registrations.number
        )
        self._turn = asyncio.Lock()
        self._logs: list[_Log] = []
        self._seen: object = ()
        self._glance: Glance | None = None
        self._over: frozenset[str] = frozenset()
        self._prompts: tuple[int, set[str]] = (-1, set())
        self._again_at = math.inf
        self._waits = False

    def has_news(self) -> bool:
        """Whether something was written since the last pass, or could not be read in it, and a while has passed."""
        if time.monotonic() >= self._again_at:
            return True
        if (self._glance is not None and self._glance.holds()) or not (self._seen or self._is_there()):
            return False
        try:
            self._glance = Glance.of(self._store, self._over, local_disk=self._local_disk)
            is_news = signature(self._store) != self._seen
        except OSError:
            is_news = True
        self._glance = None if is_news else self._glance
        return is_news

    def _is_there(self) -> bool:
        """Whether there is a store at all: most spools have none, and looks ask for it all the time."""
        return any(os.path.lexists(directory) for directory in self._store.directories)

    async def catch_up(self) -> None:
        """``deliver`` if there is anything new."""
        if self.has_news():
            await self.deliver()

    async def deliver(self) -> None:
        """Deliver what can be delivered now.

        Raises:
            RunDelayed, GaveUp, Misconfigured, LedgerUnusable: what was acknowledged until then is in the ledger.
        """
        async with self._turn:
            seen, self._again_at = signature(self._store), math.inf
            self._open()
            again = self._ledger.to_retry(STORE)
            while (log := self._next()) is not None:
                entry, record = log.waiting[0]
                await self._deliver_one(log, entry, record, again)
                log.waiting.popleft()
                self._note(log, entry)
            self._seen = seen

    async def settle(self) -> None:
        """Runs were delivered: go on with what waited for them, then delete experiments that are to be deleted. Raises as
        ``deliver``."""
        if self._waits or self.has_news():
            await self.deliver()
        async with self._turn:
            await self._experiments.settle(None, self._awaited)

    # -- reading --------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._logs, self._waits = [], False
        known, over = self._ledger.writers(STORE), set()
        for directory in self._store.writers():
            row = known.get(directory.name) or WriterRow(STORE, directory.name)
            if _is_over(row, directory):
                over.add(row.writer_id)
            else:
                self._logs.append(_Log(row, LogReader(directory, row.cursor)))
        self._over = frozenset(over)

    def _next(self) -> _Log | None:
        """The log whose next record is the oldest."""
        for log in self._logs:
            while not log.waiting and self._read(log):
                pass
        return min((log for log in self._logs if log.waiting), key=lambda log: log.head, default=None)

    def _read(self, log: _Log) -> bool:
        log.before = log.reader.cursor
        try:
            events = log.reader.read(time.monotonic())
            for event in events:
                self._take(log, event)
        except (UnsupportedVersion, UnsupportedKind, SpoolError, OSError) as error:
            log.row = replace(log.row, trouble=str(error))
            self._put(log)
            log.reader.ended = True  # not in this pass
            if isinstance(error, OSError):
                self._again_at = time.monotonic() + _UNREADABLE_S
            return False
        if log.row.trouble is not None and not log.row.lost:
            log.row = replace(log.row, trouble=None)
            self._put(log)
        if not log.waiting and events:
            self._note(log, None)
        return bool(events)

    def _take(self, log: _Log, event: Entry | Lost) -> None:
        if isinstance(event, Lost):
            if event.after.offset > log.row.lanes.get(_CONTROL, 0) and event.frames:
                trouble = f"{event.frames} records lost to damage in {log.reader.directory.name}; the file was kept"
                log.row = replace(log.row, lost=log.row.lost + event.frames, trouble=trouble)
            return
        try:
            record = decode(event.kind, event.payload)
        except CorruptRecord as error:
            self._set_aside(log, event, "record", f"kind {event.kind}", str(error))
            return
        if isinstance(record, Open):
            log.row = replace(log.row, opening=asdict(record))
        elif isinstance(record, Dropped) and event.offset >= log.row.lanes.get(_CONTROL, 0):
            log.row = replace(log.row, dropped=log.row.dropped + record.count)
        elif record is not None and event.kind not in (Kind.SEGMENT_END, Kind.HEARTBEAT, Kind.DROPPED):
            log.waiting.append((event, record))

    # -- one record -----------------------------------------------------------------------------------------------------

    async def _deliver_one(self, log: _Log, entry: Entry, record: Record, again: set[tuple[str, int]]) -> None:
        lane = self._lane(record)
        is_again = (log.row.writer_id, entry.offset) in again
        if entry.offset < log.row.lanes.get(lane, 0) and not is_again:
            return
        if lane is _REGISTRY and not is_again and (self._waits or self._must_wait(record)):
            self._waits = True
            if log.blocked_offset is None:
                log.blocked, log.blocked_offset = log.before, entry.offset
            return
        try:
            await self._apply(log, record)
        except (*_REFUSALS, *_MISSHAPEN) as error:
            self._set_aside(log, entry, Kind(entry.kind).name.lower(), _name(record), _why(error))
            return
        if is_again:
            with self._ledger.transaction():
                self._ledger.free(STORE, log.row.writer_id, entry.offset)
        log.row = replace(log.row, acknowledged=log.row.acknowledged + 1)
        self._on_progress(STORE, 1)

    async def _apply(self, log: _Log, record: Record) -> None:
        workspace = self._workspace(log)
        match record:
            case ExperimentOperation():
                await self._experiments.apply(record, workspace)
            case RegistryOperation():
                await self._registrations.apply(record, workspace)
            case Trace():
                await self._tracing.change(record, workspace)
            case Spans():
                await self._tracing.spans(record, workspace)
            case Artifact():
                await self._tracing.file(record, log.reader.directory.parent, workspace)
            case ModelStart():
                await self._models.begin(record, workspace)
            case ModelUpdate() if record.artifact_path is not None:
                settled(await self._uploads.upload_of_model(record, log.reader.directory.parent, workspace))
            case ModelUpdate():
                await self._models.change(record, workspace)
            case _:
                raise RecordRefused("a record of this kind does not belong into the store's log")

    def _lane(self, record: Record) -> str:
        if not isinstance(record, RegistryOperation):
            return _REST
        operations = self._catalogue.store().registry
        if len(operations) != self._prompts[0]:
            self._prompts = len(operations), _prompts(operations)
        return _PROMPTS if record.name in self._prompts[1] else _REGISTRY

    def _must_wait(self, record: Record) -> bool:
        """Whether files of the run or model that a version names are not on the server yet."""
        if not isinstance(record, RegistryOperation) or record.operation != "create_model_version":
            return False
        details = record.details
        runs, models = ids_in(str(details.get("source") or ""))
        runs |= {str(details["run_id"])} if details.get("run_id") else set()
        models |= {str(details["model_id"])} if details.get("model_id") else set()
        for model_id in models:
            found = self._catalogue.model(model_id)
            if found is not None and found[1] is not None:
                runs.add(found[1])
        return any(not self._is_settled(run_id) for run_id in runs)

    def _is_settled(self, run_id: str) -> bool:
        """Whether everything that the spool holds of a run now is on the server, or waits for a person."""
        directories = self._catalogue.directories(run_id)
        if not directories:
            return True
        run = RunLog(run_id, tuple(directories))
        if self._backlog(run) > _FAR_BEHIND_BYTES:
            return False
        status = run_status(run, self._ledger)
        waits_for_nobody = status.parked is not None or status.given_up_why is not None
        return waits_for_nobody or (status.server_run_id is not None and not status.pending)

    def _backlog(self, run: RunLog) -> int:
        """Bytes of a run's logs that were not read yet: cheap to tell, also of a week's."""
        known = self._ledger.writers(run.run_id)
        rows = ((writer, known.get(writer.name)) for writer in run.writers())
        return sum(LogReader(writer, row.cursor if row else None).pending_bytes() for writer, row in rows)

    def _awaited(self, offline_id: str) -> bool:
        """Whether runs of an experiment wait to be delivered."""
        runs = self._catalogue.runs()
        of_it = (run for run in runs if run.opening is not None and run.opening.offline_experiment_id == offline_id)
        return any(not self._is_settled(run.run_id) for run in of_it)

    def _place_of_trace(self, trace_id: str) -> tuple[str | None, str | None]:
        """Offline id and name of a trace's experiment."""
        state = self._catalogue.store().traces.get(trace_id)
        for change in state.changes if state is not None else ():
            if change.offline_experiment_id is not None or change.experiment_name is not None:
                return change.offline_experiment_id, change.experiment_name
        return None, None

    def _workspace(self, log: _Log) -> str | None:
        told = (log.row.opening or {}).get("workspace")
        return told if isinstance(told, str) else None

    # -- noting ---------------------------------------------------------------------------------------------------------

    def _note(self, log: _Log, entry: Entry | None) -> None:
        """Store how far a log is settled: in the rest at ``entry``, and in the registry as far as nothing waits."""
        done = log.reader.cursor.offset if not log.waiting else log.waiting[0][0].offset
        cursor = log.reader.cursor if not log.waiting else entry.after if entry is not None else log.before
        lanes = {lane: max(done, log.row.lanes.get(lane, 0)) for lane in _LANES}
        registry = done if log.blocked_offset is None else log.blocked_offset
        lanes[_REGISTRY] = max(registry, log.row.lanes.get(_REGISTRY, 0))
        log.row = replace(log.row, cursor=log.blocked or cursor, lanes=lanes, finished=log.reader.ended)
        self._put(log)

    def _put(self, log: _Log) -> None:
        with self._ledger.transaction():
            self._ledger.put_writer(log.row)

    def _set_aside(self, log: _Log, entry: Entry, action: str, name: str, reason: str) -> None:
        with self._ledger.transaction():
            self._ledger.free(STORE, log.row.writer_id, entry.offset)
            self._ledger.quarantine(
                Quarantined(STORE, log.row.writer_id, entry.offset, action, quarantine_name(name), reason)
            )


def _is_over(row: WriterRow, directory: Path) -> bool:
    """Whether a log has ended, and everything in it is settled."""
    at_its_end = (row.writer_id, row.cursor.segment, row.cursor.byte)
    return row.finished and row.trouble is None and written(directory) == at_its_end


def _prompts(operations: list[RegistryOperation]) -> set[str]:
    """Every name that a prompt has or had."""
    names: set[str] = set()
    for one in operations:
        tags = one.details.get("tags")
        if one.operation == "create_registered_model" and isinstance(tags, dict) and tags.get(_IS_PROMPT) == "true":
            names.add(one.name)
        elif one.operation == "rename_registered_model" and one.name in names:
            names.add(str(one.details.get("new_name")))
    return names


def _why(error: Exception) -> str:
    if isinstance(error, _MISSHAPEN) and not isinstance(error, _REFUSALS):
        return f"its details are not those of such an operation ({type(error).__name__}: {error!s:.200})"
    return getattr(error, "reason", str(error))


def _name(record: Record) -> str:
    """What a person calls the thing that a record is about."""
    told = [getattr(record, part, None) for part in ("operation", "name", "trace_id", "model_id")]
    return " ".join(str(part) for part in told if part)
