"""mlferry's own functions for what is large: whole curves in one call, checkpoints without a copy, a run that goes on.

python examples/series_and_checkpoints.py                 # its last line says the run's id
python examples/series_and_checkpoints.py --run-id ID     # the same run goes on
mlferry sync --to http://127.0.0.1:5000
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import mlferry


def train(run_id: str | None, steps: int) -> None:
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(64, 8)
    losses = np.empty(steps)
    mlferry.set_experiment("series and checkpoints")
    with mlferry.start_run(run_id, run_name=None if run_id else "series"):
        for step in range(steps):
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[step] = loss.item()
        mlferry.log_series("loss", losses)  # all points of it: 8 bytes each
        mlferry.log_metric("final loss", loss, step=steps)  # a tensor, as it is
        with mlferry.open_artifact("checkpoints/last.pt") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-id", help="the run to go on with; a new one if it is not given")
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    train(given.run_id, given.steps)
