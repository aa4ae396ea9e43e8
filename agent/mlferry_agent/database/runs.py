"""One run of the spool -> one run of the database, under its own id.

The order of things. All that a run's logs hold is written in one transaction: its row, its points as they are read, what
they were folded to, and the mark up to which place the logs were read. A run without files gets its end in it too, so it is
there as a whole or not at all. Files are copied after that, beside no transaction that others would wait for, and the end
comes last, in a second one: a run that says FINISHED has everything. Whatever dies in between, importing again goes on.
A new run that is no more than params, tags and points is written together with others like it (``batches``).

Whose run it is. A run of this id that carries our tag is one that an earlier import made. One without it is adopted only if
it was reserved for the job (its logs resume it), as in delivery: a bundle may be a stranger's, and an id is no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mlferry_agent.config import OnDeleted
from mlferry_agent.database.batches import Batch, NewRun
from mlferry_agent.database.bulk import add_points, insert_new, upsert
from mlferry_agent.database.files import Artifacts, Source
from mlferry_agent.database.found import FoundRun, find_run
from mlferry_agent.database.gathering import Gathered
from mlferry_agent.database.links import link_datasets, link_models
from mlferry_agent.database.marks import MARK_TAG, RunMark
from mlferry_agent.database.models import LoggedModels, is_files_trouble
from mlferry_agent.database.opening import Database
from mlferry_agent.database.places import Place, Places
from mlferry_agent.database.points import ModelRow, PointRow, Points
from mlferry_agent.database.reading import WriterLog
from mlferry_agent.database.report import Report
from mlferry_agent.database.rows import TooLong, first_row, latest_rows, pair_rows, param_rows, tag_rows
from mlferry_agent.database.standing import REPORT_TAGS, Standing
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import RecordRefused, RunParked
from mlferry_agent.feeds import resolved
from mlferry_agent.terms import Terms
from mlferry_agent.translation import RUN_ID_TAG
from mlferry_spool.blobs import Blob
from mlferry_spool.fold import Place as Moment
from mlferry_spool.records import Metrics, Open, Series

__all__ = ["RunImport", "Surroundings"]

#: Points that are kept in memory, about 250 bytes each, until they are written together.
#: Beyond: they are written, and the next ones gathered.
#: Test: tests/unit/database/test_runs.py::test_more_points_than_are_kept_in_memory_arrive
_MOST_POINTS = 50_000

#: Points of a run that is written together with others.
#: Beyond: it is written by itself, and the database stores what was read of it while the rest is read.
#: Test: tests/unit/database/test_batches.py::test_a_run_with_many_points_is_written_by_itself
_MOST_TOGETHER = 10_000

#: Points that are read before the database is handed them.
_PIECE = 1000

_NAME_TAG, _PARENT_TAG = "mlflow.runName", "mlflow.parentRunId"

_NAME_COLUMN = 250


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the import of every run needs. ``known``: those of the runs to come that the database had when it began."""

    database: Database
    batch: Batch
    known: frozenset[str]
    places: Places
    artifacts: Artifacts
    models: LoggedModels
    report: Report
    terms: Terms
    deleted: OnDeleted


class _GivenUp(Exception):
    """The run was deleted in the database, and is to be passed over."""


