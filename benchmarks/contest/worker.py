"""One phase of one system in a fresh process of its own environment; the answer is one line of JSON on standard output.

    python -m benchmarks.contest.worker ADAPTER PHASE DIRECTORY [NUMBER]

Phases: ``calls`` (NUMBER: seconds for each kind), ``points`` (NUMBER of them, then finish), ``paced`` (NUMBER a
second, until killed), ``count``. Needs nothing but the standard library and the system itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import mmap
import os
import random
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Calls of the `calls` phase: enough for a 99th percentile, and a bound on what piles up behind an asynchronous call.
MOST_CALLS, LEAST_CALLS, WARM_UP = 5_000, 60, 5
STEP_S = 0.002
#: However slow the calls are, no kind of them is timed for longer than so many times what was asked for.
PATIENCE = 4
#: A step computes in pieces, between which other threads may take the interpreter, as in a training.
PIECES, BLOCK_STEPS, BLOCKS = 20, 25, 8
#: Where the paced phase keeps the number of calls that have returned: shared memory outlives the process.
COUNTER = "counter"

VALUES = [random.Random(7).random() for _ in range(4096)]
Call = Callable[[int], Any]


def main(name: str, phase: str, directory: str, number: str = "0") -> dict[str, Any]:
    adapter = importlib.import_module(f"benchmarks.contest.adapters.{name}")
    return PHASES[phase](adapter, Path(directory), float(number))  # type: ignore[no-any-return]


def calls(adapter: Any, directory: Path, seconds: float) -> dict[str, Any]:
    """Calls one after the other, the floor between them, then steps of a training with and without one."""
    begun = time.perf_counter()
    one, many = adapter.start(directory)
    one("loss", 0.5, 0)
    found: dict[str, Any] = {"first_ms": 1000 * (time.perf_counter() - begun)}
    ten = {f"metric_{index}": 0.5 for index in range(10)}
    least = floor(directory)
    found["floor_ns"] = middle(timed(least, seconds / 4, 0))
    taken = timed(lambda step: one("loss", VALUES[step & 4095], step), seconds, 1)
    found |= {"one_ns": middle(taken), "one_p99_ns": late(taken), "one_calls": len(taken)}
    first = len(taken) + 1
    taken = timed(lambda step: many(ten, step), seconds, first)
    found |= {"ten_ns": middle(taken), "ten_p99_ns": late(taken), "ten_calls": len(taken)}
    first += len(taken)
    found["step_ns"] = steps(lambda step: one("loss", VALUES[step & 4095], step), seconds * PATIENCE, first)
    return found


def timed(call: Call, seconds: float, first: int) -> list[int]:
    """Nanoseconds of each call, for as long, sorted; those at the beginning are not counted."""
    taken, clock = [], time.perf_counter_ns
    for step in range(first, first + WARM_UP):
        call(step)
    starts = clock()
    for step in range(first + WARM_UP, first + MOST_CALLS):
        begun = clock()
        call(step)
        done = clock()
        taken.append(done - begun)
        enough = PATIENCE if len(taken) < LEAST_CALLS else 1
        if done - starts > enough * seconds * 1e9:
            break
    return sorted(taken)


def middle(taken: list[int]) -> int:
    return taken[len(taken) // 2]


def late(taken: list[int]) -> int:
    return taken[int(len(taken) * 0.99)]


def floor(directory: Path) -> Call:
    """What must be done to keep a metric past the death of its process, and no more: pack, checksum, one write."""
    file = os.open(directory / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    pack, crc32, write, now = struct.Struct("<qqd16s").pack, zlib.crc32, os.write, time.time_ns

    def log(step: int) -> None:
        payload = pack(now() // 1_000_000, step, 0.5, b"loss")
        write(file, crc32(payload).to_bytes(4, "big") + payload)

    return log


def steps(log: Call, seconds: float, first: int) -> list[int]:
    """What a call a step adds to steps of 2 ms, in nanoseconds a step: one number for each pair of blocks.

    Whole blocks are timed, so that what its threads and helpers take beside the calls is in it.
    """
    piece = bytes(_piece_size())

    def block(call: Call | None, begin: int) -> float:
        begun = time.perf_counter_ns()
        for step in range(begin, begin + BLOCK_STEPS):
            for _ in range(PIECES):
                hashlib.sha256(piece)
            if call:
                call(step)
        return (time.perf_counter_ns() - begun) / BLOCK_STEPS

    block(log, first)
    found, ends = [], time.perf_counter() + seconds
    while len(found) < BLOCKS and (not found or time.perf_counter() < ends):
        first += BLOCK_STEPS
        found.append(round(block(log, first) - block(None, first)))
    return found


def _piece_size() -> int:
    """Bytes to hash in a piece of a step."""
    size, best = 1 << 16, float("inf")
    for _ in range(50):
        begun = time.perf_counter()
        hashlib.sha256(bytes(size))
        best = min(best, time.perf_counter() - begun)
    return int(size * STEP_S / PIECES / best)


def points(adapter: Any, directory: Path, number: float) -> dict[str, Any]:
    one, _ = adapter.start(directory)
    for step in range(int(number)):
        one("loss", VALUES[step & 4095], step)
    adapter.finish()
    return {}


def paced(adapter: Any, directory: Path, rate: float) -> dict[str, Any]:
    """Log at a rate and count the calls that have returned, until killed."""
    one, _ = adapter.start(directory)
    with (directory.parent / COUNTER).open("r+b") as file:
        counter = mmap.mmap(file.fileno(), 8)
    begun, step = time.perf_counter(), 0
    while True:
        one("loss", VALUES[step & 4095], step)
        step += 1
        counter[:8] = struct.pack("<q", step)
        time.sleep(max(begun + step / rate - time.perf_counter(), 0))


def count(adapter: Any, directory: Path, _: float) -> dict[str, Any]:
    return {"points": adapter.count(directory)}


def loopback_up() -> None:
    """In a network namespace of its own even the loopback interface is down; some systems talk to their helpers by it."""
    name, get, put, up = b"lo", 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", name, 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get, asked))[1]
        fcntl.ioctl(any_socket, put, struct.pack("16sh14x", name, flags | up))


PHASES: dict[str, Callable[[Any, Path, float], dict[str, Any]]] = {
    **{"calls": calls, "points": points, "paced": paced, "count": count},
}

if __name__ == "__main__":
    # What the systems print goes to standard error.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if "PEERS_NO_NETWORK" in os.environ:
        loopback_up()
    print(json.dumps(main(*sys.argv[1:])), file=answer, flush=True)
    # What has piled up behind asynchronous calls may take minutes; a phase that wants it stored has finished the run.
    os._exit(0)
