"""In which fields two stores differ, but for those that docs/fidelity.md allows.

The document is the one source of truth: the first column of its table holds patterns of field paths (``*`` stands for any
text), and a pattern that is not there is not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.oracle.normalise import Flat

FIDELITY = Path(__file__).parents[2] / "docs" / "fidelity.md"
_ABSENT = "<absent>"


def allowed() -> list[str]:
    """The patterns of the table in docs/fidelity.md."""
    found = [re.match(r"\| `([^`]+)` \|", line) for line in FIDELITY.read_text().splitlines()]
    return [row[1] for row in found if row]


def between(expected: Flat, found: Flat, allow: Sequence[str] = ()) -> list[str]:
    """One sentence for each field that differs and that no pattern of ``allow`` names; empty when all is equal."""
    return list(_between(expected, found, allow))


def _between(expected: Flat, found: Flat, allow: Sequence[str]) -> Iterator[str]:
    for path in sorted({*expected, *found}):
        online, offline = expected.get(path, _ABSENT), found.get(path, _ABSENT)
        if online != offline and not any(fnmatchcase(path, pattern) for pattern in allow):
            yield f"{path}: {_short(offline, online)} instead of {_short(online, offline)}"


def _short(value: Any, other: Any) -> str:
    """The value from shortly before the place in which it differs."""
    if type(value) is not type(other) or not isinstance(value, (str, bytes)):
        return repr(value)[:160]
    at = next(
        (n for n, (one, two) in enumerate(zip(value, other, strict=False)) if one != two), min(len(value), len(other))
    )
    return ("..." if at > 40 else "") + repr(value[max(0, at - 40) : at + 120])
