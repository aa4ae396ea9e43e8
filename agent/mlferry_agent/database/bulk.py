"""Many rows at once: what of them is not there yet.

Rows come sorted by the primary key, which halves the work of its index. SQLite takes them many to a statement, since half of
a row's time is the driver's. PostgreSQL takes a COPY into the table itself, and stores what it was sent while the spool is
read on. The COPY is refused as a whole if a single row is there already, or comes twice, which is rare, as only what is new
is written: then all goes into a table of the transaction's own, and what is new of it moves on.

Half of such a COPY's time is the foreign key's: for each row PostgreSQL looks whether its run is there, and locks it so that
it stays. The rows of a COPY are of one run or a few, so where the user may switch triggers off (a superuser, or one who was
granted SET ON PARAMETER session_replication_role) this is done once for each run, as PostgreSQL itself asks it, in the same
transaction. Not where the table has triggers or constraints besides MLflow's own, which are none of ours to pass over.
"""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from mlferry_agent.database.points import PointRow

__all__ = ["add_points", "insert_new", "upsert"]

_COLUMNS = "key, timestamp, step, run_uuid, value, is_nan"

#: The columns in COPY, what a row shares with others before and after its numbers.
_COPIED = "key, timestamp, step, value, is_nan, run_uuid"
_FIELDS = struct.pack(">h", 6)
_MIDDLE = struct.Struct(">iqiqidi?")
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"

_ROW = "(?, ?, ?, ?, ?, ?)"

#: Rows in one statement: SQLite takes 999 values, and newer ones more.
_ROWS = 160

_STAGE = "CREATE TEMPORARY TABLE IF NOT EXISTS mlferry_points (LIKE metrics) ON COMMIT DROP"
_MOVE = f"INSERT INTO metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM mlferry_points ON CONFLICT DO NOTHING"

#: Rows for which it is worth three statements more to look for their run once, and not for each.
_MANY = 1000

#: Triggers are also how PostgreSQL keeps a constraint that is checked late, such as a deferrable one.
_ONLY_ITS_RUN = """
SELECT NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'metrics'::regclass AND tgfoid NOT IN (
           'pg_catalog."RI_FKey_check_ins"'::regproc, 'pg_catalog."RI_FKey_check_upd"'::regproc))
   AND (SELECT array_agg(pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE conrelid = 'metrics'::regclass AND contype = 'f') = ARRAY['FOREIGN KEY (run_uuid) REFERENCES runs(run_uuid)']
"""
_ITS_RUN = "SELECT 1 FROM runs WHERE run_uuid = ANY(%s) FOR KEY SHARE"
_PASS_TRIGGERS = "SET LOCAL session_replication_role TO replica"
_HEED_TRIGGERS = "SET LOCAL session_replication_role TO DEFAULT"


def add_points(
    connection: Any, run_ids: list[str], pieces: Iterable[list[PointRow]], *, surely_new: bool = False
) -> int:
    """Write points that are not there yet; returns how many those were.

    Args:
        run_ids: of all runs whose points these are.
        pieces: none of them empty. PostgreSQL stores one while the next is taken; they are sorted in place.
        surely_new: none of the points can be there, or be twice among them.
    """
    if connection.dialect.name == "sqlite":
        rows = sorted(chain.from_iterable(pieces))
        driver = connection.connection.driver_connection
        return sum(_insert_points(driver, rows[at : at + _ROWS]) for at in range(0, len(rows), _ROWS))
    return _copy_points(connection, sorted(run_ids), iter(pieces), surely_new)


def _insert_points(driver: Any, rows: list[PointRow]) -> int:
    statement = f"INSERT INTO metrics ({_COLUMNS}) VALUES {', '.join([_ROW] * len(rows))} ON CONFLICT DO NOTHING"
    return int(driver.execute(statement, list(chain.from_iterable(rows))).rowcount)


def _copy_points(connection: Any, run_ids: list[str], pieces: Iterator[list[PointRow]], surely_new: bool) -> int:
    first = next(pieces, None)
    if first is None:
        return 0
    driver = connection.connection.driver_connection
    rows: list[PointRow] = []
    kept = _kept(chain((first,), pieces), rows)
    known = run_ids if len(first) >= _MANY and _may_pass_triggers(connection) else []
    if surely_new:  # no savepoint to go back to
        _copy_of_runs(driver, kept, known)
        return len(rows)
    try:
        with connection.begin_nested():
            _copy_of_runs(driver, kept, known)
        return len(rows)
    except connection.dialect.loaded_dbapi.IntegrityError:
        deque(kept, maxlen=0)  # some of them are there: what was not sent yet is read as well
    connection.exec_driver_sql(_STAGE)
    with driver.cursor() as cursor:
        _copy(cursor, "mlferry_points", [rows])
    new = connection.exec_driver_sql(_MOVE).rowcount
    connection.exec_driver_sql("TRUNCATE mlferry_points")
    return int(new)


