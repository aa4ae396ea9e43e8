"""torch.compile and this package: what is called in compiled code is run as it stands. Owns how the compiler is told so.

The compiler traces into every Python function that compiled code calls, and compiles what those call when they are run. Of
one logging call that would make some thirty graphs, with guards on the state of the spool. So the functions that users call
are marked as by ``torch.compiler.disable``, which would import the compiler (a second or more):

* An attribute ends the graph where one of them is called; a new graph begins after the call.
* Their code is registered to be skipped, with all that it calls, when it is run. That is kept in a part of torch that is
  there without the compiler, so it is done when a run is opened, or with the first tensor.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["stay_out", "untraced"]

_WHY = "mlferry writes to a file: log what the compiled function returns, or accept that its graph ends here"
_entries: list[Callable[..., Any]] = []


def untraced(*functions: Callable[..., Any]) -> None:
    """Functions that the compiler shall neither trace nor compile, nor what they call."""
    for function in functions:
        function._torchdynamo_disable = True  # type: ignore[attr-defined]
        function._torchdynamo_disable_msg = _WHY  # type: ignore[attr-defined]
    _entries.extend(functions)


def stay_out() -> None:
    """Register them with torch, if the program has imported it; once."""
    if not _entries or (torch := sys.modules.get("torch")) is None:
        return
    with contextlib.suppress(Exception):  # torch promises none of this; without it, compiling takes longer
        frames = torch._C._dynamo.eval_frame
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        for function in _entries:
            frames.set_code_exec_strategy(function.__code__, skip)
    _entries.clear()
