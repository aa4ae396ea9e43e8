"""What the agent remembers between two lives: one SQLite file for one destination.

Owns which run is which on the server, how far each log is acknowledged, and what is in quarantine. It holds no record of a
user's and no secret. Losing it costs re-sending, never loss or duplicates: runs carry their offline id as a tag, and what is
sent again is recognised.

Concurrency. One delivering process holds ``<ledger>.lock`` for its life; readers (``mlferry status``) open the file
read-only beside it. Write-ahead logging with ``synchronous=NORMAL``: a power cut may undo the last acknowledgements, but
never tears the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlferry_agent.errors import LedgerBusy, LedgerUnusable
from mlferry_spool.tailer import Cursor

__all__ = ["Ledger", "Quarantined", "RunRow", "WriterRow", "ledger_path"]

_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE experiments (
    workspace TEXT NOT NULL, name TEXT NOT NULL, experiment_id TEXT NOT NULL, PRIMARY KEY (workspace, name));
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, run_name TEXT, experiment_name TEXT, experiment_id TEXT, server_run_id TEXT,
    artifact_uri TEXT, in_doubt INTEGER NOT NULL DEFAULT 0, status TEXT, end_time INTEGER, parked TEXT,
    directory TEXT NOT NULL DEFAULT '', reported TEXT NOT NULL DEFAULT '{}');
CREATE INDEX runs_by_server_id ON runs (server_run_id);
CREATE TABLE writers (
    run_id TEXT NOT NULL, writer_id TEXT NOT NULL, segment INTEGER NOT NULL, byte INTEGER NOT NULL,
    sequence INTEGER NOT NULL, lanes TEXT NOT NULL, opening TEXT, ending TEXT, finished INTEGER NOT NULL,
    last_sign INTEGER NOT NULL, acknowledged INTEGER NOT NULL, lost INTEGER NOT NULL, dropped INTEGER NOT NULL,
    trouble TEXT, PRIMARY KEY (run_id, writer_id));
CREATE TABLE quarantine (
    run_id TEXT NOT NULL, writer_id TEXT NOT NULL, offset INTEGER NOT NULL, action TEXT NOT NULL, name TEXT NOT NULL,
    reason TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (run_id, writer_id, offset, action, name));
"""


_START = Cursor()


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run: its two identities and what the server was last told. ``parked``: why nothing of it is sent, or None."""

    run_id: str
    directory: str = ""
    run_name: str | None = None
    experiment_name: str | None = None
    experiment_id: str | None = None
    server_run_id: str | None = None
    artifact_uri: str | None = None
    in_doubt: bool = False
    status: str | None = None
    end_time: int | None = None
    parked: str | None = None
    reported: Mapping[str, str] = field(default_factory=dict)


_RUN_COLUMNS = tuple(item.name for item in fields(RunRow))


@dataclass(frozen=True, slots=True)
class WriterRow:
    """A writer's log: where to go on reading, how far each lane is acknowledged, what is known of its life.

    ``acknowledged``: data records delivered. ``lost``: records that damage took. ``dropped``: records that the writer
    itself could not store. ``trouble``: why the log cannot be read on, or None. ``opening``/``ending``: the fields of
    the OPEN and RUN_END records.
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


