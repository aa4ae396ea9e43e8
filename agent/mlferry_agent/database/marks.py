"""How far something was imported before, as a tag of the thing itself: it stands or falls with what it speaks of. Pure.

A mark of this machine's own would be wrong as soon as somebody restores the database from a backup, or begins a new one.
Of a run it is a place in each of its logs; of an experiment, a registered model or a trace, whose changes come in one order,
how many of them there were, with a digest of these: if one came in between that was logged before, all are told again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mlferry_spool.tailer import Cursor

__all__ = ["MARK_TAG", "RunMark", "mark_of", "told_before"]

#: On everything that the fast lane writes: how far it has.
MARK_TAG = "mlferry.imported"

#: Characters of the tag of a run, the longest that MLflow keeps; about 25 a writer.
#: Beyond: no mark is kept of a run with more writers, and importing it again takes as long as the first time.
#: Test: tests/unit/database/test_marks.py::test_a_run_of_more_writers_than_a_tag_has_room_for_has_no_mark
_MAX_MARK_CHARS = 8000


class RunMark:
    """Up to which place each log of a run was imported; ``is_over``: all of it, its end included. ``records``: how many that
    were."""

    def __init__(self, cursors: Mapping[str, Cursor] | None = None, *, is_over: bool = False, records: int = 0) -> None:
        self._cursors = {_short(name): cursor for name, cursor in (cursors or {}).items()}
        self.is_over, self.records = is_over, records

    def cursor(self, writer: str) -> Cursor:
        """Where to go on in a writer's log."""
        return self._cursors.get(_short(writer), Cursor())

    def encoded(self) -> str | None:
        """The tag's value; None where there is too much to keep."""
        places = (f"{name}:{at.segment:x}.{at.byte:x}.{at.sequence:x}" for name, at in sorted(self._cursors.items()))
        told = " ".join(["over" if self.is_over else "open", str(self.records), *places])
        return told if len(told) <= _MAX_MARK_CHARS else None

    @classmethod
    def decoded(cls, value: str | None) -> RunMark:
        """From a tag; from one that is none, the mark of a run of which nothing was imported."""
        word, _, rest = (value or "open 0").partition(" ")
        mark = cls(is_over=word == "over")
        try:
            number, *places = rest.split(" ")
            mark.records = int(number)
            for place in places:
                name, numbers = place.split(":")
                segment, byte, sequence = (int(number, 16) for number in numbers.split("."))
                mark._cursors[name] = Cursor(segment, byte, sequence)
        except (ValueError, TypeError):
            return cls()
        return mark


def _short(writer: str) -> str:
    return hashlib.sha256(writer.encode()).hexdigest()[:10]


def mark_of(operations: Sequence[Any]) -> str:
    """The mark of a thing of which these operations were told, in this order."""
    told = "\0".join(repr(sorted(asdict(one).items(), key=lambda item: item[0])) for one in operations)
    return f"{len(operations)}:{hashlib.sha256(told.encode(errors='surrogatepass')).hexdigest()[:16]}"


def told_before(operations: Sequence[Any], mark: str | None) -> int:
    """How many of the operations, from the first on, a mark covers; 0 if it is none of them."""
    count, _, _ = (mark or "").partition(":")
    covered = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
    return covered if 0 < covered <= len(operations) and mark_of(operations[:covered]) == mark else 0
