"""Values on their way from devices that are simulated: streams in any order, failures, ends, and what never waits."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.gpu import Simulation, scalar
from tests.spools import told
from tests.unit.sdk.conftest import Program, points

import mlferry
from mlferry.devices import accelerator, flights


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something that another thread does is done."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


# -- what a device comes to ---------------------------------------------------------------------------------------------


def test_an_error_of_the_device_is_counted_for_what_was_on_its_way_and_the_run_goes_on(
    spool: Path, devices: Simulation
) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({"a": scalar(1.0), "b": scalar(1.0)})
        devices.gpus.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
        devices.flights.look()
        mlferry.log_metric("c", scalar(1.0))
        mlferry.log_metric("d", 0.5)
    found = told(spool, run.info.run_id)
    assert run.trouble.counts == {"DeviceFailed": 2, "BadMetric": 1}
    assert ([key for key, *_ in found.points], found.dropped, found.status) == (["d"], 3, "FINISHED")


def test_where_errors_are_raised_those_of_the_helper_are_counted_and_said(
    raising: Path, threaded: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("a", scalar(1.0))
        threaded.gpus.failure = RuntimeError("CUDA error: device-side assert triggered")
        eventually(lambda: run.dropped == 1)
    assert "device-side assert" in caplog.text
    assert told(raising, run.info.run_id).status == "FINISHED"


def test_where_a_capture_forbids_the_question_it_is_asked_again(spool: Path, devices: Simulation) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("a", scalar(1.0))
        devices.gpus.work()
        devices.gpus.failure = RuntimeError("CUDA error: operation not permitted when stream is capturing")
        devices.flights.look()
        assert not points(spool, run)
        devices.gpus.failure = None
    assert [value for _, value, _, _ in points(spool, run)] == [1.0]
    assert not run.dropped


def test_what_has_not_come_when_the_run_ends_is_counted_and_not_logged_later(
    spool: Path, devices: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlferry import runs

    monkeypatch.setattr(runs, "_SETTLE_S", 0.0)
    with mlferry.start_run() as run:
        mlferry.log_metrics({"a": scalar(1.0), "b": scalar(1.0)})
        with mlferry.start_run(nested=True) as other:
            mlferry.log_metric("c", scalar(1.0))
            devices.gpus.selected[0] = 1
            mlferry.log_metric("d", scalar(1.0))
            devices.gpus.stream(0, 1).work()
        assert other.trouble.counts == {"NeverCame": 1}
        assert [key for key, *_ in points(spool, other)] == ["d"]
        assert not run.dropped
    assert run.trouble.counts == {"NeverCame": 2}
    devices.gpus.work()
    devices.flights.look()
    for ended, dropped in ((run, 2), (other, 1)):
        found = told(spool, ended.info.run_id)
        assert (found.dropped, found.status, found.values("a")) == (dropped, "FINISHED", [])


def test_streams_and_devices_come_to_their_ends_in_any_order(spool: Path, devices: Simulation) -> None:
    run = mlferry.start_run()
    places = [(number, stream) for number in (0, 1) for stream in (0, 1, 2)]
    for number, stream in places:
        devices.gpus.selected[number] = stream
        mlferry.log_metric(f"{number}.{stream}", scalar(float(stream), number))
    for number, stream in reversed(places):
        devices.gpus.stream(number, stream).work()
        devices.flights.look()
    assert [key for key, *_ in told(spool, run.info.run_id).points] == [f"{n}.{s}" for n, s in reversed(places)]


def test_an_event_is_asked_with_its_own_device_current(spool: Path, devices: Simulation) -> None:
    """A question of a thread whose current device is 0 would otherwise make a context there, of hundreds of megabytes."""
    with mlferry.start_run():
        mlferry.log_metric("a", scalar(1.0, number=3))
        devices.gpus.work()
    assert {number for _, number in devices.gpus.asked_by} == {3}
    assert devices.gpus.number == 0


# -- the helper thread --------------------------------------------------------------------------------------------------


def test_the_helper_logs_what_has_landed_and_the_training_thread_asks_no_device(
    spool: Path, threaded: Simulation
) -> None:
    run = mlferry.start_run()
    for step in range(50):
        mlferry.log_metric("loss", scalar(float(step)), step)
    threaded.gpus.work()
    eventually(lambda: len(points(spool, run)) == 50)
    mlferry.end_run()
    assert [step for _, _, step, _ in told(spool, run.info.run_id).points] == list(range(50))
    assert threading.current_thread() not in {thread for thread, _ in threaded.gpus.asked_by}


def test_the_helper_sleeps_while_nothing_is_in_flight_and_is_woken(
    spool: Path, threaded: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "_LINGER_S", 0.0)
    run = mlferry.start_run()
    for step in range(5):
        mlferry.log_metric("loss", scalar(float(step)), step)
        threaded.gpus.work()
        eventually(lambda: threaded.flights._idle and not threaded.flights._any())
    assert len(points(spool, run)) == 5


def test_the_end_of_a_run_waits_for_what_is_on_its_way(spool: Path, threaded: Simulation) -> None:
    run = mlferry.start_run()
    mlferry.log_metric("loss", scalar(1.0))
    ending = threading.Thread(target=run.end)
    ending.start()
    eventually(lambda: threaded.gpus.asked_by != [])
    assert ending.is_alive()
    threaded.gpus.work()
    ending.join(60)
    found = told(spool, run.info.run_id)
    assert (found.values("loss"), found.status) == ([1.0], "FINISHED")


def test_what_comes_after_the_end_of_its_run_by_another_way_is_counted(spool: Path, devices: Simulation) -> None:
    run = mlferry.start_run()
    mlferry.log_metric("loss", scalar(1.0))
    run._writer.close()
    devices.gpus.work()
    devices.flights.look()
    assert run.dropped == 1


def test_the_helper_asks_in_thread_local_capture_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the default mode a question for an event would end a capture that any other thread has begun."""
    told: list[tuple[str, int, int]] = []

    class Driver:
        def __init__(self, name: str, mode: int) -> None:
            assert mode & os.RTLD_NOLOAD, "a driver would be loaded where there was none"
            self.name = name

        def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
            told.append((self.name, mode._obj.value, threading.get_ident()))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    helper = flights.Flights()
    helper._start()
    eventually(lambda: bool(told))
    assert helper._thread is not None
    assert told == [("libcuda.so.1", 1, helper._thread.ident)]


