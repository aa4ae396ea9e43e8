"""Machine instructions of one logging call, in multiples of those of pack + checksum + write: a measure without noise.

    python benchmarks/instructions.py [--calls N]

Callgrind (valgrind) executes each contestant in a process of its own and counts what the CPU would execute outside of the
kernel; what a process does besides its calls is measured by one that makes none, and taken off. The counts are the same on
a busy machine and on an idle one, so that a test holds them against bounds. They are no time: a system call counts a few
instructions here, and is more than half of the time of a call (``hot_path.py``).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk")]

TEN = {f"train/metric_{index}": 0.5 + index for index in range(10)}

#: Each contestant and the floor that it is measured against.
FLOOR_OF = {"floor, 1 metric": "floor, 1 metric", "mlferry.log_metric": "floor, 1 metric"}
FLOOR_OF |= {"floor, 10 metrics": "floor, 10 metrics", "mlferry.log_metrics of 10": "floor, 10 metrics"}
NOTHING = "nothing"


def ratios(calls: int) -> dict[str, float]:
    """Instructions of each contestant's call, in multiples of its floor's."""
    names = [NOTHING, *FLOOR_OF]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = dict(zip(names, pool.map(lambda name: counted(name, calls), names), strict=True))
    each = {name: (counts[name] - counts[NOTHING]) / calls for name in FLOOR_OF}
    return {name: each[name] / each[floor] for name, floor in FLOOR_OF.items()}


def counted(name: str, calls: int) -> int:
    """Instructions of a process that makes so many calls of a contestant.

    Raises RuntimeError: callgrind did not end well.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/out", sys.executable, __file__]
        # The same hashes and no site packages' .pth files: the same instructions each time.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MLFERRY_DIR": directory}
        environment |= {"MLFERRY_QUIET": "1", "MLFERRY_FSYNC": "never"}
        arguments = ["--calls", str(calls), "--contestant", name]
        ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", ended.stderr)
    if ended.returncode or found is None:
        raise RuntimeError(f"callgrind: {ended.stderr[-2000:]}")
    return int(found[1])


def make_calls(name: str, calls: int) -> None:
    """What the counted process does. It sets up every contestant, whichever it is."""
    call = contestants(Path(os.environ["MLFERRY_DIR"]))[name]
    for step in range(calls):
        call(step)


def contestants(directory: Path) -> dict[str, Callable[[int], object]]:
    import msgpack

    import mlferry

    mlferry.start_run()
    log_metric, log_metrics = mlferry.log_metric, mlferry.log_metrics
    for step in range(10):  # names and types are met before the count begins to differ
        log_metric("train/loss", 0.5, step)
        log_metrics(TEN, step)
    file = os.open(directory / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    pack, crc32, write = msgpack.Packer(use_bin_type=True).pack, zlib.crc32, os.write

    def floor_one(step: int) -> None:
        payload = pack((1700000000000, step, {"train/loss": 0.5}))
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    def floor_ten(step: int) -> None:
        payload = pack((1700000000000, step, TEN))
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    return {
        NOTHING: lambda step: None,
        "floor, 1 metric": floor_one,
        "mlferry.log_metric": lambda step: log_metric("train/loss", 0.5, step),
        "floor, 10 metrics": floor_ten,
        "mlferry.log_metrics of 10": lambda step: log_metrics(TEN, step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--contestant", choices=[NOTHING, *FLOOR_OF], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        return make_calls(given.contestant, given.calls)
    for name, ratio in ratios(given.calls).items():
        print(f"{name:28}{ratio:6.2f} x its floor")


if __name__ == "__main__":
    main()
