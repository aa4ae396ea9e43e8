"""Experiments whose artifacts go past the server: straight to an S3-compatible store, by MLflow's own repository."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.s3 import ObjectStore, object_store
from tests.servers import MlflowServer, free_port
from tests.spooling import (
    Ferry,
    SpooledRun,
    a_bit_of_everything,
    differences,
    on_server,
    server_runs,
    unique,
    wait_for_arrival,
    wait_until,
)

pytest.importorskip("moto")

SOON_S = 250.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3") / "log") as made:
        yield made


@pytest.fixture
def ferry(mlflow_server: MlflowServer, store: ObjectStore, tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url, environ=store.environ)


def direct_experiment(server: MlflowServer, store: ObjectStore) -> str:
    """An experiment with its place in the store."""
    name = unique("direct")
    server.client().create_experiment(name, artifact_location=f"s3://{store.bucket}/{name.replace(' ', '-')}")
    return name


def stored_files(server: MlflowServer, store: ObjectStore, run: SpooledRun) -> dict[str, bytes]:
    [(uri,)] = server.query("SELECT artifact_uri FROM runs WHERE run_uuid = ?", on_server(server, run))
    return store.objects(uri.removeprefix(f"s3://{store.bucket}/") + "/")


def a_run_with_files(ferry: Ferry, experiment: str) -> SpooledRun:
    run = SpooledRun(ferry.spool, experiment)
    run.metrics(0, {"loss": 1.0})
    run.artifact("model/weights 100%.bin", os.urandom(9 << 20))  # in parts: boto3's are of 8 MiB
    run.artifact("notes.txt", b"by hand")
    run.artifact("empty", b"")
    return run


def test_files_go_to_the_place_that_the_server_names_and_are_read_back_from_there(
    mlflow_server: MlflowServer, store: ObjectStore, ferry: Ferry
) -> None:
    run = a_run_with_files(ferry, direct_experiment(mlflow_server, store))
    run.end()
    delivered = ferry("sync")
    assert delivered.returncode == 0, delivered.stdout + delivered.stderr
    assert stored_files(mlflow_server, store, run) == run.logged.artifacts
    assert differences(mlflow_server, replace(run.logged, artifacts={})) == []
    verified = ferry("verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert [found["artifacts"] for found in json.loads(verified.stdout)] == [3]


@pytest.mark.long
def test_a_file_that_is_missing_or_another_in_the_store_is_a_difference(
    mlflow_server: MlflowServer, store: ObjectStore, ferry: Ferry
) -> None:
    run = a_run_with_files(ferry, direct_experiment(mlflow_server, store))
    run.end()
    assert ferry("sync").returncode == 0
    [(uri,)] = mlflow_server.query("SELECT artifact_uri FROM runs WHERE run_uuid = ?", on_server(mlflow_server, run))
    store.put(f"{uri.removeprefix(f's3://{store.bucket}/')}/notes.txt", b"by another hand")
    store.remove(f"{uri.removeprefix(f's3://{store.bucket}/')}/empty")
    verified = ferry("verify")
    assert verified.returncode == 3
    assert "its bytes differ" in verified.stdout
    assert "it is missing" in verified.stdout


@pytest.mark.long
def test_while_the_store_is_away_other_runs_arrive_and_once_it_is_back_the_files_do(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    port = free_port()
    with object_store(tmp_path / "log", port) as store:
        experiment = direct_experiment(mlflow_server, store)
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url, environ=store.environ)
    run = a_run_with_files(ferry, experiment)
    run.end()
    with ferry.agent(log=tmp_path / "agent.log"):
        wait_until(lambda: server_runs(mlflow_server, run.run_id), "its delivery begins", SOON_S)
        other = a_bit_of_everything(ferry.spool, unique("through the server"))
        wait_for_arrival(mlflow_server, other.logged, SOON_S)
        assert mlflow_server.stored(on_server(mlflow_server, run)).status == "RUNNING"
        wait_until(lambda: "files cannot be stored" in (tmp_path / "agent.log").read_text(), "the log says why", SOON_S)
        with object_store(tmp_path / "log", port) as store:
            wait_until(
                lambda: mlflow_server.stored(on_server(mlflow_server, run)).status == "FINISHED", "it ends", SOON_S
            )
            assert stored_files(mlflow_server, store, run) == run.logged.artifacts


@pytest.mark.long
def test_credentials_that_are_missing_are_said_and_no_file_is_set_aside(
    mlflow_server: MlflowServer, store: ObjectStore, ferry: Ferry
) -> None:
    nobody = {name: value for name, value in store.environ.items() if not name.startswith("AWS_")}
    nobody |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    run = a_run_with_files(ferry, direct_experiment(mlflow_server, store))
    run.end()
    refused = replace(ferry, environ=nobody)("sync")
    assert refused.returncode == 1
    assert "NoCredentialsError" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert ferry("sync").returncode == 0
    assert stored_files(mlflow_server, store, run) == run.logged.artifacts


@pytest.mark.long
def test_where_the_library_is_missing_the_files_wait_aside_and_the_rest_arrives(
    mlflow_server: MlflowServer, store: ObjectStore, ferry: Ferry, tmp_path: Path
) -> None:
    (tmp_path / "boto3.py").write_text("raise ModuleNotFoundError('No module named boto3', name='boto3')\n")
    without = replace(ferry, environ={**store.environ, "PYTHONPATH": f"{tmp_path}:{ferry.env()['PYTHONPATH']}"})
    run = a_run_with_files(ferry, direct_experiment(mlflow_server, store))
    run.end()
    delivered = without("sync")
    assert delivered.returncode == 3
    assert "mlferry[s3]" in delivered.stdout + delivered.stderr
    assert mlflow_server.stored(on_server(mlflow_server, run)).status == "FINISHED"
    assert ferry("retry").returncode == 0
    assert ferry("sync").returncode == 0
    assert stored_files(mlflow_server, store, run) == run.logged.artifacts


def test_a_place_that_a_record_named_is_not_written_to_unless_the_agents_own_settings_name_it_too(
    mlflow_server: MlflowServer, store: ObjectStore, ferry: Ferry
) -> None:
    experiment = direct_experiment(mlflow_server, store)
    elsewhere = replace(ferry, environ={**store.environ, "MLFERRY_STORES": f"s3://{store.bucket}/another"})
    run = SpooledRun(ferry.spool, experiment)
    run.artifact("notes.txt", b"by hand")
    run.end()
    delivered = elsewhere("sync")
    assert delivered.returncode == 3
    assert "MLFERRY_STORES does not name that place" in delivered.stdout + elsewhere("status").stdout
    assert stored_files(mlflow_server, store, run) == {}
