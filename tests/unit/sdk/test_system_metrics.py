"""The machine's metrics, under MLflow's names."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.spools import told

import mlferry
from mlferry import fluent
from mlferry.system_metrics import Gpus, Machine, Monitor, first_step, monitor_from_environment

psutil = pytest.importorskip("psutil")


@pytest.mark.filterwarnings("ignore")
def test_the_names_are_those_of_mlflow() -> None:
    pytest.importorskip("mlflow")
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= set(monitor.aggregate_metrics())
    assert set(Machine(psutil).sample()) == theirs


class Nvml:
    """One GPU that does not tell its power, as NVML speaks of it."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Memory", (), {"used": 3_000_000, "total": 4_000_000})

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return type("Rates", (), {"gpu": 55})

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        raise self.NVMLError


def test_a_gpu_tells_what_it_can() -> None:
    assert Gpus(Nvml()).sample() == {
        "gpu_0_memory_usage_percentage": 75.0,
        "gpu_0_memory_usage_megabytes": 3.0,
        "gpu_0_utilization_percentage": 55,
    }


class Counting:
    """Samples 1, 2, 3..."""

    def __init__(self) -> None:
        self.taken = 0

    def sample(self) -> dict[str, float]:
        self.taken += 1
        return {"cpu": self.taken, "network_receive_megabytes": self.taken * 10}


class Logged:
    """Takes what is logged, and knows when it is enough."""

    def __init__(self, enough: int) -> None:
        self.metrics: list[tuple[dict[str, float], int]] = []
        self.complaints: list[str] = []
        self.done, self._enough = threading.Event(), enough

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))
        if len(self.metrics) >= self._enough:
            self.done.set()

    def complain(self, text: str) -> None:
        self.complaints.append(text)
        self.done.set()


def test_samples_are_averaged_and_traffic_is_counted() -> None:
    logged = Logged(2)
    monitor = Monitor([Counting()], logged.log, logged.complain, interval_s=0.001, samples=3, node_id="n1")
    monitor.start()
    assert logged.done.wait(30)
    monitor.stop()
    assert logged.metrics[:2] == [
        ({"system/n1/cpu": 2.0, "system/n1/network_receive_megabytes": 30.0}, 0),
        ({"system/n1/cpu": 5.0, "system/n1/network_receive_megabytes": 60.0}, 1),
    ]


class Broken:
    def sample(self) -> dict[str, float]:
        raise PermissionError("/proc/stat")


def test_a_machine_that_cannot_be_read_is_complained_of_once() -> None:
    logged = Logged(1)
    monitor = Monitor([Broken()], logged.log, logged.complain, interval_s=0.001)
    monitor.start()
    assert logged.done.wait(30)
    monitor.stop()
    assert logged.metrics == []
    assert len(logged.complaints) == 1


def test_the_variables_of_mlflow_are_honoured() -> None:
    logged = Logged(1)
    environ = {
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.001",
        "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "zero",
        "MLFLOW_SYSTEM_METRICS_NODE_ID": "node-3",
    }
    monitor = monitor_from_environment(environ, logged.log, logged.complain)
    assert monitor is not None
    assert any("zero" in text for text in logged.complaints)
    logged.done.clear()
    monitor.start()
    assert logged.done.wait(30)
    monitor.stop()
    assert "system/node-3/cpu_utilization_percentage" in logged.metrics[0][0]


def test_a_run_logs_its_machine_until_it_ends(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    with mlferry.start_run(log_system_metrics=True) as run:
        while not told(spool, run.info.run_id).values("system/cpu_utilization_percentage"):
            threading.Event().wait(0.01)
    found = told(spool, run.info.run_id)
    assert found.status == "FINISHED"
    assert found.dropped == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "mlferry-system-metrics"]


