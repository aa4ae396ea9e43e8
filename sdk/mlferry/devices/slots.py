"""The pinned memory of one device, in slots that are used again. Owns which of them are free; calls nothing that waits.

Threads that log take slots and the helper thread gives them back, without a lock: each step is one operation of a deque or
a counter, which CPython does whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from mlferry.devices.layout import Piece

__all__ = ["MOST_SLOTS", "SLOT_BYTES", "Slot", "Slots"]

#: Bytes of a slot: 64 numbers of eight bytes, 128 of four.
SLOT_BYTES = 512

#: Slots of a device, a mebibyte of pinned memory: two thousand calls whose values have not come. The queue of a stream holds
#: about a thousand commands, of which a call takes three, so the program itself waits for a single stream long before that.
#: Beyond: `DeviceBehind`: the values of the call are counted as dropped; the others come as they would have.
#: Test: tests/unit/sdk/test_devices.py::test_where_a_device_is_far_behind_values_are_counted_and_nothing_waits
MOST_SLOTS = 2048

#: Layouts of a slot whose views are remembered: a program logs few.
#: Beyond: all are forgotten, and made again when they are used again.
#: Test: tests/unit/sdk/test_devices.py::test_layouts_without_end_are_not_remembered_without_end
_MOST_VIEWS = 32


class Slot:
    """Some bytes of pinned memory, and the event that tells when they hold what was copied into them."""

    __slots__ = ("_views", "event", "memory")

    def __init__(self, memory: Any, event: Any) -> None:
        self.memory = memory
        self.event = event
        self._views: dict[tuple[Any, int, int], Any] = {}

    def view(self, piece: Piece) -> Any:
        """The part of the slot that a piece takes, as a tensor of its type."""
        begin, size = piece.offset, len(piece.names) * piece.dtype.itemsize
        view = self._views.get((piece.dtype, begin, size))
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = self._views[piece.dtype, begin, size] = self.memory[begin : begin + size].view(piece.dtype)
        return view


class Slots:
    """The slots of one device.

    Args:
        memory: a tensor of ``MOST_SLOTS * SLOT_BYTES`` bytes.
        new_event: makes an event that was never recorded.
    """

    def __init__(self, memory: Any, new_event: Callable[[], Any]) -> None:
        self._memory = memory
        self._new_event = new_event
        self._free: deque[Slot] = deque()
        self._fresh = count()

    def take(self) -> Slot | None:
        """A free slot, the one used last, or None."""
        try:
            return self._free.pop()
        except IndexError:
            number = next(self._fresh)
        if number >= MOST_SLOTS:
            return None
        begin = number * SLOT_BYTES
        return Slot(self._memory[begin : begin + SLOT_BYTES], self._new_event())

    def give_back(self, slot: Slot) -> None:
        """Nothing will be copied into it any more, and it was read."""
        self._free.append(slot)
