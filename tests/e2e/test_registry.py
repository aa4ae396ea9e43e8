"""Registered models made offline: each version once on a real server, whatever happens to the answers."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests import faults
from tests.faults import FaultProxy
from tests.servers import MlflowServer
from tests.spooling import T0, Ferry, SpooledRun, on_server, unique

from mlferry_spool.layout import store_directory
from mlferry_spool.records import Open, Record, RegistryOperation
from mlferry_spool.writer import Writer


def tell(spool: Path, *told: Record) -> None:
    writer = Writer(store_directory(spool), Open(writer_id=f"w-{uuid.uuid4().hex}", role="guest"))
    assert all(writer.put(record) for record in told)
    assert writer.close()


def a_version(run: SpooledRun, name: str) -> list[Record]:
    uid, source = uuid.uuid4().hex, f"spool:{run.root}/artifacts/0/{run.run_id}/artifacts/model"
    return [
        RegistryOperation(T0, "create_registered_model", name),
        RegistryOperation(T0 + 1, "create_model_version", name, uid, {"source": source, "run_id": run.run_id}),
        RegistryOperation(T0 + 2, "set_registered_model_alias", name, None, {"alias": "best", "uid": uid}),
    ]


def versions(server: MlflowServer, name: str) -> list[tuple[str, ...]]:
    return server.query("SELECT run_id, source FROM model_versions WHERE name = ?", name)


def test_a_version_whose_answer_is_lost_is_made_once(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    name, run = unique("lost"), SpooledRun(tmp_path / "spool", unique("registry"))
    run.artifact("model/weights", b"1")
    run.end()
    tell(run.root, *a_version(run, name))
    with FaultProxy(mlflow_server.port) as proxy:
        rule = proxy.add(faults.COMMIT_THEN_CUT, path="model-versions/create", times=2)
        done = Ferry(run.root, tmp_path / "state", proxy.url)("sync")
        assert done.returncode == 0, done.stdout + done.stderr
    assert rule.done == 1
    server_run_id = on_server(mlflow_server, run)
    [(of, source)] = versions(mlflow_server, name)
    assert of == server_run_id
    assert source.startswith("mlflow-artifacts:") and source.endswith(f"{server_run_id}/artifacts/model")
    assert mlflow_server.client().get_model_version_by_alias(name, "best").version in (1, "1")


def test_a_ledger_that_is_lost_makes_no_second_version(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    name, run = unique("again"), SpooledRun(tmp_path / "spool", unique("registry"))
    run.end()
    tell(run.root, *a_version(run, name))
    for state in ("one", "two"):
        done = Ferry(run.root, tmp_path / state, mlflow_server.url)("sync")
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(versions(mlflow_server, name)) == 1
