"""Small sources, and what a spool holds after one was imported."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from tests.servers import template_database

from mlferry_agent.discovery import discover
from mlferry_agent.importing.content import Run
from mlferry_agent.importing.foreign import Folder
from mlferry_agent.importing.mlflow_database import MlflowDatabase
from mlferry_agent.importing.recognition import recognise
from mlferry_agent.importing.reports import Report
from mlferry_agent.importing.taking import Options, take
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.fold import RunState

WANDB = Path(__file__).parent / "wandb-0.31.0"
T0 = 1_700_000_000_000


def bring(root: Path, path: Path, **options: Any) -> Report:
    return take(root, [recognise(path)], Options(**options))


def the_run(root: Path) -> RunState:
    [state] = Catalogue(root).runs()
    return state


def points_of(root: Path, key: str) -> list[tuple[float, int, int]]:
    """(value, step, time) of one metric of the only run."""
    [run] = discover(root)
    return [(point.value, point.step, point.timestamp) for point in Catalogue(root).history(run.run_id, key)]


def a_database(folder: Path, *, artifacts: str = "mlruns/1/{run}/artifacts", runs: int = 1) -> Path:
    """A database of MLflow's with runs in it that have a param each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mlflow.db"
    path.write_bytes(template_database().read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage, creation_time) VALUES (1, 'birds', 'active', ?)",
            (T0,),
        )
        for number in range(runs):
            run = f"{number + 1:032x}"
            database.execute(
                "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri,"
                " experiment_id, source_type) VALUES (?, 'a run', 'ann', 'FINISHED', ?, ?, 'active', ?, 1, 'UNKNOWN')",
                (run, T0, T0 + 9, artifacts.format(run=run)),
            )
            database.execute("INSERT INTO params VALUES ('lr', '0.1', ?)", (run,))
    return path


def runs_in(path: Path, left_out: Counter[str] | None = None) -> list[Run]:
    source = MlflowDatabase(path, (Folder(path.parent),), Counter() if left_out is None else left_out, "")
    with contextlib.closing(source):
        return [*source.runs()]


def insert(path: Path, table: str, *rows: tuple[object, ...]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for row in rows:
            database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
