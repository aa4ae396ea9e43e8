"""ClearML, offline mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPORT = "import clearml"
ENVIRONMENT = {"CLEARML_OFFLINE_MODE": "1", "CLEARML_LOG_LEVEL": "ERROR"}
COUNTED = "lines of `metrics.jsonl` in the session's folder, which `Task.import_offline_session` takes"

_tasks: list[Any] = []


def start(directory: Path) -> Any:
    from clearml import Task

    task = Task.init("peers", "run", auto_connect_frameworks=False)
    _tasks.append(task)
    report = task.get_logger().report_scalar

    def one(key: str, value: float, step: int) -> None:
        report(key, key, value, step)

    def many(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            report(key, key, value, step)

    return one, many


def finish() -> None:
    _tasks.pop().close()


def count(directory: Path) -> int:
    events = [event for line in _lines(directory.parent) for event in json.loads(line)]
    return sum(event.get("metric") == "loss" for event in events)


def _lines(root: Path) -> Iterator[str]:
    """The zip of a session is made when it ends, beside its folder."""
    for path in root.rglob("metrics.jsonl"):
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
