"""The `mlferry` command's way in: says what to install where the agent's packages are missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        from mlferry_agent.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mlferry"):
            raise
        sys.stderr.write(f"mlferry: {error.name} is missing; the command needs: pip install 'mlferry[agent]'\n")
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
