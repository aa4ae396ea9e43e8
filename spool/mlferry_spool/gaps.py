"""What a writer had to drop and has not yet stated in its log. Owns the counting; it writes nothing.

A signal handler may drop a record while the interrupted code counts another. So nothing here is read, changed and stored
back: a drop is appended to a list, and lists are swapped whole, which no handler can divide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mlferry_spool.records import Dropped, Kind

__all__ = ["Gap", "merged"]

#: A disk may stay full for days: this many drops are folded into one entry.
#: Beyond: one record counts all of them, by kind, with the latest reason.
#: Test: tests/unit/spool/test_codec.py::test_drops_without_end_are_one_record_and_take_no_room
_FOLD_AT = 256

#: Characters of the reason why records were dropped: the last words must fit into the ballast.
#: Beyond: cut.
#: Test: tests/unit/spool/test_codec.py::test_reasons_are_text_that_a_frame_can_hold
_REASON_CHARS = 500


class Gap:
    """Drops since the last DROPPED record."""

    def __init__(self) -> None:
        self._drops: list[Dropped] = []

    def __bool__(self) -> bool:
        return bool(self._drops)

    def add(self, kind: int, reason: str, count: int, now_ms: int) -> None:
        drop = Dropped(now_ms, now_ms, count, reason, {_name(kind): count})
        self._drops.append(drop)  # made before: no call may stand between finding the list and this one
        if len(self._drops) >= _FOLD_AT:
            self.put_back(self.take())

    def take(self) -> Dropped | None:
        """All of it as one record, which the caller now answers for; None where nothing was dropped."""
        drops, self._drops = self._drops, []
        return merged(drops) if drops else None

    def put_back(self, dropped: Dropped | None) -> None:
        """The record could not be written."""
        if dropped is not None:
            self._drops.append(dropped)


def merged(drops: Sequence[Dropped]) -> Dropped:
    """One record for several; of the reasons the latest, as text that UTF-8 can hold."""
    kinds: Counter[str] = Counter()
    for drop in drops:
        kinds.update(drop.kinds)
    latest = max(reversed(drops), key=lambda drop: drop.last)
    reason = latest.reason[:_REASON_CHARS].encode("utf-8", "backslashreplace").decode()
    return Dropped(min(drop.first for drop in drops), latest.last, sum(kinds.values()), reason, dict(kinds))


def _name(kind: int) -> str:
    if not kind:
        return "unknown"
    return Kind(kind).name.lower() if kind in Kind._value2member_map_ else str(kind)
