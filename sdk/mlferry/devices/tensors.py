"""Tensors that were logged and are on a device -> flights. Owns each device's slots, and the judgement what can be logged.

Everything here is done on the thread that logs, and nothing of it waits for a device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlferry.devices.accelerator import Accelerator
from mlferry.devices.accelerator import accelerator_of as torch_accelerator_of
from mlferry.devices.flights import Flight, Flights
from mlferry.devices.layout import Piece, loads
from mlferry.devices.slots import MOST_SLOTS, SLOT_BYTES, Slot, Slots
from mlferry.errors import BadMetric, DeviceBehind, InCapture, MlferryError
from mlferry.guard import explained
from mlferry.values import Call, local

__all__ = ["Tensors"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its number among those of its kind, and its slots."""

    accelerator: Accelerator
    number: int
    slots: Slots


@dataclass(frozen=True, slots=True)
class SlotCargo:
    """What lies in a slot, or will: names, and the views in which their numbers are."""

    device: Device
    slot: Slot
    load: list[tuple[tuple[str, ...], Any]]

    def landed(self) -> bool:
        with self.device.accelerator.current(self.device.number):  # else the question makes a context on device 0
            return bool(self.slot.event.query())

    def values(self) -> dict[str, float]:
        return {
            name: float(number) for names, view in self.load for name, number in zip(names, view.tolist(), strict=True)
        }

    def release(self) -> None:
        self.device.slots.give_back(self.slot)


class Tensors:
    """Takes the tensors of ``cuda`` and ``xpu`` devices, as a ``mlferry.values.Later``.

    Args:
        flights: looks after what is on its way.
        accelerator_of: the devices of a kind, or None.
    """

    def __init__(
        self, flights: Flights, accelerator_of: Callable[[str], Accelerator | None] = torch_accelerator_of
    ) -> None:
        self._flights = flights
        self._accelerator_of = accelerator_of
        self._devices: dict[Any, Device] = {}
        self._parents: list[object] = []

    def after_fork(self) -> None:
        """In a forked child nothing of the parent's is touched, not even to destroy it."""
        self._parents += [self._flights.forget(), self._devices]
        self._devices = {}

    def takes(self, value: Any) -> bool:
        """Whether it is a tensor of such a device.

        Raises:
            BadMetric: it holds no number, or not one.
        """
        if getattr(value, "is_cpu", True) or not isinstance(value, _tensor_class()):
            return False
        check(value)
        return self._accelerator_of(value.device.type) is not None

    def take(self, values: Mapping[str, Any], call: Call) -> list[MlferryError]:
        """Have them copied; an error for each one that is not."""
        devices: dict[Any, dict[str, Any]] = {}
        for name, value in values.items():
            tensor = local(value)
            devices.setdefault(tensor.device, {})[name] = tensor
        errors: list[MlferryError] = []
        for device, tensors in devices.items():
            try:
                errors += self._take_from(device, tensors, call)
            except Exception as error:  # whatever torch raises: a context that is lost, memory that cannot be pinned
                errors += [explained(error, BadMetric)] * len(tensors)
        return errors

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        """As ``Flights.settle``."""
        return self._flights.settle(timeout_s, owner)

    def _take_from(self, device: Any, tensors: dict[str, Any], call: Call) -> list[MlferryError]:
        accelerator = self._accelerator_of(device.type)
        assert accelerator is not None
        with accelerator.current(device.index), accelerator.lasting():
            if accelerator.capturing():
                return [InCapture(name) for name in tensors]
            known = self._devices.get(device) or self._meet(device, accelerator)
            stream = accelerator.stream(device.index)
            errors: list[MlferryError] = []
            for load in loads(tensors, SLOT_BYTES):
                errors += self._depart(known, load, stream, call)
            return errors

    def _meet(self, device: Any, accelerator: Accelerator) -> Device:
        slots = Slots(accelerator.pinned(MOST_SLOTS * SLOT_BYTES), accelerator.event)
        return self._devices.setdefault(device, Device(accelerator, device.index, slots))

    def _depart(self, device: Device, load: list[Piece], stream: Any, call: Call) -> list[MlferryError]:
        """Have one slot's load copied. A slot into which something may be copied still is not used again before that."""
        count = sum(len(piece.names) for piece in load)
        slot = device.slots.take()
        if slot is None:
            return [DeviceBehind(str(device.number))] * count
        cargo, errors = SlotCargo(device, slot, []), list[MlferryError]()
        for piece in load:
            errors += _put_in(cargo, piece, stream)
        try:
            slot.event.record(stream)
        except Exception as error:
            return [explained(error, BadMetric)] * count
        lane = (device.accelerator, device.number, stream.stream_id)
        self._flights.add(Flight(lane, cargo, count - len(errors), call if cargo.load else None))
        return errors


def _put_in(cargo: SlotCargo, piece: Piece, stream: Any) -> list[MlferryError]:
    """Have a piece copied at once; or, where a value of it is not fit for that, each one on its own."""
    copy, view = cargo.device.accelerator.copy, cargo.slot.view(piece)
    try:
        copy(piece.values, view, stream)
        cargo.load.append((piece.names, view))
        return []
    except Exception as error:  # a tensor whose memory is gone, or one of somebody's own class
        if len(piece.names) == 1:
            return [explained(error, BadMetric)]
    errors = list[MlferryError]()
    for index, name in enumerate(piece.names):
        try:
            copy(piece.values[index : index + 1], view[index : index + 1], stream)
            cargo.load.append(((name,), view[index : index + 1]))
        except Exception as error:
            errors.append(explained(error, BadMetric))
    return errors


def check(tensor: Any) -> None:
    """Whether a tensor holds one real number.

    Raises:
        BadMetric: it does not.
    """
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        raise BadMetric(f"{type(tensor).__name__} without a value")
    if tensor.numel() != 1:
        raise BadMetric(f"tensor of shape {tuple(tensor.shape)}")
    if tensor.dtype.is_complex or tensor.layout is not sys.modules["torch"].strided:
        raise BadMetric(f"tensor of {tensor.dtype}, {tensor.layout}")
    local(tensor)


def _tensor_class() -> Any:
    return getattr(sys.modules.get("torch"), "Tensor", ())
