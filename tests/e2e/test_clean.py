"""clean with a real server: it deletes what the server has, as reading it back proves, and nothing else; killed, it harms
nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.servers import MlflowServer
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, differences, live_writer, on_server, unique

from mlferry_agent.cleaning import fingerprint
from mlferry_agent.discovery import discover

KILLS = 6


@pytest.fixture
def ferry(mlflow_server: MlflowServer, tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)


def change_a_param(server: MlflowServer, run_id: str) -> None:
    """Behind the server's back, as no client can."""
    with contextlib.closing(sqlite3.connect(server.database, timeout=30)) as database, database:
        database.execute("UPDATE params SET value = 'other' WHERE run_uuid = ? AND key = 'param 1'", (run_id,))


def test_what_the_server_has_goes_and_what_differs_or_lives_stays(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    experiment = unique("clean")
    whole, changed, deleted = (a_bit_of_everything(ferry.spool, experiment) for _ in range(3))
    with live_writer(ferry.spool, experiment) as training:
        training.await_steps(3)
        ferry("sync")
        change_a_param(mlflow_server, on_server(mlflow_server, changed))
        mlflow_server.client().delete_run(on_server(mlflow_server, deleted))
        looked = ferry("clean", "--dry-run", "--older-than", "0")
        assert (looked.returncode, whole.directory.exists()) == (3, True)
        done = ferry("clean", "--yes", "--older-than", "0", "--json")
        assert done.returncode == 3, done.stderr
        told = json.loads(done.stdout)
        assert told["deleted"] == [whole.run_id]
        assert told["kept"] == {
            changed.run_id: "differs on the server (mlferry verify says how)",
            deleted.run_id: "deleted on the server",
            training.logged.run_id: "live",
        }
        assert told["freed_bytes"] > 6_000
    assert not whole.directory.exists()
    assert changed.directory.exists() and deleted.directory.exists()
    assert differences(mlflow_server, whole.logged) == []
    found = json.loads(ferry("id", whole.run_id, "--json").stdout)[whole.run_id]
    assert found[0]["server_id"] == on_server(mlflow_server, whole)
    assert whole.run_id not in ferry.statuses()


def test_beside_an_agent_and_when_the_run_goes_on_later(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    run = a_bit_of_everything(ferry.spool, unique("clean"))
    with ferry.agent():
        ferry("sync")
        done = ferry("clean", "--yes", "--older-than", "0")
        assert done.returncode == 0, done.stderr
        assert not run.directory.exists()
        again = run.beside(resumed=True)
        again.metrics(5_000, {"loss": 0.125})
        again.end()
        assert ferry("sync").returncode == 0
        assert ferry("verify", run.run_id).returncode == 0, "points of logs that were cleaned are no surplus"
        assert ferry("clean", "--yes", "--older-than", "0").returncode == 0
        assert not run.directory.exists()
    assert differences(mlflow_server, run.logged) == []


def test_a_server_that_is_away_proves_nothing(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    run = a_bit_of_everything(ferry.spool, unique("clean"))
    ferry("sync")
    away = Ferry(ferry.spool, ferry.state, ferry.to, {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""})
    done = away("clean", "--yes", "--older-than", "0", "--give-up-after", "0.2", "--to", "http://127.0.0.1:9")
    assert (done.returncode, run.directory.exists()) == (0, True)
    assert "1 never delivered" in done.stderr


def test_killed_again_and_again_it_leaves_every_run_whole_or_gone(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    seed = int(os.environ.get("MLFERRY_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    rng, experiment = random.Random(seed), unique("clean")
    made: list[SpooledRun] = [a_bit_of_everything(ferry.spool, experiment, points=5, files=25) for _ in range(20)]
    assert ferry("sync").returncode == 0
    before = {run.run_id: fingerprint(run.directories) for run in discover(ferry.spool)}
    began = time.monotonic()
    ferry("clean", "--trust-ledger", "--dry-run", "--older-than", "0")
    startup_s = time.monotonic() - began
    cut = 0
    for _ in range(KILLS):
        process = ferry.start("clean", "--trust-ledger", "--yes", "--older-than", "0", "--keep", str(rng.randrange(21)))
        time.sleep(startup_s * rng.uniform(0.5, 1.0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        cut += process.wait() == -signal.SIGKILL
        for run in discover(ferry.spool):
            assert fingerprint(run.directories) == before[run.run_id]
    assert cut, "none was killed in the middle"
    done = ferry("clean", "--yes", "--older-than", "0")
    assert done.returncode == 0, done.stderr
    assert discover(ferry.spool) == []
    assert not [run.run_id for run in made if differences(mlflow_server, run.logged)]
