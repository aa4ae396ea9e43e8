"""Settings with their origins, and what the doctor found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from mlferry_agent.answers import printable
from mlferry_agent.doctor.check import Check, Grade
from mlferry_agent.views.lines import put
from mlferry_agent.views.words import counted

__all__ = ["show_check", "show_settings", "show_verdict"]

_SIGNS = {Grade.FINE: ("green", "ok", "✓"), Grade.NOTE: ("blue", "--", "·"), Grade.POOR: ("yellow", "!!", "!")}
_WORST = ("red", "XX", "✗")

_NAME = 14


def show_settings(console: Console, settings: Sequence[tuple[str, str, str]]) -> None:
    """A row a setting: its name, its value, where that came from."""
    rows = [("SETTING", "VALUE", "FROM"), *settings]
    widths = [max(len(row[place]) for row in rows) for place in range(2)]
    for number, (name, value, origin) in enumerate(rows):
        style = "bold" if not number else "dim" if origin == "default" else ""
        line = printable(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)  # paths are copied whole


def show_check(console: Console, check: Check) -> None:
    """One line, and what to do below it."""
    colour, plain, sign = _SIGNS.get(check.grade, _WORST)
    mark = plain if console.options.ascii_only else sign
    said = escape(printable(check.says))
    hang = len(mark) + _NAME + 2
    put(console, f"[{colour}]{mark}[/] {check.name:<{_NAME}} {said}", hang=hang)
    if check.advice:
        put(console, f"{' ' * hang}[dim]{escape(printable(check.advice))}[/]", hang=hang)


def show_verdict(console: Console, checks: Sequence[Check]) -> None:
    """How many of each grade."""
    grades = Counter(check.grade for check in checks)
    failures, warnings = counted(grades[Grade.BAD], "failure"), counted(grades[Grade.POOR], "warning")
    console.print(f"{failures}, {warnings}, {grades[Grade.FINE]:,} fine", highlight=False)
