"""Two stores for each test, empty and its own: MLflow's SQLite store, which says what is right, and a spool."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service.utils import _get_store as tracking_store_of
from sqlalchemy import event
from tests.plugin.differential import Clock, Scenario, Stage, same

from mlferry.plugin.journal import journal_for

_NUMBERS = itertools.count(700_000_000_000_000_000)


@pytest.fixture(autouse=True)
def long_experiment_ids() -> Iterator[None]:
    """SQLite's experiments get ids as long as a spool's, so that answers can be searched for them."""

    def number(_mapper: Any, _connection: Any, experiment: Any) -> None:
        experiment.experiment_id = next(_NUMBERS)

    event.listen(SqlExperiment, "before_insert", number)
    yield
    event.remove(SqlExperiment, "before_insert", number)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    tracking_store_of(f"sqlite:///{path}").engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM experiments")  # each copy makes its own Default, with artifacts in its own place
        database.commit()
    return path


@pytest.fixture(autouse=True)
def own_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """MLflow as a new process would find it, before and after."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "MLFERRY_", "SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    forget_everything()
    yield
    forget_everything()
    mlflow.set_tracking_uri(None)


def forget_everything() -> None:
    """What MLflow keeps of runs and experiments between calls."""
    while mlflow.active_run() is not None:
        mlflow.end_run()
    fluent._active_experiment_id = None
    fluent._last_active_run_id.set(None)
    fluent._last_logged_model_id.set(None)
    fluent._ACTIVE_MODEL_CONTEXT.set(fluent.ActiveModelContext())
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)


@pytest.fixture
def sqlite(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    folder = tmp_path / "sqlite"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    stage = Stage("sqlite", f"sqlite:///{folder}/mlflow.db", folder)
    yield stage
    stage.store.engine.dispose()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "spool"
    folder.mkdir()
    yield Stage("spool", f"spool://{folder}/spool", folder)
    journal_for(folder / "spool").close()


@pytest.fixture
def both(sqlite: Stage, spool: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], Any]:
    """Runs a scenario on SQLite and on a spool, requires the same answers, and returns them."""

    def run(scenario: Scenario) -> Any:
        def in_its_folder(stage: Stage) -> Any:
            forget_everything()
            mlflow.set_tracking_uri(stage.uri)
            monkeypatch.chdir(stage.folder)
            return scenario(stage)

        return same(in_its_folder, [sqlite, spool])

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One clock for both stores, which stands still between the calls of a scenario."""
    clock = Clock()
    for place in (
        "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis",
        "mlflow.store.tracking.sqlalchemy_store.get_current_time_millis",
        "mlferry.plugin.versions.now_ms",
    ):
        monkeypatch.setattr(place, lambda: clock.now)
    return clock
