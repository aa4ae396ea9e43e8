"""What an import into a database came to: counts, and what was set aside with its reason. Plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mlferry_agent.rows import quarantine_name
from mlferry_agent.status import ALL_ACKNOWLEDGED, PENDING, SET_ASIDE

__all__ = ["Aside", "Report"]

#: Things set aside of which each is listed.
#: Beyond: they are counted.
#: Test: tests/unit/database/test_report.py::test_what_is_set_aside_is_listed_up_to_a_number_and_counted_beyond
_MOST_LISTED = 1_000


@dataclass(frozen=True, slots=True)
class Aside:
    """Something that was not written. ``run_id``: ``(store)`` for what belongs to no run."""

    run_id: str
    what: str
    name: str
    reason: str


@dataclass(slots=True)
class Report:
    """Counts of an import. ``records``: of the spool's logs, ``new`` ones and those that were ``there``; ``rows``: what they
    came to, by kind. ``going_on``: runs that may still be written to, whose end was not told. ``lost``: records that damage
    took, and that their program itself could not store."""

    into: str = ""
    runs: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    there: Counter[str] = field(default_factory=Counter)
    aside: list[Aside] = field(default_factory=list)
    set_aside: int = 0
    going_on: list[str] = field(default_factory=list)
    lost: int = 0

    def set_apart(self, run_id: str, what: str, name: str, reason: str) -> None:
        """Count something that cannot be written, and list it."""
        self.set_aside += 1
        if len(self.aside) < _MOST_LISTED:
            self.aside.append(Aside(run_id, what, quarantine_name(name), reason))

    def add(self, other: Report) -> None:
        """Take over what was counted elsewhere, once it is true."""
        for name in ("runs", "records", "rows", "there"):
            getattr(self, name).update(getattr(other, name))
        self.going_on += other.going_on
        self.lost += other.lost

    @property
    def exit_code(self) -> int:
        """As of every command that speaks about delivery."""
        if self.set_aside:
            return SET_ASIDE
        return PENDING if self.going_on else ALL_ACKNOWLEDGED

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "into": self.into,
            **{name: dict(getattr(self, name)) for name in ("runs", "records", "rows", "there")},
            "set_aside": self.set_aside,
            "aside": [asdict(one) for one in self.aside],
            "going_on": self.going_on,
            "lost": self.lost,
        }
