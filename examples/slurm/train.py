"""Trains a small classifier that goes on from its checkpoint when its job is requeued: see train.sbatch.

SIGTERM (preemption, time limit, scancel) is answered with a checkpoint and exit code 143. The next attempt begins with the
step after the last one that was logged, so that the run has no gap and no point twice. After SIGKILL the steps since the
last checkpoint are trained and logged again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mlferry

STEPS_BETWEEN_CHECKPOINTS = 500


class Training:
    """A classifier of two interleaved spirals, and all that must be kept to go on with it."""

    def __init__(self, checkpoint: Path) -> None:
        torch.manual_seed(0)
        turn, which = torch.rand(200).sqrt() * 9.4, torch.arange(200) % 2
        angle = turn + which * torch.pi
        self.inputs, self.labels = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 10, which
        self.model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.checkpoint, self.next_step = checkpoint, 0
        if checkpoint.exists():
            self._load(torch.load(checkpoint, weights_only=True))

    def step(self) -> torch.Tensor:
        """One step of the optimizer over all points; the loss before it."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.next_step += 1
        return loss

    def save(self) -> None:
        """Whole or not at all, also when killed in the middle."""
        kept = {"step": self.next_step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(kept, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def _load(self, kept: dict[str, Any]) -> None:
        self.next_step = kept["step"]
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])


def train(training: Training, steps: int, told_to_stop: threading.Event) -> None:
    while training.next_step < steps and not told_to_stop.is_set():
        step = training.next_step
        mlferry.log_metric("loss", training.step(), step=step)
        if training.next_step % STEPS_BETWEEN_CHECKPOINTS == 0:
            training.save()
    training.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--checkpoint", type=Path, default=Path("spirals.pt"))
    given = parser.parse_args()

    # Before the run starts: who handles SIGTERM by then is asked by mlferry whether to go on.
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.set())

    training = Training(given.checkpoint)
    mlferry.set_experiment("two spirals")
    with mlferry.start_run():
        mlferry.log_params({"steps": given.steps, "learning_rate": 0.01})
        train(training, given.steps, told_to_stop)
        if told_to_stop.is_set():
            mlferry.end_run("KILLED")
    if told_to_stop.is_set():
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
