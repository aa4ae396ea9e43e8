"""The same on a real GPU, where there is one: what only CUDA itself can show."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.spools import told
from tests.unit.sdk.conftest import Program, points

import mlferry
from mlferry.devices import tensors
from mlferry.errors import InCapture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a build for CUDA, and no driver
    GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0

pytestmark = pytest.mark.skipif(not GPUS, reason="no CUDA device here")

#: Cycles of a kernel that does nothing, for about a second: far longer than any call that does not wait for it.
LONG = 2_000_000_000


@pytest.fixture
def watched(spool: Path) -> Iterator[Path]:
    """A spool, and whatever synchronizes with the device raises."""
    torch.cuda.init()
    torch.cuda.set_sync_debug_mode("error")
    yield spool
    torch.cuda.set_sync_debug_mode("default")


def calmly(end: Callable[[], object]) -> None:
    torch.cuda.set_sync_debug_mode("default")
    end()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_each_type_is_the_number_that_item_gives(spool: Path, dtype: torch.dtype) -> None:
    value = torch.tensor(97.1, device="cuda").to(dtype)
    with mlferry.start_run() as run:
        mlferry.log_metrics({"a": value, "b": value.reshape(1)})
        mlferry.log_metric("c", value)
    assert [found for _, found, _, _ in points(spool, run)] == [float(value.item())] * 3


def test_no_call_waits_for_the_device_and_each_value_is_that_of_its_call(watched: Path) -> None:
    run, total = mlferry.start_run(), torch.zeros((), device="cuda")
    torch.cuda._sleep(LONG)
    for step in range(20):
        total += 1
        mlferry.log_metrics({"total": total, "twice": total * 2, "lr": 0.5}, step)
        mlferry.log_metric("single", total, step)
        total += 0.25
    assert not torch.cuda.current_stream().query(), "the device was waited for"
    calmly(mlferry.end_run)
    found = told(watched, run.info.run_id)
    expected = [step * 1.25 + 1 for step in range(20)]
    assert found.values("total") == found.values("single") == expected
    assert found.values("twice") == [2 * value for value in expected]
    assert found.dropped == 0


def test_a_loss_with_a_gradient_is_logged_before_and_after_its_backward(watched: Path) -> None:
    run, weight = mlferry.start_run(), torch.full((4,), 2.0, device="cuda", requires_grad=True)
    loss = (weight * weight).sum()
    mlferry.log_metrics({"before": loss, "norm": weight.norm()})
    loss.backward()
    mlferry.log_metric("after", loss)
    calmly(mlferry.end_run)
    assert told(watched, run.info.run_id).values("before") == told(watched, run.info.run_id).values("after") == [16.0]


def test_memory_of_another_stream_that_is_freed_at_once_is_not_given_away_before_it_is_read(watched: Path) -> None:
    run, side = mlferry.start_run(), torch.cuda.Stream()
    for step in range(50):
        with torch.cuda.stream(side):
            value = torch.full((), float(step), device="cuda")
        torch.cuda.current_stream().wait_stream(side)
        if step == 0:
            torch.cuda._sleep(LONG)
        mlferry.log_metric("value", value, step)
        del value
    calmly(mlferry.end_run)
    assert told(watched, run.info.run_id).values("value") == [float(step) for step in range(50)]


def test_streams_come_to_their_ends_in_any_order(watched: Path) -> None:
    run, slow, quick = mlferry.start_run(), torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(slow):
        torch.cuda._sleep(LONG)
        mlferry.log_metric("slow", torch.ones((), device="cuda"))
    with torch.cuda.stream(quick):
        mlferry.log_metric("quick", torch.ones((), device="cuda"))
    calmly(mlferry.end_run)
    assert [key for key, *_ in told(watched, run.info.run_id).points] == ["quick", "slow"]


@pytest.mark.skipif(GPUS < 2, reason="one CUDA device here")
def test_devices_have_slots_of_their_own(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics(
            {str(number): torch.full((), float(number), device=f"cuda:{number}") for number in range(GPUS)}
        )
    assert [value for _, value, _, _ in points(spool, run)] == [float(number) for number in range(GPUS)]


def captured(graph: torch.cuda.CUDAGraph, during: Callable[[Any], object]) -> Any:
    """A graph that adds one to a number, in CUDA's default mode of capture, in which other threads can do harm."""
    number = torch.zeros((), device="cuda")
    number += 1  # what has to be loaded is loaded
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        number += 1
        during(number)
    return number


