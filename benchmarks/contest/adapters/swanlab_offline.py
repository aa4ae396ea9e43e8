"""SwanLab, offline mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMPORT = "import swanlab"
ENVIRONMENT = {"SWANLAB_MODE": "offline"}
COUNTED = "its `DataStoreReader`, which `swanlab sync` reads: scalar records of the run's file"


def start(directory: Path) -> Any:
    import swanlab

    swanlab.init(project="peers", mode="offline", log_dir=str(directory))

    def one(key: str, value: float, step: int) -> None:
        swanlab.log({key: value}, step=step)

    return one, lambda values, step: swanlab.log(values, step=step)


def finish() -> None:
    import swanlab

    swanlab.finish()


def count(directory: Path) -> int:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    [file] = directory.rglob("*.swanlab")
    reader.open(file)
    return sum(Record.FromString(record).HasField("scalar") for record in reader)
