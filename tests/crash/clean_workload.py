"""Deletes the one run of a spool, as `mlferry clean` does once it is proven that it may go."""

from __future__ import annotations

import sys
from pathlib import Path

from mlferry_agent.cleaning import Limits, choose, cleaner, remove
from mlferry_agent.config import Config
from mlferry_agent.discovery import discover


def main(root: Path) -> None:
    with cleaner(root):
        going, kept = choose(Config(dir=root), discover(root), [], Limits(older_than_s=0.0), by_ledger=False)
        assert not kept
        for candidate in going:
            assert remove(root, candidate) is None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
