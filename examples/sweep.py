"""A sweep: a parent run, and a child run for each setting, each in a process of its own.

python examples/sweep.py
mlferry sync --to http://127.0.0.1:5000
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import mlferry


def descend(parent_run_id: str, learning_rate: float) -> float:
    """Gradient descent on x * x, as a child of the sweep."""
    mlferry.set_experiment("sweep")
    with mlferry.start_run(parent_run_id=parent_run_id, run_name=f"lr {learning_rate:g}"):
        mlferry.log_param("learning_rate", learning_rate)
        x = 1.0
        for step in range(20):
            x -= learning_rate * 2 * x
            mlferry.log_metric("x", x, step=step)
        mlferry.log_metric("distance", abs(x))
    return abs(x)


if __name__ == "__main__":
    rates = [0.01, 0.1, 0.4, 0.9]
    mlferry.set_experiment("sweep")
    with mlferry.start_run(run_name="sweep") as sweep:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            distances = list(pool.map(partial(descend, sweep.info.run_id), rates))
        mlferry.log_params({"best learning_rate": rates[distances.index(min(distances))]})
