"""What the agent remembers between two lives: one SQLite file for one destination.

Owns which run is which on the server, how far each log is acknowledged, and what is in quarantine. It holds no record of a
user's and no secret. Losing it costs re-sending, never loss or duplicates: runs carry their offline id as a tag, and what is
sent again is recognised.

Concurrency. One delivering process holds ``<ledger>.lock`` for its life; readers (``mlferry status``) open the file
read-only beside it. Write-ahead logging with ``synchronous=NORMAL``: a power cut may undo the last acknowledgements, but
never tears the file. What is undone is sent again, and is recognised, but for two notes, which are ``durable`` therefore:
that a create was sent, which the server may carry out late, and that a run was told to be over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlferry_agent.errors import LedgerUnusable
from mlferry_agent.holding import hold
from mlferry_agent.rows import RUN_COLUMNS, ModelRow, Quarantined, RunRow, VersionRow, WriterRow, writer_row

__all__ = ["Ledger", "ModelRow", "Quarantined", "RunRow", "VersionRow", "WriterRow", "ledger_path"]

_SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE experiments (
    workspace TEXT NOT NULL, name TEXT NOT NULL, experiment_id TEXT NOT NULL, PRIMARY KEY (workspace, name));
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, run_name TEXT, experiment_name TEXT, experiment_id TEXT, server_run_id TEXT,
    artifact_uri TEXT, in_doubt INTEGER NOT NULL DEFAULT 0, status TEXT, end_time INTEGER, parked TEXT,
    directory TEXT NOT NULL DEFAULT '', reported TEXT NOT NULL DEFAULT '{}', lifecycle TEXT,
    given_up TEXT);
CREATE INDEX runs_by_server_id ON runs (server_run_id);
CREATE TABLE writers (
    run_id TEXT NOT NULL, writer_id TEXT NOT NULL, segment INTEGER NOT NULL, byte INTEGER NOT NULL,
    sequence INTEGER NOT NULL, lanes TEXT NOT NULL, opening TEXT, ending TEXT, finished INTEGER NOT NULL,
    last_sign INTEGER NOT NULL, acknowledged INTEGER NOT NULL, lost INTEGER NOT NULL, dropped INTEGER NOT NULL,
    trouble TEXT, in_order INTEGER NOT NULL DEFAULT 0, lifecycle TEXT,
    given_up INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run_id, writer_id));
CREATE TABLE models (
    model_id TEXT PRIMARY KEY, server_model_id TEXT, artifact_uri TEXT, in_doubt INTEGER NOT NULL DEFAULT 0);
CREATE TABLE offline_experiments (offline_id TEXT PRIMARY KEY, experiment_id TEXT NOT NULL, lifecycle TEXT NOT NULL);
CREATE TABLE versions (uid TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT, in_doubt INTEGER NOT NULL DEFAULT 0);
CREATE TABLE quarantine (
    run_id TEXT NOT NULL, writer_id TEXT NOT NULL, offset INTEGER NOT NULL, action TEXT NOT NULL, name TEXT NOT NULL,
    reason TEXT NOT NULL, at INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, writer_id, offset, action, name));
"""

