"""The whole way: a spool, or some runs of it, into a database. One at a time for a database and a state directory.

Runs first, each for itself; then what belongs to no run, since versions of registered models name runs and models.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mlferry_agent.config import Config
from mlferry_agent.database.batches import Batch
from mlferry_agent.database.files import Artifacts, Source
from mlferry_agent.database.found import known_runs
from mlferry_agent.database.models import LoggedModels
from mlferry_agent.database.opening import Database, open_database
from mlferry_agent.database.places import Places
from mlferry_agent.database.reading import WriterLog
from mlferry_agent.database.registry import Registry
from mlferry_agent.database.report import Report
from mlferry_agent.database.runs import RunImport, Surroundings
from mlferry_agent.database.traces import Traces
from mlferry_agent.discovery import STORE, RunLog
from mlferry_agent.errors import RecordRefused, RunParked
from mlferry_agent.filesystems import is_local
from mlferry_agent.holding import hold
from mlferry_agent.terms import Terms
from mlferry_spool.blobs import Blob
from mlferry_spool.fold_store import StoreState
from mlferry_spool.layout import store_directory
from mlferry_spool.records import Spans

__all__ = ["import_into", "lock_of"]

#: Where `mlflow server` keeps the artifacts that it serves itself, unless it is told.
_SERVED = "mlartifacts"


def import_into(
    config: Config,
    uri: str,
    runs: list[RunLog],
    *,
    artifacts: str | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> Report:
    """Write runs of the spool, and what belongs to none, into a database.

    Args:
        uri: as ``open_database`` takes it.
        artifacts: where the server of the database keeps artifacts that it serves itself; else beside an SQLite file.
        on_run: called after each run.

    Raises:
        BadDatabase: it cannot be written to. LedgerBusy: another import into it goes on. What is whole by then stays.
    """
    with _alone(config.state_dir, uri):
        database = open_database(uri)
        try:
            return _import(config, database, runs, artifacts, on_run)
        finally:
            database.close()


def lock_of(state_dir: Path, uri: str) -> Path:
    """What an import into a database holds the lock of for its life."""
    return state_dir / f"into-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _alone(state_dir: Path, uri: str) -> Iterator[None]:
    fd = hold(lock_of(state_dir, uri))
    try:
        yield
    finally:
        os.close(fd)


def _import(
    config: Config, database: Database, runs: list[RunLog], artifacts: str | None, on_run: Callable[[], None]
) -> Report:
    report = Report(database.shown)
    terms = Terms(stale_after_s=config.stale_after_s, local_disk=is_local(config.dir), deleted=config.deleted)
    store = _read_store(config.dir, terms, report)
    places = Places(database, store, recreates=config.deleted == "recreate")
    served = artifacts or (None if database.folder is None else str(database.folder / _SERVED))
    copies = Artifacts(served)
    models = LoggedModels(database, places, copies)
    of_runs = [run for run in runs if run.run_id != STORE]
    with database.look() as connection:
        known = known_runs(connection, database.tables, [run.run_id for run in of_runs])
    batch = Batch(database, report)
    around = Surroundings(database, batch, known, places, copies, models, report, terms, config.deleted)
    for run in of_runs:
        RunImport(run, around).carry()
        if batch.is_full:
            _write(batch, around)
        on_run()
    _write(batch, around)
    database.settle()
    _import_store(config.dir, store, around)
    return report


def _write(batch: Batch, around: Surroundings) -> None:
    """The runs of a batch; one by one where the database does not take them together."""
    for run in batch.write():
        RunImport(run, around).carry(alone=True)


def _read_store(root: Path, terms: Terms, report: Report) -> StoreState:
    """What belongs to no run, but for spans, which may be many."""
    state = StoreState()
    for log in _store_logs(root, terms):
        for offset, record in log.read():
            if not isinstance(record, Spans):
                state.add(log.name, offset, record)
        report.lost += log.lost + log.dropped
        for _, what, name, reason in log.aside:
            report.set_apart(STORE, what, name, reason)
        if log.trouble is not None:
            report.set_apart(STORE, "log", log.name, log.trouble)
    return state


def _store_logs(root: Path, terms: Terms) -> Iterator[WriterLog]:
    for directory in RunLog(STORE, (store_directory(root),)).writers():
        yield WriterLog(directory, terms)


def _import_store(root: Path, store: StoreState, around: Surroundings) -> None:
    _import_models(root, store, around)
    around.database.settle()
    for name, reason in around.places.settle_experiments().items():
        around.report.set_apart(STORE, "experiment", name, reason)
    Registry(around.database, around.places, around.models, around.report).carry(store.registry)
    Traces(around, store).carry(_store_logs(root, around.terms))


def _import_models(root: Path, store: StoreState, around: Surroundings) -> None:
    """Models that no run made."""

    def source(sha256: bytes, size: int) -> Source:
        return Source((store_directory(root),), Blob(sha256, size))

    for model in store.models.values():
        if model.start is None:
            continue
        try:
            place = around.places.of_model(model.start)
            with around.database.transaction() as connection:
                around.models.begin(connection, model, place)
            around.database.settle()
            new, there, aside = around.models.carry_files(model, source)
            with around.database.transaction() as connection:
                around.models.finish(connection, model, place)
        except (RecordRefused, RunParked) as error:
            around.report.set_apart(STORE, "model", model.model_id, error.reason)
            continue
        around.report.rows.update({"files": new, "logged models": 1})
        around.report.there["files"] += there
        for path, reason in aside:
            around.report.set_apart(STORE, "model file", path, reason)
