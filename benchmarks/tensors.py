"""What it costs to log tensors, against logging floats: 0-d tensors of the CPU, and the part of a GPU's that the CPU does.

    python benchmarks/tensors.py [--rounds N] [--calls N] [--metrics N] [--json FILE] [--directory DIR]

Rounds of all contestants are interleaved in one process, so that whatever else the machine does falls on all of them.
``ratio``: (call / call with floats) of the same round. Medians over rounds of the medians of a round, with the 10th and 90th
percentile. Tensors of a GPU are simulated here (gathered by real kernels of the CPU into memory that is not pinned, events
and streams do nothing): the row shows the work of Python, and neither launches nor a driver.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]

import torch  # noqa: E402

from mlferry.devices.accelerator import Accelerator  # noqa: E402
from mlferry.devices.flights import Flights  # noqa: E402
from mlferry.devices.tensors import Tensors, check  # noqa: E402

Call = Callable[[int], object]

TITLE = "What it costs to log tensors, against logging floats"
COLUMNS = {
    "name": "call",
    "median_us": "median (µs)",
    "ratio": "times the same with floats",
    "ratio_p10": "10th percentile",
    "ratio_p90": "90th percentile",
}
NOTES = (
    "All contestants in one process, their rounds interleaved: medians of {rounds} rounds of {calls} calls each.",
    "by hand: the user calls .item() on each tensor and logs floats.",
    "Simulated GPU: gathered by a real kernel of the CPU, while streams and events do nothing. What launches and the "
    "driver cost on a GPU is not measured, nor what the helper thread costs: its work is done between the calls.",
)


class Nothing:
    """A stream, an event and a device that do nothing."""

    stream_id = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return True


class Idle:
    """Looks like ``torch.cuda``."""

    Event = Nothing
    _nothing = Nothing()

    def device(self, number: object) -> Nothing:
        return self._nothing

    def current_stream(self, number: object) -> Nothing:
        return self._nothing

    def is_current_stream_capturing(self) -> bool:
        return False


class Simulated(Accelerator):
    """Tensors of the CPU are taken for those of a device."""

    def allocated(self, size: int) -> Any:
        return torch.zeros(size, dtype=torch.uint8)

    def copy(self, tensors: Any, to: Any, stream: Any) -> None:
        with torch.no_grad():
            self.write(self.gathered(tensors), to)


class NoThread(threading.Thread):
    """What the helper would do is done between the calls that are timed."""

    def start(self) -> None:
        raise RuntimeError


class OnDevice(Tensors):
    """Takes what is marked so."""

    def takes(self, value: Any) -> bool:
        if not hasattr(value, "on_device"):
            return False
        check(value)
        return True


def marked(value: float) -> Any:
    tensor = torch.tensor(value)
    tensor.on_device = True  # type: ignore[attr-defined]
    return tensor


def contestants(directory: Path, metrics: int) -> dict[str, tuple[Call, str]]:
    """Each contestant, and the one that it is measured against."""
    os.environ.update(MLFERRY_DIR=str(directory), MLFERRY_QUIET="1")
    import mlferry
    from mlferry import runs, values

    mlferry.start_run()
    log, log_many = mlferry.log_metric, mlferry.log_metrics
    plain, graded = torch.tensor(0.5), torch.tensor(0.5, requires_grad=True) * 2
    floats = {f"train/metric_{index}": 0.5 + index for index in range(metrics)}
    tensors = {name: torch.tensor(value) for name, value in floats.items()}
    on_gpu = {name: marked(value) for name, value in floats.items()}
    simulated = Simulated(torch, Idle())
    device, later_of = OnDevice(Flights(NoThread), lambda kind: simulated), values.later_of
    values.register_later(device)
    runs.later_of = lambda value: device if device.takes(value) else later_of(value)
    one, many = "log_metric, a float", f"log_metrics, {metrics} floats"

    return {
        one: (lambda step: log("loss", 0.5, step), one),
        "log_metric, a tensor": (lambda step: log("loss", plain, step), one),
        "log_metric, a tensor with a gradient": (lambda step: log("loss", graded, step), one),
        "by hand: log_metric of .item()": (lambda step: log("loss", graded.item(), step), one),
        "by hand: log_metric of .detach().item()": (lambda step: log("loss", graded.detach().item(), step), one),
        "log_metric, a tensor of a simulated GPU": (
            lambda step: log("loss", on_gpu["train/metric_0"], step),
            one,
        ),
        many: (lambda step: log_many(floats, step), many),
        f"log_metrics, {metrics} tensors": (lambda step: log_many(tensors, step), many),
        f"by hand: log_metrics of {metrics} .item()": (
            lambda step: log_many({name: value.item() for name, value in tensors.items()}, step),
            many,
        ),
        f"log_metrics, {metrics} tensors of a simulated GPU": (lambda step: log_many(on_gpu, step), many),
    }


def median_of(calls: int, call: Call, between: Callable[[], object]) -> float:
    """The median of some calls, in microseconds."""
    taken, clock = [], time.perf_counter_ns
    for step in range(calls):
        begun = clock()
        call(step)
        taken.append(clock() - begun)
        if step % 50 == 49:
            between()
    return statistics.median(taken) / 1000


def measure(rounds: int, calls: int, metrics: int, directory: Path) -> list[dict[str, Any]]:
    calling = contestants(directory, metrics)
    between = partial(sys.modules["mlferry.values"].settle, 10.0)
    for call, _ in calling.values():
        median_of(calls // 4, call, between)
    taken: dict[str, list[float]] = {name: [] for name in calling}
    for _ in range(rounds):
        for name, (call, _) in calling.items():
            taken[name].append(median_of(calls, call, between))
    return [_row(name, taken[name], taken[floor]) for name, (_, floor) in calling.items()]


def _row(name: str, taken: list[float], floor: list[float]) -> dict[str, Any]:
    ratios = sorted(mine / least for mine, least in zip(taken, floor, strict=True))
    return {
        "name": name,
        "median_us": round(statistics.median(taken), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_p10": round(ratios[int(len(ratios) * 0.1)], 2),
        "ratio_p90": round(ratios[int(len(ratios) * 0.9)], 2),
    }


def machine(directory: Path) -> dict[str, Any]:
    """What was measured on."""
    cpus, mounted = Path("/proc/cpuinfo").read_text().splitlines(), Path("/proc/mounts").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "")
    mounts = [line.split()[1:3] for line in mounted]
    below = [mount for mount in mounts if directory.resolve().is_relative_to(mount[0])]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": max(below, key=lambda mount: len(mount[0]))[1],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=400, help="per contestant and round")
    parser.add_argument("--metrics", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        rows = measure(given.rounds, given.calls, given.metrics, Path(directory))
        told = machine(Path(directory))
        sys.modules["mlferry"].end_run()
    for row in rows:
        spread = f"({row['ratio_p10']:.2f} to {row['ratio_p90']:.2f})"
        print(f"{row['name']:52}{row['median_us']:9.2f} us{row['ratio']:9.2f}  {spread}")
    if given.json:
        result = {
            "benchmark": "tensors",
            "title": TITLE,
            "date": datetime.date.today().isoformat(),
            "machine": told,
            "columns": COLUMNS,
            "rows": rows,
            "plot": {"kind": "bar", "x": "name", "y": ["median_us"], "log_x": False, "log_y": False},
            "notes": [note.format(rounds=given.rounds, calls=given.calls) for note in NOTES],
        }
        given.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
