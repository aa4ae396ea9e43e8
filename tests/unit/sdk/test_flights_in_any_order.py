"""Whatever is logged from which stream and however devices go on: each value is logged once, as it was, or counted once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.examples import examples
from tests.fakes.gpu import Scalar, scalar, simulated

from mlferry.devices import slots
from mlferry.errors import MlferryError
from mlferry.values import Call
from mlferry_spool.records import Kind

TYPES = [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.bool]


@dataclass
class Run:
    """What a run is told, by the step that each call has for its own."""

    logged: dict[tuple[int, str], float] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    order: list[int] = field(default_factory=list)
    trouble: Any = field(default_factory=lambda: SimpleNamespace(say=lambda text: None))

    def deliver(self, step: int, timestamp: int, values: dict[str, float]) -> None:
        assert timestamp == 1000 + step
        self.order.append(step)
        for name, value in values.items():
            assert (step, name) not in self.logged, "logged twice"
            self.logged[step, name] = value

    def refuse(self, kind: Kind, error: MlferryError, count: int = 1) -> None:
        self.lost[type(error).__name__] += count


class Flying(RuleBasedStateMachine):
    """Calls, work of streams, looks, failures, captures, forks and ends, in any order."""

    @initialize(most=st.integers(1, 12))
    def begin(self, most: int) -> None:
        self.most, slots.MOST_SLOTS = slots.MOST_SLOTS, most
        self.runs = [Run(), Run()]
        self.step = 0
        self.given: list[dict[tuple[int, str], float]] = [{}, {}]
        self.place: dict[int, tuple[int, int]] = {}
        self.shared = scalar(0.0)
        self.failed = False
        self.devices = simulated()

    def teardown(self) -> None:
        if not hasattr(self, "devices"):
            return
        try:
            self.all_comes_to_an_end()
        finally:
            slots.MOST_SLOTS = self.most

    def all_comes_to_an_end(self) -> None:
        self.devices.gpus.failure = None
        self.devices.gpus.work()
        self.devices.flights.look()
        assert not self.devices.flights._any()
        for run, given in zip(self.runs, self.given, strict=True):
            assert len(run.logged) + run.lost.total() == len(given)
        for device in self.devices.tensors._devices.values():
            made = min(next(device.slots._fresh), slots.MOST_SLOTS)
            assert len(device.slots._free) == made or self.failed

    @rule(
        owner=st.integers(0, 1),
        device=st.integers(0, 1),
        stream=st.integers(0, 2),
        numbers=st.lists(st.tuples(st.sampled_from(TYPES), st.integers(-100, 100)), min_size=1, max_size=90),
    )
    def log(self, owner: int, device: int, stream: int, numbers: list[tuple[torch.dtype, int]]) -> None:
        gpus, self.step = self.devices.gpus, self.step + 1
        gpus.selected[device] = stream
        values: dict[str, Scalar] = {
            str(index): scalar(number, device, dtype) for index, (dtype, number) in enumerate(numbers)
        }
        self.shared.where = torch.device("cuda", device)
        values["shared"] = self.shared
        for name, value in values.items():
            self.given[owner][self.step, name] = float(value.as_subclass(torch.Tensor).item())
        self.place[self.step] = (device, stream)
        run: Any = self.runs[owner]
        for error in self.devices.tensors.take(values, Call(run, self.step, 1000 + self.step)):
            run.refuse(Kind.METRICS, error)
        for value in values.values():  # as the next step of a training would
            value.add_(1) if value.dtype != torch.bool else value.logical_not_()

    @rule(device=st.integers(0, 1), stream=st.integers(0, 2), steps=st.integers(1, 12))
    def work(self, device: int, stream: int, steps: int) -> None:
        self.devices.gpus.stream(device, stream).work(steps)

    @rule()
    def look(self) -> None:
        self.devices.flights.look()

    @rule(owner=st.integers(0, 1))
    def end(self, owner: int) -> None:
        """What has not landed by the end of its run is counted, and the other run's is not touched."""
        before = [(len(run.logged), run.lost.total()) for run in self.runs]
        settled = self.devices.tensors.settle(0.0, self.runs[owner])
        run, given = self.runs[owner], self.given[owner]
        assert settled or run.lost["NeverCame"]
        assert len(run.logged) + run.lost.total() == len(given)
        assert self.runs[1 - owner].lost["NeverCame"] <= before[1 - owner][1]

    @rule()
    def capture(self) -> None:
        self.devices.gpus.capture = not self.devices.gpus.capture

    @precondition(lambda self: self.devices.gpus.failure is None)
    @rule()
    def fail(self) -> None:
        self.failed = True
        self.devices.gpus.failure = RuntimeError("CUDA error: an illegal memory access was encountered")

    @precondition(lambda self: self.devices.gpus.failure is not None)
    @rule()
    def begin_anew(self) -> None:
        """As no device does; the next failure shall find something in flight again."""
        self.devices.flights.look()
        self.devices.gpus.failure = None

    @rule()
    def fork(self) -> None:
        """In the child the parent's values neither come nor are they lost."""
        gpus = self.devices.gpus
        self.devices.tensors.after_fork()
        for run, given in zip(self.runs, self.given, strict=True):
            for key in [key for key in given if key not in run.logged]:
                del given[key]
            run.lost.clear()
        assert not self.devices.flights._any()
        gpus.streams.clear()

    @invariant()
    def what_is_logged_is_what_was_given(self) -> None:
        for run, given in zip(getattr(self, "runs", ()), getattr(self, "given", ()), strict=True):
            assert run.logged.items() <= given.items()
            assert len(run.logged) + run.lost.total() <= len(given)

    @invariant()
    def a_stream_keeps_its_order(self) -> None:
        for run in getattr(self, "runs", ()):
            for place in set(self.place.values()):
                steps = [step for step in run.order if self.place[step] == place]
                assert steps == sorted(steps)

    @invariant()
    def no_more_slots_are_used_than_there_are(self) -> None:
        for device in self.devices.tensors._devices.values() if hasattr(self, "devices") else ():
            assert len(device.slots._free) <= slots.MOST_SLOTS


Flying.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=30, deadline=None)
TestFlying = Flying.TestCase
