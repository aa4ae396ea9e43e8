"""A training that is killed at any moment, started again with the same words, and is one run all the same.

    export MLFERRY_RUN_ID=requeued-$(id -un)-$(date +%s)   # whoever else says this id logs into this run
    python examples/requeued_training.py                 # kill -9 it
    python examples/requeued_training.py                 # it goes on where its last checkpoint was
    mlferry sync --to http://127.0.0.1:5000              # one run, FINISHED, no step missing

On Slurm `sbatch --requeue` starts it again by itself (examples/slurm/train.sbatch), and the job's id names the run.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

import mlferry


def restored(checkpoint: Path, model: torch.nn.Module) -> int:
    """The step to go on with."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    return int(state["step"]) + 1


def save(checkpoint: Path, model: torch.nn.Module, step: int) -> None:
    """Whole or not at all: a kill may come in the midst of it."""
    torch.save({"model": model.state_dict(), "step": step}, checkpoint.with_suffix(".new"))
    checkpoint.with_suffix(".new").replace(checkpoint)


def train(checkpoint: Path, steps: int, pace_s: float) -> None:
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    mlferry.set_experiment("requeued")
    with mlferry.start_run():
        for step in range(restored(checkpoint, model), steps):
            inputs = torch.randn(32, 8)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mlferry.log_metric("loss", loss, step=step)
            save(checkpoint, model, step)
            time.sleep(pace_s)
        mlferry.log_artifact(checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("requeued.pt"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pace-s", type=float, default=0.05, help="seconds that a step takes")
    given = parser.parse_args()
    if "MLFERRY_RUN_ID" not in os.environ:
        parser.error("MLFERRY_RUN_ID must name the run, so that a second start goes on with it")
    train(given.checkpoint, given.steps, given.pace_s)
