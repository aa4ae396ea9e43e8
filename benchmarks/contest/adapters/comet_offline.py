"""Comet, offline experiment."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPORT = "import comet_ml"
ENVIRONMENT = {"COMET_MODE": "offline", "COMET_LOGGING_CONSOLE": "ERROR", "COMET_DISABLE_ANNOUNCEMENT": "1"}
COUNTED = (
    "metric messages in `messages.json`: in the zip that `comet upload` takes, or after a kill in its temporary folder"
)

_experiments: list[Any] = []


def start(directory: Path) -> Any:
    from comet_ml import OfflineExperiment

    experiment = OfflineExperiment(project_name="peers", workspace="peers", offline_directory=str(directory))
    _experiments.append(experiment)

    def one(key: str, value: float, step: int) -> None:
        experiment.log_metric(key, value, step=step)

    def many(values: dict[str, float], step: int) -> None:
        experiment.log_metrics(values, step=step)

    return one, many


def finish() -> None:
    _experiments.pop().end()


def count(directory: Path) -> int:
    messages = (json.loads(line) for line in _lines(directory))
    return sum(_key(message) == "loss" for message in messages)


def _key(message: dict[str, Any]) -> str | None:
    payload = message.get("payload", {})
    metric = payload.get("metric") or {}
    return metric.get("metricName")


def _lines(root: Path) -> Iterator[str]:
    for path in root.rglob("messages.json"):
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    for path in root.rglob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            if "messages.json" in archive.namelist():
                yield from archive.read("messages.json").decode().splitlines()
