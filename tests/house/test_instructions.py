"""The hot path executes no more instructions than it did: counted, not timed, so that a busy machine changes nothing."""

from __future__ import annotations

import platform
import shutil

import pytest
from benchmarks.instructions import ratios

#: In multiples of pack + checksum + write in the same interpreter; a tenth above what was counted (2.09, and 2.11 to 2.19).
BOUNDS = {"mlferry.log_metric": 2.3, "mlferry.log_metrics of 10": 2.4}


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind, which counts instructions")
@pytest.mark.skipif(
    platform.python_version_tuple()[:2] != ("3", "11"), reason="the bounds were counted with Python 3.11"
)
@pytest.mark.timeout(1200)
def test_a_logging_call_executes_no_more_instructions_than_it_did() -> None:
    found = ratios(3000)
    assert {name: found[name] for name in BOUNDS if found[name] > BOUNDS[name]} == {}
    assert all(found[name] > 1.5 for name in BOUNDS), "less than a checksum and a lock need: something was not counted"