def test_a_run_logs_no_machine_unless_asked(spool: Path) -> None:
    with mlferry.start_run() as run:
        assert not [thread for thread in threading.enumerate() if thread.name == "mlferry-system-metrics"]
    assert told(spool, run.info.run_id).points == []


#: Two nodes with two ranks each, as srun would start them.
_RANKS = [(node, local, rank) for rank, (node, local) in enumerate((n, r) for n in (0, 1) for r in (0, 1))]


def start_ranks(spool: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> str:
    """The ranks open their run one after the other, each as a process of its own would, until the nodes were sampled."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    runs = []
    for node, local, rank in _RANKS:
        environ = {
            "JOB_ID": "7",
            "STEP_ID": "0",
            "NTASKS": "4",
            "NNODES": "2",
            "PROCID": f"{rank}",
            "LOCALID": f"{local}",
        }
        for name, value in environ.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURMD_NODENAME", f"gpu-{node}.cluster")
        for name, value in more.items():
            monkeypatch.setenv(name, value.format(node=node))
        fluent._process.process = None
        runs.append(fluent.open_run())
        if local == 0:
            writer = len(runs)
            while len({key for key in keys(spool, runs[0].info.run_id) if "cpu" in key}) < 1 + (writer > 1):
                threading.Event().wait(0.01)
    sampling = [thread for thread in threading.enumerate() if thread.name == "mlferry-system-metrics"]
    assert len(sampling) == 2
    for run in runs:
        run.end()
    assert len({run.info.run_id for run in runs}) == 1
    return runs[0].info.run_id


def keys(spool: Path, run_id: str) -> set[str]:
    return {key for key, *_ in told(spool, run_id).points}


def test_of_the_ranks_in_one_run_one_a_node_samples_it_under_the_name_of_its_host(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = keys(spool, start_ranks(spool, monkeypatch))
    assert {"/".join(key.split("/")[:2]) for key in found} == {"system/gpu-0.cluster", "system/gpu-1.cluster"}


def test_the_name_that_somebody_gave_a_node_goes_before_its_host(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = keys(spool, start_ranks(spool, monkeypatch, MLFLOW_SYSTEM_METRICS_NODE_ID="rack-{node}"))
    assert {"/".join(key.split("/")[:2]) for key in found} == {"system/rack-0", "system/rack-1"}


def test_a_rank_with_a_run_of_its_own_samples_whatever_its_place(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "far.away"}.items():
        monkeypatch.setenv(name, value)
    fluent._process.process = None
    run = mlferry.start_run(log_system_metrics=True)
    while not told(spool, run.info.run_id).values("system/cpu_utilization_percentage"):
        threading.Event().wait(0.01)
    mlferry.end_run()


def test_the_steps_of_a_later_attempt_are_behind_those_of_the_earlier_ones(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFERRY_RUN_ID", "requeued")
    for attempt in range(3):
        fluent._process.process = None  # another process
        run = mlferry.start_run(log_system_metrics=True)
        while len(steps(spool, run.info.run_id)) < 5 * (attempt + 1):
            threading.Event().wait(0.01)
        mlferry.end_run()
    found = steps(spool, "requeued")
    assert found == sorted(set(found))


def steps(spool: Path, run_id: str) -> list[int]:
    """In order of time."""
    found = [(at, step) for key, _, step, at in told(spool, run_id).points if key == "system/disk_usage_percentage"]
    return [step for _, step in sorted(found)]


@pytest.mark.parametrize(
    ("writers", "step"),
    [
        ([], 0),
        (["20231114T221320000-r0-ab"], 0),
        (["20231114T221250000-r0-ab", "20231114T221310000-cd"], 3),
        (["w-some-other-name", "20230230T000000000-ab"], 0),
        (["20231114T221330500-from-a-clock-that-is-ahead"], 0),
    ],
)
def test_a_step_a_period_since_the_first_writer_began(writers: list[str], step: int) -> None:
    assert first_step(writers, 1_700_000_000.0, 10.0) == step
