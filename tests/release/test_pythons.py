"""The wheel under every Python: the core alone logs, the agent delivers, MLflow logs through the plugin where it installs.

Each Python that uv finds (or may download) gets an environment of its own, which uv fills from the package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers import MlflowServer

pytestmark = [pytest.mark.release, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

CORE = """
import mlferry
mlferry.set_experiment("pythons")
with mlferry.start_run(run_name="core") as run:
    mlferry.log_params({"lr": 0.1})
    for step in range(50):
        mlferry.log_metric("loss", 1 / (step + 1), step=step)
    mlferry.log_text("hello", "notes.txt")
"""

MLFLOW = """
import mlflow
mlflow.set_experiment("pythons")
with mlflow.start_run(run_name="plugin"):
    mlflow.log_param("lr", 0.1)
    mlflow.log_metric("loss", 0.5, step=1)
    mlflow.log_text("hello", "notes.txt")
[found] = mlflow.search_runs(output_format="list", filter_string="attributes.run_name = 'plugin'")
assert found.data.metrics == {"loss": 0.5}, found
"""


class Environment:
    """A virtual environment of one Python, with the wheel of ``dist/``, used from the root directory."""

    def __init__(self, python: str, folder: Path) -> None:
        self._folder = folder
        self._run("uv", "venv", "--quiet", "--python", python, folder)

    def install(self, extra: str) -> None:
        [wheel] = (REPOSITORY / "dist").glob("mlferry-*-manylinux*.whl")
        target = ["--python", self._folder / "bin/python"]
        self._run("uv", "pip", "install", "--quiet", *target, f"mlferry{extra} @ {wheel.as_uri()}")

    def python(self, program: str, **environ: str) -> str:
        return self._run(self._folder / "bin/python", "-W", "error::SyntaxWarning", "-c", program, **environ)

    def mlferry(self, *words: str, **environ: str) -> str:
        return self._run(self._folder / "bin/mlferry", *words, **environ)

    def _run(self, *command: str | Path, **environ: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLF", "PYTHON", "XDG_"))}
        clean["PATH"] = f"{BIN}:/usr/bin:/bin"
        words = [str(part) for part in command]
        done = subprocess.run(words, cwd="/", env={**clean, **environ}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module", autouse=True)
def wheel() -> None:
    subprocess.run(["make", "dist"], cwd=REPOSITORY, check=True, capture_output=True)


@pytest.fixture(params=PYTHONS)
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    kept = sorted(Path.home().glob(f".pyenv/versions/{request.param}.*/bin/python"))
    wanted = str(kept[-1]) if kept else request.param
    asked = [BIN / "uv", "python", "install", request.param] if not kept else [wanted, "--version"]
    if (done := subprocess.run(asked, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no Python {request.param} here, and none to be had: {done.stderr.strip()[-200:]}")
    return Environment(wanted, tmp_path / "venv")


def test_what_each_python_logs_arrives(environment: Environment, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    spool, state = tmp_path / "spool", tmp_path / "state"
    environment.install("")
    environment.python(CORE, MLFERRY_DIR=str(spool))
    environment.install("[agent]")
    places = ["--dir", str(spool), "--state-dir", str(state), "--to", mlflow_server.url]
    environment.mlferry("sync", *places)
    environment.mlferry("verify", *places)
    environment.install("[agent,mlflow]")
    environment.python(MLFLOW, MLFLOW_TRACKING_URI=f"spool://{spool}", MLFLOW_DISABLE_TELEMETRY="true")
    environment.mlferry("sync", *places)
    environment.mlferry("verify", *places)
    said = json.loads(environment.mlferry("status", "--all", "--json", *places))
    assert [run["pending"] for run in said] == [0, 0]
    assert all(run["acknowledged"] for run in said)
