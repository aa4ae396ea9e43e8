"""What is acknowledged, pending and quarantined, run by run: read from spool and ledger, beside whoever delivers.

Counts are records: what one call logged. Pending ones are counted frame by frame in the logs (headers only); where more
than 64 MiB of a run wait, the rest is estimated from its bytes and ``approximate`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlferry_agent.closing import WriterFacts, verdict
from mlferry_agent.discovery import STORE, RunLog, discover, store_log
from mlferry_agent.errors import NoSuchRun
from mlferry_agent.feeds import opening_from, written_at
from mlferry_agent.glances import delivered, is_settled
from mlferry_agent.lanes import CONTROL, Lane, lane_of
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, WriterRow
from mlferry_agent.rows import shortfall
from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Kind, Open, RunEnd
from mlferry_spool.tailer import Entry, Lost

__all__ = [
    "LogCount",
    "RunStatus",
    "count_log",
    "everything",
    "exit_code",
    "run_status",
    "run_statuses",
    "select",
    "survey",
]

#: Exit codes of every command that speaks about delivery.
ALL_ACKNOWLEDGED, FAILURE, USAGE, SET_ASIDE, PENDING = 0, 1, 2, 3, 4

#: Bytes of a log that are read to count the records in it.
#: Beyond: the number of the others is estimated from their bytes, and said to be an estimate.
#: Test: tests/unit/agent/test_status.py::test_a_count_of_very_much_is_an_estimate_and_says_so
_COUNT_BYTES = 64 << 20

_STORE_NAME = "experiments, registry, traces"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run. ``lag_s``: age in seconds of its oldest pending record. ``live``: a writer holds its lock.
    ``end_pending``: it said how it ended, and the server was not told yet. ``given_up``: how much of it somebody dropped;
    ``given_up_why``: why all that was not delivered of it was. ``report_pending``: the server was not told yet how much is
    missing there."""

    run_id: str
    run_name: str | None
    experiment_name: str | None
    server_run_id: str | None
    status: str | None
    live: bool
    acknowledged: int
    pending: int
    approximate: bool
    quarantined: list[Quarantined]
    dropped: int
    lost: int
    lag_s: float | None
    parked: str | None
    troubles: list[str] = field(default_factory=list)
    end_pending: bool = False
    given_up: int = 0
    given_up_why: str | None = None
    report_pending: bool = False

    @property
    def is_set_aside(self) -> bool:
        """Whether something of the run needs a person."""
        return bool(self.quarantined or self.parked or self.troubles)

    @property
    def is_pending(self) -> bool:
        """Whether the server has still to be told something."""
        return bool(self.pending or self.end_pending or self.report_pending)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "quarantined": [{"id": entry.id, **asdict(entry)} for entry in self.quarantined]}


@dataclass(slots=True)
class LogCount:
    """What waits in one writer's log, and what is known from there. ``oldest_ms``: when the oldest of it was logged."""

    pending: int = 0
    approximate: bool = False
    oldest_ms: int | None = None
    opening: Open | None = None
    lost: int = 0
    trouble: str | None = None
    end: RunEnd | None = None
    in_order: bool = False
    last_sign: int = 0


def survey(root: Path, ledger: Ledger | None, wanted: Iterable[str] = ()) -> list[RunStatus]:
    """The status of the runs in a spool, in order of start time; ``wanted`` selects as ``select``."""
    return run_statuses(everything(root, wanted), ledger)


def everything(root: Path, wanted: Iterable[str] = ()) -> list[RunLog]:
    """The wanted runs; if none is named, all of them and what belongs to no run. Raises as ``select``."""
    names = list(wanted)
    runs = select(discover(root), names)
    store = None if names else store_log(root)
    return runs if store is None else [*runs, store]


def select(runs: list[RunLog], wanted: Iterable[str]) -> list[RunLog]:
    """The runs that are named by their id, an unambiguous beginning of it, or their directory; all if none is named.

    Raises:
        NoSuchRun: a name fits none, or several.
    """
    names = list(wanted)
    if not names:
        return runs
    return [_one(runs, name) for name in names]


