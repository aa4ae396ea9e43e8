"""An old backlog, imported and delivered: what a real server holds afterwards is what the source held, field by field."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType
from tests.foreign.sources import MlflowSource
from tests.foreign.spools import WANDB
from tests.oracle import differences, snapshot
from tests.oracle.normalise import Flat, Window, flat
from tests.oracle.snapshot import Snapshot
from tests.servers import MlflowServer, Point
from tests.spooling import Ferry, unique

from mlferry_spool.fold import as_stored

#: What no delivery can bring along: where the artifacts lie, and times that the server's clock makes.
_ALLOWED = (
    *differences.allowed(),
    "*/artifact_location",
    "*/artifact_uri",
    "*_timestamp",
    "*_timestamp_ms",
    "*/creation_time",
    "*/last_update_time",
    "*/mlflow.artifactLocation",
    "*/status_message",
)


def told(found: Snapshot, server: str = "") -> Flat:
    """All fields by path. No time is forgiven: those of the source must arrive."""
    return flat(found, Window(1, 0), server=server)


def as_delivered(found: Snapshot) -> Snapshot:
    """What a source holds, as a server with a database has it when it is told over REST: without what was deleted, with
    infinities as the largest doubles and no negative zero (which a file store keeps), and texts that are not there as empty
    ones."""
    runs = [run for run in found.runs if run["lifecycle_stage"] == "active"]
    for point in (point for run in runs for point in run["points"]):
        point["value"] = as_stored(point["value"])
    for version in (version for model in found.registered for version in model["versions"].values()):
        version["description"] = version["description"] or ""
    return dataclasses.replace(found, runs=runs)


@contextlib.contextmanager
def asked(url: str) -> Iterator[str]:
    """MLflow's client fetches spans that are files from the server that it knows as its own, whichever it was asked for."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(url)
    try:
        yield url
    finally:
        mlflow.set_tracking_uri(before)


def held(server: MlflowServer, name: str) -> Snapshot:
    """What a server holds, but for what other tests have brought there."""
    with asked(server.url) as url:
        others = {experiment.name for experiment in server.client().search_experiments(view_type=ViewType.ALL)} - {name}
        return snapshot.take(url, but=others | {model.name for model in _others(server, name)})


def _others(server: MlflowServer, name: str) -> list[Any]:
    return [model for model in server.client().search_registered_models() if not model.name.startswith(name)]


#: A server on a file store tells the last point of a model's metrics, where it holds all; and it does not mark a trace whose
#: start it was told, as one on a database does.
_OF_FILES = ("models/*/points/*", "traces/*/mlflow.trace.infoFinalized")

ONCE, GROWN = [()], [(), ("more",)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("make", "stages", "allowed"),
    [
        pytest.param(MlflowSource.database, ONCE, (), id="database", marks=pytest.mark.long),
        pytest.param(MlflowSource.file_store, ONCE, _OF_FILES, id="file store"),
        pytest.param(MlflowSource.database, GROWN, (), id="database that grows", marks=pytest.mark.long),
        pytest.param(MlflowSource.file_store, GROWN, _OF_FILES, id="file store that grows", marks=pytest.mark.long),
    ],
)
def test_what_plain_mlflow_logged_is_on_the_server_once(
    make: Callable[[Path], MlflowSource],
    stages: list[tuple[str, ...]],
    allowed: tuple[str, ...],
    mlflow_server: MlflowServer,
    tmp_path: Path,
) -> None:
    source, name = make(tmp_path / "source"), unique("backlog")
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    for words in stages:
        source.log(name, *words)
        for verb in (("import", str(source.path)), ("sync",), ("verify",)):
            done = ferry(*verb)
            assert done.returncode == 0, done.stdout + done.stderr
    with source.served() as server:
        expected = told(as_delivered(held(server, name)), server.url)
    found = told(held(mlflow_server, name), mlflow_server.url)
    apart = differences.between(expected, found, (*_ALLOWED, *allowed))
    assert not apart, "\n".join(apart)
    assert "0 with something new" in ferry("import", str(source.path)).stdout


def test_runs_of_tensorboard_and_wandb_are_on_the_server_once_also_when_they_have_grown_or_come_again(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    spool, name = tmp_path / "spool", unique("others")
    ferry = Ferry(spool, tmp_path / "state", mlflow_server.url)
    for first in (0, 20):
        with contextlib.closing(SummaryWriter(str(tmp_path / "logs"))) as writer:
            for step in range(first, first + 20):
                writer.add_scalar("loss (%)", step / 4, step, walltime=1.7e9 + step)
        for path in (tmp_path / "logs", WANDB):
            os.utime(next((tmp_path / "logs").iterdir()), (0, 0))
            imported = ferry("import", str(path), "--experiment", name)
            assert imported.returncode == 0, imported.stderr
        assert ferry("sync").returncode == 0
    assert ferry("verify").returncode == 0
    cleaned = ferry("clean", "--yes", "--older-than", "0s")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert "1 new run" in ferry("import", str(tmp_path / "logs"), "--experiment", name).stdout
    assert ferry("sync").returncode == 0
    runs = {run.name: run for run in map(mlflow_server.stored, _runs_in(mlflow_server, name))}
    assert len(_runs_in(mlflow_server, name)) == 2
    board, wandb = runs["logs"], runs["first flight"]
    assert board.metrics == sorted(
        (Point("loss ___", step, 1_700_000_000_000 + 1000 * step, step / 4) for step in range(40)), key=repr
    )
    assert Counter(found.key for found in wandb.metrics) == {"loss": 5, "epoch": 5, "odd": 5, "valid.loss": 1}
    assert wandb.params == {"lr": "0.1", "name": "größer", "net.width": "[64, 64]", "net.bias": "true"}
    assert wandb.status == "FINISHED"


def _runs_in(server: MlflowServer, experiment: str) -> list[str]:
    found = server.client().get_experiment_by_name(experiment)
    return [run.info.run_id for run in server.client().search_runs([found.experiment_id])]
