"""What many agents do to one server: a thousand in virtual time, and fifty real ones against a real MLflow server.

    python benchmarks/fleet.py simulate [--agents N] [--capacity N] [--backlog N] [--seeds N] [--json FILE]
    python benchmarks/fleet.py real [--agents N] [--points N] [--json FILE] [--directory DIR]

``simulate``: each agent is the real courier with its real pacing and backoff (``tests/simulation/fleet.py`` says what is
left out); the server is a queue of known capacity that is away for five minutes. A row for each way in which a server is
full and away; the medians of so many seeds, with the lowest and the highest.

``real``: as many processes `mlferry agent`, each with its own spool and ledger, deliver to one `mlflow server` that is
killed half-way and started again; then the same with a server whose pool of database connections has room for all its
threads; then one agent alone delivers as many points to a new server, without a kill. At the end every run is read back
from the server's database and compared with what was logged.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / name) for name in ("spool", "sdk", "agent", ".")]
sys.path[:0] = PATHS

from tests.servers import MlflowServer  # noqa: E402
from tests.simulation.fleet import Fleet, simulate  # noqa: E402

from mlferry_spool import records  # noqa: E402
from mlferry_spool.layout import new_run_directory  # noqa: E402
from mlferry_spool.settings import Fsync, Settings  # noqa: E402
from mlferry_spool.writer import Writer  # noqa: E402

T0 = 1_700_000_000_000
LIMIT_S = 900.0

#: What gives each of the 40 threads of `mlflow server` the two connections that a batch needs.
ROOMY = {"MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "120"}

# -- simulated --------------------------------------------------------------------------------------------------------------

SERVERS: list[tuple[str, dict[str, Any]]] = [
    ("keeps all waiting; refuses connections while away", {}),
    ("keeps all waiting; hangs while away", {"when_away": "hangs"}),
    ("keeps all waiting; 503 and Retry-After while away", {"when_away": "announces"}),
    ("503 when full", {"when_full": "sheds"}),
    ("429 and Retry-After: 1 above its rate", {"when_full": "limits"}),
]

SIMULATED = {
    "server": "the server",
    "stampede": "requests in the worst second of the minute after its return, as multiples of its capacity",
    "knocks": "requests a second, of all agents, in the last minute of the outage",
    "goodput": "goodput as a share of capacity",
    "fairness": "Jain's index when half of the work is done",
    "recovery_s": "from its return to nine tenths of its capacity (s)",
    "drained_s": "until drained (s)",
    "ideal_s": "until drained if no second were lost (s)",
    "bystander_s": "what a person beside the fleet waits (s, median)",
    "bystander_p95_s": "the same, 95th percentile",
    "refused": "requests that failed while the server was there, as a share of the work",
}


def simulated(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, differs in SERVERS:
        fleet = Fleet(agents=given.agents, capacity=given.capacity, backlog=given.backlog, **differs)
        taken = [measures(dataclasses.replace(fleet, seed=seed)) for seed in range(1, given.seeds + 1)]
        row: dict[str, Any] = {"server": name}
        for key in taken[0]:
            values = [one[key] for one in taken]
            row[key] = round(statistics.median(values), 2)
            row[f"{key}_lowest"], row[f"{key}_highest"] = round(min(values), 2), round(max(values), 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measures(fleet: Fleet) -> dict[str, float]:
    found = simulate(fleet)
    gone, back = fleet.away_s
    return {
        "stampede": found.stampede,
        "knocks": found.knocks,
        "goodput": found.goodput,
        "fairness": found.fairness(),
        "recovery_s": found.recovery_s,
        "drained_s": found.drained_s,
        "ideal_s": fleet.work_s + back - gone,
        "bystander_s": found.wait_s(0.5),
        "bystander_p95_s": found.wait_s(0.95),
        "refused": found.lost_work / (fleet.agents * fleet.backlog),
    }


# -- real -------------------------------------------------------------------------------------------------------------------

REAL = {
    "agents": "agents",
    "server": "the server's pool of connections",
    "points": "points in all",
    "drained_s": "from the first point to the last (s), without the outage",
    "points_per_s": "points a second",
    "goodput": "as a share of one agent's alone",
    "fairness": "Jain's index when half of the points had arrived",
    "away_s": "seconds without a server",
    "back_s": "from its return to the first point (s)",
    "exact": "runs that stand on the server as they were logged, each point once",
    "peak_mb": "memory of one agent (MB, median of the peaks)",
    "cpu_s": "processor time of all agents (s)",
}


def spooled(directory: Path, number: int, points: int) -> None:
    """A spool of one run, two metrics."""
    opening = records.Open(
        writer_id="w", run_id=f"{number:032x}", experiment_name="fleet", start_time=T0, run_name=f"{number}"
    )
    writer = Writer(new_run_directory(directory / "spool", opening.run_id, T0), opening, Settings(fsync=Fsync.NEVER))
    for step in range(points // 2):
        writer.append(records.Kind.METRICS, (T0 + step, step, {"a": step / 7, "b": step / 3}))
    writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))


@contextlib.contextmanager
def agents(homes: list[Path], url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    environ["PYTHONPATH"] = os.pathsep.join(PATHS)
    words = [sys.executable, "-m", "mlferry_agent.main", "agent", "--to", url]
    started = []
    try:
        for home in homes:
            own = {"HOME": str(home), "MLFERRY_DIR": str(home / "spool"), "MLFERRY_STATE_DIR": str(home / "state")}
            with (home / "log").open("ab") as log:
                started.append(subprocess.Popen(words, env={**environ, **own}, stderr=log))
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def arrived(server: MlflowServer) -> dict[str, int]:
    sql = "SELECT t.value, COUNT(*) FROM tags t JOIN metrics m USING (run_uuid) WHERE t.key = 'mlferry.run_id'"
    sql += " GROUP BY t.value"
    return dict(server.query(sql))


def ended(server: MlflowServer) -> int:
    return int(server.query("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED' AND lifecycle_stage = 'active'")[0][0])


def exact(server: MlflowServer, count: int, points: int) -> int:
    """Runs of which the server has each point once, with its value, and FINISHED."""
    wanted = sorted(
        (key, T0 + step, step, step / by) for step in range(points // 2) for key, by in (("a", 7), ("b", 3))
    )
    good = 0
    for number in range(count):
        sql = "SELECT run_uuid FROM tags JOIN runs USING (run_uuid) WHERE key = 'mlferry.run_id' AND value = ?"
        runs = server.query(f"{sql} AND lifecycle_stage = 'active' AND status = 'FINISHED'", f"{number:032x}")
        stored = [
            server.query('SELECT "key", timestamp, step, value FROM metrics WHERE run_uuid = ?', run[0]) for run in runs
        ]
        good += [sorted(one) for one in stored] == [wanted]
    return good


def until(holds: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > LIMIT_S:
            raise SystemExit("it takes too long")
        time.sleep(0.2)
    return time.monotonic()


def drained(directory: Path, count: int, points: int, *, kill: bool, roomy: bool) -> dict[str, Any]:
    homes = [directory / f"agent {number}" for number in range(count)]
    for number, home in enumerate(homes):
        (home / "state").mkdir(parents=True, mode=0o700)
        spooled(home, number, points)
    total, away, back, half = count * points, 0.0, 0.0, {}
    serving = MlflowServer(directory / "server", extra_env=ROOMY if roomy else {})
    with serving as server, agents(homes, server.url) as processes:
        first = until(lambda: bool(arrived(server)))
        until(lambda: sum(arrived(server).values()) >= total / 2)
        half = arrived(server)
        if kill:
            server.kill()
            gone, stood = time.monotonic(), sum(arrived(server).values())
            time.sleep(10)
            server.start()
            away = time.monotonic() - gone
            back = until(lambda: sum(arrived(server).values()) > stood) - gone - away
        last = until(lambda: sum(arrived(server).values()) >= total)
        until(lambda: ended(server) == count)
        spent = [usage(process.pid) for process in processes]
        good = exact(server, count, points)
    got = [half.get(f"{number:032x}", 0) for number in range(count)]
    took = last - first - away
    return {
        "agents": count,
        "server": "roomy" if roomy else "as it comes",
        "points": total,
        "drained_s": round(took, 1),
        "points_per_s": round(total / took),
        "fairness": round(sum(got) ** 2 / (count * sum(one**2 for one in got)), 2),
        "away_s": round(away, 1),
        "back_s": round(back, 1),
        "exact": good,
        "peak_mb": round(statistics.median(mb for mb, _ in spent), 1),
        "cpu_s": round(sum(cpu for _, cpu in spent), 1),
    }


def usage(pid: int) -> tuple[float, float]:
    """Peak memory (MB) and processor time (s) of a process until now."""
    peak = next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line)
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(peak) / 1024, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def real(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for count, roomy in ((given.agents, False), (given.agents, True), (1, False)):
        points = given.points * given.agents // count
        directory = Path(tempfile.mkdtemp(dir=given.directory, prefix="fleet-"))
        try:
            rows.append(drained(directory, count, points, kill=count > 1, roomy=roomy))
        finally:
            shutil.rmtree(directory)
        print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        row["goodput"] = round(row["points_per_s"] / rows[-1]["points_per_s"], 2)
    return rows


# -- both -------------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "file_system": subprocess.getoutput(f"stat -f -c %T {tempfile.gettempdir()}"),
        }
    return {"cpu": platform.processor(), "cores": os.cpu_count(), "python": platform.python_version()}


def kept(
    stem: str, title: str, columns: dict[str, str], rows: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    finite = [{key: None if value == math.inf else value for key, value in row.items()} for row in rows]
    return {
        "benchmark": stem,
        "title": title,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "columns": columns,
        "rows": finite,
        "plot": None,
        "notes": notes,
    }


def of_simulated(given: argparse.Namespace) -> dict[str, Any]:
    return kept(
        "fleet_simulated",
        f"{given.agents:,} agents with a backlog, and one server that is away for five minutes",
        SIMULATED,
        simulated(given),
        [
            f"Virtual time: {given.agents:,} real couriers, pacing and backoff included, in one event loop; spool, planner"
            " and ledger are left out.",
            f"The server does {given.capacity:g} requests a second; each agent has {given.backlog} of them in 4 runs;"
            " the server is away from second 120 to second 420.",
            f"Medians of {given.seeds} seeds; the rows have the lowest and highest as well.",
            "Goodput counts until half of the agents are drained, without the seconds in which the server was away.",
            "A person beside the fleet asks once a second and is served in turn; 0.04 s is the way alone.",
        ],
    )


def of_real(given: argparse.Namespace) -> dict[str, Any]:
    return kept(
        "fleet_real",
        "Many agents and one agent alone, against one mlflow server on the same machine",
        REAL,
        real(given),
        [
            "One round each, one after the other, on a machine that others used as well: times are orders of magnitude.",
            "The server (SQLite) of the many is killed when half of the points have arrived, and started again after 10 s.",
            "Roomy: MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=120 for the server, so that its threads never wait for each other's"
            " connections.",
            "Agents and server share the processors, and the start of the agents is in their time.",
            "The database is read back at the end, and each run compared with what was logged, point by point.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("simulate", "real"), default="simulate")
    parser.add_argument(
        "--agents", type=int, help="1000 simulated ones (200 by default, for a short run), or 50 real ones"
    )
    parser.add_argument("--capacity", type=float, help="requests a second; a tenth of the agents by default")
    parser.add_argument("--backlog", type=int, default=60, help="requests of each simulated agent")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", type=int, default=2000, help="of each real agent")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where spools and servers are made and deleted")
    given = parser.parse_args()
    given.agents = given.agents or (200 if given.what == "simulate" else 50)
    given.capacity = given.capacity or given.agents / 10
    found = of_simulated(given) if given.what == "simulate" else of_real(given)
    text = json.dumps(found, indent=1)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