def run_statuses(runs: Iterable[RunLog], ledger: Ledger | None) -> list[RunStatus]:
    """The status of many runs. For those that were delivered to their end, and whose files are still those, the ledger
    answers, all at once; only the others are read."""
    ends = {} if ledger is None else delivered(ledger)
    told = {} if ledger is None else _as_the_ledger_tells(ledger)
    return [
        told[run.run_id]
        if (known := ends.get(run.run_id)) is not None and is_settled(run, known)
        else run_status(run, ledger)
        for run in runs
    ]


def _as_the_ledger_tells(ledger: Ledger) -> dict[str, RunStatus]:
    """Every run, as it stands if nothing of it waits and nothing of it went wrong."""
    rows = ledger.rows(
        "SELECT runs.run_id, run_name, experiment_name, server_run_id, status, sum(acknowledged)"
        " FROM runs JOIN writers ON writers.run_id = runs.run_id GROUP BY runs.run_id"
    )
    plain: dict[str, Any] = {
        "live": False,
        "pending": 0,
        "approximate": False,
        "quarantined": [],
        "dropped": 0,
        "lost": 0,
    }
    names = ("run_id", "run_name", "experiment_name", "server_run_id", "status", "acknowledged")
    return {row[0]: RunStatus(**dict(zip(names, row, strict=True)), **plain, lag_s=None, parked=None) for row in rows}


def run_status(
    run: RunLog, ledger: Ledger | None, counted: Callable[[Path, WriterRow], LogCount] | None = None
) -> RunStatus:
    """Count one run. ``counted``: as ``count_log``, for who remembers."""
    row = ledger.run(run.run_id) if ledger else None
    known = ledger.writers(run.run_id) if ledger else {}
    paths, unread = _writers(run)
    writers = [(path, known.get(path.name) or WriterRow(run.run_id, path.name)) for path in paths]
    counts = [(counted or count_log)(path, writer) for path, writer in writers]
    opening = next((count.opening for count in counts if count.opening is not None), None)
    oldest = min((count.oldest_ms for count in counts if count.oldest_ms is not None), default=None)
    troubles = [writer.trouble for _, writer in writers] + [count.trouble for count in counts] + [unread]
    live = any(probe(path) is Lock.HELD for path, _ in writers)
    quarantined = ledger.quarantined(run.run_id) if ledger else []
    dropped = len(ledger.dropped(run.run_id)) if ledger else 0
    given_up_why = row.given_up if row else None
    return RunStatus(
        run_id=run.run_id,
        run_name=_STORE_NAME if run.run_id == STORE else opening.run_name if opening else row.run_name if row else None,
        experiment_name=opening.experiment_name if opening else row.experiment_name if row else None,
        server_run_id=row.server_run_id if row else None,
        status=row.status if row else None,
        live=live,
        acknowledged=sum(writer.acknowledged for _, writer in writers),
        pending=sum(count.pending for count in counts) + (len(ledger.to_retry(run.run_id)) if ledger else 0),
        approximate=any(count.approximate for count in counts),
        quarantined=quarantined,
        dropped=sum(writer.dropped for _, writer in writers),
        lost=sum(writer.lost for _, writer in writers) + sum(count.lost for count in counts),
        lag_s=None if oldest is None else max(0.0, time.time() - oldest / 1000),
        parked=row.parked if row else None,
        troubles=sorted({trouble for trouble in troubles if trouble}),
        end_pending=not live and given_up_why is None and (row is None or row.end_time is None) and _has_ended(counts),
        given_up=sum(writer.given_up for _, writer in writers) + dropped,
        given_up_why=given_up_why,
        report_pending=_is_unreported(row, shortfall((writer for _, writer in writers), len(quarantined), dropped)),
    )


def exit_code(statuses: Iterable[RunStatus]) -> int:
    """0: all acknowledged. 3: something is set aside and needs a person. 4: something is pending."""
    found = list(statuses)
    if any(status.is_set_aside for status in found):
        return SET_ASIDE
    return PENDING if any(status.is_pending for status in found) else ALL_ACKNOWLEDGED


