"""The fast lane, as a command that is killed in the middle and begun again; and what it costs those who do not use it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from tests.servers import template_database
from tests.spooling import Ferry, a_bit_of_everything, wait_until


@pytest.fixture
def ferry(tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state")


def fresh(folder: Path) -> Path:
    """An empty database of the installed MLflow."""
    database = folder / "mlflow.sqlite"
    shutil.copyfile(template_database(), database)
    return database


def count(database: Path, what: str) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def test_an_import_that_is_killed_again_and_again_ends_with_everything_once(ferry: Ferry, tmp_path: Path) -> None:
    database = fresh(tmp_path)
    runs = [a_bit_of_everything(ferry.spool, "birds", points=3_000, files=1) for _ in range(5)]
    words = ("import", "--into", f"sqlite:///{database}", "--json")
    for kill in (0, 2):
        process = ferry.start(*words)
        wait_until(lambda least=kill: count(database, "runs") > least, "a run is there", 120)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finished = count(database, "runs WHERE status = 'FINISHED'")
        assert finished <= count(database, "runs")
        assert count(database, "metrics") % 3_000 == 0, "of a run there is all or nothing"
    done = ferry(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert count(database, "runs WHERE status = 'FINISHED'") == len(runs)
    assert (count(database, "metrics"), count(database, "params"), count(database, "inputs")) == (15_000, 25, 5)
    assert len([path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]) == 5
    again = json.loads(ferry(*words).stdout)
    assert (again["runs"], again["rows"]) == ({"there": 5}, {})


def test_the_agent_proper_does_not_meet_mlflow(ferry: Ferry) -> None:
    code = "import sys, mlferry_agent.database.importing as _, mlferry_agent.cli as _; print('mlflow' in sys.modules)"
    done = subprocess.run(
        [*ferry.command()[:1], "-c", code], env=ferry.env(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
