"""What logging 20 values of a GPU at every step does to a training: its step time, and the gaps in which the GPU idles.

    python benchmarks/cuda_logging.py [--steps N] [--rounds N] [--metrics N] [--only NAME...] [--json FILE] [--simulate]

A small transformer trains; each contestant logs the same scalars of the device at every step. ``step`` is the wall time of a
step, over a round that ends with a synchronization. ``idle`` is the share of a profiled round in which no kernel and no copy
runs (torch.profiler), ``gaps`` the gaps of more than 20 microseconds in it, a step. Rounds are interleaved, so that whatever
else the machine does falls on all contestants; ``ratio`` is that of step times to the training that logs nothing.

``.item()`` here is mlferry with values that the program reads itself. Peers read them themselves: TensorBoard, MLflow
(SQLite, synchronous) and wandb (offline), where they are installed.

--simulate runs the same contestants on a machine without a GPU: the "device" is a thread that sleeps as long as a kernel
would run, and the program spends its own time for each step. It shows that the benchmark and the mechanism work, and says
nothing about any GPU.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]

import torch  # noqa: E402

import mlferry  # noqa: E402

Log = Callable[[dict[str, Any], int], object]
Span = tuple[float, float]

#: A gap that a person would see in a trace, in microseconds; launches alone leave shorter ones.
GAP_US = 20.0

COLUMNS = {
    "name": "logging by",
    "step_ms": "step (ms)",
    "ratio": "times no logging",
    "ratio_p10": "10th percentile",
    "ratio_p90": "90th percentile",
    "idle_percent": "device idle (%)",
    "gaps_a_step": "gaps a step",
}


class Training(Protocol):
    """What is trained, and where."""

    def step(self) -> dict[str, Any]:
        """One step; scalars of the device, which may not be computed yet."""

    def finish(self) -> None:
        """Wait until the device has done everything."""

    def profiled(self, run: Callable[[], object]) -> list[Span]:
        """When the device worked while this ran: begin and end of each piece of work, in microseconds."""


class OnGpu:
    """A small transformer on ``cuda:0``: some hundred kernels a step, whose launches take less than they run."""

    def __init__(self, metrics: int) -> None:
        self._count = metrics
        layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, dropout=0.0)
        self._model = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).cuda()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)
        self._batch = torch.randn(32, 128, 512, device="cuda")

    def step(self) -> dict[str, Any]:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = (self._model(self._batch) - self._batch).square().mean()
        loss.backward()
        self._optimizer.step()
        return scalars(loss, self._count)

    def finish(self) -> None:
        torch.cuda.synchronize()

    def profiled(self, run: Callable[[], object]) -> list[Span]:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            run()
            self.finish()
        return [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type is torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]


class InThread:
    """A device that is a thread: it sleeps ``kernel_ms`` a step, while the program spends ``host_ms`` of its own time."""

    def __init__(self, metrics: int, kernel_ms: float = 4.0, host_ms: float = 2.0, ahead: int = 32) -> None:
        from tests.fakes.gpu import Scalar, scalar, simulated

        from mlferry import values

        self._count, self._kernel_ms, self._host_ms, self._ahead = metrics, kernel_ms, host_ms, ahead
        self._scalar = scalar
        self._device = simulated(threaded=True)
        self._stream = self._device.gpus.stream(0, 0)
        self._spans: list[Span] = []
        values._laters[:] = [self._device.tensors]
        Scalar.item = lambda tensor: self._read(tensor).item()  # type: ignore[method-assign,assignment]
        Scalar.cpu = lambda tensor: self._read(tensor)  # type: ignore[method-assign,assignment]
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            if self._stream.queue:
                self._stream.queue[0]()
                self._stream.queue.popleft()
            else:
                time.sleep(0.0001)

    def _kernel(self) -> None:
        begun = time.perf_counter()
        time.sleep(self._kernel_ms / 1000)
        self._spans.append((begun * 1e6, time.perf_counter() * 1e6))

    def _read(self, tensor: Any) -> Any:
        self.finish()
        return tensor.as_subclass(torch.Tensor)

    def step(self) -> dict[str, Any]:
        time.sleep(self._host_ms / 1000)  # as launches do, without the GIL
        while len(self._stream.queue) > self._ahead:  # as with the queue of a real stream
            time.sleep(0.0001)
        self._stream.queue.append(self._kernel)
        return {f"train/metric_{index}": self._scalar(0.5 + index) for index in range(self._count)}

    def finish(self) -> None:
        while self._stream.queue:
            time.sleep(0.0001)

    def profiled(self, run: Callable[[], object]) -> list[Span]:
        self.finish()
        self._spans.clear()
        run()
        self.finish()
        return list(self._spans)


def scalars(loss: Any, count: int) -> dict[str, Any]:
    """As a training that watches itself closely has them: each a kernel's result of its own."""
    loss = loss.detach()
    return {f"train/metric_{index}": loss * (index + 1) for index in range(count)}


def idle_of(spans: list[Span]) -> tuple[float, int]:
    """The share of the time from the first to the last span that none covers, and how many gaps of that are long."""
    spans = sorted(spans)
    if not spans:
        return 0.0, 0
    gaps, reached = [], spans[0][1]
    for begin, end in spans:
        gaps.append(begin - reached)
        reached = max(reached, end)
    idle = sum(gap for gap in gaps if gap > 0)
    return idle / (reached - spans[0][0] or 1.0), sum(gap > GAP_US for gap in gaps)