def _kept(pieces: Iterable[list[PointRow]], rows: list[PointRow]) -> Iterator[list[PointRow]]:
    """Each piece, sorted, of which ``rows`` keeps what may have to be sent once more."""
    for piece in pieces:
        piece.sort()
        rows += piece
        yield piece


def _copy_of_runs(driver: Any, pieces: Iterable[list[PointRow]], run_ids: list[str]) -> None:
    """COPY into the table of points; with ``run_ids``, of which all of them are, their runs are looked for once."""
    with driver.cursor() as cursor:
        if run_ids:
            cursor.execute(_ITS_RUN, (run_ids,))
            run_ids = run_ids if len(cursor.fetchall()) == len(run_ids) else []
        if run_ids:
            cursor.execute(_PASS_TRIGGERS)
        _copy(cursor, "metrics", pieces)
        if run_ids:
            cursor.execute(_HEED_TRIGGERS)


def _may_pass_triggers(connection: Any) -> bool:
    """Whether there is nothing to pass over but the look for the run, and the user may do so; asked once a connection."""
    known = connection.info.get(_PASS_TRIGGERS)
    if known is None:
        known = bool(connection.exec_driver_sql(_ONLY_ITS_RUN).scalar()) and _is_let(connection)
        connection.info[_PASS_TRIGGERS] = known
    return bool(known)


def _is_let(connection: Any) -> bool:
    from sqlalchemy.exc import DBAPIError

    try:
        with connection.begin_nested():
            connection.exec_driver_sql(_PASS_TRIGGERS)
            connection.exec_driver_sql(_HEED_TRIGGERS)
    except DBAPIError:
        return False
    return True


def _copy(cursor: Any, table: str, pieces: Iterable[list[PointRow]]) -> None:
    statement = f"COPY {table} ({_COPIED}) FROM STDIN (FORMAT BINARY)"
    tuples = _Tuples()
    parts = chain((_BEGIN,), map(tuples.of, pieces), (_END,))
    if hasattr(cursor, "copy_expert"):  # psycopg2
        cursor.copy_expert(statement, io.BytesIO(b"".join(parts)))
        return
    with cursor.copy(statement) as copy:
        for part in parts:
            copy.write(part)


class _Tuples:
    """Rows as PostgreSQL's COPY takes them in its binary format, which neither side has to make text of: how many fields,
    and each behind its length."""

    def __init__(self) -> None:
        self._heads: dict[str, bytes] = {}
        self._tails: dict[str, bytes] = {}

    def of(self, rows: list[PointRow]) -> bytes:
        parts: list[bytes] = []
        add, pack, heads, tails = parts.append, _MIDDLE.pack, self._heads, self._tails
        for key, timestamp, step, run_id, value, is_nan in rows:
            if key not in heads:
                heads[key] = _FIELDS + _field(key)
            if run_id not in tails:
                tails[run_id] = _field(run_id)
            add(heads[key])
            add(pack(8, timestamp, 8, step, 8, value, 1, is_nan))
            add(tails[run_id])
        return b"".join(parts)


def _field(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">i", len(encoded)) + encoded


def insert_new(connection: Any, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows whose keys are not there yet."""
    if rows:
        connection.execute(_inserting(connection.dialect.name, table), list(rows))


def upsert(connection: Any, table: Any, rows: Sequence[dict[str, Any]], *, newer: Sequence[str] = ()) -> None:
    """Write rows, in the place of those with the same keys; with ``newer``, only where these columns are greater."""
    if rows:
        statement = _upserting(connection.dialect.name, table, tuple(rows[0]), tuple(newer))
        connection.execute(statement, list(rows))


# Making such a statement takes longer than executing it, and there are a few for each run.


@cache
def _inserting(kind: str, table: Any) -> Any:
    return _insert(kind, table).on_conflict_do_nothing()


@cache
def _upserting(kind: str, table: Any, columns: tuple[str, ...], newer: tuple[str, ...]) -> Any:
    from sqlalchemy import tuple_

    statement = _insert(kind, table)
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in columns if name not in keys}
    where = None
    if newer:
        where = tuple_(*(statement.excluded[name] for name in newer)) > tuple_(*(table.c[name] for name in newer))
    return statement.on_conflict_do_update(index_elements=keys, set_=changed, where=where)


def _insert(kind: str, table: Any) -> Any:
    if kind == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
