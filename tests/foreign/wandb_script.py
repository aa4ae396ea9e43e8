"""What somebody logged with wandb offline; the run in ``wandb-0.31.0`` was made by this, with that version.

Needs wandb, which the tests do not: it weighs 60 MB, and the file that it wrote stays what it is.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import wandb  # type: ignore[import-not-found, unused-ignore]


def log(folder: Path) -> None:
    """A run with numbers, texts, a histogram, a nested number, config and a saved file."""
    run = wandb.init(
        dir=str(folder),
        mode="offline",
        project="birds",
        name="first flight",
        id="fl1ght01",
        config={"lr": 0.1, "name": "größer", "net": {"width": [64, 64], "bias": True}},
        tags=["baseline"],
        notes="what we tried",
        group="sweep",
        settings=wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off"),
    )
    for step in range(5):
        run.log({"loss": 1 / (step + 3), "epoch": step, "odd": math.nan if step else math.inf, "said": "text"})
    run.log({"spread": wandb.Histogram([1, 2, 3]), "valid": {"loss": 1.5}}, step=7)
    run.summary["best"] = 3.5
    run.finish()


if __name__ == "__main__":
    log(Path(sys.argv[1]))
