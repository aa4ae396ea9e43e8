"""A day: what happens, in order, as a list that is drawn from a seed and that can be made shorter.

Pure. Every action stands for itself: it names what it is about by a number that fits any world (the job is that number
modulo the jobs there are) and carries the seed of its own chance, so that with others left out it still does what it did.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

__all__ = ["Action", "Day", "draw", "shrink"]

#: Verbs of the day and how often each is drawn. What they do is ``world``'s.
_VERBS = {
    "log": 30,
    "rotate": 3,
    "start a job": 4,
    "add a rank": 2,
    "end a job": 4,
    "kill a process": 4,
    "requeue": 5,
    "register": 3,
    "start the agent": 14,
    "sync": 5,
    "kill the agent": 14,
    "stop the agent": 4,
    "wait": 14,
    "trouble": 24,
    "outage": 3,
    "power cut": 2,
    "note what is synced": 4,
    "lose the ledger": 3,
    "move the clock": 2,
    "delete on the server": 2,
    "meddle on the server": 2,
    "hide": 3,
    "show": 3,
}


@dataclass(frozen=True)
class Action:
    """One thing that happens. ``number``: what it is about, or how much; ``seed``: of its own chance."""

    verb: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.verb} ({self.number}, {self.seed})"


@dataclass(frozen=True)
class Day:
    """``deleted``: the policy for runs that somebody deletes; ``is_shared``: the spool lies on a shared file system, and
    some processes run on another host; ``seed``: of latencies and jitter."""

    seed: int
    deleted: str
    is_shared: bool
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        listed = "\n".join(f"    {number}. {action}" for number, action in enumerate(self.actions, 1))
        return (
            f"seed {self.seed}, deleted={self.deleted}, shared={self.is_shared}, {len(self.actions)} actions:\n{listed}"
        )


def draw(seed: int) -> Day:
    """The day of a seed."""
    rng = random.Random(seed)
    words, weights = list(_VERBS), list(_VERBS.values())
    verbs = rng.choices(words, weights, k=rng.randrange(8, 45))
    actions = tuple(Action(verb, rng.randrange(1000), rng.randrange(1 << 20)) for verb in verbs)
    return Day(seed, rng.choice(("quarantine", "recreate", "drop")), rng.random() < 0.3, actions)


def shrink(day: Day, found_in: Callable[[Day], list[str]], tries: int = 500) -> Day:
    """The shortest day that still fails as this one does, found by leaving out ever smaller parts (Zeller's ddmin) for at
    most so many tries. Two failures are the same if their first sentences are, but for the numbers in them."""
    kind = _kind(found_in(day))

    def fails(smaller: Day) -> bool:
        return _kind(found_in(smaller)) == kind

    part = max(len(day.actions) // 2, 1)
    while part and tries > 0:
        shorter = next(
            (smaller for smaller in _without(day, part) if (tries := tries - 1) >= 0 and fails(smaller)), None
        )
        if shorter is None:
            part //= 2
        else:
            day, part = shorter, min(part, max(len(shorter.actions) // 2, 1))
    return day


def _without(day: Day, part: int) -> Sequence[Day]:
    """The day with each part of so many actions left out, the last one first."""
    starts = range(0, len(day.actions), part)
    return [replace(day, actions=day.actions[:at] + day.actions[at + part :]) for at in reversed(starts)]


def _kind(found: Sequence[str]) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", found[0])[:60] if found else ""
