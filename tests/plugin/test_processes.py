"""Several processes on one spool: spawned, forked, and one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import mlflow
from tests.plugin.differential import T0, Stage
from tests.spooling import SOURCE


def other_process(stage: Stage, code: str, **environ: str) -> str:
    """Run code in a process of its own, with MLflow on the stage's store; returns what it printed."""
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk", "agent"))
    told = {**os.environ, "MLFLOW_TRACKING_URI": stage.uri, "PYTHONPATH": paths, **environ}
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, env=told, capture_output=True, text=True, timeout=120, cwd=stage.folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_processes_see_each_other_s_runs(spool: Stage) -> None:
    mlflow.set_tracking_uri(spool.uri)
    mine = spool.run(spool.experiment("shared"), "mine")
    spool.client.log_metric(mine, "m", 1.0, T0, 1)
    theirs = other_process(
        spool,
        f"""
        import mlflow
        client = mlflow.MlflowClient()
        mlflow.set_experiment("shared")
        assert client.get_run({mine!r}).data.metrics == {{"m": 1.0}}
        client.set_tag({mine!r}, "seen", "yes")
        client.log_metric({mine!r}, "m", 2.0, {T0}, 2)
        with mlflow.start_run(run_name="theirs") as run:
            mlflow.log_param("p", 1)
        print(run.info.run_id)
        """,
    )
    experiment = spool.client.get_experiment_by_name("shared")
    assert {run.info.run_name for run in spool.client.search_runs([experiment.experiment_id])} == {"mine", "theirs"}
    assert spool.client.get_run(theirs).info.status == "FINISHED"
    found = spool.client.get_run(mine)
    assert found.data.tags["seen"] == "yes"
    assert found.data.metrics == {"m": 2.0}
    assert found.info.status == "RUNNING"


def test_a_process_given_a_run_goes_on_with_it(spool: Stage) -> None:
    run = spool.run()
    spool.client.log_metric(run, "m", 1.0, T0, 1)
    code = (
        "import mlflow\nwith mlflow.start_run() as run:\n  mlflow.log_metric('m', 2.0, step=2)\nprint(run.info.run_id)"
    )
    assert other_process(spool, code, MLFLOW_RUN_ID=run) == run
    found = spool.client.get_run(run)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"m": 2.0})


def test_a_forked_child_logs_to_its_parent_s_run(spool: Stage) -> None:
    printed = other_process(
        spool,
        """
        import os, mlflow
        client = mlflow.MlflowClient()
        with mlflow.start_run(run_name="parent") as run:
            mlflow.log_metric("parent", 1.0, step=0)
            child = os.fork()
            if child == 0:
                client.log_metric(run.info.run_id, "child", 2.0, step=0)
                client.set_tag(run.info.run_id, "by", "child")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            mlflow.log_metric("parent", 3.0, step=1)
            assert client.get_run(run.info.run_id).data.metrics == {"parent": 3.0, "child": 2.0}
        print(run.info.run_id)
        """,
    )
    found = spool.client.get_run(printed)
    assert found.data.metrics == {"parent": 3.0, "child": 2.0}
    assert (found.data.tags["by"], found.info.status) == ("child", "FINISHED")


def test_two_processes_that_make_one_experiment_make_one(spool: Stage) -> None:
    code = "import mlflow\nprint(mlflow.set_experiment('together').experiment_id)"
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk", "agent"))
    environ = {**os.environ, "MLFLOW_TRACKING_URI": spool.uri, "PYTHONPATH": paths}
    words = [sys.executable, "-c", code]
    started = [subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=120)[0].strip() for process in started}
    assert told == {spool.client.get_experiment_by_name("together").experiment_id}
