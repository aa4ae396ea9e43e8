"""What `log_series` costs a point, in time and on disk, against the floor: the same bytes by numpy's tobytes, crc32 and
one write a frame, in the same process.

    python benchmarks/series.py [--points N...] [--rounds N] [--json FILE] [--directory DIR]

Kinds: ``values`` alone (steps 0, 1, 2..., one timestamp); ``regular`` steps and timestamps, given as arrays; ``jittered``:
every step a few further on, and a clock that jitters, which is what training loops have; ``far apart``: steps and timestamps
anywhere in 64 bits, which cannot be narrowed; ``torch``: a float32 tensor of values alone; ``list``: of Python's floats.
Rounds of mlferry and of the floor alternate; ``ratio`` is the median over rounds of mlferry's time to that of the floor in
the same round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]
os.environ["MLFERRY_QUIET"] = "1"

from benchmarks import results  # noqa: E402

import mlferry  # noqa: E402
from mlferry_spool.limits import MAX_SERIES_POINTS  # noqa: E402

T0 = 1_700_000_000_000
LEAST_POINTS_A_ROUND = 1_000_000
Columns = list[np.ndarray[Any, Any]]


def given(kind: str, points: int) -> tuple[Any, Any, Any, Columns]:
    """Values, steps and timestamps to log, and the arrays whose bytes are the floor's."""
    random = np.random.default_rng(points)
    values = random.standard_normal(points)
    if kind == "torch":
        values = values.astype("f4")
        return torch.from_numpy(values), None, None, [values.astype("f8")]
    if kind == "list":
        return values.tolist(), None, None, [values]
    if kind == "regular":
        return values, np.arange(points) * 10, T0 + np.arange(points) * 100, [values]
    if kind == "jittered":
        steps = np.cumsum(random.integers(1, 4, points))
        times = T0 + np.cumsum(random.integers(20, 30, points))
        return values, steps, times, [values, steps.astype("u2"), times.astype("u2")]
    if kind == "far apart":
        steps, times = (random.integers(low, 2**63 - 1, points) for low in (-(2**63), 0))
        return values, steps, times, [values, steps, times]
    return values, None, None, [values]


def floor(columns: Columns, fd: int) -> None:
    for at in range(0, len(columns[0]), MAX_SERIES_POINTS):
        frame = b"".join(column[at : at + MAX_SERIES_POINTS].tobytes() for column in columns)
        os.write(fd, zlib.crc32(frame).to_bytes(4, "big") + frame)


def timed(call: Callable[[], object], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - begun


def one_round(what: tuple[Any, Any, Any, Columns], times: int, directory: Path) -> tuple[float, float, int]:
    """Seconds of mlferry, seconds of the floor, and bytes that mlferry has written."""
    values, steps, timestamps, columns = what
    os.environ["MLFERRY_DIR"] = str(directory / "spool")
    with mlferry.start_run() as run:
        before = written(run.directory)
        mine = timed(lambda: run.log_series("series", values, steps, timestamps), times)
        size = written(run.directory) - before
    shutil.rmtree(directory / "spool")
    fd = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    least = timed(lambda: floor(columns, fd), times)
    os.close(fd)
    (directory / "floor").unlink()
    return mine, least, size


def written(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*.seg"))


def measure(kind: str, points: int, rounds: int, directory: Path) -> dict[str, Any]:
    what = given(kind, points)
    times = max(LEAST_POINTS_A_ROUND // points, 1)
    one_round(what, times, directory)
    taken = [one_round(what, times, directory) for _ in range(rounds)]
    numbers = {
        **results.spread([points * times / mine / 1e6 for mine, _, _ in taken], "speed"),
        "floor": results.spread([points * times / least / 1e6 for _, least, _ in taken], "floor")["floor"],
        **results.spread([mine / least for mine, least, _ in taken], "ratio"),
        "bytes": taken[-1][2] / points / times,
    }
    row: dict[str, Any] = {"kind": kind, "points": points, **{key: round(number, 2) for key, number in numbers.items()}}
    return {**row, kind: row["speed"]}  # a line of its own in the plot


COLUMNS = {
    "kind": "series",
    "points": "points in a call",
    "speed": "million points/s",
    "speed_p10": "p10",
    "speed_p90": "p90",
    "floor": "floor, million points/s",
    "ratio": "x time of the floor",
    "ratio_p10": "ratio p10",
    "ratio_p90": "ratio p90",
    "bytes": "bytes on disk a point",
}
KINDS = ("values", "regular", "jittered", "far apart", "torch", "list")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    chosen = parser.parse_args()
    rows = []
    print(f"{'':10}{'points':>10}{'M points/s':>12}{'(p10 to p90)':>18}{'floor':>8}{'ratio':>7}{'bytes/point':>13}")
    directory = Path(tempfile.mkdtemp(dir=chosen.directory))
    try:
        for kind in chosen.kinds:
            for points in chosen.points:
                row = measure(kind, points, chosen.rounds, directory)
                rows.append(row)
                between = f"({row['speed_p10']} to {row['speed_p90']})"
                print(
                    f"{kind:10}{points:10}{row['speed']:12}{between:>18}{row['floor']:8}{row['ratio']:7}{row['bytes']:13}",
                    flush=True,
                )
        if chosen.json is not None:
            keep(chosen.json, directory, rows, chosen.rounds)
    finally:
        shutil.rmtree(directory)


def keep(path: Path, directory: Path, rows: list[dict[str, Any]], rounds: int) -> None:
    results.write(
        path,
        "series",
        "Points of a series a second into the spool, and their bytes on disk",
        directory=directory,
        columns=COLUMNS,
        rows=rows,
        plot={"kind": "line", "x": "points", "y": list(dict.fromkeys(row["kind"] for row in rows)), "log_x": True},
        notes=[
            f"Medians of {rounds} rounds in one process; a round of mlferry and one of the floor alternate, and the ratio "
            "is taken in each round.",
            "The floor turns the same columns into bytes (numpy's tobytes), checks them (crc32) and writes them, a frame of "
            "32768 points at a time; its integers are as narrow as mlferry's are in the end, and given so.",
            "The plot shows million points a second of each kind, by points in a call.",
            "MLFERRY_FSYNC is its default, interval: the disk is written to in the background, in both.",
            "Not measured: a machine whose page cache is full, where the disk sets the pace.",
        ],
    )


if __name__ == "__main__":
    main()
