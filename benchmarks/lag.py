"""How long after the call a point can be seen on the server, while many runs are logged and an agent delivers them.

    python benchmarks/lag.py [sqlite] [postgres] [--rate N] [--runs N] [--processes N] [--seconds S] [--rounds N]
                             [--workers N] [--rounds-file FILE] [--json FILE]

A few processes log to several runs each by `mlferry`'s own functions, `--rate` points a second in all, a call of four points
at a time, each with the time of the call. `mlferry agent` delivers them to a real `mlflow server`. Its database is read
behind its back every 50 ms (read only); a point's lag is the time from its timestamp until it was seen there. What was
called in the first seconds (`--warm-up`), in which all runs begin at once on a cold server, does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from delivery import PATHS, backend, machine, quantile, spent

KEYS = ("loss", "accuracy", "rate", "norm")
POLL_S = 0.05


# -- a process that logs -------------------------------------------------------------------------------------------------


def be_a_training(number: int, runs: int, rate: float, seconds: float) -> None:
    """Log in turn to each of its runs, evenly, and say how many points that were."""
    import mlferry

    mlferry.set_experiment("lag")
    mine = [mlferry.open_run(run_name=f"{number} {index}") for index in range(runs)]
    pause, began, step = len(KEYS) / rate, time.monotonic(), 0
    while time.monotonic() - began < seconds:
        mine[step % runs].log_metrics(dict.fromkeys(KEYS, step / 7), step=step // runs)
        step += 1
        time.sleep(max(0.0, began + step * pause - time.monotonic()))
    print(step * len(KEYS), flush=True)
    for run in mine:
        run.end("FINISHED")


# -- what has arrived ----------------------------------------------------------------------------------------------------


class Eyes(threading.Thread):
    """Notes when each point is first seen. ``lags``: (time of the call, lag), both in milliseconds."""

    def __init__(self, store: Any, server: Any) -> None:
        super().__init__(daemon=True)
        self._store, self._server = store, server
        self._stopped = threading.Event()
        self.lags: list[tuple[int, int]] = []

    def run(self) -> None:
        seen: Any = 0
        while not self._stopped.wait(POLL_S):
            stamps, seen = self._store.since(self._server, seen)
            now = time.time_ns() // 1_000_000
            self.lags += [(stamp, now - stamp) for stamp in stamps]

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def environment(root: Path, url: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    told = {
        "HOME": str(root), "MLFERRY_DIR": str(root / "spool"), "MLFERRY_STATE_DIR": str(root / "state"),
        "MLFERRY_TO": url, "MLFERRY_QUIET": "true", "PYTHONPATH": os.pathsep.join(PATHS),
    }  # fmt: skip
    return {**clean, **told}


@contextlib.contextmanager
def agent(environ: dict[str, str], log: Path) -> Iterator[int]:
    with log.open("wb") as sink:
        words = [sys.executable, "-m", "mlferry_agent.main", "agent"]
        with subprocess.Popen(words, env=environ, stdout=sink, stderr=sink) as process:
            try:
                yield process.pid
            finally:
                process.terminate()


def trainings(environ: dict[str, str], given: argparse.Namespace) -> list[subprocess.Popen[str]]:
    runs, rate = given.runs // given.processes, given.rate / given.processes
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--be", str(number), str(runs), str(rate), str(given.seconds)],
            env=environ, stdout=subprocess.PIPE, text=True,
        )
        for number in range(given.processes)
    ]  # fmt: skip


def one_round(store: Any, given: argparse.Namespace) -> dict[str, float]:
    from tests.servers import MlflowServer

    root = Path(tempfile.mkdtemp(dir=given.directory, prefix="lag-"))
    try:
        with (
            store.fresh(root) as address,
            MlflowServer(root / "server", backend=address, workers=given.workers) as server,
            agent(environment(root, server.url), root / "log") as agent_pid,
        ):
            eyes = Eyes(store, server)
            eyes.start()
            began_ms, used = time.time_ns() // 1_000_000, spent((server.pid, *store.pids))
            processes = trainings(environment(root, server.url), given)
            logged = sum(int(process.communicate()[0]) for process in processes)
            end = time.monotonic() + 60
            while len(eyes.lags) < logged and time.monotonic() < end:
                time.sleep(POLL_S)
            server_s, agent_s = spent((server.pid, *store.pids)) - used, spent((agent_pid,))
            eyes.stop()
            assert len(eyes.lags) == logged, f"{len(eyes.lags)} points of {logged} have arrived"
        return told(eyes.lags, began_ms + 1000 * given.warm_up, server_s, agent_s)
    finally:
        shutil.rmtree(root)


def told(lags: list[tuple[int, int]], since_ms: float, server_s: float, agent_s: float) -> dict[str, float]:
    counted = [lag / 1000 for stamp, lag in lags if stamp >= since_ms]
    return {
        "points": len(counted),
        **{name: quantile(counted, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
        "max": max(counted),
        "server_cpu_s": server_s,
        "agent_cpu_s": agent_s,
    }


# -- what is said of it --------------------------------------------------------------------------------------------------

COLUMNS = {
    "database": "database",
    "workers": "server's workers",
    "rate": "logged (points/s)",
    "runs": "runs",
    "rounds": "rounds",
    "p50": "lag, median (s)",
    "p90": "90 % (s)",
    "p99": "99 % (s)",
    "p99_low": "99 %: p10 of the rounds (s)",
    "p99_high": "99 %: p90 of the rounds (s)",
    "max": "longest (s)",
}
NOTES = [
    "From the call that logs a point until it can be read in the server's database, looked at every 50 ms; medians of the"
    " rounds' quantiles, p10 and p90 of their 99 %.",
    "Training processes, agent, server and database share the machine's cores; a network is not measured.",
    "The seconds in which all runs begin at once are left out.",
]


def row(setting: dict[str, Any], rounds: list[dict[str, float]]) -> dict[str, Any]:
    found = {name: round(statistics.median(one[name] for one in rounds), 3) for name in ("p50", "p90", "p99", "max")}
    ninety_nine = [one["p99"] for one in rounds]
    spread = {"p99_low": round(quantile(ninety_nine, 0.1), 3), "p99_high": round(quantile(ninety_nine, 0.9), 3)}
    return {**setting, "rounds": len(rounds), **found, **spread}


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": "lag",
        "title": "From a call that logs to the point on the server, live",
        "date": date.today().isoformat(),
        "machine": machine(),
        "columns": COLUMNS,
        "rows": rows,
        "plot": None,
        "notes": NOTES,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "backends", nargs="*", help="sqlite, postgres; both where PostgreSQL is there, if none is named"
    )
    parser.add_argument("--rate", type=int, default=1_000, help="points a second, of all runs together")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=8.0, help="seconds from the start that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--rounds-file", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where spool and databases are made and deleted")
    return parser.parse_args()


def main() -> None:
    from delivery import kept
    from tests.postgres import binaries

    given = options()
    done = kept(given.rounds_file)
    for name in given.backends or (["sqlite", "postgres"] if binaries() else ["sqlite"]):
        setting = {"database": name, "workers": given.workers, "rate": given.rate, "runs": given.runs}
        with backend(name) as store:
            for _ in range(given.rounds):
                done.append({"setting": setting, "found": one_round(store, given)})
                print(json.dumps(done[-1]), flush=True)
                if given.rounds_file is not None:
                    with given.rounds_file.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
    settings = list({json.dumps(one["setting"]): one["setting"] for one in done}.values())
    rows = [row(setting, [one["found"] for one in done if one["setting"] == setting]) for setting in settings]
    text = json.dumps(result(rows), indent=2)
    if given.json is not None:
        given.json.write_text(f"{text}\n")
    else:
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be"]:
        be_a_training(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
