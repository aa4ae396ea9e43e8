"""Console capture, the whole way: what a training prints is on the server while it trains, and whole when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers import MlflowServer
from tests.spooling import Ferry, unique, wait_until


@pytest.fixture
def ferry(tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state")


_MLFLOW = """
import os, sys
import mlflow

mlflow.set_experiment(sys.argv[1])
with mlflow.start_run():
    print("epoch 1", flush=True)
    os.system("echo a subprocess")
    for line in sys.stdin:
        if line == "die\\n":
            os.kill(os.getpid(), 9)
        print("heard", line, end="", flush=True)
    mlflow.log_metric("loss", 0.5)
    if len(sys.argv) > 2:
        raise RuntimeError("out of memory, say")
"""

_RANKS = """
import os, sys
import mlferry

mlferry.set_experiment(sys.argv[1])
with mlferry.start_run():
    print("this is rank", os.environ["RANK"])
"""


def training(ferry: Ferry, source: str, *words: str, **environ: str) -> subprocess.Popen[str]:
    """`mlferry run --capture` with a script."""
    return subprocess.Popen(
        ferry.command("run", "--capture", sys.executable, "-c", source, *words),
        env={**ferry.env(), "MLFERRY_QUIET": "1", **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def runs_of(server: MlflowServer, experiment: str) -> list[str]:
    sql = "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = ?"
    return [str(run_id) for (run_id,) in server.query(sql, experiment)]


def console(server: MlflowServer, experiment: str) -> dict[str, str]:
    """What the experiment's only run has printed, as the server holds it, by the folders of its processes."""
    runs = runs_of(server, experiment)
    files = server.artifacts(runs[0]) if runs else {}
    return {path.split("/")[1]: data.decode() for path, data in files.items() if path.startswith("console/")}


def said(server: MlflowServer, experiment: str) -> str:
    return "".join(console(server, experiment).values())


def test_mlflow_code_is_heard_while_it_runs_and_its_exception_is_kept(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    experiment = unique("console")
    ferry = Ferry(ferry.spool, ferry.state, mlflow_server.url)
    with ferry.agent(), training(ferry, _MLFLOW, experiment, "fails") as script:
        assert script.stdin
        assert script.stdout
        wait_until(lambda: "a subprocess" in said(mlflow_server, experiment), "the first lines", 60)
        script.stdin.write("more\n")
        wait_until(lambda: "heard more" in said(mlflow_server, experiment), "what came later", 60)
        script.stdin.close()
        assert script.wait(60) == 1
        assert script.stdout.read() == "epoch 1\na subprocess\nheard more\n"
        [run_id] = runs_of(mlflow_server, experiment)
        wait_until(lambda: mlflow_server.stored(run_id).status == "FAILED", "the end", 60)
    assert said(mlflow_server, experiment).startswith("epoch 1\na subprocess\nheard more\nTraceback")
    assert said(mlflow_server, experiment).endswith("RuntimeError: out of memory, say\n")


def test_the_last_words_of_a_killed_training_arrive_before_its_end(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    experiment = unique("killed")
    with training(ferry, _MLFLOW, experiment) as script:
        assert script.stdin
        for number in range(1000):
            script.stdin.write(f"line {number}\n")
        script.stdin.write("die\n")
        assert script.wait(60) == -9
        wait_until(
            lambda: ferry("sync", "--to", mlflow_server.url).returncode == 0, "the relay and delivery have ended", 60
        )
    assert said(mlflow_server, experiment).endswith("heard line 999\n")
    [run_id] = runs_of(mlflow_server, experiment)
    assert mlflow_server.stored(run_id).status == "KILLED"
    assert ferry("verify", "--to", mlflow_server.url).returncode == 0


def test_each_rank_has_a_file_of_its_own_in_the_run_of_all(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    experiment = unique("ranks")
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(os.getpid())}
    ranks = [training(ferry, _RANKS, experiment, RANK=str(rank), LOCAL_RANK=str(rank), **launch) for rank in (0, 1)]
    for rank in ranks:
        with rank:
            assert rank.wait(60) == 0
    assert ferry("sync", "--to", mlflow_server.url).returncode == 0
    found = console(mlflow_server, experiment)
    assert {folder.rpartition("-")[2]: text for folder, text in found.items()} == {
        "rank0": "this is rank 0\n",
        "rank1": "this is rank 1\n",
    }
    [run_id] = runs_of(mlflow_server, experiment)
    assert mlflow_server.stored(run_id).status == "FINISHED"


def test_a_command_that_is_not_there_is_said_in_a_sentence(ferry: Ferry, tmp_path: Path) -> None:
    done = ferry("run", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "there is no command" in done.stderr
    assert "Traceback" not in done.stderr
