"""What a writer says of itself at the head of each segment: the machine, the process, the time. Owns nothing."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from mlferry_spool.liveness import this_machine
from mlferry_spool.records import Open

__all__ = ["introduced", "now_ms"]

#: Characters of the name of the program that logs.
#: Beyond: cut.
#: Test: tests/unit/spool/test_limits.py::test_of_a_programs_name_so_much_is_kept_as_fits_an_opening
_PROGRAM_CHARS = 200


def introduced(opening: Open, *, opened: int, locked: bool, heartbeat_s: float) -> Open:
    """``opening`` with the machine, the process, the time and how the writer shows that it lives."""
    machine = this_machine()
    return replace(
        opening,
        host=machine.host,
        machine_id=machine.machine_id,
        boot_id=machine.boot_id,
        pid=os.getpid(),
        opened=opened,
        locked=locked,
        heartbeat_s=heartbeat_s,
        program=_program(),
    )


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def _program() -> str:
    """The program's name as UTF-8 can hold it: ``sys.argv`` carries other bytes as lone surrogates."""
    name = Path(sys.argv[0] if sys.argv else "").name[:_PROGRAM_CHARS]
    return name.encode("utf-8", "backslashreplace").decode()
