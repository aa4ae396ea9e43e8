"""Aim, local repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

IMPORT = "import aim"
ENVIRONMENT = {"AIM_ACCESS_TOKEN": ""}
COUNTED = "its `Repo` after `aim storage reindex`: values of the metric's sequence"

_runs: list[Any] = []


def start(directory: Path) -> Any:
    from aim import Run

    run = Run(repo=str(directory))
    _runs.append(run)
    (directory / "run_hash").write_text(run.hash)

    def one(key: str, value: float, step: int) -> None:
        run.track(value, name=key, step=step)

    def many(values: dict[str, float], step: int) -> None:
        run.track(values, step=step)

    return one, many


def finish() -> None:
    _runs.pop().close()


def count(directory: Path) -> int:
    from aim import Repo

    reindex = [str(Path(sys.executable).with_name("aim")), "storage", "--repo", str(directory), "reindex", "--yes"]
    subprocess.run(reindex, check=True, stdout=subprocess.DEVNULL)
    run = Repo.from_path(str(directory)).get_run((directory / "run_hash").read_text())
    metrics = run.metrics() if run else []
    return sum(len(metric.values.sparse_numpy()[1]) for metric in metrics if metric.name == "loss")
