"""What one logging call costs, against the floor: pack + crc + one write of the same record, in the same process.

    python benchmarks/hot_path.py [--in-python] [--rounds N] [--calls N] [--json FILE] [--directory DIR]

Rounds of all contestants are interleaved, so that whatever else the machine does falls on all of them. ``ratio`` is the
median over rounds of (contestant / floor of the same round), with the 10th and 90th percentile of that. `--in-python`:
without the compiled hot path, as where there was no C compiler.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgpack

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]

from benchmarks import results  # noqa: E402

TEN = {f"train/metric_{index}": 0.5 + index for index in range(10)}
Loop = Callable[[int], list[int]]


def timed(call: Callable[[int], object]) -> Loop:
    """A loop over a call (of the step) that times each one; its own cost is the same for every contestant."""

    def loop(calls: int) -> list[int]:
        clock, times = time.perf_counter_ns, []
        for step in range(calls):
            begun = clock()
            call(step)
            times.append(clock() - begun)
        return times

    return loop


def contestants(directory: Path, *, in_python: bool) -> dict[str, tuple[Loop, str]]:
    """Each contestant and the floor that it is measured against."""
    os.environ.update(MLFERRY_DIR=str(directory), MLFERRY_QUIET="1", MLFERRY_PURE_PYTHON=str(int(in_python)))
    import mlferry
    from mlferry_spool.appender import IS_COMPILED

    assert IS_COMPILED is not in_python, "the hot path is not compiled here: --in-python"
    run = mlferry.start_run()
    append, file = run._appender.append, os.open(directory / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    pack, crc32, write, now = msgpack.Packer(use_bin_type=True).pack, zlib.crc32, os.write, time.time_ns

    def floor_one(step: int) -> None:
        payload = pack((1700000000000, step, {"train/loss": 0.5}))
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    def floor_ten(step: int) -> None:
        payload = pack((1700000000000, step, TEN))
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    log_metric, log_metrics = mlferry.log_metric, mlferry.log_metrics
    calls: dict[str, tuple[Callable[[int], object], str]] = {
        "floor, 1 metric": (floor_one, "floor, 1 metric"),
        "writer.append, 1": (
            lambda step: append(4, (now() // 1_000_000, step, {"train/loss": 0.5})),
            "floor, 1 metric",
        ),
        "Run.log_metric": (lambda step: run.log_metric("train/loss", 0.5, step), "floor, 1 metric"),
        "mlferry.log_metric": (lambda step: log_metric("train/loss", 0.5, step), "floor, 1 metric"),
        "floor, 10 metrics": (floor_ten, "floor, 10 metrics"),
        "writer.append, 10": (lambda step: append(4, (now() // 1_000_000, step, TEN)), "floor, 10 metrics"),
        "mlferry.log_metrics of 10": (lambda step: log_metrics(TEN, step), "floor, 10 metrics"),
    }
    return {name: (timed(call), floor) for name, (call, floor) in calls.items()}


def measure(rounds: int, calls: int, directory: Path, *, in_python: bool) -> list[dict[str, float | str]]:
    loops = contestants(directory, in_python=in_python)
    for loop, _ in loops.values():
        loop(calls // 4)
    taken: dict[str, list[list[int]]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, (loop, _) in loops.items():
            taken[name].append(sorted(loop(calls)))
    medians = {name: [statistics.median(times) for times in runs] for name, runs in taken.items()}
    return [_row(name, taken[name], medians, floor) for name, (_, floor) in loops.items()]


def _row(name: str, taken: list[list[int]], medians: dict[str, list[float]], floor: str) -> dict[str, float | str]:
    ratios = sorted(mine / least for mine, least in zip(medians[name], medians[floor], strict=True))
    return {
        "name": name,
        "median_ns": statistics.median(medians[name]),
        "p99_ns": statistics.median(times[int(len(times) * 0.99)] for times in taken),
        "p999_ns": statistics.median(times[int(len(times) * 0.999)] for times in taken),
        "most_ns": statistics.median(times[-1] for times in taken),
        "ratio": statistics.median(ratios),
        "ratio_p10": ratios[int(len(ratios) * 0.1)],
        "ratio_p90": ratios[int(len(ratios) * 0.9)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=4000, help="per contestant and round")
    parser.add_argument("--in-python", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        rows = measure(given.rounds, given.calls, Path(directory), in_python=given.in_python)
        sys.modules["mlferry"].end_run()
    print(f"{'':28}{'median':>10}{'p99':>10}{'p99.9':>10}{'most':>11}{'x floor':>9}  (p10 to p90)")
    for row in rows:
        spread = f"({row['ratio_p10']:.2f} to {row['ratio_p90']:.2f})"
        times = f"{row['median_ns']:7.0f} ns{row['p99_ns']:7.0f} ns{row['p999_ns']:7.0f} ns{row['most_ns']:8.0f} ns"
        print(f"{row['name']:28}{times}{row['ratio']:9.2f}  {spread}")
    if given.json:
        record(given.json, rows, given)


def record(path: Path, rows: list[dict[str, float | str]], given: argparse.Namespace) -> None:
    results.write(
        path,
        "hot_path_python" if given.in_python else "hot_path",
        f"What one logging call costs the training, against the floor{', in Python alone' if given.in_python else ''}.",
        columns={
            **{"name": "", "median_ns": "median (ns)", "p99_ns": "p99 (ns)"},
            **{"p999_ns": "p99.9 (ns)", "most_ns": "slowest of a round (ns)"},
            **{"ratio": "x floor", "ratio_p10": "p10", "ratio_p90": "p90"},
        },
        rows=rows,
        plot={"kind": "bar", "x": "name", "y": ["median_ns"]},
        notes=[
            f"{given.rounds} rounds of {given.calls:,} calls each in one process, all contestants taking turns; medians "
            "over the rounds of the median, the percentiles and the slowest call of a round.",
            "The floor packs the same record, takes its CRC-32 and writes it with one `write(2)`; x floor is the ratio "
            "within a round.",
        ],
        directory=given.directory,
    )


if __name__ == "__main__":
    main()
