"""Is a run over, and how did it end? Pure: from facts about its writers to a verdict.

Why it is not simply the last RUN_END. A run may have several writers: ranks of one launch, forked helpers, and the
processes of earlier attempts that were killed and requeued. The rules:

1. A run lives while any of its writers lives; a living run is never closed.
2. A helper's death says nothing about the run.
3. A writer that another one took over from does not count any more: whoever resumed the run answers for it. It was taken
   over if, after its last sign of life, a writer of another attempt began, or one of its own rank in the same attempt.
4. A guest, who adds to a run that others answer for, says nothing of it by its life or its death; but if it names an end,
   that end counts.
5. A writer that ended its log in order and named no end left its run running, as its program did: so it is on the server.
6. Of those that count, the worst end is the run's: a writer that died without RUN_END makes it KILLED, then FAILED, then
   KILLED as logged, then FINISHED. So FINISHED needs every one of them to have said so.

Life. Under the same kernel (boot id) the writer's lock tells, exactly. A writer on this very machine, on a local disk, from
an earlier boot is dead. For all others only the age of the last sign of life counts, against ``stale_after_s``; a writer
that is silent for longer and then speaks again reopens its run.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlferry_spool.liveness import Lock, Machine
from mlferry_spool.records import Open, RunEnd

__all__ = ["Verdict", "WriterFacts", "is_alive", "verdict"]

#: Two hosts' clocks may differ by this much (milliseconds) when one attempt takes over from another.
_CLOCK_SKEW_MS = 60_000

_WORST_FIRST = ("KILLED", "FAILED", "FINISHED")


@dataclass(frozen=True, slots=True)
class WriterFacts:
    """What is known of one writer. Times are Unix milliseconds. ``finished``: its log is over; ``in_order``: it said so."""

    opening: Open
    end: RunEnd | None
    finished: bool
    last_sign: int
    alive: bool
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """``status`` is MLflow's; ``end_time`` Unix milliseconds, None while the run lives."""

    status: str
    end_time: int | None


def is_alive(
    opening: Open, lock: Lock, here: Machine, *, local_disk: bool, last_sign: int, now: int, stale_after_s: float
) -> bool:
    """Whether a writer whose log has no end in order may still write."""
    if opening.boot_id and opening.boot_id == here.boot_id and opening.locked and lock is not Lock.UNKNOWN:
        return lock is Lock.HELD
    same_machine = opening.machine_id == here.machine_id and opening.host == here.host and bool(opening.machine_id)
    # An id that could not be read, here or there, is no other boot.
    rebooted = bool(opening.boot_id and here.boot_id) and opening.boot_id != here.boot_id
    if local_disk and same_machine and rebooted:
        return False
    return now - last_sign <= stale_after_s * 1000


def verdict(writers: list[WriterFacts]) -> Verdict:
    """How the run stands. ``writers`` is not empty."""
    owners = [writer for writer in writers if writer.opening.role != "guest"] or writers
    if any(writer.alive for writer in owners):
        return Verdict("RUNNING", None)
    ending = [writer for writer in writers if writer.opening.role == "guest" and writer.end is not None]
    primary = [writer for writer in writers if writer.opening.role == "primary"] + ending or owners
    counting = [writer for writer in primary if not _taken_over(writer, primary)] or primary
    if any(writer.end is None and writer.in_order for writer in counting):
        return Verdict("RUNNING", None)
    statuses = {_end_of(writer)[0] for writer in counting}
    status = next((word for word in _WORST_FIRST if word in statuses), "KILLED")
    return Verdict(status, max(_end_of(writer)[1] for writer in counting))


def _end_of(writer: WriterFacts) -> tuple[str, int]:
    if writer.end is None:
        return "KILLED", writer.last_sign
    return writer.end.status, writer.end.end_time


def _taken_over(writer: WriterFacts, writers: list[WriterFacts]) -> bool:
    return any(_took_over(other, writer) for other in writers if other is not writer)


def _took_over(later: WriterFacts, earlier: WriterFacts) -> bool:
    mine, theirs = later.opening, earlier.opening
    if mine.attempt is not None and mine.attempt == theirs.attempt and mine.rank != theirs.rank:
        return False
    skew = 0 if mine.host == theirs.host else _CLOCK_SKEW_MS
    last = earlier.end.end_time if earlier.end is not None else earlier.last_sign
    return mine.opened + skew >= last and mine.opened > theirs.opened
