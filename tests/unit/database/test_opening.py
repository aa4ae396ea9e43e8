"""Which databases are opened, made or refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from tests.spooling import a_bit_of_everything
from tests.unit.database.conftest import Lane

from mlferry_agent.config import load
from mlferry_agent.database.importing import lock_of
from mlferry_agent.database.opening import open_database
from mlferry_agent.errors import BadDatabase, LedgerBusy
from mlferry_agent.holding import hold


def version(database: Path) -> object:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def test_a_database_that_does_not_exist_is_made_by_mlflow_itself(lane: Lane) -> None:
    known = version(lane.database)
    lane.database.unlink()
    a_bit_of_everything(lane.root, "birds", points=3)
    assert lane.carry().exit_code == 0
    assert version(lane.database) == known
    assert lane.rows("SELECT artifact_location FROM experiments") == [
        ("mlflow-artifacts:/0",),
        ("mlflow-artifacts:/1",),
    ]


def test_a_database_of_another_release_is_refused_with_what_to_do_and_left_as_it_is(lane: Lane) -> None:
    lane.rows("UPDATE alembic_version SET version_num = 'bda7b8c39065'")
    lane.rows("DROP TABLE issues")
    before = lane.dump()
    with pytest.raises(BadDatabase, match=r"revision bda7b8c39065.*mlflow db upgrade sqlite:"):
        lane.carry()
    assert lane.dump() == before


def test_a_database_of_somebody_else_is_refused(lane: Lane) -> None:
    lane.database.unlink()
    lane.rows("CREATE TABLE theirs (a)")
    with pytest.raises(BadDatabase, match="they are not MLflow's"):
        lane.carry()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mysql://root:secret@db/mlflow", "only sqlite"),
        ("postgresql+psycopg://mlflow:secret@/mlflow?host=/nonexistent", r"mlflow:\*\*\*@"),
        ("no address", "no address of a database"),
        ("sqlite://", "only sqlite"),
        ("sqlite:////etc/hostname", "not a database"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence_without_its_password(uri: str, words: str) -> None:
    with pytest.raises(BadDatabase, match=words) as refused:
        open_database(uri)
    assert "secret" not in refused.value.reason


def test_two_imports_into_a_database_do_not_meet(lane: Lane) -> None:
    config = load({"HOME": str(lane.folder)}, {"state_dir": lane.folder / "state"})
    fd = hold(lock_of(config.state_dir, f"sqlite:///{lane.database}"))
    try:
        with pytest.raises(LedgerBusy):
            lane.carry()
    finally:
        os.close(fd)


def test_new_experiments_go_where_those_that_are_there_have_their_artifacts(lane: Lane, tmp_path: Path) -> None:
    lane.rows(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        " VALUES (7, 'first', ?, 'active', 'default')",
        f"{tmp_path}/mlruns/7",
    )
    run = a_bit_of_everything(lane.root, "birds", points=3)
    assert lane.carry().exit_code == 0
    assert lane.rows("SELECT artifact_uri FROM runs") == [(f"{tmp_path}/mlruns/8/{run.run_id}/artifacts",)]
    assert len(list((tmp_path / "mlruns").rglob("*.bin"))) == 3