class RunImport:
    """The import of one run. Nothing of it is kept between two looks: what was done is in the database."""

    def __init__(self, run: RunLog, around: Surroundings) -> None:
        self._run, self._around = run, around
        self._database, self._places, self._report = around.database, around.places, around.report
        self._points = Points(run.run_id)
        self._gathered = Gathered(run.run_id, self._refuse)
        self._logs: list[WriterLog] = []
        self._done = Report()
        self._asides = 0
        self._given_name: str | None = None
        self._mark = RunMark()
        self._is_first, self._sent = False, 0
        self._model_rows: list[ModelRow] = []
        self._model_points: dict[tuple[Any, ...], float] = {}

    def carry(self, *, alone: bool = False) -> None:
        """Import what is new of the run; what cannot be is set aside. Raises BadDatabase.

        Args:
            alone: not in the batch, even if it could be.
        """
        try:
            self._logs = [WriterLog(directory, self._around.terms) for directory in self._run.writers()]
            opening = self._open()
            row = None
            if alone or self._run.run_id in self._around.known:
                with self._database.transaction() as connection:
                    row = find_run(connection, self._database.tables, self._run.run_id)
            self._admit(opening, row)
            if row is not None and self._is_there(row):
                self._report.runs["there"] += 1
                self._report.records["there"] += self._mark.records
                return
            place = self._places.of_run(opening, None if row is None else row.experiment_id)
            self._write(opening, place, row, alone=alone)
        except _GivenUp:
            self._report.runs["dropped"] += 1
        except (RunParked, RecordRefused) as error:
            self._report.runs["set aside"] += 1
            self._refuse("run", self._run.run_id, error.reason)

    def _refuse(self, what: str, name: str, reason: str) -> None:
        self._asides += 1
        self._report.set_apart(self._run.run_id, what, name, reason)

    # -- whose run it is ------------------------------------------------------------------------------------------------

    def _open(self) -> Open:
        """The OPEN of the run's first writer. Raises RunParked: there is none, or the run cannot be in a database."""
        for log in self._logs:
            if (opening := log.look()) is not None:
                self._gathered.open(log.name, opening)
        opening = self._gathered.state.opening
        if opening is None:
            raise RunParked("nothing in its logs says which run it is")
        if opening.run_id != self._run.run_id:
            raise RunParked(f"its directory says run {self._run.run_id}, its records say {opening.run_id}")
        if len(self._run.run_id) > 32:
            raise RunParked("its id is longer than a database has room for; deliver it with mlferry sync")
        if opening.workspace not in (None, "default"):
            raise RunParked(f"it belongs to workspace {opening.workspace!r}; deliver it with mlferry sync")
        return opening

    def _admit(self, opening: Open, row: FoundRun | None) -> None:
        """Raises RunParked: the run is another's, was delivered over REST, or was deleted in the database."""
        if (other := self._places.delivered_as(self._run.run_id)) is not None:
            raise RunParked(f"it was delivered over REST, as run {other}: `mlferry sync` goes on with it")
        if row is None:
            return
        known = row.tags.get(RUN_ID_TAG)
        if known != self._run.run_id and (known is not None or not opening.resumed):
            raise RunParked("another run of the database has this id")
        self._mark = RunMark.decoded(row.tags.get(MARK_TAG))

    def _is_there(self, row: FoundRun) -> bool:
        """Whether an earlier import has brought all of it."""
        mark = self._mark
        return mark.is_over and all(log.is_at_end(mark.cursor(log.name)) for log in self._logs)

    # -- writing --------------------------------------------------------------------------------------------------------

    def _write(self, opening: Open, place: Place, row: FoundRun | None, *, alone: bool) -> None:
        uri = row.artifact_uri if row is not None else f"{place.location.rstrip('/')}/{self._run.run_id}/artifacts"
        self._places.run_artifacts[self._run.run_id] = uri
        self._is_first = row is None
        reading = self._read()
        is_whole = all(len(self._points) < _MOST_TOGETHER for _ in reading)
        new = self._as_new(opening, place, uri) if is_whole and self._is_first and not alone else None
        if new is not None:
            self._around.batch.add(new)
            return
        with self._database.transaction() as connection:
            if row is None:
                self._create(connection, opening, place, uri)
            while self._flush(connection, place, reading):
                pass
            if row is not None and row.lifecycle == "deleted":
                self._revive(connection, place)
            self._write_state(connection, place)
            files = self._has_files()
            if not files:
                self._end(connection, place)
            else:
                self._put_mark(connection, is_over=False)
        self._report.add(self._done)
        if files:
            self._database.settle()
            self._carry_files(uri)
            with self._database.transaction() as connection:
                self._end(connection, place)
        self._report.runs["new" if row is None else "grown"] += 1

    def _as_new(self, opening: Open, place: Place, uri: str) -> NewRun | None:
        """All rows of a run that is new, where nothing of it needs a look into the database; else None."""
        state, run_id = self._gathered.state, self._run.run_id
        apart = (state.models, state.datasets, state.input_models, state.outputs, self._points.model_rows)
        if self._asides or self._has_files() or any(apart):
            return None
        params, long_params = param_rows(run_id, state.params.values())
        changes = state.tags.since(self._is_new)
        rows, long_tags = tag_rows(run_id, changes.values(), self._places.ids)
        if long_params or long_tags:
            return None
        tags = self._first_tags(opening) | {row["key"]: row["value"] for row in rows}
        tags = {key: value for key, value in tags.items() if key not in (*changes.gone(), *REPORT_TAGS, MARK_TAG)}
        row = self._first_row(opening, place, uri) | {"end_time": None, "deleted_time": None} | self._ending(place)
        if state.name.value and state.name.place.writer:
            row["name"] = self._fitting(state.name.value)
        self._count_end(self._done)
        self._done.runs["new"] += 1
        self._done.rows["params"] += len(params)
        latest = list(latest_rows(run_id, self._points.latest))
        tags |= self._last_tags()
        return NewRun(self._run, row, tags, params, latest, self._points.take()[0], self._done)

    def _last_tags(self) -> dict[str, str]:
        standing = self._standing()
        tags = {name: str(count) for name, count in standing.counts().items() if count}
        mark = standing.mark(is_over=not standing.lives)
        return tags if mark is None else {**tags, MARK_TAG: mark}

    def _revive(self, connection: Any, place: Place) -> None:
        """What becomes of a run that is deleted in the database, unless the spool itself has said so. Raises RunParked: a
        person decides; _GivenUp: it is passed over."""
        if self._gathered.state.lifecycle.value == "deleted" or place.is_deleted:
            return
        if self._around.deleted == "drop" and not self._was_deleted_by_us():
            raise _GivenUp
        if self._around.deleted != "recreate" and not self._was_deleted_by_us():
            raise RunParked("the run was deleted in the database")
        self._set_run(connection, lifecycle_stage="active", deleted_time=None)

    def _was_deleted_by_us(self) -> bool:
        """Whether the spool had it deleted when it was imported before, and has it restored since."""
        held = self._gathered.state.lifecycle
        return held.value == "active" and held.place.offset >= 0

    def _create(self, connection: Any, opening: Open, place: Place, uri: str) -> None:
        tables = self._database.tables
        connection.execute(tables.runs.insert(), self._first_row(opening, place, uri))
        connection.execute(tables.tags.insert(), pair_rows(self._run.run_id, self._first_tags(opening)))

    def _first_row(self, opening: Open, place: Place, uri: str) -> dict[str, Any]:
        return first_row(self._run.run_id, self._fitting(self._name(opening)), opening, place.experiment_id, uri)

    def _first_tags(self, opening: Open) -> dict[str, str]:
        tags = {RUN_ID_TAG: self._run.run_id, _NAME_TAG: self._name(opening)[:8000]}
        if opening.parent_run_id is not None:
            tags[_PARENT_TAG] = self._places.run(opening.parent_run_id)
        return tags

    def _name(self, opening: Open) -> str:
        from mlflow.utils.name_utils import _generate_random_name

        self._given_name = self._given_name or opening.run_name or _generate_random_name()
        return self._given_name

    def _fitting(self, name: str) -> str:
        return name[:_NAME_COLUMN] if self._database.kind == "postgresql" else name

    def _read(self) -> Iterator[None]:
        """Read every log, in steps: one ends where there is a piece of points, or all is read."""
        for log in self._logs:
            since = self._mark.cursor(log.name).offset
            for offset, record in log.read():
                self._done.records["new" if offset >= since else "there"] += 1
                if not isinstance(record, (Metrics, Series)):
                    self._gathered.add(log.name, offset, resolved(record, log.directory.parent))
                elif offset >= since:
                    yield from self._add_points(record)
            for _, what, name, reason in log.aside:
                self._refuse(what, name, reason)
            if log.trouble is not None:
                self._refuse("log", log.name, log.trouble)
        yield

    def _add_points(self, record: Metrics | Series) -> Iterator[None]:
        if isinstance(record, Metrics):
            self._points.add(record, self._refuse_metric)
            if len(self._points) >= _PIECE:
                yield
            return
        for part in record.parts(_PIECE):
            self._points.add_series(part, self._refuse_metric)
            if len(self._points) >= _PIECE:
                yield

    def _refuse_metric(self, name: str, reason: str) -> None:
        self._refuse("metric", name, reason)

    def _flush(self, connection: Any, place: Place, reading: Iterator[None]) -> int:
        """Write points, those that wait and what is read meanwhile; returns how many, 0 when all is read."""
        before = self._sent
        new = add_points(connection, [self._run.run_id], self._pieces(reading))
        self._done.rows["metric points"] += new
        self._done.there["metric points"] += self._sent - before - new
        rows, self._model_rows = self._model_rows, []
        if rows:
            self._write_model_points(connection, place, rows)
        return self._sent - before

    def _pieces(self, reading: Iterator[None]) -> Iterator[list[PointRow]]:
        """The points that wait and, as they are read, the next, up to as many as are kept in memory."""
        last = self._sent + _MOST_POINTS
        for _ in chain((None,), reading):
            rows, model_rows = self._points.take()
            self._model_rows += model_rows
            self._sent += len(rows)
            if rows:
                yield rows
            if self._sent >= last:
                return

    def _write_model_points(self, connection: Any, place: Place, rows: list[ModelRow]) -> None:
        self._begin_models(connection, place, quietly=True)
        columns = ("model_id", "metric_name", "metric_timestamp_ms", "metric_step", "run_id", "metric_value")
        columns = (*columns, "dataset_name", "dataset_digest")  # type: ignore[assignment]
        taken = []
        for row in rows:
            model_id, key = self._places.model(row[0]), row[:5]
            if not self._around.models.is_there(connection, model_id):
                self._refuse("metric", row[1], f"its model {model_id} is not in the database")
            elif self._model_points.setdefault(key, row[5]) != row[5]:
                self._refuse("metric", row[1], "its model has another value of this step and time")
            else:
                values = dict(zip(columns, (model_id, *row[1:]), strict=True))
                taken.append({**values, "experiment_id": place.experiment_id})
        insert_new(connection, self._database.tables.logged_model_metrics, taken)

    def _begin_models(self, connection: Any, place: Place, *, quietly: bool = False) -> None:
        for model in self._gathered.state.models.values():
            if quietly and (model.start is None or self._around.models.is_there(connection, model.model_id)):
                continue
            try:
                self._around.models.begin(connection, model, place)
            except RecordRefused as error:
                if not quietly:
                    self._refuse("model", model.model_id, error.reason)

    # -- what it came to ------------------------------------------------------------------------------------------------

    def _write_state(self, connection: Any, place: Place) -> None:
        tables, state, run_id, ids = self._database.tables, self._gathered.state, self._run.run_id, self._places.ids
        self._begin_models(connection, place)
        latest = list(latest_rows(run_id, self._points.latest))
        upsert(connection, tables.latest_metrics, latest, newer=("step", "timestamp", "value"))
        self._write_params(connection)
        news = state.tags.since(self._is_new)
        rows, refused = tag_rows(run_id, news.values(), ids)
        self._refuse_long("tag", refused)
        upsert(connection, tables.tags, rows)
        self._delete_tags(connection, news.gone())
        datasets = [dataset for _, dataset in state.datasets.values()]
        linked = link_datasets(connection, self._database, run_id, place.experiment_id, datasets, ids)
        self._done.rows["dataset links"] += linked
        self._link_models(connection)
        if state.name.value and state.name.place.writer and self._is_new(state.name.place):
            self._set_run(connection, name=self._fitting(state.name.value))

    def _is_new(self, moment: Moment) -> bool:
        return moment.offset >= self._mark.cursor(moment.writer).offset

    def _refuse_long(self, what: str, refused: list[TooLong]) -> None:
        for one in refused:
            self._refuse(what, one.key, one.reason)

    def _write_params(self, connection: Any) -> None:
        from sqlalchemy import select

        params = self._database.tables.params
        rows, refused = param_rows(self._run.run_id, self._gathered.state.params.values())
        self._refuse_long("param", refused)
        known = select(params.c.key, params.c.value).where(params.c.run_uuid == self._run.run_id)
        found = () if self._is_first else connection.execute(known)
        there = {str(key): str(value) for key, value in found}
        for row in rows:
            if there.get(row["key"], row["value"]) != row["value"]:
                self._refuse("param", row["key"], "the run has it with another value in the database")
        new = [row for row in rows if row["key"] not in there]
        insert_new(connection, params, new)
        self._done.rows["params"] += len(new)

    def _delete_tags(self, connection: Any, keys: list[str]) -> None:
        from sqlalchemy import delete

        of = self._database.tables.tags
        if keys:
            connection.execute(delete(of).where(of.c.run_uuid == self._run.run_id, of.c.key.in_(keys)))

    def _link_models(self, connection: Any) -> None:
        state, places, models = self._gathered.state, self._places, self._around.models
        used = [places.model(model_id) for model_id in state.input_models]
        made = {places.model(output.model_id): output.step for output in state.outputs.values()}
        for model_id in {*used, *made}:
            if not models.is_there(connection, model_id):
                self._refuse("model link", model_id, "this model is not in the database")
        used = [model_id for model_id in used if models.is_there(connection, model_id)]
        made = {model_id: step for model_id, step in made.items() if models.is_there(connection, model_id)}
        self._done.rows["model links"] += link_models(connection, self._database, self._run.run_id, used, made)

    # -- files ----------------------------------------------------------------------------------------------------------

    def _has_files(self) -> bool:
        state = self._gathered.state
        return bool(
            state.artifacts.values() or state.deletions or any(m.artifacts.values() for m in state.models.values())
        )

    def _carry_files(self, uri: str) -> None:
        state = self._gathered.state
        for path, file in state.artifacts.values().items():
            self._try_file(path, self._put, uri, path, file.sha256, file.size)
        for path in state.artifacts.since(self._is_new).gone():
            self._try_file(path, self._around.artifacts.delete, uri, path)
        for model in state.models.values():
            if model.model_id in self._places.model_artifacts:
                new, there, aside = self._around.models.carry_files(model, self._source)
                self._report.rows["files"] += new
                self._report.there["files"] += there
                for path, reason in aside:
                    self._refuse("model file", path, reason)

    def _put(self, uri: str, path: str, sha256: bytes, size: int) -> None:
        is_new = self._around.artifacts.put(uri, path, self._source(sha256, size), self._places.ids)
        (self._report.rows if is_new else self._report.there)["files"] += 1

    def _try_file(self, path: str, act: Callable[..., None], *what: Any) -> None:
        try:
            act(*what)
        except Exception as error:
            if not is_files_trouble(error):
                raise
            self._refuse("artifact", path, getattr(error, "reason", None) or str(error))

    def _source(self, sha256: bytes, size: int) -> Source:
        directories: tuple[Path, ...] = self._run.directories
        return Source(directories, Blob(sha256, size))

    # -- the end --------------------------------------------------------------------------------------------------------

    def _finish_models(self, connection: Any, place: Place) -> None:
        for model in self._gathered.state.models.values():
            if model.start is not None and model.model_id in self._places.model_artifacts:
                self._around.models.finish(connection, model, place)
                self._report.rows["logged models"] += 1

    def _end(self, connection: Any, place: Place) -> None:
        """Say how the run stands, and up to which place it was imported."""
        self._finish_models(connection, place)
        self._set_run(connection, **self._ending(place))
        self._count_end(self._report)
        self._put_report(connection)
        self._put_mark(connection, is_over=not self._standing().lives and not self._asides)

    def _ending(self, place: Place) -> dict[str, Any]:
        """What the row of a run says of its end."""
        status, end_time = self._standing().end()
        end_time = end_time if end_time is not None else self._gathered.end_time
        told: dict[str, Any] = {"status": status}
        if end_time is not None:
            told["end_time"] = end_time
        state = self._gathered.state
        if state.lifecycle.value == "deleted" or place.is_deleted:
            told |= {"lifecycle_stage": "deleted", "deleted_time": state.deleted_at or end_time}
        return told

    def _count_end(self, report: Report) -> None:
        standing = self._standing()
        report.lost += standing.missing
        if standing.lives:
            report.going_on.append(self._run.run_id)

    def _standing(self) -> Standing:
        return Standing(self._logs, self._asides)

    def _put_report(self, connection: Any) -> None:
        counts = self._standing().counts()
        rows = pair_rows(self._run.run_id, {name: str(count) for name, count in counts.items() if count})
        told = self._gathered.state.tags.values() if self._is_first else counts
        self._delete_tags(connection, [name for name, count in counts.items() if not count and name in told])
        upsert(connection, self._database.tables.tags, rows)

    def _put_mark(self, connection: Any, *, is_over: bool) -> None:
        told = self._standing().mark(is_over=is_over)
        if told is None:
            self._delete_tags(connection, [MARK_TAG])
        else:
            upsert(connection, self._database.tables.tags, pair_rows(self._run.run_id, {MARK_TAG: told}))

    def _set_run(self, connection: Any, **values: Any) -> None:
        from sqlalchemy import update

        of = self._database.tables.runs
        connection.execute(update(of).where(of.c.run_uuid == self._run.run_id).values(**values))