def test_where_there_is_no_driver_nothing_is_told() -> None:
    accelerator.tolerate_captures()


# -- processes ------------------------------------------------------------------------------------------------------------

#: A device without torch, whose import takes seconds: values land when the program says so.
HEAD = """
import os, signal, sys, threading, time
from dataclasses import dataclass
import mlferry
from mlferry import values
from mlferry.devices import Flights, Tensors
from mlferry.devices.flights import Flight

class Pending(float):
    landed = False

@dataclass
class Cargo:
    named: dict
    def landed(self): return Pending.landed
    def values(self): return self.named
    def release(self): pass

class Device(Tensors):
    def takes(self, value): return type(value) is Pending
    def take(self, values, call):
        self._flights.add(Flight(0, Cargo(dict(values)), len(values), call))
        return []

def land(): Pending.landed = True

device = Device(Flights())
values._laters[:] = [device]
os.register_at_fork(after_in_child=device.after_fork)
run = mlferry.start_run()
print(run.info.run_id, flush=True)
"""


def test_in_a_forked_child_the_flights_of_the_parent_are_the_parents(program: Program, tmp_path: Path) -> None:
    ended = program(f"""{HEAD}
mlferry.log_metric("parent", Pending(1.0))
if os.fork() == 0:
    land()
    mlferry.flush()
    mlferry.log_metric("child", Pending(2.0))
    sys.exit(0)
assert os.wait()[1] == 0
land()
""")
    assert ended.returncode == 0, ended.stderr
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert (found.values("parent"), found.dropped, found.status) == ([1.0], 0, "FINISHED")


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", "FINISHED"),
        ("sys.exit(1)", "FINISHED"),
        ("1 / 0", "FAILED"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "KILLED"),
    ],
)
def test_a_program_that_ends_with_copies_in_flight_logs_them(
    program: Program, tmp_path: Path, end: str, status: str
) -> None:
    ended = program(f"""{HEAD}
for step in range(100):
    mlferry.log_metrics({{"loss": Pending(step), "norm": Pending(0.5)}}, step)
timer = threading.Timer(0.3, land)
timer.daemon = True
timer.start()
{end}
""")
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert found.values("loss") == [float(step) for step in range(100)], ended.stderr
    assert (found.dropped, found.status) == (0, status)


def test_a_program_that_is_told_to_die_while_its_device_is_stuck_says_what_is_missing(
    program: Program, tmp_path: Path
) -> None:
    ended = program(f"""{HEAD}
mlferry.log_metric("loss", Pending(1.0))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
""")
    assert ended.returncode == -15
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert (found.points, found.dropped, found.status) == ([], 1, "KILLED")


def test_a_kill_takes_what_is_in_flight_and_nothing_else(program: Program, tmp_path: Path) -> None:
    ended = program(f"""{HEAD}
for step in range(20):
    mlferry.log_metrics({{"loss": Pending(step), "lr": 0.5}}, step)
land()
mlferry.flush()
Pending.landed = False
for step in range(20, 25):
    mlferry.log_metrics({{"loss": Pending(step), "lr": 0.5}}, step)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert ended.returncode == -9, ended.stderr
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert found.values("loss") == [float(step) for step in range(20)]
    assert found.values("lr") == [0.5] * 25


def test_a_child_forgets_the_parents_slots_and_makes_its_own(spool: Path, devices: Simulation) -> None:
    run = mlferry.start_run()
    mlferry.log_metric("parent", scalar(1.0))
    (before,) = devices.tensors._devices.values()
    devices.tensors.after_fork()
    mlferry.log_metric("child", scalar(2.0))
    devices.gpus.work()
    mlferry.flush()
    assert devices.tensors._devices != {torch.device("cuda", 0): before}
    assert [key for key, *_ in points(spool, run)] == ["child"]


def test_nothing_of_this_imports_torch(program: Program) -> None:
    ended = program("import sys, mlferry, mlferry.devices, mlferry.fluent\nassert 'torch' not in sys.modules")
    assert ended.returncode == 0, ended.stderr
