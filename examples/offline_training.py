"""Trains a small classifier and logs it with mlferry: no server, no network, nothing to configure.

    python examples/offline_training.py
    mlferry sync --to http://127.0.0.1:5000

Stop it with Ctrl-C, SIGTERM or SIGKILL at any moment: what was logged until then is delivered.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import mlferry


def two_spirals(points: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on two interleaved spirals, and which of the two each is on: easy to make, not linearly separable."""
    turn = torch.rand(points, generator=generator).sqrt() * 9.4
    which = torch.arange(points) % 2
    angle = turn + which * torch.pi
    noise = torch.randn(points, 2, generator=generator) * 0.2
    return torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 10 + noise / 10, which


def train(epochs: int, learning_rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    inputs, labels = two_spirals(2_000, generator)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    mlferry.set_experiment("two spirals")
    with mlferry.start_run(run_name=f"seed {seed}"):
        mlferry.log_params({"epochs": epochs, "learning_rate": learning_rate, "seed": seed})
        for epoch in range(epochs):
            logits = model(inputs)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accuracy = (logits.argmax(dim=1) == labels).float().mean()
            mlferry.log_metrics({"loss": loss, "accuracy": accuracy}, step=epoch)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "model.pt"
            torch.save(model.state_dict(), weights)
            mlferry.log_artifact(weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train(given.epochs, given.learning_rate, given.seed)
