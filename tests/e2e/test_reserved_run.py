"""A run that was made on the server beforehand and given to an offline job, as ``MLFLOW_RUN_ID``: what the job logs with
MLflow goes into that run, and the server's UI shows it with its model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.browser import CHROMIUM, Browser
from tests.servers import MlflowServer
from tests.spooling import Ferry

T0 = 1_700_000_000_000

JOB = """
import mlflow
from mlflow.entities import LoggedModelOutput
from pathlib import Path

client = mlflow.MlflowClient()
with mlflow.start_run() as run:
    mlflow.log_param("lr", 0.25)
    mlflow.log_metric("loss", 0.5, step=3)
    made = client.create_logged_model(run.info.experiment_id, "classifier", run.info.run_id, params={"depth": "3"})
    mlflow.log_metric("accuracy", 0.75, step=3, model_id=made.model_id)
    Path("model").mkdir()
    Path("model/weights.txt").write_text("as heavy as text is")
    client.log_model_artifacts(made.model_id, "model")
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, 3)])
print(made.model_id)
"""


@dataclass
class Delivered:
    server: MlflowServer
    ferry: Ferry
    experiment: str
    run: str
    offline_model: str


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("reserved")
    with MlflowServer(folder / "server") as server:
        client = server.client()
        experiment = client.create_experiment("reserved")
        run = client.create_run(experiment, T0, {"scheduler": "gave it"}, "made beforehand").info.run_id
        ferry = Ferry(folder / "spool", folder / "state", server.url)
        told = {"MLFLOW_TRACKING_URI": "spool:", "MLFLOW_RUN_ID": run, "MLFLOW_EXPERIMENT_ID": experiment}
        words = [sys.executable, "-c", JOB]
        job = subprocess.run(
            words, env={**ferry.env(), **told}, cwd=folder, capture_output=True, text=True, timeout=200
        )
        assert job.returncode == 0, job.stderr
        sync = ferry("sync")
        assert sync.returncode == 0, sync.stderr
        yield Delivered(server, ferry, experiment, run, job.stdout.split()[-1])


def test_what_the_job_logs_goes_into_the_run_that_it_was_given(delivered: Delivered) -> None:
    assert delivered.server.run_ids() == [delivered.run]
    found = delivered.server.stored(delivered.run)
    assert (found.name, found.status, found.experiment_id) == ("made beforehand", "FINISHED", delivered.experiment)
    assert found.params == {"lr": "0.25"}
    assert [(point.key, point.step, point.value) for point in found.metrics] == [
        ("accuracy", 3, 0.75),
        ("loss", 3, 0.5),
    ]
    assert found.tags["scheduler"] == "gave it"


def test_its_ids_are_looked_up_from_either_side(delivered: Delivered) -> None:
    [model] = delivered.server.client().search_logged_models([delivered.experiment])
    ids = (delivered.run, delivered.offline_model, model.model_id)
    found = json.loads(delivered.ferry("id", *ids, "--json").stdout)
    pairs = [(found[given][0]["offline_id"], found[given][0]["server_id"]) for given in ids]
    assert pairs == [(delivered.run, delivered.run), *2 * [(delivered.offline_model, model.model_id)]]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_servers_ui_shows_the_model_of_the_run(delivered: Delivered, tmp_path: Path) -> None:
    [model] = delivered.server.client().search_logged_models([delivered.experiment])
    place = f"{delivered.server.url}/#/experiments/{delivered.experiment}/models/{model.model_id}"
    with Browser(tmp_path / "browser") as browser:
        browser.go(place, "classifier", "Ready", "made beforehand", delivered.run, "accuracy", "0.75", "depth")
        browser.picture(tmp_path / "model.png")
        browser.go(f"{place}/artifacts", "weights.txt")
        browser.click("weights.txt")
        browser.wait_for("as heavy as text is")
        browser.picture(tmp_path / "artifacts.png")
