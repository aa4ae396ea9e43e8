"""What every ``import mlflow`` on the machine imports of mlferry: the standard library alone, and nothing that can fail."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

SOURCE = Path(__file__).parents[3]

#: Everything of mlferry but its entry, and what it is built on, as an installation that came apart would have them.
BROKEN = """
import importlib.abc, sys

class Broken(importlib.abc.MetaPathFinder):
    met = []
    def find_spec(self, name, path=None, target=None):
        ours = name.startswith(("mlferry.", "mlferry_")) and name not in ("mlferry.plugin", "mlferry.plugin.entry")
        if ours or name.partition(".")[0] == "msgpack":
            self.met.append(name)
            raise RuntimeError(f"{name} is broken")

sys.meta_path.insert(0, Broken())
"""


def python(code: str, folder: Path) -> str:
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk", "agent"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    told = {**clean, "PYTHONPATH": paths, "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, env=told, capture_output=True, text=True, timeout=180, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_entry_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    printed = python(
        """
        import sys
        before = set(sys.modules)
        import mlferry.plugin.entry
        print(*(set(sys.modules) - before))
        """,
        tmp_path,
    )
    others = {name for name in printed.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"mlferry", "mlferry.plugin", "mlferry.plugin.entry"}


def test_nothing_of_mlferry_that_is_broken_keeps_mlflow_from_its_work(tmp_path: Path) -> None:
    code = """
        import mlflow
        from mlflow.tracking._tracking_service.utils import _tracking_store_registry
        assert "mlferry.plugin.entry" in sys.modules, "the entry point was not loaded"
        assert "spool" in _tracking_store_registry._registry
        mlflow.set_tracking_uri("file:runs")
        try:
            with mlflow.start_run() as run:
                mlflow.log_metric("m", 1.0)
            assert mlflow.get_run(run.info.run_id).data.metrics == {"m": 1.0}
        except mlflow.exceptions.MlflowException as error:
            assert "maintenance" in str(error)  # files are no store any more; what matters is who refuses
        assert Broken.met == [], Broken.met
        try:
            mlflow.set_tracking_uri("spool:spool")
            mlflow.start_run()
        except RuntimeError as error:
            print(error)
        """
    assert python(BROKEN + textwrap.dedent(code), tmp_path).endswith("is broken")
