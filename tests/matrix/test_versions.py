"""The plugin under the oldest and the newest MLflow that it supports, each in a virtual environment of its own.

The environments are made once, in ``.venv-matrix``; where no package index can be reached the tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.oracle.stage import Stage
from tests.servers import MlflowServer
from tests.spooling import Ferry

REPOSITORY = Path(__file__).parents[2]
SCENARIO = Path(__file__).with_name("scenario.py")
ENVIRONMENTS = REPOSITORY / ".venv-matrix"

#: What pip is asked for; the newest is whatever the index has today.
#: MLflow 3.0 cannot trace with an OpenTelemetry of today.
VERSIONS = {"oldest": ("mlflow==3.0.0", "opentelemetry-sdk<1.37"), "newest": ("mlflow",)}

#: Executes a script with whatever else it imports (torch is large) from the packages of these tests.
BORROWING = f"""
import runpy, sys
sys.path.append({sysconfig.get_path("purelib")!r})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(name: str) -> Path:
    """The interpreter of an environment with this MLflow and the plugin."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed", " ".join(VERSIONS[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        quiet = ["-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        done = subprocess.run(
            [python, *quiet, *VERSIONS[name], "msgpack>=1.2.3", "pillow"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"{wanted} could not be installed: {done.stderr.strip()[-300:]}")
        subprocess.run([python, *quiet, "--no-deps", "-e", str(REPOSITORY)], check=True, capture_output=True)
        stamp.write_text(wanted)
    return python


def perform(python: str | Path, spool: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    done = subprocess.run(
        [python, str(SCENARIO), str(spool)], env=clean, cwd=spool.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_plugin_works_with_the_installed_mlflow(tmp_path: Path) -> None:
    assert perform(sys.executable, tmp_path / "spool").startswith("all as it should be")


def newer() -> bool:
    """Whether pip would install a newer MLflow than the one of these tests."""
    words = ["-m", "pip", "install", "-qq", "--dry-run", "--upgrade", "--report", "-", "mlflow"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index says what is the newest MLflow: {done.stderr.strip()[-300:]}")
    return "mlflow" in {package["metadata"]["name"] for package in json.loads(done.stdout)["install"]}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", VERSIONS)
def test_the_plugin_works_with_the_oldest_and_the_newest_mlflow(name: str, tmp_path: Path) -> None:
    if name == "newest" and not newer():
        pytest.skip("the newest MLflow is the installed one, with which it was tried above")
    said = perform(environment(name), tmp_path / "spool")
    assert said.startswith("all as it should be")
    assert name != "oldest" or said.endswith("3.0.0")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_trace_of_the_oldest_mlflow_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(environment("oldest"), tmp_path / "spool")
    with MlflowServer(tmp_path / "server") as server:
        done = Ferry(tmp_path / "spool", tmp_path / "state", server.url)("sync")
        assert done.returncode == 0, done.stdout + done.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        client = MlflowClient(server.url)
        experiment = client.get_experiment_by_name("matrix")
        [run] = client.search_runs([experiment.experiment_id], "attributes.run_name = 'traced'")
        [trace] = client.search_traces(locations=[experiment.experiment_id])
        assert sorted(span.name for span in trace.data.spans) == ["inner", "traced"]
        assert (trace.info.tags["after"], trace.info.state.value) == ("1", "OK")
        assert trace.info.trace_metadata["mlflow.sourceRun"] == run.info.run_id


@pytest.mark.timeout(900)
def test_the_guide_runs_whole_with_an_mlflow_that_saves_a_model_without_an_example(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    python = str(environment("oldest"))
    with MlflowServer(tmp_path / "online") as online, MlflowServer(tmp_path / "target") as target:
        stage = Stage(online, target, tmp_path, python=(python, "-c", BORROWING))
        assert stage.differences("guide", "training", "scripted", "saving", "signed") == []
        [log] = tmp_path.glob("guide*.log")
        words = log.read_text()
        assert "training: executed" in words and "signed: [[" in words
        assert not [word for word in ("Error", "Exception") if word in words], words
