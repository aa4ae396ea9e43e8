"""How fast a bundle is written straight into a database, beside its delivery over REST to a server on such a database.

    python benchmarks/fast_lane.py [sqlite] [postgres] [--rounds N] [--points N] [--runs N] [--lock FILE] [--json FILE]

Two bundles: `points`, four runs of ten metrics; `runs`, many small ones, of 100 points, ten params and five tags each. In
each round, for each database, both ways in turns first, each into a fresh database:

* `rest`: `mlferry import BUNDLE`, then `mlferry sync` to an `mlflow server` with one worker, which was warmed up.
* `lane`: `mlferry import BUNDLE --into URI`. Of it are told the rate of the whole command and, since half of a second's work
  is MLflow's own import, which no larger bundle makes longer, that of reading the bundle and writing the database alone.

`--lock`: a file that is locked during each measurement, for a machine on which others measure too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / name) for name in ("spool", "sdk", "agent", ".", "benchmarks")]
sys.path[:0] = PATHS

import results  # noqa: E402
from tests import postgres  # noqa: E402
from tests.servers import MlflowServer, template_database  # noqa: E402

from mlferry_spool import records  # noqa: E402
from mlferry_spool.layout import new_run_directory  # noqa: E402
from mlferry_spool.settings import Fsync, Settings  # noqa: E402
from mlferry_spool.writer import Writer  # noqa: E402

T0 = 1_700_000_000_000

#: Exit code of a command that leaves something to deliver.
PENDING = 4


def write_spool(spool: Path, runs: int, steps: int, keys: int, *, texts: int = 0) -> int:
    """Finished runs; each record has a point of every key. Returns how many points they have."""
    for number in range(runs):
        run_id = uuid.uuid4().hex
        opening = records.Open(writer_id="w", run_id=run_id, experiment_name="lane", start_time=T0, run_name="a run")
        writer = Writer(new_run_directory(spool, run_id, T0 + number * 1000), opening, Settings(fsync=Fsync.NEVER))
        if texts:
            writer.put(records.Params(T0, {f"param {name}": str(name) for name in range(2 * texts)}))
            writer.put(records.Tags(T0, {f"tag {name}": str(name) for name in range(texts)}))
        for step in range(steps):
            values = {f"metric {key}": 1 / (step + 1) + key for key in range(keys)}
            writer.append(records.Kind.METRICS, (T0 + step, step, values))
        writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))
    return runs * steps * keys


def environ(folder: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    told = {"HOME": str(folder), "MLFERRY_DIR": str(folder / "spool"), "MLFERRY_STATE_DIR": str(folder / "state")}
    return {**clean, **told, "PYTHONPATH": os.pathsep.join(PATHS), **more}


def ferry(folder: Path, *words: str, **more: str) -> float:
    """Execute the command; seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "mlferry_agent.main", *words]
    done = subprocess.run(command, env=environ(folder, **more), capture_output=True, text=True, check=False)
    if done.returncode == PENDING:  # the end of a run is still to be told
        return time.monotonic() - began + ferry(folder, *words, **more)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.returncode} {done.stdout} {done.stderr}")
    return time.monotonic() - began


def be_the_lane(bundle: str, uri: str) -> None:
    """The same as `mlferry import --into`, in the same order, with the seconds that are not MLflow's import."""
    from mlferry_agent.carrying.local import LocalPlace
    from mlferry_agent.config import load
    from mlferry_agent.database.importing import import_into
    from mlferry_agent.discovery import discover
    from mlferry_agent.ferrying import import_bundle

    config = load(os.environ, {})
    began = time.monotonic()
    import_bundle(config.dir, [LocalPlace(Path(bundle))])
    seconds = time.monotonic() - began
    from mlflow.store.tracking import sqlalchemy_store as _  # noqa: F401

    began = time.monotonic()
    report = import_into(config, uri, discover(config.dir))
    assert report.exit_code == 0, report
    seconds += time.monotonic() - began
    print(json.dumps({"seconds": seconds, "points": report.rows["metric points"]}))


