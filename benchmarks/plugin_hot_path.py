"""What mlferry adds to ``mlflow.log_metrics``: the same call on a store that does nothing, a spool, SQLite, and a server.

    python benchmarks/plugin_hot_path.py [--rounds N] [--calls N] [--metrics N] [--json FILE] [--directory DIR]

Rounds of all contestants are interleaved in one process, so that whatever else the machine does falls on all of them.
``x spool``: call on it / call on ``spool:``, of the same round. ``share``: (call on it - call on the store that does
nothing) / call on it, of the same round: what the store costs of the whole call. Medians over rounds of the medians of a
round, with the 10th and 90th percentile.

In a process that logs to a spool, MLflow's search for Spark is made rarer (``mlferry.plugin.spark``). Here it is for
`spool:` and `nothing` alone, and MLflow's own for all others, as in a process of each.

A round is long enough to be about calls, not about the begin of a run: the files that a resumed run makes are synced in the
background, and while that thread waits for the interpreter's lock, each call of a program that does nothing but log is some
10 us slower, for a quarter of a second.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true")
warnings.simplefilter("ignore")

import mlflow  # noqa: E402
from benchmarks import results  # noqa: E402
from mlflow.tracking._model_registry import utils as registry_utils  # noqa: E402
from mlflow.tracking._tracking_service import utils  # noqa: E402
from tests.servers import MlflowServer  # noqa: E402

from mlferry.plugin.spark import search_once_a_second  # noqa: E402
from mlferry.plugin.tracking import SpoolTrackingStore  # noqa: E402

UNTOUCHED = "nothing, MLflow as it is"
OWN_SEARCH = registry_utils._get_active_spark_session

#: Rounds of one call of these would take as long as all others.
SLOW = {UNTOUCHED: 4, "SQLite": 20, "server": 40}


class Nothing(SpoolTrackingStore):
    """A spool's store whose points go nowhere: what is left of a call is MLflow's own."""

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        pass

    def log_metric(self, run_id: str, metric: Any) -> None:
        pass


@contextmanager
def contestants(directory: Path) -> Iterator[dict[str, str]]:
    """The tracking URI of each."""
    utils._tracking_store_registry.register("nothing", lambda store_uri, artifact_uri=None: Nothing(store_uri[8:]))
    with MlflowServer(directory / "server") as server:
        yield {
            "nothing": f"nothing:spool://{directory}/nothing",
            UNTOUCHED: f"nothing:spool://{directory}/untouched",
            "spool:": f"spool://{directory}/spool",
            "SQLite": f"sqlite:///{directory}/mlflow.db",
            "server": server.url,
        }


def times(calls: int, call: Callable[[int], object]) -> float:
    """The median of some calls, in microseconds."""
    taken, clock = [], time.perf_counter_ns
    for step in range(calls):
        begun = clock()
        call(step)
        taken.append(clock() - begun)
    return statistics.median(taken) / 1000


def measure(rounds: int, calls: int, metrics: int, directory: Path) -> list[dict[str, Any]]:
    logged = {f"train/metric_{number}": 0.5 + number for number in range(metrics)}
    taken: dict[str, list[float]] = {}
    with contestants(directory) as uris, ExitStack() as stack:
        stack.callback(mlflow.end_run)
        runs = {name: _run(uri) for name, uri in uris.items()}
        for round_ in range(rounds + 1):
            for name, uri in uris.items():
                mlflow.set_tracking_uri(uri)
                registry_utils._get_active_spark_session = OWN_SEARCH
                if name in ("nothing", "spool:"):
                    search_once_a_second()
                with mlflow.start_run(run_id=runs[name]):
                    median = times(_few(name, calls), lambda step: mlflow.log_metrics(logged, step=step))
                if round_:  # the first warms up
                    taken.setdefault(name, []).append(median)
    return [_row(name, taken, metrics) for name in taken]


def _few(name: str, calls: int) -> int:
    """Calls of a round."""
    return max(calls // SLOW.get(name, 1), 3)


def _run(uri: str) -> str:
    mlflow.set_tracking_uri(uri)
    return str(mlflow.MlflowClient().create_run("0").info.run_id)


def _row(name: str, taken: dict[str, list[float]], metrics: int) -> dict[str, Any]:
    mine = taken[name]
    ratios = [own / spool for own, spool in zip(mine, taken["spool:"], strict=True)]
    bare = [own / least for own, least in zip(mine, taken["nothing"], strict=True)]
    shares = [(own - least) / own for own, least in zip(mine, taken["nothing"], strict=True)]
    spreads = {**results.spread(mine, "us"), **results.spread(ratios, "ratio")}
    spreads |= {**results.spread(bare, "bare"), **results.spread(shares, "share")}
    named = {"us": "median_us", "us_p10": "p10_us", "us_p90": "p90_us"}
    return {"name": name, "metrics": metrics, **{named.get(key, key): value for key, value in spreads.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=4000, help="per round, for the fast ones")
    parser.add_argument("--metrics", type=int, nargs="*", default=[1, 10], help="in one call")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    rows: list[dict[str, Any]] = []
    for metrics in given.metrics:
        with tempfile.TemporaryDirectory(dir=given.directory) as directory:
            rows += measure(given.rounds, given.calls, metrics, Path(directory))
    print(f"{'':36}{'median':>12}{'p10 to p90':>24}{'x spool':>9}  {'(p10 to p90)':20}{'share':>9}  (p10 to p90)")
    for row in rows:
        place = f"{row['name']}, {row['metrics']} metric{'s' * (row['metrics'] > 1)}"
        spread = f"{row['p10_us']:.0f} to {row['p90_us']:.0f} us"
        ratios = f"{row['ratio']:9.2f}  " + f"({row['ratio_p10']:.2f} to {row['ratio_p90']:.2f})".ljust(20)
        shares = f"{row['share']:9.1%}  ({row['share_p10']:.1%} to {row['share_p90']:.1%})"
        print(f"{place:36}{row['median_us']:9.0f} us{spread:>24}{ratios}{shares}")
    if given.json:
        record(given.json, rows, given)


def record(path: Path, rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    results.write(
        path,
        "plugin_hot_path",
        "What `mlflow.log_metrics` costs the training, by where MLflow stores it.",
        columns={
            **{"name": "store", "metrics": "metrics", "median_us": "median (us)", "p10_us": "p10", "p90_us": "p90"},
            **{"ratio": "x spool:", "ratio_p10": "p10", "ratio_p90": "p90"},
            **{"bare": "x nothing", "bare_p10": "p10", "bare_p90": "p90"},
        },
        rows=[{**row, "label": f"{row['name']}, {row['metrics']}"} for row in rows],
        plot={"kind": "bar", "x": "label", "y": ["median_us"], "log_y": True},
        notes=[
            f"{given.rounds} rounds in one process, all stores taking turns: the same unmodified `mlflow.log_metrics` each "
            f"time, {given.calls} calls a round ({_few('SQLite', given.calls)} on SQLite, "
            f"{_few('server', given.calls)} on the server). Medians over rounds of the median of a round.",
            "x spool: and x nothing are the ratios to the call on `spool:` and on nothing of the same round.",
            "Nothing is a store whose `log_batch` returns at once: what is left is MLflow's own Python, which nothing "
            "behind a tracking URI can save: no store can be faster than x nothing says.",
            "In the rows nothing and spool: MLflow searches for PySpark once a second, as in a process that logs to a "
            "spool; in all others with each call, as it is.",
            "SQLite is MLflow's default store on the same disk; the server is `mlflow server` on loopback with one worker "
            "on SQLite.",
        ],
        directory=given.directory,
    )


if __name__ == "__main__":
    main()
