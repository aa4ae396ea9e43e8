"""The examples of MLflow's PyTorch guide, online and through the spool; their models before and after delivery."""

from __future__ import annotations

import json
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from tests.oracle import differences, killed
from tests.oracle.normalise import Flat
from tests.oracle.stage import Performance, Stage

torch = pytest.importorskip("torch")

#: The guide from its beginning to its end, to the letter.
LETTER = ("training", "saving", "inferred", "by-hand", "signed", "scripted")

#: All of it with models that are saved: those of these examples, and a signature that is made after they are imported.
SAVED = ("training", "scripted", "saving", "from-arrays", "signed")
WHOLE = (*(f"{name}=pickle" for name in SAVED), "by-hand")
TITLE = "-".join(("guide", *WHOLE))

SAMPLE = np.random.default_rng(1).uniform(size=[2, 28, 28]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Played:
    """The whole guide, executed both ways."""

    online: Performance
    offline: Performance
    expected: Flat
    found: Flat
    #: What the models were worth to somebody who read the spool before anything was delivered.
    spooled: list[dict[str, Any]]


def said(performance: Performance) -> list[str]:
    """The words of the examples themselves, without MLflow's."""
    names = ("loss:", *(f"{name}:" for name in (*LETTER, *SAVED)))
    return [line for line in performance.words.splitlines() if line.startswith(names)]


@pytest.fixture(scope="module")
def whole(stage: Stage) -> Played:
    online = stage.perform_online("guide", *WHOLE, title=TITLE)
    offline = stage.perform_offline("guide", *WHOLE, title=TITLE)
    spooled = models(f"spool://{stage.spool(TITLE)}", f"oracle {TITLE}")
    delivered = stage.deliver(TITLE)
    assert delivered.returncode == 0, delivered.stdout + delivered.stderr
    expected, found = stage.held(stage.online, online), stage.held(stage.target, offline)
    stage.forget()
    return Played(online, offline, expected, found, spooled)


def runs(uri: str, experiment: str) -> Iterator[Any]:
    """The runs of an experiment in a store, the first to start first."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    yield from client.search_runs([found.experiment_id], order_by=["attributes.start_time"])


def models(uri: str, experiment: str) -> list[dict[str, Any]]:
    """What can be made of each run's model by whoever knows the tracking URI and the run's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, when it loads a compiled graph
        mlflow.set_tracking_uri(uri)
        try:
            return [_model(run) for run in runs(uri, experiment)]
        finally:
            mlflow.set_tracking_uri(None)


def _model(run: Any) -> dict[str, Any]:
    address = f"runs:/{run.info.run_id}/model"
    info = mlflow.models.get_model_info(address)
    [output] = run.outputs.model_outputs
    assert (info.run_id, info.model_id) == (run.info.run_id, output.model_id)
    assert info.model_uuid == output.model_id
    predicted = {
        "of the run": mlflow.pyfunc.load_model(address).predict(SAMPLE),
        "of the model": mlflow.pyfunc.load_model(f"models:/{info.model_id}").predict(SAMPLE),
        "by torch": mlflow.pytorch.load_model(address)(torch.from_numpy(SAMPLE)).detach().numpy(),
    }
    told = {"signature": str(info.signature), "flavors": info.flavors, "metadata": info.metadata}
    return {**told, **{way: np.asarray(values).tolist() for way, values in predicted.items()}}


def test_the_guide_to_the_letter_goes_as_far_as_it_does_online(stage: Stage) -> None:
    online = stage.perform_online("guide", *LETTER, title="letter")
    offline = stage.perform_offline("guide", *LETTER, title="letter")
    assert (offline.code, said(offline)) == (online.code, said(online))
    assert sum(line.startswith("loss:") for line in said(online)) == 6, online.words
    assert "training: MlflowException: If `serialization_format` is set to 'pt2', then input_example" in online.words
    delivered = stage.deliver("letter")
    assert delivered.returncode == 0, delivered.stdout + delivered.stderr
    expected, found = stage.held(stage.online, online), stage.held(stage.target, offline)
    stage.forget()
    assert expected["runs/1/status"] == "FAILED" and expected["runs/1/params/loss_function"] == "CrossEntropyLoss"
    assert differences.between(expected, found, differences.allowed()) == []


def test_the_guide_with_its_models_saved_leaves_the_same_on_the_server(whole: Played) -> None:
    assert said(whole.offline) == said(whole.online)
    assert sum("Error" in line or "Exception" in line for line in said(whole.online)) == 0, whole.online.words
    assert (whole.expected["runs/count"], whole.expected["models/count"]) == (len(SAVED), len(SAVED))
    assert b"Trainable params: 669,706" in whole.expected["runs/1/files/model_summary.txt"]
    assert differences.between(whole.expected, whole.found, differences.allowed()) == []


def test_its_models_are_the_same_from_the_spool_and_from_either_server(stage: Stage, whole: Played) -> None:
    online, delivered = (models(server.url, f"oracle {TITLE}") for server in (stage.online, stage.target))
    assert len(whole.spooled) == len(SAVED)
    assert np.shape(whole.spooled[0]["of the run"]) == (2, 10)
    assert [model["signature"] != "None" for model in whole.spooled] == [False, False, False, True, True]
    assert whole.spooled == online
    assert delivered == online


def test_the_page_of_a_model_shows_it_under_the_ids_of_the_server(stage: Stage, whole: Played) -> None:
    for run in runs(stage.target.url, f"oracle {TITLE}"):
        [output] = run.outputs.model_outputs
        page = f"{stage.target.url}/ajax-api/2.0/mlflow/logged-models/{output.model_id}"
        info = json.loads(get(page))["model"]["info"]
        assert (info["name"], info["source_run_id"], info["status"]) == ("model", run.info.run_id, "LOGGED_MODEL_READY")
        listed = {file["path"] for file in json.loads(get(f"{page}/artifacts/directories"))["files"]}
        assert {"MLmodel", "data", "requirements.txt"} <= listed
        written = get(f"{page}/artifacts/files?artifact_file_path=MLmodel").decode()
        assert f"run_id: {run.info.run_id}" in written and f"model_id: {output.model_id}" in written


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
    return body


def test_either_name_of_a_run_and_of_its_model_leads_to_the_other(stage: Stage, whole: Played) -> None:
    there, here = stage.target.url, f"spool://{stage.spool(TITLE)}"
    pairs = list(zip(runs(here, f"oracle {TITLE}"), runs(there, f"oracle {TITLE}"), strict=True))
    offline, server = [names(run) for run, _ in pairs], [names(run) for _, run in pairs]
    ids = [name for both in (*offline, *server) for name in both]
    found = json.loads(stage.ferry(TITLE)("id", *ids, "--json").stdout)
    assert [(found[name][0]["offline_id"], found[name][0]["server_id"]) for name in ids] == 2 * [
        pair for ours, theirs in zip(offline, server, strict=True) for pair in zip(ours, theirs, strict=True)
    ]


def names(run: Any) -> tuple[str, str]:
    return run.info.run_id, run.outputs.model_outputs[0].model_id


@pytest.mark.parametrize(
    ("words", "seed"),
    [pytest.param(("training",), 5, marks=pytest.mark.long), (WHOLE, 49)],
    ids=["inside the training loop", "while its model is logged"],
)
def test_what_the_guide_logged_before_it_was_killed_arrives_and_its_run_is_killed(
    stage: Stage, whole: Played, words: tuple[str, ...], seed: int
) -> None:
    assert killed.wrong(stage, "guide", *words, seed=seed) == []
