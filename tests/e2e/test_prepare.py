"""prepare and doctor with a real server: a run that is reserved, given to a job without network, and delivered into."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.servers import MlflowServer
from tests.spooling import Ferry, unique

JOB = """
import mlferry
with mlferry.start_run():
    mlferry.log_param("lr", 0.25)
    for step in range(5):
        mlferry.log_metric("loss", 1 / (step + 1), step=step)
"""


@pytest.fixture
def ferry(mlflow_server: MlflowServer, tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)


def test_a_job_without_network_logs_into_the_run_that_was_prepared(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    experiment = unique("prepared")
    done = ferry("prepare", "--experiment", experiment, "--name", "it's mine", "--tag", "team=vision")
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        ["sh", "-c", f'{done.stdout}\nprintf "%s %s" "$MLFLOW_RUN_ID" "$MLFLOW_EXPERIMENT_ID"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    run_id, experiment_id = told.stdout.split()
    reserved = mlflow_server.stored(run_id)
    assert (reserved.status, reserved.name, reserved.experiment_id) == ("SCHEDULED", "it's mine", experiment_id)
    environ = {**ferry.env(), "MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": experiment_id}
    subprocess.run([sys.executable, "-c", JOB], env=environ, check=True, timeout=60)
    assert ferry("sync").returncode == 0
    found = mlflow_server.stored(run_id)
    assert (found.status, found.name, found.params, len(found.metrics)) == ("FINISHED", "it's mine", {"lr": "0.25"}, 5)
    assert found.tags["team"] == "vision"
    runs = mlflow_server.query("SELECT run_uuid FROM runs WHERE experiment_id = ?", experiment_id)
    assert runs == [(run_id,)]
    assert ferry("verify").returncode == 0


@pytest.mark.parametrize("path", ["runs/create", "experiments/create"])
def test_an_answer_that_is_lost_makes_no_second_run(mlflow_server: MlflowServer, ferry: Ferry, path: str) -> None:
    experiment = unique("prepared")
    with FaultProxy(mlflow_server.port) as proxy:
        proxy.add(faults.COMMIT_THEN_CUT, path=path, times=2)
        done = ferry("prepare", "--experiment", experiment, "--json", "--to", proxy.url)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    [found] = mlflow_server.client().search_experiments(filter_string=f"name = '{experiment}'")
    assert made["experiment_id"] == found.experiment_id
    runs = mlflow_server.query("SELECT run_uuid FROM runs WHERE experiment_id = ?", found.experiment_id)
    assert runs == [(made["run_id"],)]


def test_an_experiment_that_is_deleted_is_said(mlflow_server: MlflowServer, ferry: Ferry) -> None:
    experiment, client = unique("prepared"), mlflow_server.client()
    client.delete_experiment(client.create_experiment(experiment))
    done = ferry("prepare", "--experiment", experiment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is deleted on the server" in done.stderr


def test_a_tag_that_is_none_is_wrong_usage(ferry: Ferry) -> None:
    assert ferry("prepare", "--tag", "team").returncode == 2


def test_the_doctor_finds_a_good_server_good(ferry: Ferry) -> None:
    done = ferry("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = {check["name"]: check for check in json.loads(done.stdout)}
    for name in ("server", "version", "clock", "store", "access", "artifacts", "limits"):
        assert found[name]["grade"] == "fine", found[name]
