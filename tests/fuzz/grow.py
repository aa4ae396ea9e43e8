"""Looks for inputs that reach code which no kept one reaches: ``python -m tests.fuzz.grow [TARGET] [SECONDS]``.

Inputs are changed at random, and one that makes a target run a pair of lines that none did before is kept. What breaks a
promise ends the search and is printed: it belongs into the corpus once it is mended. Lines are traced by the interpreter,
which is slow (hundreds of inputs a second) and needs nothing that is not installed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.fuzz.targets import TARGETS, beginnings, keep, kept

Arc = tuple[str, int, int]

_OURS = ("mlferry_spool", "mlferry_agent")
_MOST_BYTES = 6000
_TOKENS = [b"", b"\0", b"\xff", b"\xc9", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x10\x00", b"\x90", b"\x80", b"\xc0"]
_TOKENS += [
    b'"',
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"1e400",
    b"-1",
    b"9" * 30,
    b"\\ud800",
    b"..",
    b"/",
    b"http://[",
    b"~x",
]


def reached(target: Callable[[bytes], None], data: bytes) -> set[Arc]:
    """Pairs of lines of ours that were run one after the other. Raises what the target does."""
    arcs: set[Arc] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not any(name in frame.f_code.co_filename for name in _OURS):
            return None
        place, last = frame.f_code.co_filename, [frame.f_lineno]

        def inside(frame: FrameType, event: str, _: Any) -> Any:
            arcs.add((place, last[0], frame.f_lineno))
            last[0] = frame.f_lineno
            return inside

        return inside

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(before)
    return arcs


def changed(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Something near ``data``."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((0, 1, 1, 4, 20)))
        other = chance.choice(others)
        cut = chance.randrange(len(other) + 1)
        new = chance.choice((chance.choice(_TOKENS), chance.randbytes(chance.randrange(4)), other[cut : cut + 20], b""))
        if chance.random() < 0.2 and at < len(data):
            end, new = at + 1, bytes([data[at] ^ 1 << chance.randrange(8)])
        data = data[:at] + new + data[end:]
    return data[:_MOST_BYTES]


def grow(name: str, seconds: float, seed: int) -> None:
    target, chance = TARGETS[name], random.Random(seed)
    known: set[Arc] = set()
    pool: list[bytes] = []
    for data in [*kept(name), *beginnings(name)]:
        arcs = reached(target, data)
        if not arcs <= known or not pool:
            known |= arcs
            pool.append(data)
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = changed(chance, chance.choice(pool), pool)
        tried += 1
        try:
            arcs = reached(target, data)
        except BaseException:
            print(f"{name} (seed {seed}) breaks its promise at {data!r}", flush=True)
            raise
        if not arcs <= known:
            known |= arcs
            pool.append(data)
    keep(name, pool)
    print(f"{name}: {len(pool)} inputs reach {len(known)} pairs of lines; {tried} tried, seed {seed}")


if __name__ == "__main__":
    wanted = [word for word in sys.argv[1:] if word in TARGETS] or list(TARGETS)
    seconds = next((float(word) for word in sys.argv[1:] if word not in TARGETS), 60.0)
    for one in wanted:
        grow(one, seconds, random.SystemRandom().randrange(1 << 32))
