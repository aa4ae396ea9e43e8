"""What reading a server back found: run by run while they are few, every difference always, and a line that sums up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mlferry_agent.answers import printable
from mlferry_agent.views.lines import put
from mlferry_agent.views.words import counted

if TYPE_CHECKING:
    from mlferry_agent.verification import Verification

__all__ = ["show_verifications"]

#: Runs up to which each is listed that is as it should be.
_FEW = 20


def show_verifications(console: Console, found: list[Verification], *, every: bool = True) -> None:
    """``every``: list what is as it should be, too, were it thousands."""
    for item in found:
        if every or len(found) <= _FEW or item.differences:
            put(console, f"{_word(item)} {escape(printable(item.run_id))}: {_compared(item)}", hang=2)
        for difference in item.differences:
            put(console, f"  [yellow]![/] {escape(printable(difference))}", hang=4)
    differ = sum(bool(item.differences) for item in found)
    dropped = sum(item.given_up is not None for item in found)
    said = [f"{len(found) - differ - dropped:,} verified", f"{differ:,} differ{'s' if differ == 1 else ''}"]
    said += [f"{dropped:,} dropped and not compared"] if dropped else []
    points = sum(item.points for item in found)
    put(console, f"{counted(len(found), 'run')}: {', '.join(said)}; {counted(points, 'metric point')} read back")


def _word(item: Verification) -> str:
    if item.given_up is not None:
        return "[yellow]dropped[/]"
    return "[red]differs[/]" if item.differences else "[green]verified[/]"


def _compared(item: Verification) -> str:
    if item.given_up is not None:
        return f"not compared, for it was given up: {escape(printable(item.given_up))}"
    compared = {
        "metric point": item.points,
        "param": item.params,
        "tag": item.tags,
        "artifact": item.artifacts,
        "dataset": item.datasets,
        "model": item.models,
    }
    return ", ".join(counted(count, what) for what, count in compared.items() if count) or "nothing was logged in it"
