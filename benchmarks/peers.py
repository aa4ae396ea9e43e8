"""mlferry beside other experiment trackers: what a call costs the training, what a kill loses, what lies on the disk.

    python benchmarks/peers.py [--only NAME ...] [--seconds S] [--repeats N] [--kills N] [--keep] [--lock FILE]
                               [--directory DIR] [--json FILE]

One system after the other, each in a virtual environment of its own with pinned packages (``benchmarks/contest/table.py``),
which is made below $XDG_CACHE_HOME/mlferry-peers: gigabytes, and minutes, the first time; ``--keep`` keeps them. Offline
modes throughout, and where the system allows it in a network namespace without a network. The whole takes about 20 minutes.

* x floor: to what must be done for one call (pack, checksum, one write), timed in the same process just before.
* step: what one call a step adds to steps of 2 ms of computing, threads and helpers included.
* lost: calls that had returned and that the system's own reader does not find after SIGKILL, logging at 1,000 points a
  second for two seconds: of all its processes at once, or of the logging one (its helpers may go on).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks import results  # noqa: E402
from benchmarks.contest import environments, trials  # noqa: E402
from benchmarks.contest.table import PEERS, Peer  # noqa: E402
from benchmarks.quiet import quiet  # noqa: E402
from tests.servers import MlflowServer  # noqa: E402

PACE, PACED_S = 1000.0, 2.0
#: Points of the smaller of two runs whose sizes are compared; fewer of a system that would need longer than this.
MOST_POINTS, LEAST_POINTS, POINTS_S = 600, 40, 2.0

COLUMNS = {
    **{"name": "system", "one_us": "1 metric: p50 (us)", "one_p99_us": "p99 (us)", "floors": "x floor"},
    **{"ten_us": "10 metrics: p50 (us)", "ten_p99_us": "p99 (us)", "step_us": "added to a 2 ms step (us)"},
    **{
        "returned": "calls until SIGKILL",
        "lost": "lost: all killed",
        "lost_alone": "lost: trainer killed",
        "point_bytes": "disk (bytes a point)",
    },
    **{"import_ms": "import (ms)", "peak_mb": "memory added (MB)"},
}


class Measurement:
    """One system, phase by phase; what goes wrong in one phase is told in its row and stops no other."""

    def __init__(self, peer: Peer, given: argparse.Namespace, python: Path, server: MlflowServer | None) -> None:
        self.peer, self.given, self.python, self.server = peer, given, python, server
        self.row: dict[str, Any] = {"name": peer.title, "failed": []}

    def all(self) -> dict[str, Any]:
        for phase in (self.imports, self.calls, self.size, self.kills):
            try:
                phase()
            except trials.Failed as failure:
                self.row["failed"].append(str(failure))
        return self.row

    @contextlib.contextmanager
    def trial(self) -> Iterator[trials.Trial]:
        with trials.trial(self.peer, self.python, self.server.url if self.server else "", self.given.directory) as made:
            yield made

    def imports(self) -> None:
        with self.trial() as made:
            made.statement(made.adapter.IMPORT)
            self.row["counted"] = made.adapter.COUNTED
            taken = [made.statement(made.adapter.IMPORT) for _ in range(self.given.repeats)]
        self.row["import_ms"] = statistics.median(taken)

    def calls(self) -> None:
        found = []
        for _ in range(self.given.repeats):
            with self.trial() as made:
                found.append(made.run("calls", self.given.seconds))
        of = {name: [one[name] for one in found] for name in found[0]}
        for name in ("one", "one_p99", "ten", "ten_p99"):
            self.row[f"{name}_us"] = statistics.median(of[f"{name}_ns"]) / 1000
        floors = [one / floor for one, floor in zip(of["one_ns"], of["floor_ns"], strict=True)]
        steps = [added / 1000 for one in of["step_ns"] for added in one]
        self.row |= {**results.spread(floors, "floors"), **results.spread(steps, "step_us"), "raw": found}

    def size(self) -> None:
        """By the difference of two runs: what they have in common does not count."""
        a_call_us = self.row.get("one_us", 1000.0)
        number = int(min(max(POINTS_S * 1e6 / a_call_us / 4, LEAST_POINTS), MOST_POINTS))
        sizes = [self._stored(times * number) for times in (1, 3)]
        self.row["point_bytes"] = round((sizes[1] - sizes[0]) / (2 * number), 1)

    def _stored(self, number: int) -> int:
        before = self._server_bytes()
        with self.trial() as made:
            made.run("points", number)
            return made.stored_bytes() + self._server_bytes() - before

    def _server_bytes(self) -> int:
        return self.server.database.stat().st_size if self.server else 0

    def kills(self) -> None:
        found: dict[bool, list[int]] = {False: [], True: []}
        peaks, returned = [], []
        for alone in [False, True] * self.given.kills:
            with self.trial() as made:
                told = trials.killed(made, PACE, PACED_S, alone=alone)
                found[alone].append(max(int(told["returned"]) - trials.counted(made), 0))
            peaks.append(told["peak_mb"])
            returned.append(told["returned"])
        self.row |= {"lost": _range(found[False]), "lost_alone": _range(found[True]), "lost_raw": list(found.values())}
        self.row |= {"returned": statistics.median(returned), "peak_mb": statistics.median(peaks)}


def _range(lost: list[int]) -> str:
    least, most = min(lost), max(lost)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def measure(peer: Peer, given: argparse.Namespace) -> dict[str, Any]:
    try:
        python = environments.interpreter(peer.requirements)
    except environments.NotInstalled as failure:
        return {"name": peer.title, "failed": [f"not installed: {failure}"]}
    with contextlib.ExitStack() as stack:
        server = None
        if peer.needs_server:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.directory)))
            server = stack.enter_context(MlflowServer(root))
        with quiet(given.lock):
            return Measurement(peer, given, python, server).all()


def show(row: dict[str, Any]) -> None:
    cells = [f"{row['name']:42}"]
    for key, width, unit in (("one_us", 10, "us"), ("one_p99_us", 10, "us"), ("floors", 7, "x"), ("ten_us", 10, "us")):
        cells.append(f"{row[key]:{width}.1f} {unit}" if key in row else " " * (width + 3))
    told = ", ".join(f"{key} {row[key]}" for key in ("lost", "lost_alone", "point_bytes") if key in row)
    print(" ".join(cells), told, *row["failed"], flush=True)


def record(path: Path, rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    results.write(
        path,
        "peers",
        "mlferry beside other experiment trackers, offline, each as its documentation shows.",
        columns={key: text for key, text in COLUMNS.items() if any(key in row for row in rows)},
        rows=rows,
        plot={"kind": "bar", "x": "name", "y": ["one_us"], "log_y": True}
        if any("one_us" in row for row in rows)
        else None,
        notes=list(notes(rows, given)),
        directory=given.directory,
    )


def notes(rows: list[dict[str, Any]], given: argparse.Namespace) -> Iterator[str]:
    yield (
        f"One system after the other on one machine, medians of {given.repeats} fresh processes of {given.seconds:g} s of "
        "calls each, one after the other as fast as they go. The floor is timed in each of these processes just before, so "
        "that x floor compares what systems cost although they did not run at once."
    )
    yield (
        "Step: one call of one metric in each step of 2 ms of hashing, the median over pairs of blocks of 25 steps with "
        "and without it; threads and helper processes slow the steps between the calls, too, and that counts."
    )
    yield (
        f"Lost: calls that had returned (at {PACE:,.0f} points a second, for {PACED_S:g} s, or as fast as the system goes) "
        f"and that its own reader does not find after SIGKILL; {given.kills} x of all its processes at once, as an OOM "
        f"killer or a scheduler does it, and {given.kills} x of the logging process alone, whose helpers then had "
        f"{trials.HELPERS_LIMIT_S:g} s. This is about a killed process, not about a power cut."
    )
    yield (
        "Memory: the peaks of all its processes just before these kills, less a bare Python process's (the floor's). Disk: "
        "the difference of two finished runs of different length. What took longer than "
        f"{trials.PHASE_LIMIT_S:.0f} s is not shown."
    )
    yield "Without a network: offline modes" + (
        ", in a network namespace that has none (but for MLflow's server)." if trials.without_network() else "."
    )
    for row in rows:
        if "counted" in row:
            yield f"{row['name']}: counted by {row['counted']}." + "".join(f" Failed: {one}." for one in row["failed"])
        else:
            yield f"{row['name']}: {'; '.join(row['failed'])}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[peer.name for peer in PEERS])
    parser.add_argument("--seconds", type=float, default=0.7, help="of calls of one metric, and of ten, in one process")
    parser.add_argument("--repeats", type=int, default=3, help="processes that are timed")
    parser.add_argument("--kills", type=int, default=2, help="of all processes, and as many of the logging one alone")
    parser.add_argument("--keep", action="store_true", help="keep the virtual environments for the next time")
    parser.add_argument("--lock", type=Path, help="hold this file's lock, and run before others, a system at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; the folder of temporary files by default")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for peer in PEERS:
        if given.only is None or peer.name in given.only or peer.name == "floor":
            rows.append(measure(peer, given))
            if "peak_mb" in rows[-1] and len(rows) > 1:
                rows[-1]["peak_mb"] -= rows[0].get("peak_mb", 0.0)
            show(rows[-1])
            if given.json:
                record(given.json, rows, given)
    if not given.keep:
        environments.remove()


if __name__ == "__main__":
    main()
