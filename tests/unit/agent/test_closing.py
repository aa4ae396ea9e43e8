"""Is a run over, and how did it end? Each rule of ``mlferry_agent.closing`` in cases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlferry_agent.closing import Verdict, WriterFacts, is_alive, verdict
from mlferry_spool.liveness import Lock, Machine
from mlferry_spool.records import Open, RunEnd

HERE = Machine("node1", "machine-1", "boot-1")
NOW = 1_000_000_000


def writer(
    name: str,
    opened: int,
    last: int,
    status: str | None = None,
    *,
    alive: bool = False,
    role: str = "primary",
    attempt: str | None = None,
    rank: int | None = None,
    host: str = "node1",
) -> WriterFacts:
    opening = Open(writer_id=name, opened=opened, role=role, attempt=attempt or name, rank=rank, host=host)
    return WriterFacts(opening, None if status is None else RunEnd(last, status), status is not None, last, alive)


@pytest.mark.parametrize(
    ("writers", "status", "end_time"),
    [
        ([writer("a", 0, 10, "FINISHED")], "FINISHED", 10),
        ([writer("a", 0, 10)], "KILLED", 10),
        ([writer("a", 0, 10, "FAILED")], "FAILED", 10),
        ([writer("a", 0, 10, alive=True)], "RUNNING", None),
        ([writer("a", 0, 10, "FINISHED"), writer("b", 1, 10, alive=True)], "RUNNING", None),
        ([writer("a", 0, 10, "FINISHED"), writer("h", 1, 9, role="helper")], "FINISHED", 10),
        ([writer("a", 0, 10, "FINISHED"), writer("h", 1, 20, role="helper", alive=True)], "RUNNING", None),
        ([writer("a", 0, 10), writer("b", 20, 30, "FINISHED")], "FINISHED", 30),
        ([writer("a", 0, 10, "FINISHED"), writer("b", 20, 30)], "KILLED", 30),
        ([writer("a", 0, 25), writer("b", 20, 30, "FINISHED")], "KILLED", 30),
        (
            [writer("a", 0, 10, "FINISHED", attempt="x", rank=0), writer("b", 1, 8, attempt="x", rank=1)],
            "KILLED",
            10,
        ),
        (
            [writer("a", 0, 3, attempt="x", rank=0), writer("b", 5, 8, "FINISHED", attempt="x", rank=1)],
            "KILLED",
            8,
        ),
        (
            [writer("a", 0, 3, attempt="x", rank=0), writer("b", 5, 8, "FINISHED", attempt="x", rank=0)],
            "FINISHED",
            8,
        ),
        (
            [writer("a", 0, 50_000, host="node1"), writer("b", 10_000, 90_000, "FINISHED", host="node2")],
            "FINISHED",
            90_000,
        ),
    ],
    ids=[
        "one that finished",
        "one that died",
        "one that failed",
        "one that lives",
        "one of two lives",
        "a helper's death says nothing",
        "a helper's life keeps the run open",
        "a killed attempt was taken over",
        "the later attempt died",
        "both overlapped and one died",
        "a rank of the same launch died",
        "a rank that died early was not taken over by another rank",
        "a rank was started again in the same attempt",
        "another host took over within the clocks' skew",
    ],
)
def test_a_run_ends_as_its_writers_did(writers: list[WriterFacts], status: str, end_time: int | None) -> None:
    assert verdict(writers) == Verdict(status, end_time)


def opening(machine: Machine, *, locked: bool = True) -> Open:
    return Open(writer_id="w", host=machine.host, machine_id=machine.machine_id, boot_id=machine.boot_id, locked=locked)


@pytest.mark.parametrize(
    ("machine", "lock", "local_disk", "locked", "silent_s", "lives"),
    [
        (HERE, Lock.HELD, True, True, 10**6, True),
        (HERE, Lock.FREE, True, True, 0, False),
        (HERE, Lock.UNKNOWN, True, True, 5, True),
        (HERE, Lock.FREE, True, False, 5, True),
        (HERE, Lock.FREE, True, False, 5000, False),
        (Machine("node1", "machine-1", "boot-0"), Lock.FREE, True, True, 0, False),
        (Machine("node1", "machine-1", "boot-0"), Lock.FREE, False, True, 5, True),
        (Machine("node2", "machine-2", "boot-2"), Lock.FREE, False, True, 5, True),
        (Machine("node2", "machine-2", "boot-2"), Lock.FREE, False, True, 5000, False),
        (Machine("node2", "machine-2", "boot-2"), Lock.FREE, True, True, 5, True),
    ],
    ids=[
        "its lock is held, however silent",
        "its lock is free",
        "no lock can be read: it spoke lately",
        "it never had a lock and spoke lately",
        "it never had a lock and is silent",
        "this machine was rebooted",
        "a shared disk and another boot: only age counts",
        "another host spoke lately",
        "another host is silent",
        "a copy of another machine's spool: only age counts",
    ],
)
def test_life_is_told_by_the_lock_here_and_by_age_elsewhere(
    machine: Machine, lock: Lock, local_disk: bool, locked: bool, silent_s: int, lives: bool
) -> None:
    found = is_alive(
        opening(machine, locked=locked),
        lock,
        HERE,
        local_disk=local_disk,
        last_sign=NOW - silent_s * 1000,
        now=NOW,
        stale_after_s=900,
    )
    assert found is lives


@pytest.mark.parametrize("unread", [replace(HERE, boot_id=""), HERE], ids=["here", "there"])
def test_a_boot_id_that_could_not_be_read_is_no_other_boot(unread: Machine) -> None:
    writer = HERE if unread.boot_id == "" else replace(HERE, boot_id="")
    lately = {"local_disk": True, "last_sign": NOW - 5000, "now": NOW, "stale_after_s": 900.0}
    assert is_alive(opening(writer), Lock.HELD, unread, **lately)  # type: ignore[arg-type]


def ended_in_order(facts: WriterFacts) -> WriterFacts:
    return replace(facts, finished=True, in_order=True)


@pytest.mark.parametrize(
    ("writers", "status", "end_time"),
    [
        ([ended_in_order(writer("a", 0, 10))], "RUNNING", None),
        ([replace(writer("a", 0, 10), finished=True)], "KILLED", 10),
        ([ended_in_order(writer("a", 0, 10)), writer("b", 20, 30, "FINISHED")], "FINISHED", 30),
        ([writer("a", 0, 10, "FINISHED"), writer("g", 5, 40, role="guest", alive=True)], "FINISHED", 10),
        ([writer("a", 0, 10, "FINISHED"), writer("g", 20, 40, role="guest")], "FINISHED", 10),
        ([writer("a", 0, 10), writer("g", 20, 40, "FAILED", role="guest")], "FAILED", 40),
        ([writer("a", 0, 10, alive=True), writer("g", 20, 40, "FAILED", role="guest")], "RUNNING", None),
    ],
)
def test_guests_and_logs_without_an_end(writers: list[WriterFacts], status: str, end_time: int | None) -> None:
    assert verdict(writers) == Verdict(status, end_time)
