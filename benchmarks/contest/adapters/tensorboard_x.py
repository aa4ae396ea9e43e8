"""TensorBoard event files by tensorboardX's SummaryWriter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMPORT = "from tensorboardX import SummaryWriter"
ENVIRONMENT: dict[str, str] = {}
COUNTED = "TensorBoard's `EventAccumulator`"

_writers: list[Any] = []


def _writer(directory: Path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"))


def start(directory: Path) -> Any:
    return begun(_writer(directory))


def begun(writer: Any) -> Any:
    _writers.append(writer)

    def many(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return writer.add_scalar, many


def finish() -> None:
    _writers.pop().close()


def count(directory: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return len(events.Scalars("loss")) if "loss" in events.Tags()["scalars"] else 0
