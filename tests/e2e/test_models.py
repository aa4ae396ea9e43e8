"""Logged models of runs, and runs that several writers share: delivered to a real server, each model once, ids its own."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from tests import faults
from tests.faults import Fault, FaultProxy
from tests.servers import MlflowServer
from tests.spooling import T0, Ferry, SpooledRun, a_bit_of_everything, differences, on_server, unique, wait_until

from mlferry_spool import records
from mlferry_spool.blobs import Blobs

SET_ASIDE = 3

#: More than one request takes.
PARAMS = {f"param {number}": str(number) for number in range(150)}

CODE = b"""
class Doubles:
    def predict(self, numbers, params=None):
        return numbers * 2

def _load_pyfunc(path):
    return Doubles()
"""

MLMODEL = """\
artifact_path: spool://{root}/artifacts/0/models/{model_id}/artifacts
flavors:
  python_function:
    code: code
    loader_module: mlferry_test_doubles
model_id: {model_id}
model_uuid: {model_id}
# {run_id}: a line of somebody's own
run_id: {run_id}
utc_time_created: '2025-01-01 00:00:00.000000'
"""


@dataclass(frozen=True, slots=True)
class SpooledModel:
    """A logged model in the spool, as the plugin writes it."""

    run: SpooledRun
    model_id: str
    mlmodel: str

    def put(self, **change: object) -> None:
        assert self.run.writer.put(records.ModelUpdate(timestamp=T0, model_id=self.model_id, **change))  # type: ignore[arg-type]

    def file(self, path: str, data: bytes) -> None:
        blob = Blobs(self.run.directory, durable=False).put_bytes(data)
        self.put(artifact_path=path, artifact_sha256=blob.sha256, artifact_size=blob.size)


def a_model(run: SpooledRun) -> SpooledModel:
    """A model that the run put out, with everything that can be said of one."""
    model_id = f"m-{uuid.uuid4().hex}"
    start = records.ModelStart(
        timestamp=T0,
        model_id=model_id,
        name="doubles",
        source_run_id=run.run_id,
        experiment_name=run.experiment,
        params=PARAMS,
        tags={"kept": "1", "taken away": "1"},
    )
    assert run.writer.put(start)
    mlmodel = MLMODEL.format(root=run.root, model_id=model_id, run_id=run.run_id)
    model = SpooledModel(run, model_id, mlmodel)
    model.file("MLmodel", mlmodel.encode())
    model.file("code/mlferry_test_doubles.py", CODE)
    assert run.writer.put(records.Metrics(T0, 1, {"of the model": 0.5}, model_id=model_id))
    model.put(params={"later": "1"}, tags={"kept": "2"}, tags_deleted=("taken away",))
    assert run.writer.put(records.Outputs(T0, (records.ModelOutput(model_id, 3),)))
    assert run.writer.put(records.Inputs(T0, (), (model_id,)))
    model.put(status="READY")
    return model


def a_run_with_a_model(root: Path) -> SpooledModel:
    run = SpooledRun(root, unique("models"))
    model = a_model(run)
    run.end()
    return model


def sync(ferry: Ferry) -> None:
    done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr


def models_of(server: MlflowServer, model: SpooledModel) -> list[str]:
    """Every model on the server that carries the offline id, deleted ones included."""
    sql = "SELECT model_id FROM logged_model_tags WHERE tag_key = 'mlferry.model_id' AND tag_value = ?"
    return [row[0] for row in server.query(sql, model.model_id)]


def check_model(server: MlflowServer, model: SpooledModel) -> None:
    """Everything of it is there, once, and speaks of the server's ids."""
    run_id = on_server(server, model.run)
    [model_id] = models_of(server, model)
    client = server.client()
    found = client.get_logged_model(model_id)
    assert (found.name, found.source_run_id, str(found.status)) == ("doubles", run_id, "READY")
    assert found.params == {**PARAMS, "later": "1"}
    assert {key: found.tags.get(key) for key in ("kept", "taken away")} == {"kept": "2", "taken away": None}
    assert [(metric.key, metric.value, metric.run_id) for metric in found.metrics or []] == [
        ("of the model", 0.5, run_id)
    ]
    run = client.get_run(run_id)
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model_id, 3)]
    assert [given.model_id for given in run.inputs.model_inputs] == [model_id]
    place = server.artifact_root / found.artifact_location.removeprefix("mlflow-artifacts:").strip("/")
    assert (place / "code/mlferry_test_doubles.py").read_bytes() == CODE
    expected = model.mlmodel.replace(
        f"spool://{model.run.root}/artifacts/0/models/{model.model_id}/artifacts", found.artifact_location
    )
    expected = expected.replace(model.model_id, model_id)
    expected = expected.replace(f"\nrun_id: {model.run.run_id}", f"\nrun_id: {run_id}")
    assert (place / "MLmodel").read_text() == expected


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's own, about itself
def test_a_model_arrives_whole_and_loads_by_its_run_and_by_its_own_id(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_run_with_a_model(tmp_path / "spool")
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    sync(ferry)
    check_model(mlflow_server, model)
    verified = ferry("verify")
    assert verified.returncode == 0, verified.stdout
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the model's code to it
    mlflow.set_tracking_uri(mlflow_server.url)
    try:
        run_id, [model_id] = on_server(mlflow_server, model.run), models_of(mlflow_server, model)
        info = mlflow.models.get_model_info(f"runs:/{run_id}/doubles")
        assert (info.run_id, info.model_id) == (run_id, model_id)
        for uri in (f"runs:/{run_id}/doubles", f"models:/{model_id}"):
            assert mlflow.pyfunc.load_model(uri).predict(21) == 42
    finally:
        mlflow.set_tracking_uri(None)


def test_verify_tells_every_difference_of_a_model(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    model = a_run_with_a_model(tmp_path / "spool")
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    sync(ferry)
    [model_id] = models_of(mlflow_server, model)
    client = mlflow_server.client()
    client.set_logged_model_tags(model_id, {"kept": "changed by somebody"})
    client.finalize_logged_model(model_id, "FAILED")
    found = client.get_logged_model(model_id)
    place = mlflow_server.artifact_root / found.artifact_location.removeprefix("mlflow-artifacts:").strip("/")
    (place / "code/mlferry_test_doubles.py").write_bytes(b"#")
    (place / "MLmodel").write_text(model.mlmodel)
    told = ferry("verify").stdout
    assert told.count(f"model {model.model_id}: ") == 4, told
    for word in ("tag 'kept'", "status", "'MLmodel': its bytes differ", "doubles.py': its bytes differ"):
        assert word in told


#: Every request that a model takes: how it is recognised on the way, and how many like it come before it.
MOMENTS = {
    "create": ("POST", "mlflow/logged-models", 1),  # a search comes first
    "params": ("POST", "/params", 0),
    "tags": ("PATCH", "/tags", 0),
    "outputs": ("POST", "runs/outputs", 0),
    "inputs": ("POST", "runs/log-inputs", 0),
    "file": ("PUT", "MLmodel", 0),
    "metric": ("POST", "runs/log-batch", 0),
}


@pytest.mark.parametrize(("method", "path", "skip"), MOMENTS.values(), ids=MOMENTS)
def test_an_answer_that_is_lost_makes_no_second_model(
    mlflow_server: MlflowServer, tmp_path: Path, method: str, path: str, skip: int
) -> None:
    model = a_run_with_a_model(tmp_path / "spool")
    with FaultProxy(mlflow_server.port) as proxy:
        rule = proxy.add(faults.COMMIT_THEN_CUT, method=method, path=path, skip=skip)
        sync(Ferry(tmp_path / "spool", tmp_path / "state", proxy.url))
    assert rule.done == 1
    check_model(mlflow_server, model)


@pytest.mark.parametrize(
    "fault", [faults.HANG, faults.COMMIT_THEN_HANG], ids=["before the server acts", "after the server acted"]
)
@pytest.mark.parametrize(("method", "path", "skip"), MOMENTS.values(), ids=MOMENTS)
def test_an_agent_killed_while_it_delivers_a_model_leaves_one_model(
    mlflow_server: MlflowServer, tmp_path: Path, method: str, path: str, skip: int, fault: Fault
) -> None:
    model = a_run_with_a_model(tmp_path / "spool")
    with FaultProxy(mlflow_server.port) as proxy:
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)
        proxy.add(fault, method=method, path=path, skip=skip)
        with ferry.agent():
            wait_until(lambda: proxy.held, f"{path} is asked for")
        sync(ferry)
    check_model(mlflow_server, model)


# -- writers of a run ----------------------------------------------------------------------------------------------------


def test_a_log_that_is_closed_in_order_without_an_end_leaves_its_run_running(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = SpooledRun(tmp_path / "spool", unique("open"))
    run.params({"p": "1"})
    assert run.writer.close()
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    for _ in range(2):
        sync(ferry)
        assert mlflow_server.stored(on_server(mlflow_server, run)).status == "RUNNING"


def test_what_a_guest_adds_to_a_closed_run_arrives_and_leaves_it_closed(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = SpooledRun(tmp_path / "spool", unique("guests"))
    run.end()
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    sync(ferry)
    guest = run.beside(role="guest")
    guest.tags({"late": "1"})
    sync(ferry)  # the guest lives
    stored = mlflow_server.stored(on_server(mlflow_server, run))
    assert (stored.status, stored.end_time, stored.tags["late"]) == ("FINISHED", T0 + 10**6, "1")
    assert guest.writer.close()


def test_a_deleted_run_is_delivered_and_deleted_last_and_restored_when_more_is_said(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = SpooledRun(tmp_path / "spool", unique("deleted"))
    run.writer.put(records.RunUpdate(T0, lifecycle="deleted"))
    run.tags({"after": "1"})
    run.end("FAILED")
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    sync(ferry)
    stored = mlflow_server.stored(on_server(mlflow_server, run))
    assert (stored.lifecycle_stage, stored.status, stored.tags["after"]) == ("deleted", "FAILED", "1")
    guest = run.beside(role="guest")
    guest.tags({"later": "1"})
    assert guest.writer.close()
    sync(ferry)
    stored = mlflow_server.stored(on_server(mlflow_server, run))
    assert (stored.lifecycle_stage, stored.tags["later"]) == ("deleted", "1")
    back = run.beside(role="guest")
    back.writer.put(records.RunUpdate(T0 + 1, lifecycle="active"))
    assert back.writer.close()
    sync(ferry)
    assert mlflow_server.stored(on_server(mlflow_server, run)).lifecycle_stage == "active"


def test_a_server_put_back_to_a_release_without_models_is_given_the_rest_and_the_models_once_it_knows_them_again(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    model = a_run_with_a_model(tmp_path / "spool")
    plain = a_bit_of_everything(tmp_path / "spool", unique("downgraded"))
    late = model.run.beside()
    late.params({"of the run": "1"})
    late.end()
    with FaultProxy(mlflow_server.port) as proxy:
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)
        for path in ("logged-models", "runs/outputs"):
            proxy.add(faults.reply(404, b"<!doctype html><title>404 Not Found</title>"), path=path, times=None)
        done = ferry("sync")
        assert done.returncode == SET_ASIDE, done.stdout + done.stderr
        assert differences(mlflow_server, plain.logged) == []
        aside = ferry.statuses()[model.run.run_id]["quarantined"]
        assert aside and all("HTTP 404" in entry["reason"] for entry in aside), aside
        run = mlflow_server.stored(on_server(mlflow_server, model.run))
        assert (run.status, run.params) == ("FINISHED", {"of the run": "1"})
        proxy.clear()
        ferry("retry")
        sync(ferry)
        assert ferry("verify").returncode == 0
    check_model(mlflow_server, model)
