"""Captured consoles on a real server: of MLflow's code and of ours, of several ranks, of attempts, and while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.consoles import captures
from tests.servers import MlflowServer
from tests.spooling import Ferry, on_server, server_runs, unique, wait_until
from tests.spools import run_ids

PRINTS = """
import ctypes, faulthandler, os, subprocess, sys, time
def prints():
    print("by python")
    os.write(1, b"by os\\n")
    subprocess.run(["echo", "by a subprocess"])
    ctypes.CDLL(None).puts(b"by C")
    faulthandler.dump_traceback(all_threads=False)
    for percent in range(0, 101, 10):
        print(f"\\r{percent}%", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
"""

BY_MLFLOW = (
    PRINTS
    + """
import mlflow
mlflow.set_experiment(sys.argv[1])
with mlflow.start_run():
    mlflow.log_param("lr", 0.1)
    prints()
"""
)

RANK = (
    PRINTS
    + """
import mlferry
with mlferry.start_run():
    print("I am", os.environ["RANK"])
    prints()
    mlferry.log_metric("x", 1.0)
"""
)

LIVE = """
import mlferry, os, sys, time
with mlferry.start_run(run_id=sys.argv[2] if len(sys.argv) > 2 else None, capture=True) as run:
    print("run", run.info.run_id)
    print("begun by", os.getpid())
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.05)
    print("trained")
"""

SAID = {"by python", "by os", "by a subprocess", "by C", "100%"}


@pytest.fixture
def ferry(mlflow_server: MlflowServer, tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)


def consoles(server: MlflowServer, run_id: str) -> dict[str, str]:
    found = server.artifacts(on_server(server, run_id)) if server_runs(server, run_id) else {}
    return {path: data.decode() for path, data in sorted(found.items()) if path.startswith("console/")}


def test_what_unmodified_mlflow_code_prints_is_on_the_server(
    mlflow_server: MlflowServer, ferry: Ferry, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(BY_MLFLOW)
    words = [sys.executable, str(tmp_path / "train.py"), unique("console")]
    done = ferry("run", "--capture", "--", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["by python", "by os", "by a subprocess", "by C"]
    assert ferry("sync").returncode == 0
    [run_id] = run_ids(ferry.spool)
    [text] = consoles(mlflow_server, run_id).values()
    assert set(text.splitlines()) >= SAID and "most recent call first" in text and "50%" not in text
    assert mlflow_server.stored(on_server(mlflow_server, run_id)).status == "FINISHED"
    assert ferry("verify").returncode == 0


def test_each_rank_has_a_console_of_its_own_in_their_one_run(
    mlflow_server: MlflowServer, ferry: Ferry, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(RANK)
    ranks = []
    for rank in range(2):
        shared = {"MLFERRY_RUN_ID": "two-ranks", "WORLD_SIZE": "2", "RANK": str(rank), "MLFERRY_CAPTURE": "1"}
        environ = {**ferry.env(), **shared, "MLFLOW_EXPERIMENT_NAME": unique("console")}
        command = [sys.executable, str(tmp_path / "train.py")]
        ranks.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    assert ferry("sync").returncode == 0
    found = consoles(mlflow_server, "two-ranks")
    assert len(found) == 2
    for rank, (path, text) in enumerate(found.items()):
        assert path.startswith(f"console/rank-{rank}-")
        assert {*SAID, f"I am {rank}"} <= set(text.splitlines())
    assert ferry("verify").returncode == 0


def test_a_console_is_seen_while_it_trains_and_whole_after_a_sigkill_and_the_next_attempt_has_its_own(
    mlflow_server: MlflowServer, ferry: Ferry, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(LIVE)
    enough, environ = tmp_path / "enough", {**ferry.env(), "MLFLOW_EXPERIMENT_NAME": unique("console")}
    command = [sys.executable, str(tmp_path / "train.py"), str(enough)]
    with ferry.agent():
        first = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        run_id = first.stdout.readline().split()[1]
        wait_until(lambda: consoles(mlflow_server, run_id), "its console is on the server while it trains")
        server_id = on_server(mlflow_server, run_id)
        assert mlflow_server.stored(server_id).status == "RUNNING"
        [text] = consoles(mlflow_server, run_id).values()
        assert text == f"run {run_id}\nbegun by {first.pid}\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
        wait_until(lambda: mlflow_server.stored(server_id).status == "KILLED", "it is closed although it was captured")
        assert list(consoles(mlflow_server, run_id).values()) == [text]

        second = subprocess.Popen([*command, run_id], env=environ, stdout=subprocess.DEVNULL)
        enough.touch()
        assert second.wait(timeout=60) == 0
        wait_until(lambda: mlflow_server.stored(server_id).status == "FINISHED", "the second attempt ends it")
    before, after = consoles(mlflow_server, run_id).values()
    assert before == text
    assert after == f"run {run_id}\nbegun by {second.pid}\ntrained\n"
    assert ferry("verify").returncode == 0


def test_what_a_dead_training_left_running_does_not_keep_its_run_alive(
    mlflow_server: MlflowServer, ferry: Ferry, tmp_path: Path
) -> None:
    source = """
import mlferry, os, subprocess, sys
run = mlferry.start_run(capture=True)
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print("left", left.pid, flush=True)
os._exit(9)
"""
    environ = {**ferry.env(), "MLFLOW_EXPERIMENT_NAME": unique("console")}
    command = [sys.executable, "-c", source]
    train = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert train.stdout is not None
    left = int(train.stdout.readline().split()[1])
    train.stdout.close()
    try:
        assert train.wait(timeout=60) == 9
        [run_id] = run_ids(ferry.spool)

        def is_closed() -> bool:
            ferry("sync", "--give-up-after", "5")
            return mlflow_server.stored(on_server(mlflow_server, run_id)).status == "KILLED"

        wait_until(is_closed, "the run is closed")
        wait_until(lambda: ferry("sync").returncode == 0, "all of it is there")
        assert list(consoles(mlflow_server, run_id).values()) == [f"left {left}\n"]
        assert captures(tmp_path), "they pass on what the daemon prints"
    finally:
        os.kill(left, signal.SIGKILL)
    wait_until(lambda: not captures(tmp_path), "nobody captures any more")
