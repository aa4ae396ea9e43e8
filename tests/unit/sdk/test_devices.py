"""Values of a device that is still computing, on devices that are simulated: what is logged, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.gpu import Scalar, Simulation, scalar
from tests.spools import only, read_run, told
from tests.unit.sdk.conftest import points

import mlferry
import mlferry.devices
from mlferry.devices import slots
from mlferry.devices.layout import loads
from mlferry.devices.tensors import check
from mlferry.errors import BadMetric, InCapture
from mlferry_spool.records import Metrics

# -- what is logged ---------------------------------------------------------------------------------------------------


def test_numbers_are_logged_at_once_and_those_of_a_device_when_they_are_there(spool: Path, devices: Simulation) -> None:
    run = mlferry.start_run()
    mlferry.log_metrics({"loss": scalar(1.5), "lr": 0.5, "norm": scalar(2.5)}, step=3, timestamp=77)
    devices.flights.look()
    assert points(spool, run) == [("lr", 0.5, 3, 77)]
    devices.gpus.work()
    devices.flights.look()
    assert points(spool, run) == [("loss", 1.5, 3, 77), ("lr", 0.5, 3, 77), ("norm", 2.5, 3, 77)]
    assert [len(record.values) for record in only(Metrics, read_run(spool, run.info.run_id))] == [1, 2]


def test_the_time_is_that_of_the_call(spool: Path, devices: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlferry import runs

    run = mlferry.start_run()
    monkeypatch.setattr(runs, "_now_ms", lambda: 5)
    mlferry.log_metric("loss", scalar(1.5))
    monkeypatch.setattr(runs, "_now_ms", lambda: 9)
    devices.gpus.work()
    mlferry.flush()
    assert points(spool, run) == [("loss", 1.5, 0, 5)]


def test_twenty_values_of_one_type_are_one_copy_and_one_event(spool: Path, devices: Simulation) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({f"m{index}": scalar(float(index)) for index in range(20)})
        assert devices.accelerator.copies == 1
        assert devices.gpus.waiting == 2
        devices.gpus.work()
    assert {key: value for key, value, _, _ in points(spool, run)} == {f"m{index}": float(index) for index in range(20)}


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_each_type_is_the_number_that_item_would_have_given(
    spool: Path, devices: Simulation, dtype: str, shape: tuple[int, ...]
) -> None:
    value = torch.full(shape, 97.1).to(getattr(torch, dtype))
    with mlferry.start_run() as run:
        mlferry.log_metric("one", value.as_subclass(Scalar))
        mlferry.log_metrics({"two": value.as_subclass(Scalar), "three": value.as_subclass(Scalar)})
        devices.gpus.work()
    assert [value for _, value, _, _ in points(spool, run)] == [float(value.item())] * 3


def test_types_that_are_mixed_share_a_slot(spool: Path, devices: Simulation) -> None:
    mixed = {
        "half": scalar(0.5, dtype=torch.float16),
        "long": scalar(2**53 - 1, dtype=torch.int64),
        "flag": scalar(True, dtype=torch.bool),
        "single": scalar(0.1),
        "double": scalar(0.1, dtype=torch.float64),
    }
    with mlferry.start_run() as run:
        mlferry.log_metrics(mixed)
        assert devices.gpus.waiting == 5 + 1  # a copy of each type, and an event
        devices.gpus.work()
    assert {key: value for key, value, _, _ in points(spool, run)} == {
        "half": 0.5, "long": 2.0**53 - 1, "flag": 1.0, "single": torch.tensor(0.1).item(), "double": 0.1
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8])
def test_more_values_than_a_slot_has_room_for_take_several(
    spool: Path, devices: Simulation, dtype: torch.dtype
) -> None:
    many = {f"m{index}": scalar(index % 200, dtype=dtype) for index in range(1200)}
    with mlferry.start_run() as run:
        mlferry.log_metrics(many)
        assert devices.accelerator.copies == -(-1200 * dtype.itemsize // slots.SLOT_BYTES)
        devices.gpus.work()
    assert {key: value for key, value, _, _ in points(spool, run)} == {f"m{n}": float(n % 200) for n in range(1200)}


def test_pieces_lie_side_by_side_and_aligned() -> None:
    types = [torch.uint8, torch.float64, torch.float16, torch.float32] * 40
    given = {str(index): torch.zeros((), dtype=dtype) for index, dtype in enumerate(types)}
    used: list[tuple[int, int, int]] = []
    for number, load in enumerate(loads(given, 256)):
        for piece in load:
            assert piece.offset % piece.dtype.itemsize == 0
            used += [
                (number, piece.offset + index * piece.dtype.itemsize + byte, 1)
                for index in range(len(piece.names))
                for byte in range(piece.dtype.itemsize)
            ]
    assert len(set(used)) == len(used) == sum(value.dtype.itemsize for value in given.values())
    assert all(byte < 256 for _, byte, _ in used)


def test_a_tensor_that_is_changed_right_after_the_call_is_logged_as_it_was(spool: Path, devices: Simulation) -> None:
    total, other = scalar(1.0), scalar(2.0)
    with mlferry.start_run() as run:
        for step in range(3):
            mlferry.log_metric("total", total, step)
            mlferry.log_metrics({"total2": total, "other": other}, step)
            total.add_(10)
            other.zero_()
        devices.gpus.work()
    found = told(spool, run.info.run_id)
    assert (found.values("total"), found.values("total2")) == ([1.0, 11.0, 21.0], [1.0, 11.0, 21.0])
    assert found.values("other") == [2.0, 0.0, 0.0]


def test_a_loss_with_a_gradient_is_logged_without_keeping_its_graph(spool: Path, devices: Simulation) -> None:
    weight = scalar(2.0).requires_grad_()
    with mlferry.start_run() as run:
        loss = weight * weight
        mlferry.log_metrics({"loss": loss, "double": loss * 2})
        mlferry.log_metric("single", loss)
        assert devices.accelerator.copies == 2
        loss.backward()
        devices.gpus.work()
    assert [value for _, value, _, _ in points(spool, run)] == [8.0, 4.0, 4.0]
    assert weight.grad is not None


def test_a_first_value_that_is_logged_in_inference_mode_does_not_spoil_the_memory_for_later(
    spool: Path, devices: Simulation
) -> None:
    with mlferry.start_run() as run:
        with torch.inference_mode():
            mlferry.log_metrics({"a": scalar(1.0), "b": scalar(2.0)})
            mlferry.log_metric("c", scalar(3.0))
            inside = scalar(4.0)
        mlferry.log_metric("d", inside)
        mlferry.log_metrics({"e": inside, "f": scalar(5.0).requires_grad_()})
        devices.gpus.work()
    assert [value for _, value, _, _ in points(spool, run)] == [1.0, 2.0, 3.0, 4.0, 4.0, 5.0]


def test_memory_is_not_taken_where_torch_makes_something_else(spool: Path, devices: Simulation) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    logged = scalar(1.0)
    with mlferry.start_run() as run:
        with FakeTensorMode(allow_non_fake_inputs=True):
            mlferry.log_metric("a", logged)
        assert run.trouble.counts == {"BadMetric": 1}
        mlferry.log_metric("a", logged)
        devices.gpus.work()
    assert [value for _, value, _, _ in points(spool, run)] == [1.0]


def test_what_is_read_is_recorded_as_used_by_the_stream_that_reads_it(spool: Path, devices: Simulation) -> None:
    """Else the allocator could give its memory away before, where another stream has allocated it."""
    logged = [scalar(1.0), scalar(2.0), scalar(3.0)]
    devices.gpus.selected[0] = 7
    with mlferry.start_run():
        mlferry.log_metrics({"a": logged[0], "b": logged[1]})
        mlferry.log_metric("c", logged[2])
        devices.gpus.work()
    assert [value.used_by for value in logged] == [(devices.gpus.stream(0, 7),)] * 3


# -- what cannot be logged ----------------------------------------------------------------------------------------------


class Odd(Scalar):
    """Of somebody's own class, which does not let itself be gathered."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.stack, torch.Tensor.reshape):
            raise TypeError("no such thing")
        return super().__torch_function__(func, types, args, kwargs)


