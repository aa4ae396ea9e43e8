"""Devices that are simulated: tensors that nobody may wait for, streams that do their work when the test says so.

A ``Scalar`` is a real CPU tensor that says it is on a device, so gathering, types and autograd are torch's own. Its streams
queue what they are told. What is copied has the value of the moment of the call, as with a kernel that is queued before
those that change the tensor; until the copy is done the slot holds something else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mlferry.devices.accelerator import Accelerator
from mlferry.devices.flights import Flights
from mlferry.devices.tensors import Tensors

__all__ = ["Gpus", "Scalar", "Simulation", "Stream", "scalar", "simulated"]


class Waited(AssertionError):
    """The program would have waited for the device."""


def _waits(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise Waited("the program would wait for the device here")


class Scalar(torch.Tensor):
    """A tensor on a simulated device."""

    where = torch.device("cuda", 0)
    is_cpu = False  # type: ignore[assignment]
    item = tolist = numpy = cpu = __float__ = __int__ = __bool__ = _waits
    used_by: tuple[Any, ...] = ()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where

    def record_stream(self, stream: Any) -> None:
        self.used_by = (*self.used_by, stream)


def scalar(value: Any, number: int = 0, dtype: torch.dtype = torch.float32, kind: str = "cuda") -> Scalar:
    """One on the device of this number."""
    made: Scalar = torch.tensor(value, dtype=dtype).as_subclass(Scalar)
    made.where = torch.device(kind, number)
    return made


class Stream:
    """Does what it is told, later."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.queue: deque[Callable[[], object]] = deque()

    def work(self, steps: int | None = None) -> None:
        """Do so many of the things that wait, or all."""
        while self.queue and steps != 0:
            self.queue.popleft()()
            steps = None if steps is None else steps - 1


class Event:
    """Passes when its stream has come to it; raises what the device has come to."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._awaited = 0

    def record(self, stream: Stream) -> None:
        self._gpus.check()
        self._awaited += 1
        stream.queue.append(self._pass)

    def _pass(self) -> None:
        self._awaited -= 1

    def query(self) -> bool:
        self._gpus.check()
        self._gpus.asked_by.append((threading.current_thread(), self._gpus.number))
        return not self._awaited


class Gpus:
    """Looks like ``torch.cuda``."""

    def __init__(self) -> None:
        self.number = 0
        self.capture = False
        self.failure: Exception | None = None
        self.streams: dict[tuple[int, int], Stream] = {}
        self.selected: dict[int, int] = {}
        self.asked_by: list[tuple[threading.Thread, int]] = []

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def Event(self) -> Event:
        return Event(self)

    @contextmanager
    def device(self, number: int) -> Iterator[None]:
        before, self.number = self.number, number
        try:
            yield
        finally:
            self.number = before

    def current_stream(self, number: int) -> Stream:
        return self.stream(number, self.selected.get(number, 0))

    def stream(self, number: int, stream_id: int) -> Stream:
        return self.streams.setdefault((number, stream_id), Stream(stream_id))

    def is_current_stream_capturing(self) -> bool:
        return self.capture

    def work(self) -> None:
        """Every stream of every device does all it was told."""
        for stream in list(self.streams.values()):
            stream.work()

    @property
    def waiting(self) -> int:
        """What all streams have still to do."""
        return sum(len(stream.queue) for stream in self.streams.values())


class Simulated(Accelerator):
    """Copies into slots when the stream comes to it; from the call until then they hold something else."""

    _GARBAGE = 0x55

    def __init__(self, gpus: Gpus) -> None:
        super().__init__(torch, gpus)
        self._gpus = gpus
        self.copies = 0

    def allocated(self, size: int) -> Any:
        return torch.full((size,), self._GARBAGE, dtype=torch.uint8)

    def write(self, gathered: Any, to: Any) -> None:
        assert not gathered.requires_grad
        self._gpus.check()
        self.copies += 1
        taken = gathered.as_subclass(torch.Tensor).clone()
        to.view(torch.uint8).fill_(self._GARBAGE)
        self._gpus.current_stream(self._gpus.number).queue.append(partial(to.copy_, taken))


class _NoThread(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@dataclass(frozen=True)
class Simulation:
    """Devices, and what takes their tensors."""

    gpus: Gpus
    accelerator: Simulated
    flights: Flights
    tensors: Tensors


def simulated(*, threaded: bool = False) -> Simulation:
    """Two devices and more. Without a thread, the test itself has to look for what has landed."""
    gpus = Gpus()
    accelerator = Simulated(gpus)
    flights = Flights(threading.Thread if threaded else _NoThread, prepare=lambda: None)
    return Simulation(gpus, accelerator, flights, Tensors(flights, {"cuda": accelerator}.get))
