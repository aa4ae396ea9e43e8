"""The fast lane: a script's spool in a bundle, written straight into a database, on which a server then comes up.

The oracle as everywhere: what that server holds is compared field by field with what the same script left online.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from tests.oracle import differences, snapshot
from tests.oracle.normalise import Flat, flat
from tests.oracle.stage import Performance, Stage
from tests.servers import MlflowServer

SCRIPTS = [("media",), pytest.param(("basics", "asked"), marks=pytest.mark.long)]

#: The id of each run and model of one script, offline.
Ids = dict[str, set[str]]


@dataclass(frozen=True, slots=True)
class Lane:
    """Scripts that were executed both ways, and the server on the database that their bundles were written into."""

    server: MlflowServer
    online: dict[str, Performance]
    offline: dict[str, Performance]
    expected: dict[str, Flat]
    ids: dict[str, Ids]

    def found(self, script: str) -> Flat:
        """What the server on the database holds of one script."""
        everything = snapshot.take(self.server.url)
        others = {name for name in everything.names() if not name.startswith(f"oracle-{script}")}
        others -= {f"oracle {script}"}
        held = snapshot.take(self.server.url, but=others)
        return flat(held, self.offline[script].window, server=self.server.url)


def carry(stage: Stage, script: str, into: MlflowServer) -> None:
    """By a bundle, into the database of a server that does not run."""
    ferry, bundle = stage.ferry(script), stage.folder / f"{script}.tar.zst"
    outside = type(ferry)(stage.folder / "outside", stage.folder / "state" / "outside")
    assert ferry("export", str(bundle)).returncode == 0
    words = ("import", str(bundle), "--into", f"sqlite:///{into.database}", "--artifacts", str(into.artifact_root))
    imported = outside(*words)
    assert imported.returncode == 0, imported.stdout + imported.stderr


def ids_in(spool: Path) -> Ids:
    held = snapshot.take(f"spool://{spool}", but={"Default"})
    return {"runs": {run["run_id"] for run in held.runs}, "models": {model["model_id"] for model in held.models}}


@pytest.fixture(scope="module", params=SCRIPTS, ids=" and ".join)
def lane(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Lane]:
    online, offline, expected, ids = {}, {}, {}, {}
    server = MlflowServer(stage.folder / f"lane of {request.param[0]}")
    server.root.mkdir()
    for script in request.param:
        online[script] = stage.perform_online(script)
        offline[script] = stage.perform_offline(script)
        assert (offline[script].code, online[script].code) == (0, 0), offline[script].words
        expected[script] = stage.held(stage.online, online[script])
        stage.forget()
        ids[script] = ids_in(stage.spool(script))
        carry(stage, script, server)
    with server:
        yield Lane(server, online, offline, expected, ids)


@pytest.mark.timeout(600)
def test_what_a_script_logged_is_in_the_database_as_if_it_had_been_online(lane: Lane) -> None:
    for script, expected in lane.expected.items():
        assert expected["runs/count"]
        assert differences.between(expected, lane.found(script), differences.allowed()) == []


def test_runs_and_models_keep_their_ids(lane: Lane) -> None:
    held = snapshot.take(lane.server.url)
    assert {run["run_id"] for run in held.runs} == set().union(*(ids["runs"] for ids in lane.ids.values()))
    assert {model["model_id"] for model in held.models} == set().union(*(ids["models"] for ids in lane.ids.values()))
    assert len(held.runs) >= 2 and held.models


def test_a_model_loads_by_its_own_id_and_by_its_run_and_its_registered_name(lane: Lane) -> None:
    if "media" not in lane.ids:
        return  # no other script has one that loads
    [first, *_] = sorted(lane.ids["media"]["models"])
    mlflow.set_tracking_uri(lane.server.url)
    try:
        info = mlflow.models.get_model_info(f"models:/{first}")
        assert (info.model_id, info.run_id in lane.ids["media"]["runs"]) == (first, True)
        ways = (f"models:/{first}", f"runs:/{info.run_id}/{info.name}", "models:/oracle media@champion")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow, about the type hints of the model
            assert [list(mlflow.pyfunc.load_model(way).predict([2.0])) for way in ways] == [[4.0]] * 3
    finally:
        mlflow.set_tracking_uri(None)
