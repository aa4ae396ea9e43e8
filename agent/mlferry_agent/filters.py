"""Runs of a spool that fit a filter as MLflow's search knows it (``metrics.loss < 0.1 and params.lr = '0.01'``).

The agent never imports MLflow: its own search is asked in a process of its own, where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlferry_agent.errors import BadFilter, NoFilters

__all__ = ["matching"]

_SEARCH = "mlferry.plugin.matching"


def matching(root: Path, wanted: str, order_by: Sequence[str] = ()) -> list[str]:
    """Ids of the runs that fit, in MLflow's order.

    Raises:
        NoFilters: MLflow is not installed here. BadFilter: MLflow does not understand it.
    """
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("mlferry") is None:
        raise NoFilters("MLflow is not installed beside this command: pip install 'mlferry[mlflow]'")
    command = [sys.executable, "-W", "ignore", "-m", _SEARCH, str(root.absolute()), wanted, *order_by]
    # From the root directory, so that no file of the user's is taken for a module.
    done = subprocess.run(command, cwd="/", env=_environ(), capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise BadFilter(done.stderr.strip())
    if done.returncode:
        raise NoFilters(f"MLflow's search failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout.split()


def _environ() -> dict[str, str]:
    """Without what would send MLflow elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true"}
