"""``mlflow server`` over a spool: what it answers, what its UI shows and changes, while another process writes to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LoggedModel, LoggedModelOutput, ViewType
from tests.browser import CHROMIUM, Browser
from tests.servers import MlflowServer, free_port
from tests.spooling import SpooledRun, wait_until

from mlferry.plugin.journal import journal_for

T0 = 1_700_000_000_000
PAGE = "A page of its own"


class Written:
    """A spool that this process has written to and goes on writing to, and a server over it."""

    def __init__(self, root: Path, server: MlflowServer) -> None:
        self.root, self.server = root, server
        self.here = MlflowClient(f"spool://{root}")
        self.there = MlflowClient(server.url)
        self.experiment = self.here.create_experiment("digits")
        self.run = self._a_run("first run")
        self.others = [self._a_run(f"run {number}") for number in range(3)]
        self.model = self._a_model()
        self._a_trace()

    def _a_run(self, name: str) -> str:
        run_id = str(self.here.create_run(self.experiment, T0, {"mlflow.note.content": PAGE}, name).info.run_id)
        self.here.log_param(run_id, "lr", 0.25)
        for step in range(20):
            self.here.log_metric(run_id, "loss", 1 / (step + 1), T0 + step, step)
        data = Dataset("digits-data", "d1g35t", "code", "{}")
        self.here.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
        self.here.log_text(run_id, "hello from a file", "notes/hello.txt")
        return run_id

    def _a_model(self) -> str:
        model = self.here.create_logged_model(self.experiment, "classifier", self.run, params={"depth": "3"})
        self.here.log_metric(self.run, "accuracy", 0.75, T0, 1, model_id=model.model_id)
        self.here.finalize_logged_model(model.model_id, "READY")
        self.here.log_outputs(self.run, [LoggedModelOutput(model.model_id, 1)])
        return str(model.model_id)

    def _a_trace(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own, of what it imports here
            span = self.here.start_trace("a question", inputs={"number": 42}, experiment_id=self.experiment)
        self.here.end_trace(span.trace_id, outputs="an answer")
        mlflow.flush_trace_async_logging()

    def url(self, place: str) -> str:
        return f"{self.server.url}/#/experiments/{self.experiment}/{place}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("ui")
    root = folder / "spool"
    with MlflowServer(folder / "server", extra_args=("--backend-store-uri", f"spool://{root}")) as server:
        mlflow.set_tracking_uri(f"spool://{root}")  # traces go where this says
        yield Written(root, server)
    mlflow.set_tracking_uri(None)
    journal_for(root).close()


def told(client: MlflowClient, written: Written) -> dict[str, Any]:
    """What a client reads of everything there is."""
    experiment = written.experiment
    runs = client.search_runs([experiment], "params.lr = '0.25'", order_by=["metrics.loss DESC", "run_id"])
    models = client.search_logged_models([experiment])
    return {
        "experiments": [_told_experiment(found) for found in client.search_experiments()],
        "runs": [run.to_dictionary() for run in runs],
        "deleted": [run.info.run_id for run in client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)],
        "history": [dict(point) for point in client.get_metric_history(written.run, "loss")],
        "artifacts": [dict(found) for found in client.list_artifacts(written.run, "notes")],
        "models": [_told_model(model) for model in models],
        "traces": [(trace.info.to_dict(), trace.data.to_dict()) for trace in client.search_traces([experiment])],
    }


def _told_experiment(found: Experiment) -> dict[str, Any]:
    """REST has no times that are 0; and a server adds how long it keeps traces."""
    return {key: value or None for key, value in dict(found).items() if "retention" not in key}


def _told_model(model: LoggedModel) -> dict[str, Any]:
    """REST has empty texts for what is not there."""
    plain = {key: value or None for key, value in model.to_dictionary().items()}
    return {**plain, "metrics": [dict(metric) for metric in model.metrics or ()]}


def test_a_server_answers_as_the_plugin_does_and_reading_writes_nothing(written: Written) -> None:
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_size for path in written.root.rglob("*") if path.is_file()}

    before, here = files(), told(written.here, written)
    assert len(here["runs"]) == 4 and len(here["history"]) == 20 and here["models"][0]["metrics"] and here["traces"]
    assert told(written.there, written) == here
    assert files() == before


def test_what_is_written_is_answered_at_the_next_question(written: Written) -> None:
    for step in range(20, 24):
        written.here.log_metric(written.run, "loss", 0.01, T0 + step, step)
        assert written.there.get_metric_history(written.run, "loss")[-1].step == step
        assert written.there.get_run(written.run).data.metrics["loss"] == 0.01
    late = written.here.create_run(written.experiment, T0, run_name="late").info.run_id
    assert written.there.get_run(late).info.status == "RUNNING"
    written.here.set_terminated(late, "FAILED", T0 + 1)
    assert written.there.get_run(late).info.status == "FAILED"
    written.here.delete_run(late)
    assert late not in {run.info.run_id for run in written.there.search_runs([written.experiment])}


def test_artifacts_come_through_the_server(written: Written, tmp_path: Path) -> None:
    import requests

    asked = {"path": "notes/hello.txt", "run_uuid": written.run}
    answer = requests.get(f"{written.server.url}/get-artifact", params=asked, timeout=60)
    assert (answer.status_code, answer.text) == (200, "hello from a file")
    gone = requests.get(f"{written.server.url}/get-artifact", params={**asked, "path": "no/such"}, timeout=60)
    assert gone.status_code in {404, 500} and "hello" not in gone.text


def test_what_is_changed_in_the_ui_is_logged_to_the_spool(written: Written) -> None:
    run_id = written.others[0]
    written.there.update_run(run_id, name="renamed")
    written.there.set_tag(run_id, "mlflow.note.content", "a note")
    written.there.create_registered_model("from the ui")
    found = written.here.get_run(run_id)
    assert (found.info.run_name, found.data.tags["mlflow.note.content"]) == ("renamed", "a note")
    assert written.here.get_registered_model("from the ui").name == "from the ui"
    written.there.delete_run(run_id)
    assert written.here.get_run(run_id).info.lifecycle_stage == "deleted"
    written.there.restore_run(run_id)
    assert written.here.get_run(run_id).info.lifecycle_stage == "active"
    assert written.here.get_run(run_id).info.status == "RUNNING"  # whose process still writes


def test_datasets_are_offered_and_what_needs_a_real_server_is_refused_in_a_sentence(written: Written) -> None:
    import requests

    asked = {"experiment_ids": [written.experiment]}
    url = f"{written.server.url}/ajax-api/2.0/mlflow/experiments/search-datasets"
    answer = requests.post(url, json=asked, timeout=60)
    [summary] = answer.json()["dataset_summaries"]
    assert (summary["name"], summary["digest"], summary["context"]) == ("digits-data", "d1g35t", "training")
    with pytest.raises(mlflow.MlflowException, match="a spool is none"):
        written.there.create_webhook("hook", "https://example.org/hook", events=["registered_model.created"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with Browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


def test_mlflows_ui_shows_the_spool_live(written: Written, browser: Browser, tmp_path: Path) -> None:
    with contextlib.ExitStack() as pictures:
        pictures.callback(browser.picture, tmp_path / "last.png")
        browser.go(written.url("runs"), "first run", "run 1", "classifier")
        browser.picture(tmp_path / "runs.png")
        browser.go(written.url(f"runs/{written.run}"), "first run", PAGE, "digits-data", "loss", "0.25")
        browser.picture(tmp_path / "run.png")
        written.here.log_metric(written.run, "brand new", 4.5, T0, 1)
        browser.go(written.url(f"runs/{written.run}/model-metrics"), "loss", "brand new")
        browser.picture(tmp_path / "charts.png")
        browser.go(written.url(f"runs/{written.run}/artifacts/notes/hello.txt"), "hello from a file")
        browser.picture(tmp_path / "artifacts.png")
        browser.go(written.url(f"models/{written.model}"), "classifier", "Ready", "accuracy", "0.75", "first run")
        browser.picture(tmp_path / "model.png")
        browser.go(written.url("traces"), "number", "42", "an answer")
        browser.picture(tmp_path / "traces.png")
    assert [failure for failure in browser.failures if not failure.endswith("/mlflow/users/current")] == []


def test_one_command_serves_a_spool_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = SpooledRun(tmp_path / "spool", "experiment")
    run.metrics(1, {"loss": 0.5})
    run.artifact("notes/a.txt", b"text")
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = [sys.executable, "-m", "mlferry_agent.main", "ui", "--dir", str(tmp_path / "spool"), "--port", str(port)]
    (tmp_path / "at").mkdir()
    with subprocess.Popen(words, cwd=tmp_path / "at", stderr=subprocess.PIPE, start_new_session=True) as server:
        try:
            wait_until(lambda: answers(f"{url}/health"), "the UI comes up")
            [found] = MlflowClient(url).search_runs([(experiment := only_experiment(url))])
            assert (found.info.experiment_id, found.data.metrics) == (experiment, {"loss": 0.5})
            with urllib.request.urlopen(f"{url}/get-artifact?path=notes/a.txt&run_uuid={run.run_id}") as answer:
                assert answer.read() == b"text"
        finally:
            os.killpg(server.pid, signal.SIGINT)
        assert f"http://127.0.0.1:{port}" in (server.stderr.read().decode() if server.stderr else "")
        assert server.wait(30) in (0, -signal.SIGINT, 130)
    assert not list((tmp_path / "at").iterdir())
    run.end()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def only_experiment(url: str) -> str:
    [found] = MlflowClient(url).search_experiments(filter_string="name = 'experiment'")
    return str(found.experiment_id)
