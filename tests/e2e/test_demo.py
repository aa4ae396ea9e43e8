"""What `make demo` shows, it has really done."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.spooling import Ferry


@pytest.mark.timeout(300)
def test_the_demo_trains_is_killed_goes_on_delivers_and_proves_it(tmp_path: Path) -> None:
    """And the server's database, looked at afterwards, says the same as the demo."""
    folder = tmp_path / "demo"
    done = Ferry(tmp_path / "nothing", tmp_path / "state")("demo", "--in", str(folder), deadline_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"kill -9 of the whole process group at step (\d+)", done.stdout)
    finished = re.search(r"finished at step (\d+)", done.stdout)
    assert killed and finished, done.stdout
    assert 90 <= int(killed[1]) < int(finished[1]) == 191
    for words in (
        "acknowledged at http://127.0.0.1:",
        "0 pending, 0 quarantined",
        "verified ",
        "loss",
        "#/experiments/",
    ):
        assert words in done.stdout, done.stdout
    assert "Traceback" not in done.stderr
    with closing(sqlite3.connect(folder / "server" / "mlflow.db")) as database:
        [(run_id, status)] = database.execute("SELECT run_uuid, status FROM runs").fetchall()
        steps = database.execute("SELECT DISTINCT step FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
    assert run_id in done.stdout
    assert status == "FINISHED"
    assert [step for (step,) in steps] == list(range(192)), "each step of both halves is there"
