"""What the ledger has rows of: runs, writers, models, versions, quarantine. Plain values; storing them is the ledger's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mlferry_spool.tailer import Cursor

__all__ = [
    "RUN_COLUMNS",
    "ModelRow",
    "Quarantined",
    "RunRow",
    "VersionRow",
    "WriterRow",
    "quarantine_name",
    "shortfall",
    "writer_row",
]

_START = Cursor()

#: Characters of a name that the quarantine keeps: what is set aside may be a name that is too long.
#: Beyond: cut; the record is known by the beginning of its name.
#: Test: tests/unit/agent/test_folding.py::test_a_name_that_is_too_long_is_known_by_its_beginning
_MAX_NAME_CHARS = 300


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run: its two identities and what the server was last told. ``parked``: why nothing of it is sent, or None.
    ``in_doubt``: when we last asked for it to be made without learning whether it was, Unix milliseconds; 0 if we know.
    ``lifecycle``: ``deleted`` where we deleted it on the server because its program did. ``given_up``: why what was not
    delivered of it never will be, or None: somebody dropped it."""

    run_id: str
    directory: str = ""
    run_name: str | None = None
    experiment_name: str | None = None
    experiment_id: str | None = None
    server_run_id: str | None = None
    artifact_uri: str | None = None
    in_doubt: int = 0
    status: str | None = None
    end_time: int | None = None
    parked: str | None = None
    reported: Mapping[str, str] = field(default_factory=dict)
    lifecycle: str | None = None
    given_up: str | None = None


RUN_COLUMNS = tuple(item.name for item in fields(RunRow))


@dataclass(frozen=True, slots=True)
class WriterRow:
    """A writer's log: where to go on reading, how far each lane is acknowledged, what is known of its life.

    ``acknowledged``: data records delivered. ``lost``: records that damage took. ``dropped``: records that the writer
    itself could not store. ``trouble``: why the log cannot be read on, or None. ``opening``/``ending``: the fields of
    the OPEN and RUN_END records. ``in_order``: the writer itself ended the log. ``lifecycle``: when this writer last said
    whether the run is ``deleted`` or ``active``. ``given_up``: records passed over because their run was dropped.
    """

    run_id: str
    writer_id: str
    cursor: Cursor = _START
    lanes: Mapping[str, int] = field(default_factory=dict)
    opening: Mapping[str, object] | None = None
    ending: tuple[int, str] | None = None
    finished: bool = False
    last_sign: int = 0
    acknowledged: int = 0
    lost: int = 0
    dropped: int = 0
    trouble: str | None = None
    in_order: bool = False
    lifecycle: tuple[int, str] | None = None
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A logged model: its two identities, and where its files go."""

    model_id: str
    server_model_id: str | None = None
    artifact_uri: str | None = None
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a registered model: what its creation was called offline, its name and number on the server."""

    uid: str
    name: str
    version: str | None = None
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Something set aside: which record (writer and offset), what of it, and why. ``at``: Unix milliseconds."""

    run_id: str
    writer_id: str
    offset: int
    action: str
    name: str
    reason: str
    at: int = 0

    @property
    def id(self) -> str:
        """What a person calls it by: short, and the same wherever and whenever it is asked for."""
        parts = (self.run_id, self.writer_id, str(self.offset), self.action, self.name)
        return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:10]


def quarantine_name(name: str) -> str:
    """What the quarantine calls something of this name."""
    return name[:_MAX_NAME_CHARS]


def shortfall(writers: Iterable[WriterRow], quarantined: int, dropped: int) -> dict[str, str]:
    """Tags that tell on the server what is missing there of a run; none if nothing is. ``dropped``: what of its
    quarantine was given up."""
    rows = list(writers)
    counts = {
        "mlferry.dropped": sum(row.dropped + row.given_up for row in rows) + dropped,
        "mlferry.lost": sum(row.lost for row in rows),
        "mlferry.quarantined": quarantined,
    }
    return {name: str(count) for name, count in counts.items() if count}


def writer_row(run_id: str, row: tuple[Any, ...]) -> WriterRow:
    (
        writer_id,
        segment,
        byte,
        sequence,
        lanes,
        opening,
        ending,
        finished,
        last_sign,
        acknowledged,
        lost,
        dropped,
        trouble,
        in_order,
        lifecycle,
        given_up,
    ) = row
    return WriterRow(
        run_id,
        writer_id,
        Cursor(segment, byte, sequence),
        json.loads(lanes),
        json.loads(opening) if opening else None,
        tuple(json.loads(ending)) if ending else None,
        bool(finished),
        last_sign,
        acknowledged,
        lost,
        dropped,
        trouble,
        bool(in_order),
        tuple(json.loads(lifecycle)) if lifecycle else None,
        given_up,
    )
