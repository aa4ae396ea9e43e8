"""What logging costs a real PyTorch training loop: 10 metrics a step, a step of about 2 ms on the CPU.

    python benchmarks/training_loop.py [CONDITION...] [--pairs N] [--steps N] [--json FILE] [--directory DIR]

Paired: blocks of steps with logging and without, two by two, in an order drawn for each pair, in one process on one model.
A block takes a fifth of a second, since what else a machine does changes by the second. So that an fsync falls into each
block that logs there is one each tenth of a second here, ten times as often as by default; and before each block what was
logged is flushed, so that it does not fall into the others. Of each pair the difference in percent is taken, of the blocks'
whole time and of their usual (median) step; reported are the medians of all pairs and their 95 % confidence intervals
(bootstrap over pairs). ``told apart``: whether the interval of the usual step leaves out zero. ``call``: the usual duration
of the logging call itself, in the loop, where what it needs is not in the processor's cache.

Conditions: ``nothing`` logs nothing in either, which shows what the method itself makes of noise; ``pack``: the same values
are packed and checksummed, and written nowhere; ``floor``: that, and one write to a plain file; ``local`` disk;
``slow``: each fsync takes 50 ms longer; ``threads``: eight more threads each log 10 metrics every eighth step, and in the
other blocks only wake up as often; ``single``: ten calls of log_metric instead of one of log_metrics.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]
os.environ["MLFERRY_QUIET"] = "1"

from benchmarks import results  # noqa: E402

import mlferry  # noqa: E402
from mlferry import runs  # noqa: E402
from mlferry_spool import writer  # noqa: E402
from mlferry_spool.files import OsFiles  # noqa: E402
from mlferry_spool.settings import Settings  # noqa: E402

STEP_S, SLOW_S, FSYNC_S, THREADS, METRICS = 2e-3, 50e-3, 0.1, 8, 10
KEYS = [f"train/metric_{number}" for number in range(METRICS)]
Log = Callable[[int, float], object]


class SlowFiles(OsFiles):
    """A disk whose every fsync takes 50 ms longer."""

    @staticmethod
    def sync(fd: int) -> None:
        time.sleep(SLOW_S)
        os.fdatasync(fd)


@dataclass(frozen=True)
class Block:
    """Seconds of a step, on the average and as a rule (median), and of a logging call as a rule."""

    average: float
    usual: float
    call: float


Pair = tuple[Block, Block]


class Training:
    """A network of three layers on data that was made up, with as many rows in a batch as a step of 2 ms takes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(256, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 10),
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.rows = 32
        self._draw()
        for _ in range(3):
            self.block(0, 100, nothing)
            self.rows = max(int(self.rows * STEP_S / self.block(0, 200, nothing).usual), 1)
            self._draw()

    def _draw(self) -> None:
        self.inputs, self.targets = torch.randn(self.rows, 256), torch.randint(0, 10, (self.rows,))

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def block(self, first: int, steps: int, log: Log) -> Block:
        clock, ends, calls = time.perf_counter, [time.perf_counter()], []
        for number in range(first, first + steps):
            loss = self.step()
            begun = clock()
            log(number, loss)
            calls.append(clock() - begun)
            ends.append(clock())
        durations = np.diff(ends)
        return Block((ends[-1] - ends[0]) / steps, float(np.median(durations)), float(np.median(calls)))


def nothing(_step: int, _loss: float) -> None:
    """What a block without logging calls, so that the clock is read as often there."""


def all_at_once(run: mlferry.Run) -> Log:
    return lambda step, loss: run.log_metrics(dict.fromkeys(KEYS, loss), step)


