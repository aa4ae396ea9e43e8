"""What cannot be delivered stops only itself: it is set aside, named with its reason, and delivered once its cause is gone.

The reasons are real ones: a server that refuses, a run that somebody deletes there, a file that rots in the spool.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.servers import MlflowServer
from tests.spooling import (
    Ferry,
    SpooledRun,
    a_bit_of_everything,
    differences,
    on_server,
    server_runs,
    unique,
    wait_until,
)

ALL, SET_ASIDE = 0, 3


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.port) as proxy:
        yield proxy


@pytest.fixture
def ferry(tmp_path: Path, proxy: FaultProxy) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)


def synced(ferry: Ferry, code: int) -> str:
    done = ferry("sync")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def rot(blob: Path) -> None:
    """One byte of a file in the spool flips, as on a bad disk."""
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)


def a_run_with_a_poisoned_metric(ferry: Ferry) -> SpooledRun:
    """5,000 points of which the server can take all but one: its name is longer than MLflow allows."""
    run = SpooledRun(ferry.spool, unique("poison"))
    for step in range(5_000):
        run.metrics(step, {"loss": float(step)})
        if step == 2_500:
            run.metrics(step, {"k" * 251: 1.0})
    run.end()
    for point in [point for point in run.logged.points if point.key.startswith("k")]:
        del run.logged.points[point]
    return run


def delete_in_the_middle(ferry: Ferry, proxy: FaultProxy, server: MlflowServer, run: SpooledRun) -> None:
    """Deliver until some points of the run are on the server, then delete it there."""
    proxy.add(faults.HANG, path="log-batch", skip=1, times=None)
    delivering = ferry.start("sync", run.run_id)
    try:
        wait_until(lambda: server_runs(server, run.run_id), "the run is made")
        wait_until(lambda: server.metric_points(on_server(server, run)) and proxy.held, "the first points arrive")
        server.client().delete_run(on_server(server, run))
    finally:
        delivering.kill()
        delivering.wait()
    proxy.clear()


def test_three_troubles_among_healthy_runs_stop_only_themselves_until_their_causes_are_gone(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer
) -> None:
    healthy = [a_bit_of_everything(ferry.spool, unique("healthy")) for _ in range(3)]
    poisoned = a_run_with_a_poisoned_metric(ferry)
    deleted = SpooledRun(ferry.spool, unique("deleted"))
    for step in range(3_000):
        deleted.metrics(step, {"loss": float(step)})
    deleted.end()
    rotten = SpooledRun(ferry.spool, unique("rotten"))
    blob = rotten.artifact("model.bin", b"weights" * 1000)
    rotten.artifact("notes.txt", b"fine")
    rotten.metrics(0, {"loss": 1.0})
    rotten.end()
    rot(blob)
    delete_in_the_middle(ferry, proxy, mlflow_server, deleted)

    said = synced(ferry, SET_ASIDE)
    assert [differences(mlflow_server, run.logged) for run in (*healthy, poisoned)] == [[]] * 4
    model = rotten.logged.artifacts.pop("model.bin")
    assert differences(mlflow_server, rotten.logged) == []
    for words in (
        f"{poisoned.run_id} quarantined: metric 'kkk",
        f"{deleted.run_id} parked: the run was deleted on the server",
        f"{rotten.run_id} quarantined: artifact 'model.bin': A blob's bytes do not have the digest",
    ):
        assert words in said, said
    text = ferry("status")
    assert text.returncode == SET_ASIDE
    assert "parked: the run was deleted on the server" in text.stdout
    told = ferry.statuses()
    assert [len(told[run.run_id]["quarantined"]) for run in (poisoned, deleted, rotten, *healthy)] == [1, 0, 1, 0, 0, 0]
    assert "250" in told[poisoned.run_id]["quarantined"][0]["reason"]
    assert told[deleted.run_id]["parked"] == "the run was deleted on the server"
    assert told[rotten.run_id]["quarantined"][0]["name"] == "model.bin"
    assert mlflow_server.stored(on_server(mlflow_server, poisoned)).tags["mlferry.quarantined"] == "1"

    rot(blob)  # the same bit again: the file is whole
    rotten.logged.artifacts["model.bin"] = model
    mlflow_server.client().restore_run(on_server(mlflow_server, deleted))
    assert ferry("retry", deleted.run_id, rotten.run_id).returncode == ALL
    synced(ferry, SET_ASIDE)  # the poisoned one still needs a person
    assert [differences(mlflow_server, run.logged) for run in (*healthy, poisoned, deleted, rotten)] == [[]] * 6
    assert ferry("sync", deleted.run_id, rotten.run_id, *(run.run_id for run in healthy)).returncode == ALL
    assert mlflow_server.stored(on_server(mlflow_server, rotten)).tags["mlferry.quarantined"] == "0"


def test_a_changed_param_of_a_resumed_run_is_set_aside_and_everything_else_of_it_arrives(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    run = SpooledRun(ferry.spool, unique("changed"), rank=None, attempt="first")
    run.params({"lr": "0.1", "batch": "32"})
    run.end("FAILED")
    assert ferry("sync").returncode == ALL
    again = run.beside(resumed=True, attempt="second")
    again.params({"lr": "0.2", "batch": "32", "warm-up": "yes"})
    again.metrics(1, {"loss": 1.0})
    again.end()
    run.logged.params["lr"] = "0.1"
    said = synced(ferry, SET_ASIDE)
    assert differences(mlflow_server, run.logged) == []
    assert f"{run.run_id} quarantined: param 'lr'" in said
    assert "0.1" in said and "0.2" in said, "the server's words name both values"
    ferry("retry")
    synced(ferry, SET_ASIDE)  # nothing has changed: it is refused again, and nothing is doubled
    assert ferry("drop", run.run_id, "--yes").returncode == ALL
    synced(ferry, ALL)
    assert differences(mlflow_server, run.logged) == []
    assert mlflow_server.stored(on_server(mlflow_server, run)).tags["mlferry.dropped"] == "1"


def test_a_deleted_experiment_parks_its_run_until_it_is_restored(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = a_bit_of_everything(ferry.spool, unique("experiment"), points=10, files=1)
    client = mlflow_server.client()
    experiment_id = client.create_experiment(run.experiment)
    client.delete_experiment(experiment_id)
    assert "is deleted on the server; restore it there" in synced(ferry, SET_ASIDE)
    client.restore_experiment(experiment_id)
    assert ferry("retry").returncode == ALL
    synced(ferry, ALL)
    assert differences(mlflow_server, run.logged) == []


def test_a_living_run_that_somebody_deletes_is_parked_while_the_agent_carries_on(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    doomed = SpooledRun(ferry.spool, unique("doomed"))
    doomed.metrics(0, {"loss": 1.0})
    with ferry.agent():
        wait_until(lambda: server_runs(mlflow_server, doomed.run_id), "it appears")
        wait_until(lambda: mlflow_server.metric_points(on_server(mlflow_server, doomed)), "its point appears")
        mlflow_server.client().delete_run(on_server(mlflow_server, doomed))
        doomed.metrics(1, {"loss": 0.5})
        wait_until(lambda: ferry.statuses()[doomed.run_id]["parked"], "the agent notices")
        other = a_bit_of_everything(ferry.spool, doomed.experiment)
        wait_until(lambda: not differences(mlflow_server, other.logged), "another run is delivered")
    doomed.end()
    mlflow_server.client().restore_run(on_server(mlflow_server, doomed))
    assert ferry("retry").returncode == ALL
    synced(ferry, ALL)
    assert differences(mlflow_server, doomed.logged) == []
