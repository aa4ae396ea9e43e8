"""TensorBoard event files by PyTorch's SummaryWriter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contest.adapters import tensorboard_x

IMPORT = "from torch.utils.tensorboard import SummaryWriter"
ENVIRONMENT: dict[str, str] = {}
COUNTED = tensorboard_x.COUNTED
finish, count = tensorboard_x.finish, tensorboard_x.count


def start(directory: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return tensorboard_x.begun(SummaryWriter(str(directory / "tensorboard")))
