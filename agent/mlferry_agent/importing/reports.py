"""What an import did, counted while it is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Report"]


@dataclass(slots=True)
class Report:
    """Counts of what was written; ``left_out`` says what could not be taken over, and why, by reason.

    ``runs``: new to the spool; ``grown``: those that had something new; ``unchanged``: those that had nothing. ``run_ids``
    are the new and the grown ones.
    """

    sources: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    grown: int = 0
    unchanged: int = 0
    points: int = 0
    files: int = 0
    bytes: int = 0
    models: int = 0
    versions: int = 0
    traces: int = 0
    run_ids: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**plain, "sources": dict(self.sources), "left_out": dict(self.left_out)}
