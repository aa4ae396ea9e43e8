"""What is acknowledged, pending and quarantined, run by run: read from spool and ledger, beside whoever delivers.

Counts are records: what one call logged. Pending ones are counted frame by frame in the logs (headers only); where more
than 64 MiB of a run wait, the rest is estimated from its bytes and ``approximate`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlferry_agent.discovery import RunLog, discover
from mlferry_agent.errors import NoSuchRun
from mlferry_agent.lanes import CONTROL, LANE_OF, Lane
from mlferry_agent.ledger import Ledger, Quarantined, WriterRow
from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Kind, Open
from mlferry_spool.tailer import Entry, Lost

__all__ = ["RunStatus", "exit_code", "run_status", "select", "survey"]

#: Exit codes of every command that speaks about delivery.
ALL_ACKNOWLEDGED, FAILURE, USAGE, SET_ASIDE, PENDING = 0, 1, 2, 3, 4

_COUNT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run. ``lag_s``: age in seconds of its oldest pending record. ``live``: a writer holds its lock."""

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

    @property
    def is_set_aside(self) -> bool:
        """Whether something of the run needs a person."""
        return bool(self.quarantined or self.parked or self.troubles)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Count:
    pending: int = 0
    approximate: bool = False
    oldest_ms: int | None = None
    opening: Open | None = None
    lost: int = 0
    trouble: str | None = None


def survey(root: Path, ledger: Ledger | None, wanted: Iterable[str] = ()) -> list[RunStatus]:
    """The status of the runs in a spool, in order of start time; ``wanted`` selects as ``select``."""
    return [run_status(run, ledger) for run in select(discover(root), wanted)]


def select(runs: list[RunLog], wanted: Iterable[str]) -> list[RunLog]:
    """The runs that are named by their id, an unambiguous beginning of it, or their directory; all if none is named.

    Raises:
        NoSuchRun: a name fits none, or several.
    """
    names = list(wanted)
    if not names:
        return runs
    return [_one(runs, name) for name in names]


def run_status(run: RunLog, ledger: Ledger | None) -> RunStatus:
    """Count one run."""
    row = ledger.run(run.run_id) if ledger else None
    known = ledger.writers(run.run_id) if ledger else {}
    writers = [(path, known.get(path.name) or WriterRow(run.run_id, path.name)) for path in run.writers()]
    counts = [_count(path, writer) for path, writer in writers]
    opening = next((count.opening for count in counts if count.opening is not None), None)
    oldest = min((count.oldest_ms for count in counts if count.oldest_ms is not None), default=None)
    troubles = [writer.trouble for _, writer in writers] + [count.trouble for count in counts]
    return RunStatus(
        run_id=run.run_id,
        run_name=opening.run_name if opening else row.run_name if row else None,
        experiment_name=opening.experiment_name if opening else row.experiment_name if row else None,
        server_run_id=row.server_run_id if row else None,
        status=row.status if row else None,
        live=any(probe(path) is Lock.HELD for path, _ in writers),
        acknowledged=sum(writer.acknowledged for _, writer in writers),
        pending=sum(count.pending for count in counts),
        approximate=any(count.approximate for count in counts),
        quarantined=ledger.quarantined(run.run_id) if ledger else [],
        dropped=sum(writer.dropped for _, writer in writers),
        lost=sum(writer.lost for _, writer in writers) + sum(count.lost for count in counts),
        lag_s=None if oldest is None else max(0.0, time.time() - oldest / 1000),
        parked=row.parked if row else None,
        troubles=sorted({trouble for trouble in troubles if trouble}),
    )


def exit_code(statuses: Iterable[RunStatus]) -> int:
    """0: all acknowledged. 3: something is set aside and needs a person. 4: something is pending."""
    found = list(statuses)
    if any(status.is_set_aside for status in found):
        return SET_ASIDE
    return PENDING if any(status.pending for status in found) else ALL_ACKNOWLEDGED


def _one(runs: list[RunLog], name: str) -> RunLog:
    directory = Path(name).name
    fitting = [run for run in runs if run.run_id == name or directory in {path.name for path in run.directories}]
    fitting = fitting or [run for run in runs if run.run_id.startswith(name)]
    if len(fitting) != 1:
        raise NoSuchRun(f"{name!r} fits {'no run' if not fitting else f'{len(fitting)} runs'}")
    return fitting[0]


def _count(directory: Path, row: WriterRow) -> _Count:
    count = _Count(opening=None if row.opening is None else Open(**row.opening))  # type: ignore[arg-type]
    reader = LogReader(directory, row.cursor)
    behind = reader.pending_bytes()
    try:
        while events := reader.read():
            for event in events:
                _tally(event, row, count)
            left = reader.pending_bytes()
            if left and behind - left > _COUNT_BYTES:
                count.pending += int(count.pending * left / (behind - left))
                count.approximate = True
                break
    except (SpoolError, OSError) as error:
        count.trouble = str(error)
    return count


def _tally(event: Entry | Lost, row: WriterRow, count: _Count) -> None:
    if isinstance(event, Lost):
        if event.after.offset > row.lanes.get("control", 0):
            count.lost += event.frames or 0
        return
    if event.kind == Kind.OPEN and count.opening is None:
        record = _decoded(event)
        count.opening = record if isinstance(record, Open) else None
    lane = LANE_OF.get(event.kind, Lane.OTHER)
    if event.kind in CONTROL or event.kind >= 64 or event.offset < row.lanes.get(_lane_name(lane), 0):
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
