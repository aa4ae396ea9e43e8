"""A backlog of one run, several requests of it on their way at once, by real servers: what is left is what one after the
other leaves, the latest value of each key too, whoever is killed in between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.postgres import binaries, cluster
from tests.servers import MlflowServer, Undertaker
from tests.spooling import Ferry, SpooledRun, unique, wait_until

STEPS, KEYS = 4_000, 5

Query = Callable[[str], list[tuple[Any, ...]]]


def a_hot_run(root: Path) -> SpooledRun:
    """Many points of the same few keys; the last steps are not the last to be logged, and some points are there twice."""
    run = SpooledRun(root, unique("hot"))
    steps = list(range(STEPS))
    random.Random(1).shuffle(steps)
    for step in [*steps, *steps[:200]]:
        run.metrics(step, {f"m{key}": step / (key + 1) - 100 for key in range(KEYS)})
    run.end()
    return run


def what_is_apart(run: SpooledRun, query: Query) -> list[str]:
    """Everything in which the server's rows are not the points of the run, and its latest values not the greatest."""
    run_ids = query(f"SELECT run_uuid FROM tags WHERE key = 'mlferry.run_id' AND value = '{run.run_id}'")
    assert len(run_ids) == 1
    of_it = f"WHERE run_uuid = '{run_ids[0][0]}'"
    rows = Counter(query(f"SELECT key, step, timestamp, value FROM metrics {of_it}"))
    points = {(point.key, point.step, point.timestamp, point.value) for point in run.logged.points}
    latest = set(query(f"SELECT key, step, timestamp, value FROM latest_metrics {of_it}"))
    greatest = {max(point for point in points if point[0] == f"m{key}") for key in range(KEYS)}
    status = query(f"SELECT status FROM runs {of_it}")
    found = {"points": rows == Counter(points), "latest": latest == greatest, "status": status == [("FINISHED",)]}
    return [what for what, is_right in found.items() if not is_right]


def a_ferry(tmp_path: Path, to: str) -> Ferry:
    """Its agents begin with four requests at once, as if they had found out before that the server is not busy: the backlog
    is too short for that."""
    bold = tmp_path / "bold"
    bold.mkdir()
    words = "from mlferry_agent.pacing import Window\nWindow.__init__.__defaults__ = (4.0,)\n"
    (bold / "sitecustomize.py").write_text(words)
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", to)
    return replace(ferry, environ={"PYTHONPATH": os.pathsep.join((str(bold), ferry.env()["PYTHONPATH"]))})


def kill_between(ferry: Ferry, proxy: FaultProxy, strike: Callable[[], None]) -> None:
    """Agents that die with several requests on their way, one of which the server has acted on. ``strike`` is called after
    each death and returns when the server is well: before that a courier tries one request at a time."""
    for skip in (4, 3, 4):
        proxy.clear()
        proxy.held.clear()
        proxy.add(faults.COMMIT_THEN_HANG, path="log-batch", skip=skip)
        proxy.add(faults.HANG, path="log-batch", skip=skip, times=None)
        with ferry.agent(log=ferry.state / "agent.log"):
            wait_until(lambda: len(proxy.held) > 1, "two requests of points are on their way", 120)
        strike()
    proxy.clear()


def test_kills_of_agent_and_server_between_requests_side_by_side(own_server: MlflowServer, tmp_path: Path) -> None:
    run = a_hot_run(tmp_path / "spool")
    with FaultProxy(own_server.port) as proxy, Undertaker(own_server) as undertaker:
        ferry = a_ferry(tmp_path, proxy.url)

        def strike() -> None:
            if not undertaker.kills:  # once: each time costs seconds
                undertaker.strike()
                undertaker.wait()

        kill_between(ferry, proxy, strike)
        done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert what_is_apart(run, own_server.query) == []


@pytest.mark.long
@pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not there")
def test_the_same_by_several_processes_on_postgresql(tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    run = a_hot_run(tmp_path / "spool")
    with cluster() as postgres:
        address = postgres.create("mlflow")
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", address], check=True, capture_output=True)
        with (
            MlflowServer(tmp_path / "mlflow", backend=address, workers=2) as server,
            FaultProxy(server.port) as proxy,
        ):
            ferry = a_ferry(tmp_path, proxy.url)
            kill_between(ferry, proxy, lambda: None)
            done = ferry("sync")
        assert done.returncode == 0, done.stdout + done.stderr
        with psycopg.connect(postgres.uri("mlflow")) as database:
            assert what_is_apart(run, lambda sql: database.execute(sql).fetchall()) == []