def faked() -> Any:
    """As on a GPU, inside of what traces or exports a model."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    return FakeTensor(FakeTensorMode(), torch.empty((), device="meta"), torch.device("cuda", 0))


WITHOUT_NUMBER: dict[str, tuple[Callable[[], Any], str]] = {
    "several": (lambda: torch.tensor([1.0, 2.0]).as_subclass(Scalar), "shape (2,)"),
    "none": (lambda: torch.tensor([]).as_subclass(Scalar), "shape (0,)"),
    "complex": (lambda: torch.tensor(1j).as_subclass(Scalar), "complex64"),
    "meta": (lambda: torch.tensor(1.0, device="meta"), "without a value"),
    "fake": (faked, "FakeTensor without a value"),
}


@pytest.mark.parametrize("kind", WITHOUT_NUMBER)
def test_what_is_not_one_number_is_refused_and_stops_only_itself(
    spool: Path, devices: Simulation, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, reason = WITHOUT_NUMBER[kind]
    value = make()
    with mlferry.start_run() as run:
        mlferry.log_metrics({"bad": value, "good": scalar(1.0)})
        devices.gpus.work()
    assert [key for key, *_ in points(spool, run)] == ["good"]
    assert run.trouble.counts == {"BadMetric": 1}
    monkeypatch.setenv("MLFERRY_ON_ERROR", "raise")
    with mlferry.start_run(), pytest.raises(BadMetric) as raised:
        mlferry.log_metric("bad", value)
    assert reason in str(raised.value)


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(BadMetric, match="sparse_coo"):
        check(torch.tensor([1.0]).to_sparse())


class Placement:
    def __init__(self, replicated: bool) -> None:
        self.replicated = replicated

    def is_replicate(self) -> bool:
        return self.replicated


class Distributed(Scalar):
    """Looks like a ``DTensor``: to ask for its number would wait for the other ranks."""

    placements: list[Placement]

    def to_local(self) -> torch.Tensor:
        return self.as_subclass(Scalar)


class DistributedOnCpu(Distributed):
    is_cpu = True  # type: ignore[assignment]


@pytest.mark.parametrize("cls", [Distributed, DistributedOnCpu])
def test_of_a_distributed_tensor_this_ranks_copy_is_logged_but_never_a_part_of_it(
    spool: Path, devices: Simulation, cls: type[Distributed]
) -> None:
    whole, part = torch.tensor(1.5).as_subclass(cls), torch.tensor(2.5).as_subclass(cls)
    whole.placements, part.placements = [Placement(True)], [Placement(True), Placement(False)]
    if cls is DistributedOnCpu:
        whole.to_local = lambda: torch.tensor(1.5)  # type: ignore[method-assign]
    with mlferry.start_run() as run:
        mlferry.log_metrics({"whole": whole, "part": part})
        devices.gpus.work()
    assert [(key, value) for key, value, _, _ in points(spool, run)] == [("whole", 1.5)]
    assert run.trouble.counts == {"BadMetric": 1}


def test_of_several_that_are_gathered_a_bad_one_stops_only_itself(spool: Path, devices: Simulation) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({"a": scalar(1.0), "bad": torch.tensor(2.0).as_subclass(Odd), "c": scalar(3.0)})
        devices.gpus.work()
    assert [(key, value) for key, value, _, _ in points(spool, run)] == [("a", 1.0), ("c", 3.0)]
    assert run.trouble.counts == {"BadMetric": 1}
    assert run.dropped == 1


def test_the_values_of_devices_that_nothing_is_known_of_are_read_at_once(spool: Path, devices: Simulation) -> None:
    class Metal(Scalar):
        where = torch.device("mps")

        def item(self) -> float:
            return 0.25

    with mlferry.start_run() as run:
        mlferry.log_metric("a", torch.tensor(0.25).as_subclass(Metal))
        assert [value for _, value, _, _ in points(spool, run)] == [0.25]


def test_a_step_that_is_on_a_device_is_refused_rather_than_waited_for(spool: Path, devices: Simulation) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("a", 0.5)  # from now on the name is known
        mlferry.log_metric("a", 0.5, step=scalar(3, dtype=torch.int64))  # type: ignore[arg-type]
        mlferry.log_metrics({"a": 0.5}, step=scalar(3, dtype=torch.int64))  # type: ignore[arg-type]
        mlferry.log_metric("a", scalar(0.5), step=scalar(3, dtype=torch.int64))  # type: ignore[arg-type]
        mlferry.log_metric("a", 0.5, timestamp=scalar(3, dtype=torch.int64))  # type: ignore[arg-type]
    assert run.trouble.counts == {"BadStep": 4}


def test_while_a_graph_is_captured_nothing_is_queued_and_the_error_says_what_to_do(
    raising: Path, devices: Simulation
) -> None:
    with mlferry.start_run() as run:
        devices.gpus.capture = True
        with pytest.raises(InCapture, match="after each replay"):
            mlferry.log_metrics({"a": scalar(1.0), "b": 0.5})
        assert not devices.gpus.waiting
        devices.gpus.capture = False
        mlferry.log_metric("a", scalar(2.0))
        devices.gpus.work()
    assert [(key, value) for key, value, _, _ in points(raising, run)] == [("a", 2.0), ("b", 0.5)]
    assert run.trouble.counts == {"InCapture": 1}


def test_where_a_device_is_far_behind_values_are_counted_and_nothing_waits(
    spool: Path, devices: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "MOST_SLOTS", 4)
    with mlferry.start_run() as run:
        for step in range(6):
            mlferry.log_metrics({"a": scalar(float(step)), "b": scalar(0.0)}, step)
        mlferry.log_metric("a", scalar(9.0, number=1), 9)  # the other device has its own
        devices.gpus.work()
        devices.flights.look()
        mlferry.log_metric("a", scalar(7.0), 7)
        devices.gpus.work()
    assert [step for _, _, step, _ in told(spool, run.info.run_id).points] == [0, 0, 1, 1, 2, 2, 3, 3, 9, 7]
    assert run.trouble.counts == {"DeviceBehind": 4}
    assert told(spool, run.info.run_id).dropped == 4


def test_layouts_without_end_are_not_remembered_without_end() -> None:
    from mlferry.devices.layout import Piece

    slot = slots.Slot(torch.zeros(512, dtype=torch.uint8), None)
    for number in range(1, 200):
        names = tuple(str(index) for index in range(number % 60 + 1))
        view = slot.view(Piece(torch.float32, number % 3 * 8, names, ()))
        assert view.shape == (len(names),)
        assert len(slot._views) <= slots._MOST_VIEWS