def ledger_path(state_dir: Path, url: str) -> Path:
    """The ledger's file for a destination: its name tells people the host, its digest tells URLs apart."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    host = "".join(char if char.isalnum() or char in ".-" else "_" for char in url.partition("://")[2])[:60]
    return state_dir / f"{host}-{digest}.sqlite"


class Ledger:
    """One destination's memory. ``open`` it to deliver, ``read`` it to look."""

    def __init__(self, database: sqlite3.Connection, lock_fd: int | None = None) -> None:
        self._database = database
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path, url: str) -> Ledger:
        """Open for delivering; the process holds the ledger until ``close``.

        Raises:
            LedgerBusy: another process delivers by this ledger.
            LedgerUnusable: the directory or the file cannot be written or is no ledger.
        """
        lock_fd = _hold(path)
        with contextlib.ExitStack() as unless_open:
            unless_open.callback(os.close, lock_fd)
            database = _connect(str(path))
            unless_open.callback(database.close)
            with _told(f"{path}: "):
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                _create(database, url)
            unless_open.pop_all()
        return cls(database, lock_fd)

    @classmethod
    def read(cls, path: Path) -> Ledger | None:
        """Open for looking, beside whoever delivers; None if nothing was ever delivered by it.

        Raises:
            LedgerUnusable: the file is no ledger.
        """
        if not path.exists():
            return None
        with contextlib.ExitStack() as unless_open:
            database = _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            unless_open.callback(database.close)
            with _told(f"{path}: "):
                if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                    return None  # whoever makes it has not come to its tables yet
                _check_version(database)
            unless_open.pop_all()
        return cls(database)

    def close(self) -> None:
        self._database.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing.

        Raises:
            LedgerUnusable: the disk is full or unwell, and nothing was stored. The next transaction may succeed.
        """
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite may have rolled back by itself
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Every row of the answer. Raises ``LedgerUnusable``."""
        with _told():
            return self._database.execute(statement, values).fetchall()

    @property
    def url(self) -> str:
        """The destination that this ledger is about."""
        return str(self._execute("SELECT value FROM meta WHERE key = 'url'")[0][0])

    # -- runs -----------------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRow | None:
        return next(self._runs("WHERE run_id = ?", run_id), None)

    def runs(self) -> list[RunRow]:
        return list(self._runs(""))

    def _runs(self, where: str, *values: object) -> Iterator[RunRow]:
        for row in self._execute(f"SELECT {', '.join(_RUN_COLUMNS)} FROM runs {where} ORDER BY directory", values):
            stored = dict(zip(_RUN_COLUMNS, row, strict=True))
            yield RunRow(**{**stored, "in_doubt": bool(stored["in_doubt"]), "reported": json.loads(stored["reported"])})

    def put_run(self, row: RunRow) -> None:
        stored = {**asdict(row), "in_doubt": int(row.in_doubt), "reported": json.dumps(dict(row.reported))}
        self._execute(
            f"INSERT OR REPLACE INTO runs ({', '.join(_RUN_COLUMNS)}) VALUES ({', '.join('?' * len(_RUN_COLUMNS))})",
            [stored[name] for name in _RUN_COLUMNS],
        )

    def server_run_id(self, run_id: str) -> str | None:
        """The server's id of a run, by its offline id; None if unknown."""
        row = self.run(run_id)
        return None if row is None else row.server_run_id

    def experiment_id(self, workspace: str | None, name: str) -> str | None:
        rows = self._execute(
            "SELECT experiment_id FROM experiments WHERE workspace = ? AND name = ?", (workspace or "", name)
        )
        return str(rows[0][0]) if rows else None

    def put_experiment(self, workspace: str | None, name: str, experiment_id: str) -> None:
        self._execute("INSERT OR REPLACE INTO experiments VALUES (?,?,?)", (workspace or "", name, experiment_id))

    def forget_experiment(self, workspace: str | None, name: str) -> None:
        self._execute("DELETE FROM experiments WHERE workspace = ? AND name = ?", (workspace or "", name))

    # -- writers --------------------------------------------------------------------------------------------------------

    def writers(self, run_id: str) -> dict[str, WriterRow]:
        rows = self._execute(
            "SELECT writer_id, segment, byte, sequence, lanes, opening, ending, finished, last_sign, acknowledged, lost,"
            " dropped, trouble FROM writers WHERE run_id = ?",
            (run_id,),
        )
        return {row[0]: _writer_row(run_id, row) for row in rows}

    def put_writer(self, row: WriterRow) -> None:
        self._execute(
            "INSERT OR REPLACE INTO writers VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                row.run_id, row.writer_id, row.cursor.segment, row.cursor.byte, row.cursor.sequence,
                json.dumps(dict(row.lanes)), _dumped(row.opening), _dumped(row.ending), int(row.finished), row.last_sign,
                row.acknowledged, row.lost, row.dropped, row.trouble,
            ),
        )  # fmt: skip

    # -- quarantine -----------------------------------------------------------------------------------------------------

    def quarantine(self, entry: Quarantined) -> None:
        values = (
            entry.run_id,
            entry.writer_id,
            entry.offset,
            entry.action,
            entry.name,
            entry.reason,
            entry.at or _now_ms(),
        )
        self._execute("INSERT OR IGNORE INTO quarantine VALUES (?,?,?,?,?,?,?)", values)

    def quarantined(self, run_id: str | None = None) -> list[Quarantined]:
        where, values = ("", ()) if run_id is None else (" WHERE run_id = ?", (run_id,))
        rows = self._execute(f"SELECT * FROM quarantine{where} ORDER BY run_id, writer_id, offset", values)
        return [Quarantined(*row) for row in rows]

    def retry(self, run_id: str) -> int:
        """Read a run anew from its start: what is quarantined or parked is tried again. Returns how many were set free.

        What the server has already is sent once more and recognised there; the end is told again after it.
        """
        row = self.run(run_id)
        with self.transaction():
            freed = len(self.quarantined(run_id))
            self._execute("DELETE FROM quarantine WHERE run_id = ?", (run_id,))
            self._execute(
                "UPDATE writers SET segment = 0, byte = 0, sequence = 0, lanes = '{}', acknowledged = 0, lost = 0,"
                " dropped = 0, finished = 0, trouble = NULL WHERE run_id = ?",
                (run_id,),
            )
            if row is not None:
                freed += row.parked is not None
                self.put_run(replace(row, parked=None, status=None, end_time=None))
        return freed


def _dumped(value: object) -> str | None:
    return None if value is None else json.dumps(value)


def _writer_row(run_id: str, row: tuple[Any, ...]) -> WriterRow:
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
    )


def _hold(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LedgerUnusable(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LedgerBusy(str(path)) from None
    except OSError as error:
        os.close(fd)
        raise LedgerUnusable(f"{path.parent}: {error.strerror}") from error
    return fd


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    with _told(f"{name}: "):
        return sqlite3.connect(name, uri=uri, isolation_level=None, timeout=30)


@contextlib.contextmanager
def _told(where: str = "") -> Iterator[None]:
    """The one place where SQLite's exceptions become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnusable(f"{where}{error}") from error


def _create(database: sqlite3.Connection, url: str) -> None:
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        database.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES ('schema', ?), ('url', ?)", (str(_SCHEMA_VERSION), url))
        database.execute("COMMIT")
    _check_version(database)


def _check_version(database: sqlite3.Connection) -> None:
    found = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if found is None or int(found[0]) > _SCHEMA_VERSION:
        raise LedgerUnusable("the ledger was made by a newer mlferry; upgrade mlferry, or name another state directory")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