class Sqlite:
    """A fresh file each time."""

    name = "SQLite"

    @contextlib.contextmanager
    def fresh(self, folder: Path) -> Iterator[tuple[str, str | None]]:
        """A database's address, and what a server is told of it."""
        (folder / "server").mkdir()
        database = folder / "server" / "mlflow.sqlite"
        shutil.copyfile(template_database(), database)
        yield f"sqlite:///{database}", None


class InPostgres:
    """A copy of a database that MLflow has set up."""

    name = "PostgreSQL"

    def __init__(self, cluster: postgres.Postgres) -> None:
        self._cluster = cluster
        address = cluster.create("empty")
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", address]
        subprocess.run(command, check=True, capture_output=True)

    @contextlib.contextmanager
    def fresh(self, folder: Path) -> Iterator[tuple[str, str | None]]:
        address = self._cluster.create("mlflow", "empty")
        yield address, address
        self._cluster.drop("mlflow")


def rest(store: Any, bundle: Path, folder: Path, warm: Path, lock: Any) -> float:
    with store.fresh(folder) as (_, backend), MlflowServer(folder / "server", backend=backend) as server:
        ferry(folder / "warm", "import", str(warm))
        ferry(folder / "warm", "sync", MLFERRY_TO=server.url)
        with lock():
            return ferry(folder, "import", str(bundle)) + ferry(folder, "sync", MLFERRY_TO=server.url)


def lane(store: Any, bundle: Path, folder: Path, lock: Any) -> dict[str, float]:
    with store.fresh(folder) as (uri, _), lock():
        whole = ferry(folder, "import", str(bundle), "--into", uri)
    again = folder / "again"
    again.mkdir()
    with store.fresh(again) as (uri, _), lock():
        command = [sys.executable, __file__, "--be", str(bundle), uri]
        done = subprocess.run(command, env=environ(again), capture_output=True, text=True, check=True)
    return {"whole": whole, **json.loads(done.stdout)}