def _has_ended(counts: list[LogCount]) -> bool:
    """Whether a run said how it ended, and nothing of it was left running: how it stands once none of its writers lives."""
    facts = [
        WriterFacts(count.opening, count.end, True, count.last_sign, False, count.in_order)
        for count in counts
        if count.opening is not None
    ]
    return any(count.end is not None for count in counts) and bool(facts) and verdict(facts).end_time is not None


def _is_unreported(row: RunRow | None, report: Mapping[str, str]) -> bool:
    """Whether a run that the server has is told there to be more, or less, complete than it is."""
    return row is not None and row.server_run_id is not None and row.given_up is None and row.reported != report


def _one(runs: list[RunLog], name: str) -> RunLog:
    directory = Path(name).name
    fitting = [run for run in runs if run.run_id == name or directory in {path.name for path in run.directories}]
    fitting = fitting or [run for run in runs if run.run_id.startswith(name)]
    if len(fitting) != 1:
        raise NoSuchRun(f"{name!r} fits {'no run' if not fitting else f'{len(fitting)} runs'}")
    return fitting[0]


def _writers(run: RunLog) -> tuple[list[Path], str | None]:
    """The logs of a run, and why they cannot be seen."""
    try:
        return list(run.writers()), None
    except OSError as error:
        return [], f"its files cannot be read: {error}"


def count_log(directory: Path, row: WriterRow, most_bytes: int | None = None) -> LogCount:
    """Count what of a writer's log the ledger does not know as acknowledged; beyond ``most_bytes`` it is estimated."""
    most_bytes = most_bytes or _COUNT_BYTES
    opening = None if row.opening is None else opening_from(row.opening)
    count = LogCount(
        opening=opening,
        end=None if row.ending is None else RunEnd(*row.ending),
        in_order=row.in_order,
        last_sign=row.last_sign,
    )
    reader = LogReader(directory, row.cursor)
    try:
        behind = reader.pending_bytes()
        while events := reader.read():
            for event in events:
                _tally(event, row, count)
            left = reader.pending_bytes()
            if left and behind - left > most_bytes:
                count.pending += int(count.pending * left / (behind - left))
                count.approximate = True
                break
        count.in_order |= reader.ended
    except (SpoolError, OSError) as error:
        count.trouble = str(error)
    if count.oldest_ms is not None and count.opening is not None:
        # Users give points times of their own. Whatever they say, it was logged after the opening and before the last write.
        count.oldest_ms = min(max(count.oldest_ms, count.opening.opened), written_at(directory) or count.oldest_ms)
    return count


def _tally(event: Entry | Lost, row: WriterRow, count: LogCount) -> None:
    if isinstance(event, Lost):
        if event.after.offset > row.lanes.get("control", 0):
            count.lost += event.frames or 0
        return
    if event.kind == Kind.RUN_END:
        record = _decoded(event)
        count.end = record if isinstance(record, RunEnd) else count.end
    if event.kind == Kind.OPEN and count.opening is None:
        record = _decoded(event)
        count.opening = record if isinstance(record, Open) else None
    lane = lane_of(event.kind, _decoded(event) if event.kind == Kind.MODEL_UPDATE else None)
    name = "registry" if event.kind == Kind.REGISTRY and row.run_id == STORE else _lane_name(lane)
    if event.kind in CONTROL or event.kind >= 64 or event.offset < row.lanes.get(name, 0):
        return
    count.pending += 1
    if count.oldest_ms is None:
        count.oldest_ms = getattr(_decoded(event), "timestamp", None)


def _lane_name(lane: Lane) -> str:
    """Records that this release sets aside have no lane of their own; they are passed with what only counts."""
    return "control" if lane is Lane.OTHER else lane.value


def _decoded(entry: Entry) -> object:
    try:
        return decode(entry.kind, entry.payload)
    except SpoolError:
        return None