def pack_only(_run: mlferry.Run) -> Log:
    pack, crc32 = msgpack.Packer(use_bin_type=True).pack, zlib.crc32
    return lambda step, loss: crc32(pack((time.time_ns() // 1_000_000, step, dict.fromkeys(KEYS, loss))))


def least(run: mlferry.Run) -> Log:
    pack, crc32, write = msgpack.Packer(use_bin_type=True).pack, zlib.crc32, os.write
    file = os.open(run.directory / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def log(step: int, loss: float) -> None:
        payload = pack((time.time_ns() // 1_000_000, step, dict.fromkeys(KEYS, loss)))
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    return log


def one_by_one(run: mlferry.Run) -> Log:
    def log(step: int, loss: float) -> None:
        for key in KEYS:
            run.log_metric(key, loss, step)

    return log


class Others:
    """Threads that wake up every eighth step, and log while they are told to."""

    def __init__(self, run: mlferry.Run, count: int) -> None:
        self.logging, self._over = False, threading.Event()
        self._log = all_at_once(run)
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _live(self, number: int) -> None:
        step = number << 32
        while not self._over.wait(STEP_S * THREADS):
            if self.logging:
                step += 1
                self._log(step, 0.5)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


CONDITIONS: dict[str, tuple[Callable[[mlferry.Run], Log], type[OsFiles], int]] = {
    "nothing": (lambda _run: nothing, OsFiles, 0),
    "pack": (pack_only, OsFiles, 0),
    "floor": (least, OsFiles, 0),
    "local": (all_at_once, OsFiles, 0),
    "slow": (all_at_once, SlowFiles, 0),
    "threads": (all_at_once, OsFiles, THREADS),
    "single": (one_by_one, OsFiles, 0),
}


def pairs_of(training: Training, condition: str, pairs: int, steps: int) -> list[Pair]:
    """Blocks without logging and with it."""
    make, files, threads = CONDITIONS[condition]
    writer.OsFiles = files  # type: ignore[misc]
    runs.Settings = partial(Settings, fsync_interval_s=FSYNC_S)  # type: ignore[assignment, misc]
    chance, taken = random.Random(condition), []
    with mlferry.open_run() as run:
        others, log = Others(run, threads), make(run)
        for number in range(pairs + 1):
            found = {}
            for logs in chance.sample([False, True], 2):
                run.flush()
                others.logging = logs
                found[logs] = training.block(number * steps, steps, log if logs else nothing)
                others.logging = False
            taken.append((found[False], found[True]))
        others.end()
        assert not run.dropped
        (run.directory / "floor").unlink(missing_ok=True)
    return taken[1:]  # the first pair warms up


def compared(pairs: list[Pair], what: str) -> tuple[float, float, float]:
    """By how many percent a step takes longer: median, and its 95 % confidence interval."""
    without, logged = np.array([[getattr(block, what) for block in pair] for pair in pairs]).T
    percent = (logged - without) / without * 100
    drawn = np.random.default_rng(0).choice(percent, (10_000, len(percent)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return round(float(np.median(percent)), 3), round(float(low), 3), round(float(high), 3)


def row_of(condition: str, pairs: list[Pair]) -> dict[str, Any]:
    (overhead, low, high), usual = compared(pairs, "average"), compared(pairs, "usual")
    return {
        "condition": condition,
        "step": round(float(np.median([without.usual for without, _ in pairs])) * 1e3, 3),
        "pairs": len(pairs),
        "overhead": overhead,
        "low": low,
        "high": high,
        "told_apart": "no" if usual[1] <= 0 <= usual[2] else "yes",
        "usual": usual[0],
        "usual_low": usual[1],
        "usual_high": usual[2],
        "call": round(float(np.median([logged.call for _, logged in pairs])) * 1e6, 1),
    }


COLUMNS = {
    "condition": "condition",
    "step": "ms, the usual step without logging",
    "pairs": "pairs of blocks",
    "overhead": "overhead, % of all time (median)",
    "low": "95 % CI from",
    "high": "to",
    "told_apart": "told apart from no logging",
    "usual": "overhead, % of the usual step",
    "usual_low": "95 % CI from",
    "usual_high": "to",
    "call": "µs, the usual logging call",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", help=f"of {', '.join(CONDITIONS)}; all by default")
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--steps", type=int, default=100, help="in a block")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=given.directory))
    os.environ["MLFERRY_DIR"] = str(directory / "spool")
    training, rows = Training(), []
    try:
        print(
            f"{'':10}{'ms a step':>10}{'overhead':>10}{'95 % CI':>20}{'usual step':>12}{'95 % CI':>20}{'us a call':>11}"
        )
        for condition in given.conditions or CONDITIONS:
            row = row_of(condition, pairs_of(training, condition, given.pairs, given.steps))
            rows.append(row)
            of_all, of_usual = (f"{row[f'{of}low']:.2f} to {row[f'{of}high']:.2f} %" for of in ("", "usual_"))
            print(
                f"{condition:10}{row['step']:10.3f}{row['overhead']:8.2f} %{of_all:>20}{row['usual']:10.2f} %{of_usual:>20}"
                f"{row['call']:11.1f}",
                flush=True,
            )
        if given.json is not None:
            keep(given.json, directory, rows, given.steps)
    finally:
        shutil.rmtree(directory)


def keep(path: Path, directory: Path, rows: list[dict[str, Any]], steps: int) -> None:
    results.write(
        path,
        "training_loop",
        "Overhead of logging 10 metrics a step in a PyTorch training loop of 2 ms a step",
        directory=directory,
        columns=COLUMNS,
        rows=rows,
        plot={"kind": "bar", "x": "condition", "y": ["usual", "usual_low", "usual_high"]},
        notes=[
            f"Pairs of blocks of {steps} steps with and without logging in one process, in an order drawn for each pair; "
            "95 % confidence intervals of the median by bootstrap over pairs.",
            "nothing: both blocks log nothing, so what is shown there is noise.",
            "local: one log_metrics of 10 values a step; single: ten calls of log_metric; slow: the same as local, with "
            "50 ms more for each fsync; threads: eight more threads log 10 values each at every eighth step.",
            "floor: pack, crc32 and one write of the same ten values to a plain file, without mlferry: what a call costs at "
            "least after which a kill loses nothing. In such a loop it finds none of its code and data in the cache.",
            "pack: the same without the write, so that a kill loses it.",
            "PyTorch on one thread of the CPU; MLFERRY_FSYNC is interval, its default, but each 0.1 s, not each second.",
        ],
    )


if __name__ == "__main__":
    main()
