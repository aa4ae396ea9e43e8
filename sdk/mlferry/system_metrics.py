"""CPU, memory, disk, network and GPU of the machine, under MLflow's names. Owns the sampling thread of one run.

Names, units, rounding and environment variables are those of ``mlflow.system_metrics`` 3.17.2: samples are averaged over
``MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING`` and logged under ``system/``, or under ``system/<node id>/`` where
``MLFLOW_SYSTEM_METRICS_NODE_ID`` (``mlflow.set_system_metrics_node_id``) names the node. Without it MLflow mixes the points
of all nodes that share a run; here each is then named by its host, and one rank a node samples it. Reading NVML never
touches the CUDA context of the training.
"""

from __future__ import annotations

import calendar
import os
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

__all__ = ["Monitor", "monitor_from_environment"]

_SAMPLING_INTERVAL_S = 10.0

#: The time in a writer's id (``layout.writer_name``), to the millisecond.
_BEGAN = re.compile(r"(\d{8}T\d{6})(\d{3})-")


class Probe(Protocol):
    """Samples one kind of resource."""

    def sample(self) -> dict[str, float]: ...


class Machine:
    """CPU, memory, disk and network, by psutil; network traffic counts from the start of the run."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._before = self._network()

    def sample(self) -> dict[str, float]:
        memory, disk = self._psutil.virtual_memory(), self._psutil.disk_usage(os.sep)
        received, sent = self._network()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": received - self._before[0],
            "network_transmit_megabytes": sent - self._before[1],
        }

    def _network(self) -> tuple[float, float]:
        counters = self._psutil.net_io_counters()
        return (0.0, 0.0) if counters is None else (counters.bytes_recv / 1e6, counters.bytes_sent / 1e6)


class Gpus:
    """Memory, utilisation and power of each NVIDIA GPU, by nvidia-ml-py."""

    def __init__(self, nvml: Any) -> None:
        nvml.nvmlInit()
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]

    def sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for read in (self._memory, self._utilization, self._power):
                try:
                    found.update({f"gpu_{index}_{name}": value for name, value in read(handle).items()})
                except self._nvml.NVMLError:  # a virtual or partitioned GPU does not answer every question
                    continue
        return found

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        percentage = round(memory.used / memory.total * 100, 1)
        return {"memory_usage_percentage": percentage, "memory_usage_megabytes": memory.used / 1e6}

    def _utilization(self, handle: Any) -> dict[str, float]:
        return {"utilization_percentage": self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def _power(self, handle: Any) -> dict[str, float]:
        used, limit = self._nvml.nvmlDeviceGetPowerUsage(handle), self._nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
        return {"power_usage_watts": used / 1000, "power_usage_percentage": used / limit * 100}


class Monitor:
    """Samples in a daemon thread and hands averages on, until it is stopped.

    Args:
        log: takes the metrics by full name, and their step.
        interval_s: seconds between two samples.
        samples: samples in one average.
        first_step: the step of the first average.
    """

    def __init__(
        self,
        probes: list[Probe],
        log: Callable[[dict[str, float], int], None],
        complain: Callable[[str], None],
        *,
        interval_s: float = _SAMPLING_INTERVAL_S,
        samples: int = 1,
        node_id: str = "",
        first_step: int = 0,
    ) -> None:
        self._probes, self._log, self._complain = probes, log, complain
        self._interval_s, self._samples, self._first_step = interval_s, max(1, samples), first_step
        self._prefix = f"system/{node_id}/" if node_id else "system/"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlferry-system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Log nothing more; a sample that is being taken is waited for a moment."""
        self._stopped.set()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            step = self._first_step
            while self._sample_and_log(step):
                step += 1
        except Exception as error:  # psutil raises much where /proc is restricted; the run matters more
            self._complain(f"system metrics have stopped: {type(error).__name__}: {error}")

    def _sample_and_log(self, step: int) -> bool:
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(self._samples):
            for probe in self._probes:
                for name, value in probe.sample().items():
                    taken[name].append(float(value))
            if self._stopped.wait(self._interval_s):
                return False
        self._log({f"{self._prefix}{name}": _average(name, values) for name, values in taken.items()}, step)
        return True


def _average(name: str, values: list[float]) -> float:
    return values[-1] if name.startswith("network_") else round(sum(values) / len(values), 1)


def monitor_from_environment(
    environ: Mapping[str, str],
    log: Callable[[dict[str, float], int], None],
    complain: Callable[[str], None],
    *,
    several_nodes: bool = False,
    writers: Iterable[str] = (),
) -> Monitor | None:
    """A monitor as MLflow's environment variables describe it; None, with a complaint, where psutil is missing.

    Args:
        several_nodes: others log into the same run, so that the points of each node need a name of their own.
        writers: ids of the run's writers so far: steps go on behind those of earlier attempts.
    """
    try:
        import psutil
    except ImportError:
        complain("system metrics need psutil: pip install 'mlferry[system]'; the run goes on without them")
        return None
    probes: list[Probe] = [Machine(psutil)]
    try:
        import pynvml

        probes.append(Gpus(pynvml))
    except Exception:  # no library, no driver, no GPU: as in MLflow, there is then nothing to say
        pass
    interval_s = _positive(environ, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", _SAMPLING_INTERVAL_S, complain)
    samples = int(_positive(environ, "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", 1, complain))
    return Monitor(
        probes,
        log,
        complain,
        interval_s=interval_s,
        samples=samples,
        node_id=environ.get("MLFLOW_SYSTEM_METRICS_NODE_ID") or (_host(environ) if several_nodes else ""),
        first_step=first_step(writers, time.time(), interval_s * max(1, samples)),
    )


def first_step(writers: Iterable[str], now_s: float, period_s: float) -> int:
    """A step behind all that earlier attempts can have logged: one a period, since the first writer began."""
    began = [time_s for name in writers if (time_s := _began(name)) is not None]
    return max(0, int((now_s - min(began)) // period_s)) if began else 0


def _began(writer: str) -> float | None:
    found = _BEGAN.match(writer)
    try:
        return (
            None if found is None else calendar.timegm(time.strptime(found[1], "%Y%m%dT%H%M%S")) + int(found[2]) / 1000
        )
    except ValueError:  # the 30th of February
        return None


def _host(environ: Mapping[str, str]) -> str:
    """The node's name, Slurm's if there is one, as a metric key may hold it."""
    name = environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def _positive(environ: Mapping[str, str], name: str, default: float, complain: Callable[[str], None]) -> float:
    given = environ.get(name, "")
    try:
        number = float(given) if given else default
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        complain(f"{name}={given!r} is no positive number; {default:g} is used")
        return default
    return number
