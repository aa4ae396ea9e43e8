"""How many examples a property test tries: `make test` tries the same ones each time, `make fuzz` many others.

A test that draws anew in every run fails one day on a change that has nothing to do with it. So examples are derived from
the test itself, unless ``FUZZ_FACTOR`` asks for that many times more, which are new each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

__all__ = ["examples"]

_FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))

settings.register_profile("mlferry", derandomize=not _FACTOR, print_blob=True)
settings.load_profile("mlferry")


def examples(count: int) -> int:
    """``count``, or the multiple of it that was asked for."""
    return count * max(_FACTOR, 1)
