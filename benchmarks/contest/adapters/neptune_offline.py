"""Neptune (neptune-scale), offline mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMPORT = "import neptune_scale"
ENVIRONMENT = {"NEPTUNE_MODE": "offline", "NEPTUNE_PROJECT": "peers/peers", "NEPTUNE_LOGGER_LEVEL": "error"}
COUNTED = "its `OperationsRepository`, which `neptune sync` reads: appended values in the SQLite file"

_runs: list[Any] = []


def start(directory: Path) -> Any:
    from neptune_scale import Run

    run = Run(run_id="peers", mode="offline", log_directory=directory)
    _runs.append(run)

    def one(key: str, value: float, step: int) -> None:
        run.log_metrics({key: value}, step=step)

    return one, lambda values, step: run.log_metrics(values, step=step)


def finish() -> None:
    _runs.pop().close()


def count(directory: Path) -> int:
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import UpdateRunSnapshot
    from neptune_scale.sync.operations_repository import OperationsRepository

    [file] = directory.rglob("*.sqlite3")
    repository, found, last = OperationsRepository(db_path=file), 0, None
    while operations := repository.get_operations(up_to_bytes=64 << 20, from_exclusive=last):
        for operation in operations:
            if isinstance(operation.operation, UpdateRunSnapshot):
                found += len(operation.operation.append)
        last = operations[-1].sequence_id
    return found
