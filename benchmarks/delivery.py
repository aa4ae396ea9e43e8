"""How fast a backlog drains into a real MLflow server, beside the least that any client would have to send, and what CPU
that takes beside the server's.

    python benchmarks/delivery.py [sqlite] [postgres] [--points N] [--runs N] [--rounds N] [--workers N] [--connections N]
                                  [--hot] [--rounds-file FILE] [--json FILE]

In each round two clients, in turns first, each with an `mlflow server` and a database of its own:

* `agent`: `mlferry sync` with the spool that the real writer wrote.
* `bare`: a load generator that has its requests ready made before the clock starts: for each run a create, the same
  log-batch bodies, and the end; over as many connections as the agent has, a run's requests one after the other.

Points a second are counted from the first request to the last answer, after a warm-up that both servers get alike. CPU
seconds of the agent are those of its whole process, start-up included; of the server those of all its processes, the
database's too where that is a process, from the first to the last request.

`--hot`: all points in one run. `--rounds-file`: the rounds are kept there, and earlier ones with the same settings count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / name) for name in ("spool", "sdk", "agent", ".")]
sys.path[:0] = PATHS

from mlferry_spool import records  # noqa: E402
from mlferry_spool.layout import new_run_directory  # noqa: E402
from mlferry_spool.settings import Fsync, Settings  # noqa: E402
from mlferry_spool.writer import Writer  # noqa: E402

T0 = 1_700_000_000_000
KEYS = [f"metric {number}" for number in range(10)]
BATCH = 1_000
API = "/api/2.0/mlflow/"


def value(step: int, key: int) -> float:
    return 1 / (step + 1) + key


def write_spool(spool: Path, points: int, runs: int) -> None:
    """Finished runs; each record has a point of every key."""
    for number in range(runs):
        run_id = f"{number:032x}"
        opening = records.Open(
            writer_id="w", run_id=run_id, experiment_name="delivery", start_time=T0, run_name=f"run {number}"
        )
        writer = Writer(new_run_directory(spool, run_id, T0 + number * 1000), opening, Settings(fsync=Fsync.NEVER))
        for step in range(points // runs // len(KEYS)):
            values = {name: value(step, key) for key, name in enumerate(KEYS)}
            writer.append(records.Kind.METRICS, (T0 + step, step, values))
        writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))


# -- the two clients, each in a process of its own ---------------------------------------------------------------------


def told(began: float, ended: float, **more: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"began": began, "ended": ended, "cpu_s": used.ru_utime + used.ru_stime, **more}), flush=True)


def be_the_agent() -> None:
    """`mlferry sync`, and when its first request began and its last answer came."""
    from mlferry_agent.main import main
    from mlferry_agent.transport import Transport

    moments: list[float] = []
    send = Transport.send

    async def noted(self: Transport, request: Any) -> Any:
        if not moments:
            moments.append(time.monotonic())
        answer = await send(self, request)
        moments[1:] = [time.monotonic()]
        return answer

    Transport.send = noted  # type: ignore[method-assign]
    sys.argv = ["mlferry", "sync", "--quiet"]
    try:
        main()
    finally:
        told(moments[0], moments[-1])


def be_bare(url: str, points: int, runs: int, connections: int) -> None:
    asyncio.run(_be_bare(url, points, runs, connections))


async def _be_bare(url: str, points: int, runs: int, connections: int) -> None:
    import aiohttp

    from mlferry_agent import encoding, requests

    steps = points // runs // len(KEYS)
    metrics = [
        encoding.metric(name, value(step, key), T0 + step, step)
        for step in range(steps)
        for key, name in enumerate(KEYS)
    ]
    mark = "0" * 32
    bodies = [requests.log_batch(mark, metrics[at : at + BATCH]).body or b"" for at in range(0, len(metrics), BATCH)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(endpoint: str, body: bytes) -> Any:
            kind = {"Content-Type": "application/json"}
            async with session.post(url + API + endpoint, data=body, headers=kind) as answer:
                answer.raise_for_status()
                return await answer.json()

        made = await post("experiments/create", json.dumps({"name": f"bare {time.time()}"}).encode())
        waiting = list(range(runs))

        async def carry() -> None:
            while waiting:
                number = waiting.pop()
                told = {"experiment_id": made["experiment_id"], "start_time": T0, "run_name": f"run {number}"}
                run = await post("runs/create", json.dumps(told).encode())
                run_id = run["run"]["info"]["run_id"].encode()
                for body in bodies:
                    await post("runs/log-batch", body.replace(mark.encode(), run_id, 1))
                end = {"run_id": run_id.decode(), "status": "FINISHED", "end_time": T0 + 10**6}
                await post("runs/update", json.dumps(end).encode())

        began = time.monotonic()
        await asyncio.gather(*(carry() for _ in range(connections)))
        told(began, time.monotonic())


# -- the servers ---------------------------------------------------------------------------------------------------------


class Sqlite:
    name = "sqlite"
    pids: tuple[int, ...] = ()

    @contextlib.contextmanager
    def fresh(self, root: Path) -> Iterator[str | None]:
        yield None

    def points(self, server: Any) -> int:
        return int(server.query("SELECT count(*) FROM metrics")[0][0])

    def since(self, server: Any, seen: int) -> tuple[list[int], int]:
        """Timestamps of the points that came after the row ``seen``, and the last row now."""
        rows = server.query("SELECT rowid, timestamp FROM metrics WHERE rowid > ? ORDER BY rowid", seen)
        return [row[1] for row in rows], rows[-1][0] if rows else seen


class InPostgres:
    name = "postgres"

    def __init__(self) -> None:
        from tests.postgres import cluster

        self._cluster = cluster()

    def __enter__(self) -> InPostgres:
        self._postgres = self._cluster.__enter__()
        address = self._postgres.create("empty")
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", address]
        subprocess.run(command, check=True, capture_output=True)
        self.pids = (self._postgres.pid,)
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.__exit__(None, None, None)

    @contextlib.contextmanager
    def fresh(self, root: Path) -> Iterator[str | None]:
        yield self._postgres.create("mlflow", "empty")
        self._postgres.drop("mlflow")

    def points(self, server: Any) -> int:
        return int(self._postgres.sql("mlflow", "SELECT count(*) FROM metrics")[0][0])

    def since(self, server: Any, seen: tuple[int, set[str]] | int) -> tuple[list[int], tuple[int, set[str]]]:
        """Timestamps of the points whose places in the table are not ``seen``. The table only grows, but several connections
        fill pages side by side, so it is read again from a while before its last page."""
        page, known = seen if isinstance(seen, tuple) else (0, set())
        sql = f"SELECT ctid::text, timestamp FROM metrics WHERE ctid >= '({max(0, page - 2_000)},0)'::tid"
        rows = self._postgres.sql("mlflow", sql)
        pages = [int(row[0][1:].partition(",")[0]) for row in rows]
        return [int(row[1]) for row in rows if row[0] not in known], (
            max(pages, default=0),
            known | {row[0] for row in rows},
        )


@contextlib.contextmanager
def backend(name: str) -> Iterator[Any]:
    if name == "sqlite":
        yield Sqlite()
    else:
        with InPostgres() as postgres:
            yield postgres


def spent(pids: tuple[int, ...]) -> float:
    """CPU seconds of processes and all below them, those that have ended included."""
    total = 0.0
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


# -- one round -----------------------------------------------------------------------------------------------------------


def client(words: list[str], environ: dict[str, str]) -> dict[str, float]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    done = subprocess.run(
        [sys.executable, __file__, *words], env={**clean, **environ}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def drain(who: str, store: Any, spool: Path, given: argparse.Namespace) -> dict[str, float]:
    from tests.servers import MlflowServer

    runs = 1 if given.hot else given.runs
    root = Path(tempfile.mkdtemp(dir=given.directory, prefix="delivery-"))
    try:
        with (
            store.fresh(root) as address,
            MlflowServer(root / "server", backend=address, workers=given.workers) as server,
        ):
            client(["--be", "bare", server.url, str(given.warm_up), "4", "4"], {})
            before, there = spent((server.pid, *store.pids)), store.points(server)
            if who == "agent":
                environ = {
                    "HOME": str(root), "MLFERRY_DIR": str(spool), "MLFERRY_STATE_DIR": str(root / "state"),
                    "MLFERRY_TO": server.url, "MLFERRY_CONNECTIONS": str(given.connections),
                }  # fmt: skip
                found = client(["--be", "agent"], environ)
            else:
                found = client(["--be", "bare", server.url, *map(str, (given.points, runs, given.connections))], {})
            server_s = spent((server.pid, *store.pids)) - before
            arrived = store.points(server) - there
            assert arrived == given.points, f"{arrived} points of {given.points} have arrived"
            return {
                f"{who}_rate": given.points / (found["ended"] - found["began"]),
                f"{who}_cpu_s": found["cpu_s"],
                f"{who}_server_cpu_s": server_s,
            }
    finally:
        shutil.rmtree(root)


def measure(store: Any, given: argparse.Namespace) -> Iterator[dict[str, float]]:
    root = Path(tempfile.mkdtemp(dir=given.directory, prefix="delivery-"))
    try:
        spool = root / "spool"
        spool.mkdir(mode=0o700)
        write_spool(spool, given.points, 1 if given.hot else given.runs)
        for number in range(given.rounds):
            order = ("agent", "bare") if (number + given.first) % 2 == 0 else ("bare", "agent")
            found: dict[str, float] = {}
            for who in order:
                found |= drain(who, store, spool, given)
            yield found
    finally:
        shutil.rmtree(root)


# -- what is said of it --------------------------------------------------------------------------------------------------

COLUMNS = {
    "database": "database",
    "workers": "server's workers",
    "connections": "connections",
    "points": "points",
    "runs": "runs",
    "rounds": "rounds",
    "agent_rate": "agent (points/s)",
    "bare_rate": "bare client (points/s)",
    "ratio": "agent / bare",
    "ratio_p10": "p10",
    "ratio_p90": "p90",
    "agent_cpu_s": "agent's CPU (s)",
    "server_cpu_s": "server's CPU (s)",
    "cpu_share": "agent's CPU / server's",
}
NOTES = [
    "The agent (`mlferry sync`) and a client with ready-made requests drained the same points in turns, each into a fresh"
    " database and server on the same machine; rates are medians, the ratio is the median of the rounds' ratios with p10 and"
    " p90.",
    "The bare client sends a create, the log-batches and the end of each run, over as many connections; the agent looks runs"
    " up before it creates them, besides.",
    "Where there is one run only, the bare client sends its requests one after the other, the agent several at once where"
    " that serves better.",
    "Client, server and database share the machine's cores; a network is not measured.",
]


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low, part = int(at), at - int(at)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * part


def row(setting: dict[str, Any], rounds: list[dict[str, float]]) -> dict[str, Any]:
    def median(name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    ratios = [one["agent_rate"] / one["bare_rate"] for one in rounds]
    shares = [one["agent_cpu_s"] / one["agent_server_cpu_s"] for one in rounds]
    return {
        **setting,
        "rounds": len(rounds),
        "agent_rate": round(median("agent_rate")),
        "bare_rate": round(median("bare_rate")),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(quantile(ratios, 0.1), 3),
        "ratio_p90": round(quantile(ratios, 0.9), 3),
        "agent_cpu_s": round(median("agent_cpu_s"), 2),
        "server_cpu_s": round(median("agent_server_cpu_s"), 2),
        "cpu_share": round(statistics.median(shares), 3),
    }


def machine() -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    at = Path(tempfile.gettempdir()).resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if at.is_relative_to(part.mountpoint)]
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown",
    }


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": "delivery",
        "title": "Draining a backlog into an MLflow server, beside a client with ready-made requests",
        "date": date.today().isoformat(),
        "machine": machine(),
        "columns": COLUMNS,
        "rows": rows,
        "plot": None,
        "notes": NOTES,
    }


def kept(file: Path | None) -> list[dict[str, Any]]:
    """Earlier rounds, each with its setting."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file is not None and file.exists() else []


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "backends", nargs="*", help="sqlite, postgres; both where PostgreSQL is there, if none is named"
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="1: the bare client is first in the first round")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=20_000, help="points that each server gets before")
    parser.add_argument("--hot", action="store_true", help="one run")
    parser.add_argument("--rounds-file", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where spool and databases are made and deleted")
    return parser.parse_args()


def main() -> None:
    from tests.postgres import binaries

    given = options()
    done = kept(given.rounds_file)
    for name in given.backends or (["sqlite", "postgres"] if binaries() else ["sqlite"]):
        setting = {
            "database": name, "workers": given.workers, "connections": given.connections, "points": given.points,
            "runs": 1 if given.hot else given.runs,
        }  # fmt: skip
        with backend(name) as store:
            for found in measure(store, given):
                done.append({"setting": setting, "found": found})
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
    if sys.argv[1:3] == ["--be", "agent"]:
        be_the_agent()
    elif sys.argv[1:3] == ["--be", "bare"]:
        be_bare(sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main()
