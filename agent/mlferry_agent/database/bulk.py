"""Many rows at once: what of them is not there yet.

SQLite takes rows from its driver one by one and fast; PostgreSQL takes a COPY into a table of the transaction's own, and
moves from there what is new. Rows come sorted by the primary key, which halves the work of its index.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mlferry_agent.database.points import PointRow

__all__ = ["add_points", "insert_new", "upsert"]

_COLUMNS = "key, timestamp, step, run_uuid, value, is_nan"

_SQLITE = f"INSERT INTO metrics ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"

_STAGE = "CREATE TEMPORARY TABLE IF NOT EXISTS mlferry_points (LIKE metrics) ON COMMIT DROP"
_COPY = f"COPY mlferry_points ({_COLUMNS}) FROM STDIN"
_MOVE = f"INSERT INTO metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM mlferry_points ON CONFLICT DO NOTHING"


def add_points(connection: Any, rows: list[PointRow]) -> int:
    """Write points that are not there yet; returns how many those were."""
    if not rows:
        return 0
    rows.sort()
    driver = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return int(driver.executemany(_SQLITE, rows).rowcount)
    connection.exec_driver_sql(_STAGE)
    with driver.cursor() as cursor:
        _copy(cursor, "".join(map(_line, rows)))
    new = connection.exec_driver_sql(_MOVE).rowcount
    connection.exec_driver_sql("TRUNCATE mlferry_points")
    return int(new)


def _copy(cursor: Any, text: str) -> None:
    if hasattr(cursor, "copy_expert"):  # psycopg2
        cursor.copy_expert(_COPY, io.StringIO(text))
        return
    with cursor.copy(_COPY) as copy:
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
