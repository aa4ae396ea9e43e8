"""Many rows at once: what of them is not there yet.

Rows come sorted by the primary key, which halves the work of its index. SQLite takes them many to a statement, since half of
a row's time is the driver's. PostgreSQL takes a COPY into the table itself. That is refused as a whole if a single row is
there already, which is rare, as only what is new is written: then it goes into a table of the transaction's own, and what is
new of it moves on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

from mlferry_agent.database.points import PointRow

__all__ = ["add_points", "insert_new", "upsert"]

_COLUMNS = "key, timestamp, step, run_uuid, value, is_nan"

_ROW = "(?, ?, ?, ?, ?, ?)"

#: Rows in one statement: SQLite takes 999 values, and newer ones more.
_ROWS = 160

_STAGE = "CREATE TEMPORARY TABLE IF NOT EXISTS mlferry_points (LIKE metrics) ON COMMIT DROP"
_MOVE = f"INSERT INTO metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM mlferry_points ON CONFLICT DO NOTHING"


def add_points(connection: Any, rows: list[PointRow]) -> int:
    """Write points that are not there yet; returns how many those were."""
    rows.sort()
    if connection.dialect.name == "sqlite":
        driver = connection.connection.driver_connection
        return sum(_insert_points(driver, rows[at : at + _ROWS]) for at in range(0, len(rows), _ROWS))
    return _copy_points(connection, list(dict.fromkeys(rows))) if rows else 0


def _insert_points(driver: Any, rows: list[PointRow]) -> int:
    statement = f"INSERT INTO metrics ({_COLUMNS}) VALUES {', '.join([_ROW] * len(rows))} ON CONFLICT DO NOTHING"
    return int(driver.execute(statement, list(chain.from_iterable(rows))).rowcount)


def _copy_points(connection: Any, rows: list[PointRow]) -> int:
    text = "".join(map(_line, rows))
    driver = connection.connection.driver_connection
    try:
        with connection.begin_nested(), driver.cursor() as cursor:
            _copy(cursor, "metrics", text)
        return len(rows)
    except connection.dialect.loaded_dbapi.IntegrityError:
        pass  # some of them are there
    connection.exec_driver_sql(_STAGE)
    with driver.cursor() as cursor:
        _copy(cursor, "mlferry_points", text)
    new = connection.exec_driver_sql(_MOVE).rowcount
    connection.exec_driver_sql("TRUNCATE mlferry_points")
    return int(new)


def _copy(cursor: Any, table: str, text: str) -> None:
    statement = f"COPY {table} ({_COLUMNS}) FROM STDIN"
    if hasattr(cursor, "copy_expert"):  # psycopg2
        cursor.copy_expert(statement, io.StringIO(text))
        return
    with cursor.copy(statement) as copy:
        copy.write(text)


def _line(row: PointRow) -> str:
    key, timestamp, step, run_id, value, is_nan = row
    if "\n" in key:  # the one character that MLflow lets a key end in and COPY does not know as itself
        key = key.replace("\n", "\\n")
    return f"{key}\t{timestamp}\t{step}\t{run_id}\t{value!r}\t{is_nan}\n"


def insert_new(connection: Any, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows whose keys are not there yet."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), list(rows))


def upsert(connection: Any, table: Any, rows: Sequence[dict[str, Any]], *, newer: Sequence[str] = ()) -> None:
    """Write rows, in the place of those with the same keys; with ``newer``, only where these columns are greater."""
    if not rows:
        return
    from sqlalchemy import tuple_

    statement = _insert(connection, table)
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    where = None
    if newer:
        where = tuple_(*(statement.excluded[name] for name in newer)) > tuple_(*(table.c[name] for name in newer))
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed, where=where), list(rows))


def _insert(connection: Any, table: Any) -> Any:
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
