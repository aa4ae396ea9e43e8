"""Every call of torch that values on a device need. Owns no state; the rest of the package is tested with another one.

``torch.cuda`` (which is also ROCm) and ``torch.xpu`` have streams, events and pinned memory of one kind. What other devices
have (MPS) does not suffice for this, and their values are read where they are logged.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

__all__ = ["Accelerator", "accelerator_of", "tolerate_captures"]

_KINDS = frozenset({"cuda", "xpu"})
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Accelerator:
    """The devices of one kind.

    Args:
        torch: the module, which the program has imported.
        devices: ``torch.cuda`` or another module of its kind.
    """

    def __init__(self, torch: Any, devices: Any) -> None:
        self._torch = torch
        self._devices = devices
        self._capturing = getattr(devices, "is_current_stream_capturing", bool)
        #: Makes an event.
        self.event = devices.Event
        #: Makes a device, named by its number, the current one of this thread inside a ``with``.
        self.current = devices.device
        #: Leaves inference mode: a view of memory that is made inside could not be written to outside.
        self.lasting = partial(torch.inference_mode, False)
        #: The current stream of a device, by its number.
        self.stream = devices.current_stream

    def capturing(self) -> bool:
        """Whether what the current device is told becomes part of a graph instead of being done."""
        return bool(self._capturing())

    def pinned(self, size: int) -> Any:
        """So many bytes that a device can write to by itself; may take a millisecond, once.

        Raises:
            RuntimeError: what torch makes here is none, or there is no such memory.
        """
        memory = self.allocated(size)
        if type(memory) is not self._torch.Tensor:
            raise RuntimeError(f"memory cannot be had where torch makes {type(memory).__name__}s")
        return memory

    def allocated(self, size: int) -> Any:
        """The memory itself."""
        return self._torch.empty(size, dtype=self._torch.uint8, device="cpu", pin_memory=True)

    def copy(self, tensors: Sequence[Any], to: Any, stream: Any) -> None:
        """Have ``stream``, the current one, copy one-element tensors of one type into pinned memory; does not wait."""
        with self._torch.no_grad():
            for tensor in tensors:
                tensor.record_stream(stream)
            self.write(self.gathered(tensors), to)

    def gathered(self, tensors: Sequence[Any]) -> Any:
        """The numbers of the tensors, side by side on their device; one kernel, and none for a single tensor."""
        if len(tensors) == 1:
            return tensors[0].detach().reshape(1)
        return self._torch.stack([tensor if tensor.dim() == 0 else tensor.reshape(()) for tensor in tensors])

    def write(self, gathered: Any, to: Any) -> None:
        """The copy itself."""
        to.copy_(gathered, non_blocking=True)


@cache
def accelerator_of(kind: str) -> Accelerator | None:
    """The devices of a kind, as ``tensor.device.type`` has it; None where they cannot do what is needed."""
    torch = sys.modules.get("torch")
    devices = getattr(torch, kind, None) if kind in _KINDS else None
    return Accelerator(torch, devices) if hasattr(devices, "Event") else None


def tolerate_captures() -> None:
    """Keep what this thread asks the driver from ending a capture of another thread. Nothing where there is no CUDA."""
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(_THREAD_LOCAL)))
