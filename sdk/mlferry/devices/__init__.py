"""Numbers that a GPU has not computed yet: copied without waiting, written when they are there. Imports no torch.

Theory of operation
-------------------
``loss.item()`` waits until the GPU has computed everything before it; then the GPU waits until the program has found new
work for it. So no value of a GPU is asked for on a thread that trains. A call that logs such values

1. gathers them by one kernel on the current stream, which runs before anything that changes them later on that stream,
2. has the result copied, by the same stream, into a *slot* of pinned memory, which the driver does without the program,
3. records the slot's event behind the copy, and returns.

The call has become a *flight*. Every hundredth of a second a helper thread asks which events have passed, reads what has
landed, and has it logged with the step and the time of the call. (``tensors`` judges and sorts values, ``layout`` says what
lies where in a slot, ``slots`` owns the pinned memory, ``accelerator`` has every call of torch, ``flights`` the thread.)

*Asking, not waiting.* The helper sleeps and asks ``event.query()``; it never calls ``event.synchronize()``. One thread can
so look after any number of streams and devices, of which one may never come to its end (a collective whose peer is gone);
it takes the GIL a hundred times a second at most, however many steps a second there are; and no end has to break into a
blocking call.

*CUDA graphs.* While a stream is captured nothing may be logged from it: a copy would become part of the graph, and there is
no value yet. Such calls are refused with an error that says what to do. And while *any* thread captures, in CUDA's default
mode, a question of another thread for an event would destroy the capture; so the helper puts itself into thread-local
capture mode, through the driver: the runtime's call of the same kind may create a context on device 0.

*Memory.* The pinned memory of a device is allocated once, with its first value. Where all slots are in flight, the program
is thousands of calls ahead of the device, and the values are counted as dropped: waiting for one would be what this is to
avoid. What the gathering reads is recorded as used by the stream that reads it, so that it may be freed at once.

*Ends.* The end of a run waits a limited time for its own flights and counts those that do not come. A forked child forgets
the parent's flights and touches none of the parent's memory, events or streams. SIGKILL loses what is in flight.
"""

from __future__ import annotations

import os

from mlferry.devices.flights import Flights
from mlferry.devices.tensors import Tensors
from mlferry.values import register_later

__all__ = ["tensors"]

#: Takes the tensors of this process whose device computes apart from the program.
tensors = Tensors(Flights())
register_later(tensors)
os.register_at_fork(after_in_child=tensors.after_fork)
