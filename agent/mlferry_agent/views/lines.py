"""Sentences on a terminal: broken between words, never inside one, so that a path or an address is copied whole."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

__all__ = ["put"]

#: Columns below which it is no use to break anything.
_NARROW = 20


def put(console: Console, markup: str, *, hang: int = 0) -> None:
    """Print a line of markup. ``hang``: columns by which what does not fit into it is indented. A pipe gets it in one."""
    text = Text.from_markup(markup, emoji=False)  # a name may be called :rocket:
    if not console.is_terminal:
        console.print(text, highlight=False, soft_wrap=True)
        return
    for number, line in enumerate(text.divide(_breaks(text.plain, max(console.width, hang + _NARROW), hang))):
        line.rstrip()
        console.print(Text(" " * hang if number else "").append(line), highlight=False, soft_wrap=True)


def _breaks(plain: str, width: int, hang: int) -> list[int]:
    """Offsets at which a new line begins."""
    found, column = [], 0
    for word in re.finditer(r"\s*\S+", plain):
        if column + cell_len(word[0]) > width and column > hang:
            found.append(word.end() - len(word[0].lstrip()))
            column = hang + cell_len(word[0].lstrip())
        else:
            column += cell_len(word[0])
    return found