#: What makes the next schema of an older one. New columns stand last, as in ``_SCHEMA``.
_UPGRADES = {
    1: (
        "ALTER TABLE runs ADD COLUMN given_up TEXT",
        "ALTER TABLE writers ADD COLUMN given_up INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE quarantine ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    )
}

_QUARANTINED = "SELECT run_id, writer_id, offset, action, name, reason, at FROM quarantine WHERE at != 0"


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
        lock_fd = hold(path)
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
            database = _connect(_to_look_at(path), uri=True)
            unless_open.callback(database.close)
            with _told(f"{path}: "):
                if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                    return None  # whoever makes it has not come to its tables yet
                if _version(database) < _SCHEMA_VERSION:
                    return cls(_upgraded_copy(database))
            unless_open.pop_all()
        return cls(database)

    def close(self) -> None:
        self._database.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All of it or nothing. ``durable``: no power cut undoes it; it takes as long as the disk needs to say so.

        Raises:
            LedgerUnusable: the disk is full or unwell, and nothing was stored. The next transaction may succeed.
        """
        self._execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
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

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """For views of many runs at once, which write nothing. Raises ``LedgerUnusable``."""
        return self._execute(query, values)

    @property
    def url(self) -> str:
        """The destination that this ledger is about."""
        return str(self._execute("SELECT value FROM meta WHERE key = 'url'")[0][0])

    @property
    def is_unused(self) -> bool:
        """Whether nothing was ever noted here, as after a try to deliver to an address where no server is."""
        return not self._execute("SELECT 1 FROM writers LIMIT 1")

    def damage(self) -> str | None:
        """What SQLite finds wrong with the file; None if it is whole."""
        found = [str(row[0]) for row in self._execute("PRAGMA quick_check(3)")]
        return None if found == ["ok"] else "; ".join(found)

    # -- runs -----------------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRow | None:
        return next(self._runs("WHERE run_id = ?", run_id), None)

    def runs(self) -> list[RunRow]:
        return list(self._runs(""))

    def _runs(self, where: str, *values: object) -> Iterator[RunRow]:
        for row in self._execute(f"SELECT {', '.join(RUN_COLUMNS)} FROM runs {where} ORDER BY directory", values):
            stored = dict(zip(RUN_COLUMNS, row, strict=True))
            with _undamaged():
                reported = json.loads(stored["reported"])
            yield RunRow(**{**stored, "reported": reported})

    def put_run(self, row: RunRow) -> None:
        stored = {**asdict(row), "reported": json.dumps(dict(row.reported))}
        self._execute(
            f"INSERT OR REPLACE INTO runs ({', '.join(RUN_COLUMNS)}) VALUES ({', '.join('?' * len(RUN_COLUMNS))})",
            [stored[name] for name in RUN_COLUMNS],
        )

    def server_run_id(self, run_id: str) -> str | None:
        """The server's id of a run, by its offline id; None if unknown."""
        row = self.run(run_id)
        return None if row is None else row.server_run_id

    def workspace(self, run_id: str) -> str | None:
        """The workspace that a run was logged for, as its writers said; None if they named none."""
        told = next((row.opening for row in self.writers(run_id).values() if row.opening), {})
        workspace = told.get("workspace")
        return workspace if isinstance(workspace, str) else None

    def experiment_id(self, workspace: str | None, name: str) -> str | None:
        rows = self._execute(
            "SELECT experiment_id FROM experiments WHERE workspace = ? AND name = ?", (workspace or "", name)
        )
        return str(rows[0][0]) if rows else None

    def put_experiment(self, workspace: str | None, name: str, experiment_id: str) -> None:
        self._execute("INSERT OR REPLACE INTO experiments VALUES (?,?,?)", (workspace or "", name, experiment_id))

    def forget_experiment(self, workspace: str | None, name: str) -> None:
        self._execute("DELETE FROM experiments WHERE workspace = ? AND name = ?", (workspace or "", name))

    def forget_experiment_id(self, experiment_id: str) -> None:
        """Forget whatever became this experiment of the server."""
        self._execute("DELETE FROM experiments WHERE experiment_id = ?", (experiment_id,))
        self._execute("DELETE FROM offline_experiments WHERE experiment_id = ?", (experiment_id,))

    # -- writers --------------------------------------------------------------------------------------------------------

    def writers(self, run_id: str) -> dict[str, WriterRow]:
        rows = self._execute(
            "SELECT writer_id, segment, byte, sequence, lanes, opening, ending, finished, last_sign, acknowledged, lost,"
            " dropped, trouble, in_order, lifecycle, given_up FROM writers WHERE run_id = ?",
            (run_id,),
        )
        with _undamaged():
            return {row[0]: writer_row(run_id, row) for row in rows}

    def put_writer(self, row: WriterRow) -> None:
        self._execute(
            "INSERT OR REPLACE INTO writers VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                row.run_id, row.writer_id, row.cursor.segment, row.cursor.byte, row.cursor.sequence,
                json.dumps(dict(row.lanes)), _dumped(row.opening), _dumped(row.ending), int(row.finished), row.last_sign,
                row.acknowledged, row.lost, row.dropped, row.trouble, int(row.in_order), _dumped(row.lifecycle),
                row.given_up,
            ),
        )  # fmt: skip

    # -- models, experiments and versions of this spool -----------------------------------------------------------------

    def model(self, model_id: str) -> ModelRow | None:
        """A logged model by its offline id."""
        return self._model("model_id", model_id)

    def model_by_server_id(self, server_model_id: str) -> ModelRow | None:
        return self._model("server_model_id", server_model_id)

    def _model(self, column: str, value: str) -> ModelRow | None:
        rows = self._execute(
            f"SELECT model_id, server_model_id, artifact_uri, in_doubt FROM models WHERE {column} = ?", (value,)
        )
        return ModelRow(rows[0][0], rows[0][1], rows[0][2], bool(rows[0][3])) if rows else None

    def models(self) -> list[ModelRow]:
        """Every logged model that was begun to be delivered."""
        rows = self._execute("SELECT model_id, server_model_id, artifact_uri, in_doubt FROM models ORDER BY rowid")
        return [ModelRow(row[0], row[1], row[2], bool(row[3])) for row in rows]

    def all_experiments(self) -> list[tuple[str, str]]:
        """(offline id, server's id) of every experiment of the spool that is placed."""
        rows = self._execute("SELECT offline_id, experiment_id FROM offline_experiments ORDER BY rowid")
        return [(str(row[0]), str(row[1])) for row in rows]

    def all_versions(self) -> list[VersionRow]:
        """Every model version that was begun to be delivered."""
        rows = self._execute("SELECT uid, name, version, in_doubt FROM versions ORDER BY rowid")
        return [VersionRow(row[0], row[1], row[2], bool(row[3])) for row in rows]

    def put_model(self, row: ModelRow) -> None:
        values = (row.model_id, row.server_model_id, row.artifact_uri, int(row.in_doubt))
        self._execute("INSERT OR REPLACE INTO models VALUES (?,?,?,?)", values)

    def experiment_of(self, offline_id: str) -> tuple[str, str] | None:
        """The server's id of an experiment of the spool, and its lifecycle there as we left it."""
        rows = self._execute(
            "SELECT experiment_id, lifecycle FROM offline_experiments WHERE offline_id = ?", (offline_id,)
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def offline_experiments(self, experiment_id: str) -> list[str]:
        """The offline ids of an experiment of the server."""
        rows = self._execute("SELECT offline_id FROM offline_experiments WHERE experiment_id = ?", (experiment_id,))
        return [str(row[0]) for row in rows]

    def experiments_to_delete(self) -> list[tuple[str, str]]:
        """(offline id, server's id) of the experiments that their programs deleted and the server still has."""
        rows = self._execute(
            "SELECT offline_id, experiment_id FROM offline_experiments WHERE lifecycle = 'to be deleted'"
        )
        return [(str(row[0]), str(row[1])) for row in rows]

    def put_offline_experiment(self, offline_id: str, experiment_id: str, lifecycle: str = "active") -> None:
        self._execute(
            "INSERT OR REPLACE INTO offline_experiments VALUES (?,?,?)", (offline_id, experiment_id, lifecycle)
        )

    def version(self, uid: str) -> VersionRow | None:
        """A model version by the uid of its creation."""
        rows = self._execute("SELECT uid, name, version, in_doubt FROM versions WHERE uid = ?", (uid,))
        return VersionRow(rows[0][0], rows[0][1], rows[0][2], bool(rows[0][3])) if rows else None

    def version_number(self, uid: str) -> str | None:
        """The server's number of a model version."""
        row = self.version(uid)
        return None if row is None else row.version

    def versions(self, name: str, version: str) -> list[VersionRow]:
        """What made a version of the server."""
        found = self._execute(
            "SELECT uid, name, version, in_doubt FROM versions WHERE name = ? AND version = ?", (name, version)
        )
        return [VersionRow(row[0], row[1], row[2], bool(row[3])) for row in found]

    def put_version(self, row: VersionRow) -> None:
        self._execute(
            "INSERT OR REPLACE INTO versions VALUES (?,?,?,?)", (row.uid, row.name, row.version, int(row.in_doubt))
        )

    def run_in(self, experiment_id: str) -> RunRow | None:
        """One of the runs that were put into this experiment of the server."""
        where = "WHERE experiment_id = ? AND server_run_id IS NOT NULL"
        rows = self._execute(f"SELECT run_id FROM runs {where} ORDER BY rowid DESC LIMIT 1", (experiment_id,))
        return self.run(str(rows[0][0])) if rows else None

    def run_by_server_id(self, server_run_id: str) -> RunRow | None:
        return next(self._runs("WHERE server_run_id = ?", server_run_id), None)

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
        self._execute(
            "INSERT OR IGNORE INTO quarantine (run_id, writer_id, offset, action, name, reason, at)"
            " VALUES (?,?,?,?,?,?,?)",
            values,
        )

    def quarantined(self, run_id: str | None = None) -> list[Quarantined]:
        """What is set aside and waits for a person."""
        where, values = ("", ()) if run_id is None else (" AND run_id = ?", (run_id,))
        rows = self._execute(f"{_QUARANTINED} AND NOT dropped{where} ORDER BY run_id, writer_id, offset", values)
        return [Quarantined(*row) for row in rows]

    def dropped(self, run_id: str) -> list[Quarantined]:
        """What of a run's quarantine was given up: neither sent nor set aside again."""
        return [Quarantined(*row) for row in self._execute(f"{_QUARANTINED} AND dropped AND run_id = ?", (run_id,))]

    def drop(self, entries: Iterable[Quarantined]) -> None:
        """Give up what is quarantined. The spool keeps it."""
        where = "run_id = ? AND writer_id = ? AND offset = ? AND action = ? AND name = ?"
        for entry in entries:
            values = (entry.run_id, entry.writer_id, entry.offset, entry.action, entry.name)
            self._execute(f"UPDATE quarantine SET dropped = 1 WHERE {where}", values)

    def give_up(self, run_id: str, reason: str) -> None:
        """Never send what was not delivered of a run yet. The spool keeps it."""
        row = self.run(run_id) or RunRow(run_id)
        self.put_run(replace(row, parked=None, given_up=reason))

    def to_retry(self, run_id: str) -> set[tuple[str, int]]:
        """(writer, offset) of what was quarantined and is to be tried again."""
        rows = self._execute("SELECT writer_id, offset FROM quarantine WHERE run_id = ? AND at = 0", (run_id,))
        return {(str(row[0]), int(row[1])) for row in rows}

    def free(self, run_id: str, writer_id: str, offset: int) -> None:
        """Forget what was to be tried again."""
        where = "run_id = ? AND writer_id = ? AND offset = ? AND at = 0"
        self._execute(f"DELETE FROM quarantine WHERE {where}", (run_id, writer_id, offset))

    def retry_records(self, run_id: str, *, dropped: bool = False) -> int:
        """Have what is quarantined tried again, and nothing else: where order counts, a log is not sent anew. ``dropped``:
        what was given up too. Returns how many records that is."""
        with self.transaction():
            if dropped:
                self._execute("UPDATE quarantine SET dropped = 0 WHERE run_id = ?", (run_id,))
            freed = len(self.quarantined(run_id))
            self._execute("UPDATE quarantine SET at = 0 WHERE run_id = ? AND NOT dropped", (run_id,))
            self._execute("UPDATE writers SET segment = 0, byte = 0, sequence = 0 WHERE run_id = ?", (run_id,))
        return freed

    def retry(self, run_id: str, *, dropped: bool = False) -> int:
        """Read a run anew from its start: what is quarantined or parked is tried again; with ``dropped``, what was given
        up too. Returns how many were set free.

        What the server has already is sent once more and recognised there; the end is told again after it.
        """
        row = self.run(run_id)
        with self.transaction():
            freed = len(self.quarantined(run_id)) + (len(self.dropped(run_id)) if dropped else 0)
            self._read_anew(run_id, dropped=dropped)
            if row is not None:
                given_up = None if dropped else row.given_up
                freed += (row.parked is not None) + (row.given_up != given_up)
                self.put_run(replace(row, parked=None, status=None, end_time=None, given_up=given_up))
        return freed

    def forget(self, run_id: str) -> None:
        """Forget which run of the server a run was, and that anything of it was ever delivered."""
        row = self.run(run_id)
        with self.transaction():
            self._read_anew(run_id, dropped=True)
            if row is not None:
                kept = RunRow(run_id, row.directory, row.run_name, row.experiment_name, row.experiment_id)
                self.put_run(kept)

    def _read_anew(self, run_id: str, *, dropped: bool) -> None:
        self._execute("DELETE FROM quarantine WHERE run_id = ? AND (NOT dropped OR ?)", (run_id, dropped))
        self._execute(
            "UPDATE writers SET segment = 0, byte = 0, sequence = 0, lanes = '{}', acknowledged = 0, lost = 0,"
            " dropped = 0, finished = 0, trouble = NULL, in_order = 0, given_up = 0 WHERE run_id = ?",
            (run_id,),
        )


def _dumped(value: object) -> str | None:
    return None if value is None else json.dumps(value)


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


@contextlib.contextmanager
def _undamaged() -> Iterator[None]:
    """SQLite has no checksums, and reads zeros where a file was cut off: then a row's texts are none any more."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise LedgerUnusable(f"a row of the ledger is damaged: {error}") from error


def _create(database: sqlite3.Connection, url: str) -> None:
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        database.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES ('schema', ?), ('url', ?)", (str(_SCHEMA_VERSION), url))
        database.execute("COMMIT")
    _upgrade(database)


def _version(database: sqlite3.Connection) -> int:
    """Raises ``LedgerUnusable``: it is one that this release cannot know."""
    found = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if found is None or int(found[0]) > _SCHEMA_VERSION:
        raise LedgerUnusable("the ledger was made by a newer mlferry; upgrade mlferry, or name another state directory")
    return int(found[0])


def _upgrade(database: sqlite3.Connection) -> None:
    for version in range(_version(database), _SCHEMA_VERSION):
        database.execute("BEGIN IMMEDIATE")
        for statement in _UPGRADES[version]:
            database.execute(statement)
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(version + 1),))
        database.execute("COMMIT")


def _to_look_at(path: Path) -> str:
    """A ledger that nobody has open needs no files beside it; SQLite makes them all the same unless told that it may not."""
    is_alone = not path.with_name(f"{path.name}-wal").exists() and not os.access(path.parent, os.W_OK)
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_alone else ''}"


def _upgraded_copy(database: sqlite3.Connection) -> sqlite3.Connection:
    """An older ledger as this release would have it, in memory: whoever only looks may not write."""
    copy = _connect(":memory:")
    database.backup(copy)
    _upgrade(copy)
    return copy


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