# -- who logs -----------------------------------------------------------------------------------------------------------


def peers(directory: Path, ends: ExitStack) -> Iterator[tuple[str, Callable[[], Log]]]:
    """Those that are installed; each asks for the numbers itself. ``ends`` closes them."""

    def tensorboard() -> Log:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(directory / "tensorboard"))
        ends.callback(writer.close)
        return lambda values, step: [writer.add_scalar(name, value, step) for name, value in values.items()]

    def mlflow() -> Log:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        mlflow.start_run()
        ends.callback(mlflow.end_run)
        return lambda values, step: mlflow.log_metrics(values, step=step)

    def wandb() -> Log:
        import wandb

        run = wandb.init(mode="offline", dir=str(directory))
        ends.callback(run.finish)
        return lambda values, step: run.log(values, step=step)

    yield from (("TensorBoard", tensorboard), ("MLflow, SQLite", mlflow), ("wandb, offline", wandb))


def contestants(directory: Path, only: list[str], ends: ExitStack) -> dict[str, Log]:
    mlferry.start_run()
    log, log_many = mlferry.log_metric, mlferry.log_metrics
    found: dict[str, Log] = {
        "nothing": lambda values, step: None,
        "mlferry.log_metrics": lambda values, step: log_many(values, step),
        "mlferry.log_metric, each": lambda values, step: [log(name, value, step) for name, value in values.items()],
        "mlferry, after .item()": lambda values, step: log_many({n: v.item() for n, v in values.items()}, step),
    }
    for name, make in peers(directory, ends):
        if only and name not in only:
            continue
        try:
            found[name] = make()
        except ImportError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
    return {name: log for name, log in found.items() if not only or name in only or name == "nothing"}


def round_of(training: Training, log: Log, steps: int, numbers: Iterator[int]) -> float:
    """Milliseconds a step."""
    training.finish()
    begun = time.perf_counter()
    for _ in range(steps):
        log(training.step(), next(numbers))
    training.finish()
    return (time.perf_counter() - begun) / steps * 1000


def measure(training: Training, logs: dict[str, Log], rounds: int, steps: int) -> list[dict[str, Any]]:
    numbers = itertools.count()
    for log in logs.values():
        round_of(training, log, max(3, steps // 4), numbers)
    times: dict[str, list[float]] = {name: [] for name in logs}
    for _ in range(rounds):
        for name, log in logs.items():
            times[name].append(round_of(training, log, steps, numbers))
    idle = {
        name: idle_of(training.profiled(lambda log=log: round_of(training, log, steps, numbers)))
        for name, log in logs.items()
    }
    return [_row(name, times[name], times["nothing"], *idle[name], steps) for name in logs]


def _row(name: str, times: list[float], floor: list[float], idle: float, gaps: int, steps: int) -> dict[str, Any]:
    ratios = sorted(mine / least for mine, least in zip(times, floor, strict=True))
    return {
        "name": name,
        "step_ms": round(statistics.median(times), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(ratios[int(len(ratios) * 0.1)], 3),
        "ratio_p90": round(ratios[int(len(ratios) * 0.9)], 3),
        "idle_percent": round(idle * 100, 1),
        "gaps_a_step": round(gaps / steps, 2),
    }


@contextmanager
def spool() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        os.environ.update(MLFERRY_DIR=f"{directory}/spool", MLFERRY_QUIET="1", MLFLOW_DISABLE_TELEMETRY="true")
        yield Path(directory)
        mlferry.end_run()


def result(rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    device = "simulated" if given.simulate else torch.cuda.get_device_name()
    note = "SIMULATED: no GPU was used, and this says nothing about one. " if given.simulate else ""
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    return {
        "benchmark": "cuda_logging",
        "title": f"A training that logs {given.metrics} values of its device at every step",
        "date": datetime.date.today().isoformat(),
        "machine": {**machine, "cpu": platform.machine(), "file_system": "", "gpu": device, "torch": torch.__version__},
        "columns": COLUMNS,
        "rows": rows,
        "plot": {"kind": "bar", "x": "name", "y": ["step_ms"], "log_x": False, "log_y": False},
        "notes": [f"{note}Medians of {given.rounds} interleaved rounds of {given.steps} steps, in one process."],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--metrics", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="names of contestants, as in the table")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--simulate", action="store_true", help="without a GPU: see above")
    given = parser.parse_args()
    if not given.simulate and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --simulate shows the mechanism without one")
    warnings.simplefilter("ignore")
    training: Training = InThread(given.metrics) if given.simulate else OnGpu(given.metrics)
    with spool() as directory, ExitStack() as ends:
        rows = measure(training, contestants(directory, given.only, ends), given.rounds, given.steps)
        run = mlferry.active_run()
        dropped = run.dropped if run is not None else 0
    print(f"{'':28}{'step':>10}{'x none':>9}  {'(p10 to p90)':18}{'idle':>7}{'gaps/step':>11}")
    for row in rows:
        spread = f"({row['ratio_p10']:.2f} to {row['ratio_p90']:.2f})"
        print(
            f"{row['name']:28}{row['step_ms']:7.2f} ms{row['ratio']:9.2f}  {spread:18}"
            f"{row['idle_percent']:6.1f}%{row['gaps_a_step']:11.2f}"
        )
    print(f"dropped: {dropped}")
    if given.json:
        given.json.write_text(json.dumps(result(rows, given), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