def copy_alone(store: Any, folder: Path, points: int, runs: int) -> float | None:
    """Seconds of one COPY of as many rows into MLflow's empty table of points, in the order of its key, without anything
    else: what one connection to PostgreSQL takes at least. None where there is no COPY."""
    if not isinstance(store, InPostgres):
        return None
    import psycopg2

    ids = [uuid.uuid4().hex for _ in range(runs)]
    keys, steps = (10, points // runs // 10) if runs < 10 else (5, points // runs // 5)
    rows = ((f"metric {key}", T0 + step, step, run) for key in range(keys) for step in range(steps) for run in ids)
    text = "".join(f"{key}\t{at}\t{step}\t{run}\t{1 / (step + 1)!r}\tf\n" for key, at, step, run in rows)
    with store.fresh(folder) as (uri, _), contextlib.closing(psycopg2.connect(uri)) as connection:
        cursor = connection.cursor()
        cursor.executemany("INSERT INTO runs (run_uuid) VALUES (%s)", [(run,) for run in ids])
        connection.commit()
        began = time.monotonic()
        cursor.copy_expert("COPY metrics (key, timestamp, step, run_uuid, value, is_nan) FROM STDIN", io.StringIO(text))
        connection.commit()
        return time.monotonic() - began


def bundles(folder: Path, given: argparse.Namespace) -> dict[str, tuple[Path, int, int]]:
    """Path, points and runs of each bundle; `warm` is for warming up."""
    shapes = {
        "points": {"runs": 4, "steps": given.points // 40, "keys": 10},
        "runs": {"runs": given.runs, "steps": 20, "keys": 5, "texts": 5},
        "warm": {"runs": 2, "steps": 200, "keys": 10, "texts": 5},
    }
    made = {}
    for name, shape in shapes.items():
        inside = folder / name
        (inside / "spool").mkdir(parents=True, mode=0o700)
        points = write_spool(inside / "spool", **shape)
        bundle = folder / f"{name}.tar.zst"
        ferry(inside, "export", str(bundle))
        made[name] = (bundle, points, shape["runs"])
    return made


def measure(
    store: Any, made: dict[str, tuple[Path, int, int]], given: argparse.Namespace, lock: Any
) -> list[dict[str, Any]]:
    rows = []
    for shape in ("points", "runs"):
        bundle, points, runs = made[shape]
        found: dict[str, list[float]] = {
            "rest": [],
            "lane": [],
            "command": [],
            "ratio": [],
            "command_ratio": [],
            "copy": [],
        }
        for number in range(given.rounds):
            seconds: dict[str, float] = {}
            for way in ("rest", "lane") if number % 2 else ("lane", "rest"):
                with tempfile.TemporaryDirectory(dir=given.directory, prefix="lane-") as name:
                    folder = Path(name)
                    (folder / "warm").mkdir()
                    if way == "rest":
                        seconds["rest"] = rest(store, bundle, folder, made["warm"][0], lock)
                    else:
                        told = lane(store, bundle, folder, lock)
                        seconds |= {"lane": told["seconds"], "command": told["whole"]}
            for name, took in seconds.items():
                found[name].append(round(points / took))
            with tempfile.TemporaryDirectory(dir=given.directory, prefix="lane-") as name, lock():
                if (took := copy_alone(store, Path(name), points, runs)) is not None:
                    found["copy"].append(round(points / took))
            found["ratio"].append(round(seconds["rest"] / seconds["lane"], 1))
            found["command_ratio"].append(round(seconds["rest"] / seconds["command"], 1))
            print(store.name, shape, {name: round(took, 2) for name, took in seconds.items()}, file=sys.stderr)
        spreads = [results.spread(values, name).items() for name, values in found.items() if values]
        row = {"database": store.name, "bundle": f"{points:,} points in {runs:,} runs"}
        rows.append({**row, **{name: value for items in spreads for name, value in items}})
    return rows


COLUMNS = {
    "database": "database",
    "bundle": "bundle",
    "rest": "REST: points/s",
    "lane": "fast lane: points/s",
    "lane_p10": "p10",
    "lane_p90": "p90",
    "ratio": "x REST",
    "ratio_p10": "p10",
    "ratio_p90": "p90",
    "copy": "one bare COPY: points/s",
    "command": "whole command: points/s",
    "command_ratio": "x REST",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", help="sqlite, postgres; both if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=80_000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--be", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        be_the_lane(*given.be)
        return

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        with (given.lock or Path(os.devnull)).open("w") as file:
            if given.lock:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="lane-") as name, contextlib.ExitStack() as stack:
        made = bundles(Path(name), given)
        for store in given.stores or ["sqlite", "postgres"]:
            of = Sqlite() if store == "sqlite" else InPostgres(stack.enter_context(postgres.cluster()))
            rows += measure(of, made, given, lock)
    print(json.dumps(rows, indent=2))
    if given.json is not None:
        notes = [
            "Both ways bring the same bundle into a fresh database, in turns first, in one run of the benchmark.",
            f"Medians of {given.rounds} rounds; the server has one worker, and client and server share the machine.",
            "One bare COPY: of as many ready-made rows into MLflow's empty table, by one connection, without anything else;"
            " half of its time is the check of the foreign key, row by row, which the fast lane makes once a run.",
            "PostgreSQL runs on the same machine, with fsync off.",
            "The rate of the fast lane leaves MLflow's own import out; that of the whole command has it.",
        ]
        plot = {"kind": "bar", "x": "database", "y": ["rest", "lane"], "log_x": False, "log_y": True}
        title = "A bundle written straight into a database, beside its delivery over REST"
        results.write(given.json, "fast_lane", title, columns=COLUMNS, rows=rows, notes=notes, plot=plot)


if __name__ == "__main__":
    main()
