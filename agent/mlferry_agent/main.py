"""The `mlferry` command's way in: says what to install where the agent's packages are missing."""

from __future__ import annotations

import contextlib
import io
import resource
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command; returns its exit code."""
    if sys.argv[1:2] != ["run"]:  # it becomes the user's own program, and reads no token
        _leave_no_core()
    _write_what_can_be_written()
    try:
        from mlferry_agent.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mlferry"):
            raise
        sys.stderr.write(f"mlferry: {error.name} is missing; the command needs: pip install 'mlferry[agent]'\n")
        return 1
    return run()


def _leave_no_core() -> None:
    """A core dump would hold the token."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _write_what_can_be_written() -> None:
    """A terminal that does not know a character (``LC_ALL=en_US.ISO-8859-1``) is shown a question mark in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
