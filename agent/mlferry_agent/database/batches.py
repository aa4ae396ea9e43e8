"""New runs of which nothing has to be asked, written together: a few statements for many runs instead of a dozen for each.

Most runs of a sweep are such: they are new, have ended or not, and consist of params, tags and points. All of such a run is
known before a row of it is written, so that its row has its end at once. What is refused is refused as a whole; then each
run of the batch is imported alone, and only the one that has the trouble is set aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from mlferry_agent.database.bulk import add_points
from mlferry_agent.database.opening import Database
from mlferry_agent.database.points import PointRow
from mlferry_agent.database.report import Report
from mlferry_agent.database.rows import pair_rows
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import RecordRefused

__all__ = ["Batch", "NewRun"]

#: Runs that wait to be written together, with their params and tags.
#: Beyond: they are written, and the next ones gathered.
#: Test: tests/unit/database/test_batches.py::test_no_more_runs_wait_than_memory_is_meant_for
_MOST_RUNS = 200

#: Points of all that wait, about 250 bytes each.
#: Beyond: they are written, and the next ones gathered.
#: Test: tests/unit/database/test_batches.py::test_no_more_points_wait_than_memory_is_meant_for
_MOST_POINTS = 50_000


@dataclass(frozen=True, slots=True)
class NewRun:
    """All rows of a run that is not in the database, and what its import comes to once they are."""

    run: RunLog
    row: dict[str, Any]
    tags: dict[str, str]
    params: list[dict[str, Any]]
    latest: list[dict[str, Any]]
    points: list[PointRow]
    done: Report


class Batch:
    """New runs on their way into the database."""

    def __init__(self, database: Database, report: Report) -> None:
        self._database, self._report = database, report
        self._runs: list[NewRun] = []
        self._points = 0

    def add(self, new: NewRun) -> None:
        """Have a run written with the next ``write``."""
        self._runs.append(new)
        self._points += len(new.points)

    @property
    def is_full(self) -> bool:
        """Whether it is time to ``write``."""
        return len(self._runs) >= _MOST_RUNS or self._points >= _MOST_POINTS

    def write(self) -> list[RunLog]:
        """Write what waits. Returns the runs that are to be imported one by one, since the database refuses them together.

        Raises:
            BadDatabase: it cannot be written to.
        """
        runs, self._runs, self._points = self._runs, [], 0
        if not runs:
            return []
        try:
            with self._database.transaction() as connection:
                new = self._write(connection, runs)
        except RecordRefused:
            return [one.run for one in runs]
        for one in runs:
            self._report.add(one.done)
        self._report.rows["metric points"] += new
        self._report.there["metric points"] += sum(len(one.points) for one in runs) - new
        return []

    def _write(self, connection: Any, runs: list[NewRun]) -> int:
        """Every row; returns how many points that were."""
        tables = self._database.tables
        rows = {
            tables.runs: [one.row for one in runs],
            tables.tags: [row for one in runs for row in pair_rows(one.run.run_id, one.tags)],
            tables.params: [row for one in runs for row in one.params],
            tables.latest_metrics: [row for one in runs for row in one.latest],
        }
        for table, of_all in rows.items():
            if of_all:
                connection.execute(table.insert(), of_all)
        points = list(dict.fromkeys(chain.from_iterable(one.points for one in runs)))
        return add_points(connection, [one.run.run_id for one in runs], [points] if points else [], surely_new=True)
