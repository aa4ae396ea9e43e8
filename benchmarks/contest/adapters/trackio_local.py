"""Trackio, local."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

IMPORT = "import trackio"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
COUNTED = "its `SQLiteStorage.get_log_count`"


def start(directory: Path) -> Any:
    os.environ["TRACKIO_DIR"] = str(directory / "trackio")
    import trackio

    trackio.init(project="peers", name="run", embed=False)

    def one(key: str, value: float, step: int) -> None:
        trackio.log({key: value}, step=step)

    return one, lambda values, step: trackio.log(values, step=step)


def finish() -> None:
    import trackio

    trackio.finish()


def count(directory: Path) -> int:
    os.environ["TRACKIO_DIR"] = str(directory / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    return int(SQLiteStorage.get_log_count("peers", "run"))
