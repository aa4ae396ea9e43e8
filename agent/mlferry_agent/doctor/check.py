"""One thing that was looked at, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Check", "Grade", "bad", "fine", "note", "poor"]


class Grade(Enum):
    """``NOTE``: good to know, nothing is wrong. ``POOR``: works, and may not for long. ``BAD``: does not work."""

    FINE = "fine"
    NOTE = "note"
    POOR = "warning"
    BAD = "failure"


@dataclass(frozen=True, slots=True)
class Check:
    """``name``: what was looked at. ``says``: what was found. ``advice``: what to do, where something is to be done."""

    name: str
    grade: Grade
    says: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "grade": self.grade.value, "says": self.says, "advice": self.advice}


def fine(name: str, says: str) -> Check:
    return Check(name, Grade.FINE, says)


def note(name: str, says: str, advice: str = "") -> Check:
    return Check(name, Grade.NOTE, says, advice)


def poor(name: str, says: str, advice: str) -> Check:
    return Check(name, Grade.POOR, says, advice)


def bad(name: str, says: str, advice: str) -> Check:
    return Check(name, Grade.BAD, says, advice)
