"""The writer without its compiled hot path, as where there is no C compiler: the same tests, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.house.test_structure import REPOSITORY

WRITERS = [f"tests/unit/spool/test_{name}.py" for name in ("appender", "rotation", "writer", "writer_processes")]
LOGGERS = [f"tests/unit/sdk/test_{name}.py" for name in ("metrics", "trouble", "fluent")]
HANDLER = "test_a_handler_that_logs_inside_append_loses_and_doubles_nothing[Fsync.INTERVAL]"


def test_all_holds_in_python_too() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *WRITERS,
        *LOGGERS,
        f"tests/unit/spool/test_writer_signals.py::{HANDLER}",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        env={**environ, "MLFERRY_PURE_PYTHON": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "in Python alone" in done.stdout, "what is only in C was not left out: this was not in Python"
