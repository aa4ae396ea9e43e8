"""``make simulate SEEDS=n``: so many days, each on its own; a day that fails is made as short as it goes, and printed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.days import draw, shrink
from tests.simulation.world import live_through


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="?", default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    given = parser.parse_args()
    seeds, began, failed = range(given.first, given.first + given.seeds), time.monotonic(), 0
    with ProcessPoolExecutor(given.jobs) as pool:
        for told in pool.map(examined, seeds, chunksize=20):
            if told:
                failed += 1
                print(told, flush=True)
    rate = given.seeds / (time.monotonic() - began) * 60
    print(f"seeds {seeds[0]} to {seeds[-1]}: {failed} failed; {rate:,.0f} seeds a minute, {given.jobs} processes")
    return 1 if failed else 0


def examined(seed: int) -> str:
    """What is wrong with a day, and the shortest day like it; empty if nothing is."""
    day = draw(seed)
    if not live_through(day):
        return ""
    day = shrink(day, live_through)
    return "\n".join([f"{day}", *(f"  {found}" for found in live_through(day))])


if __name__ == "__main__":
    sys.exit(main())
