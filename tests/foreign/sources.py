"""Sources to import, made by the libraries whose they are, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers import MlflowServer

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class MlflowSource:
    """An MLflow store of somebody's, with its artifacts, below ``folder``; ``uri`` is what they gave MLflow."""

    folder: Path
    uri: str
    path: Path

    @classmethod
    def database(cls, folder: Path) -> MlflowSource:
        return cls(folder, f"sqlite:///{folder}/mlflow.db", folder / "mlflow.db")

    @classmethod
    def file_store(cls, folder: Path) -> MlflowSource:
        return cls(folder, f"file://{folder}/mlruns", folder / "mlruns")

    def log(self, experiment: str, *words: str) -> None:
        """Log what ``mlflow_script`` logs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_script("mlflow_script.py", self.uri, experiment, *words, where=self.folder)

    @contextlib.contextmanager
    def served(self) -> Iterator[MlflowServer]:
        """A server of MLflow's on this store."""
        words = ("--backend-store-uri", self.uri)
        environ = {"MLFLOW_ALLOW_FILE_STORE": "true"}
        with MlflowServer(self.folder / "server", extra_args=words, extra_env=environ) as server:
            yield server


def run_script(name: str, *words: str, where: Path) -> None:
    """Run a script of this folder."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_", "WANDB_"))
    }
    told = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, str(SCRIPTS / name), *words]
    done = subprocess.run(command, env={**clean, **told}, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