def test_a_graph_is_logged_after_each_replay_and_refused_while_it_is_captured(raising: Path) -> None:
    run, graph = mlferry.start_run(), torch.cuda.CUDAGraph()

    def refused(number: Any) -> None:
        with pytest.raises(InCapture):
            mlferry.log_metric("number", number)

    number = captured(graph, refused)
    for step in range(10):
        graph.replay()
        mlferry.log_metric("number", number, step)
    mlferry.end_run()
    assert told(raising, run.info.run_id).values("number") == [float(step + 2) for step in range(10)]


def test_the_questions_of_the_helper_do_not_destroy_a_capture(raising: Path) -> None:
    run, side, graph = mlferry.start_run(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    mlferry.log_metric("warm", torch.ones((), device="cuda"))
    mlferry.flush()
    asked = 0

    def fly_on(number: Any) -> None:
        nonlocal asked
        while tensors._flights._any() and asked < 20:  # so many looks fall into the capture
            asked += 1
            time.sleep(0.02)

    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        mlferry.log_metric("slow", torch.ones((), device="cuda"))
    number = torch.zeros((), device="cuda")
    with torch.cuda.graph(graph):
        number += 1
        fly_on(number)
    assert asked, "nothing was in flight during the capture"
    graph.replay()
    mlferry.log_metric("number", number)
    mlferry.end_run()
    found = told(raising, run.info.run_id)
    assert (found.values("slow"), found.values("number"), found.dropped) == ([1.0], [1.0], 0)


def test_what_a_compiled_function_returns_is_logged_after_its_graph(spool: Path) -> None:
    def step(x: Any) -> Any:
        return (x * 2).sum()

    compiled = torch.compile(step, backend="cudagraphs")
    with mlferry.start_run() as run:
        for number in range(5):
            mlferry.log_metric("loss", compiled(torch.full((3,), float(number), device="cuda")), number)
    assert told(spool, run.info.run_id).values("loss") == [6.0 * number for number in range(5)]


HEAD = """
import os, sys
import torch, mlferry
run = mlferry.start_run()
print(run.info.run_id, flush=True)
value = torch.full((), 1.5, device="cuda")
"""


def test_a_program_that_ends_with_copies_in_flight_logs_them(program: Program, tmp_path: Path) -> None:
    ended = program(
        f"{HEAD}\ntorch.cuda._sleep({LONG})\nfor step in range(50): mlferry.log_metric('a', value + step, step)"
    )
    assert ended.returncode == 0, ended.stderr
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert (found.values("a"), found.status) == ([1.5 + step for step in range(50)], "FINISHED")


def test_a_forked_child_counts_what_it_cannot_read(program: Program, tmp_path: Path) -> None:
    ended = program(f"""{HEAD}
mlferry.log_metric("parent", value)
if os.fork() == 0:
    mlferry.log_metrics({{"child": value, "number": 0.5}})
    sys.exit(0)
assert os.wait()[1] == 0
""")
    assert ended.returncode == 0, ended.stderr
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert (found.values("parent"), found.values("child"), found.values("number")) == ([1.5], [], [0.5])
    assert found.dropped == 1


def test_a_kernel_that_fails_is_counted_and_the_rest_is_kept(program: Program, tmp_path: Path) -> None:
    ended = program(f"""{HEAD}
mlferry.log_metric("before", value)
mlferry.flush()
torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
mlferry.log_metrics({{"after": value, "number": 0.5}})
""")
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert (found.values("before"), found.values("after"), found.values("number")) == ([1.5], [], [0.5])
    assert (found.dropped, found.status) == (1, "FINISHED")
