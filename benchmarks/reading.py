"""What reading a spool back costs as it grows, beside MLflow's SQLite store with the same runs, in the same process.

    python benchmarks/reading.py [--runs 100 1000 10000] [--rounds N] [--lock FILE] [--json FILE] [--directory DIR]

``first`` is a process's first search, which folds every log; ``again`` the next one, nothing having changed; ``one more``
the next one after another process's run has had one more metric logged. ``ratio``: to SQLite's time for the same call.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]
os.environ.update(MLFERRY_FSYNC="never", MLFLOW_DISABLE_TELEMETRY="true")
warnings.simplefilter("ignore")

from benchmarks import results  # noqa: E402
from benchmarks.quiet import quiet  # noqa: E402
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402

from mlferry.plugin.journal import Journal  # noqa: E402
from mlferry.plugin.tracking import SpoolTrackingStore  # noqa: E402

T0 = 1_700_000_000_000
POINTS, KEYS = 20, 5
FILTER = "params.lr = '0.1' and metrics.m0 < 100 and tags.kind = 'even'"


def fill(store: Any, runs: int) -> list[str]:
    """Runs of 5 params, 3 tags and 5 metrics of 20 points each, every second with a model."""
    made = []
    for number in range(runs):
        tags = [RunTag("kind", "odd" if number % 2 else "even"), RunTag("mlflow.user", "someone")]
        run_id = store.create_run("0", "someone", T0 + number, tags, f"run-{number}").info.run_id
        params = [Param("lr", "0.1" if number % 4 else "0.2"), *(Param(f"p{n}", str(number)) for n in range(4))]
        store.log_batch(run_id, [], params, [])
        points = [
            Metric(f"m{key}", number + step / 7, T0 + step, step) for step in range(POINTS) for key in range(KEYS)
        ]
        store.log_batch(run_id, points, [], [])
        if number % 2:
            store.create_logged_model("0", f"model-{number}", run_id)
        store.update_run_info(run_id, RunStatus.FINISHED, T0 + number + 1000, None)
        made.append(run_id)
    return made


def calls(store: Any, run_id: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    return {
        "search_runs, filter and order": lambda: store.search_runs(
            ["0"], FILTER, ViewType.ACTIVE_ONLY, 100, ["metrics.m0 DESC"]
        ),
        "search_runs, a page of 100": lambda: store.search_runs(["0"], "", ViewType.ACTIVE_ONLY, 100),
        "search_logged_models": lambda: store.search_logged_models(["0"], max_results=50),
        "search_experiments": lambda: store.search_experiments(),
        "get_run": lambda: store.get_run(run_id),
        "get_metric_history": lambda: store.get_metric_history(run_id, "m0"),
    }


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def anew(root: Path) -> SpoolTrackingStore:
    """The spool's store as a process that has read nothing sees it."""
    store = SpoolTrackingStore(f"spool://{root}")
    store.journal = Journal(root)
    store.catalogue = store.journal.catalogue
    return store


def measure(runs: int, rounds: int, directory: Path, lock: Path | None) -> list[dict[str, Any]]:
    root = directory / f"spool-{runs}"
    writer = SpoolTrackingStore(f"spool://{root}")
    made = fill(writer, runs)
    live = writer.create_run("0", "someone", T0 + runs, [], "live").info.run_id
    sqlite = SqlAlchemyStore(f"sqlite:///{directory}/{runs}.db", str(directory / "mlruns"))
    of_sqlite = calls(sqlite, fill(sqlite, runs)[runs // 2])
    sqlite.create_run("0", "someone", T0 + runs, [], "live")
    rows = []
    for name in of_sqlite:
        taken: dict[str, list[float]] = {"first": [], "again": [], "one more": [], "sqlite": []}
        of_sqlite[name]()
        with quiet(lock):
            for step in range(rounds):
                store = anew(root)
                call = calls(store, made[runs // 2])[name]
                taken["first"].append(seconds(call))
                taken["again"].append(seconds(call))
                writer.log_metric(live, Metric("m0", 1.0, T0, step))
                taken["one more"].append(seconds(call))
                taken["sqlite"].append(seconds(of_sqlite[name]))
        rows.append({"runs": runs, "name": name, **{kind: statistics.median(times) for kind, times in taken.items()}})
    writer.journal.close()
    return rows


def large_run(directory: Path, lock: Path | None, metrics: int = 500, points: int = 1000) -> list[dict[str, Any]]:
    """What ``log_model`` asks for: the history of every metric of its run; here 500 metrics of 1,000 points."""
    root, rows = directory / "large", []
    writer = SpoolTrackingStore(f"spool://{root}")
    sqlite = SqlAlchemyStore(f"sqlite:///{directory}/large.db", str(directory / "mlruns"))
    histories = {}
    for kind, store in (("spool", writer), ("sqlite", sqlite)):
        run_id = store.create_run("0", "someone", T0, [], "large").info.run_id
        for step in range(points):
            store.log_batch(run_id, [Metric(f"m{key}", step / 7, T0 + step, step) for key in range(metrics)], [], [])
        histories[kind] = run_id
    for name, keys in (("history of each of 500 metrics", range(metrics)), ("history of one of them", range(1))):
        reader = anew(root)

        def of(store: Any, kind: str, keys: range = keys) -> None:
            for key in keys:
                store.get_metric_history(histories[kind], f"m{key}")

        row: dict[str, Any] = {"runs": 1, "name": name}
        with quiet(lock):
            row["first"] = seconds(partial(of, reader, "spool"))
            row["again"] = seconds(partial(of, reader, "spool"))
            writer.log_metric(histories["spool"], Metric("m0", 1.0, T0, points + 1))
            row["one more"] = seconds(partial(of, reader, "spool"))
            row["sqlite"] = seconds(partial(of, sqlite, "sqlite"))
        rows.append(row)
    writer.journal.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--lock", type=Path, help="hold this file's lock, and run before others, while something is timed"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    directory = Path(tempfile.mkdtemp(dir=given.directory))
    try:
        print(f"{'':8}{'':32}{'first':>10}{'again':>10}{'one more':>10}{'SQLite':>10}{'ratio':>8}  (one more / SQLite)")
        rows = [row for runs in given.runs for row in shown(measure(runs, given.rounds, directory, given.lock))]
        rows += shown(large_run(directory, given.lock))
    finally:
        shutil.rmtree(directory)
    if given.json:
        record(given.json, rows, given)


def record(path: Path, rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    times = {kind: f"{kind.replace('sqlite', 'SQLite')} (ms)" for kind in ("first", "again", "one more", "sqlite")}
    results.write(
        path,
        "reading",
        "What reading a spool back through MLflow's API costs, beside MLflow's SQLite store.",
        columns={"runs": "runs", "name": "call", **times, "ratio": "one more / SQLite"},
        rows=[
            {**row, **{kind: 1000 * row[kind] for kind in times}, "ratio": row["one more"] / row["sqlite"]}
            for row in rows
        ],
        notes=[
            f"The same runs in both stores, the same calls in turn in one process; medians of {given.rounds} rounds "
            "(of the large run: one).",
            "First: a process's first call, which folds every log. Again: the next, nothing having changed. One more: the "
            "next after another run has logged one more metric.",
            f"Runs have {KEYS} metrics of {POINTS} points each, 5 params and 3 tags; the large run "
            "500 metrics of 1,000 points.",
        ],
        directory=given.directory,
    )


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        times = "".join(f"{row[kind] * 1000:7.1f} ms" for kind in ("first", "again", "one more", "sqlite"))
        print(f"{row['runs']:6}  {row['name']:32}{times}{row['one more'] / row['sqlite']:8.2f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
