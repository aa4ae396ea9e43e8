"""What `mlferry clean` is about to delete, what stays and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mlferry_agent.answers import printable
from mlferry_agent.cleaning import Candidate, Kept
from mlferry_agent.views.messages import say
from mlferry_agent.views.statuses import SHORT_ID, is_wide, one_line
from mlferry_agent.views.words import bytes_said, counted

__all__ = ["show_plan"]

_ROWS_SHOWN = 20


def show_plan(console: Console, going: Sequence[Candidate], kept: Sequence[Kept], proof: str) -> None:
    """The runs that go, with their sizes; those that stay, counted by reason; and what proves that they may go."""
    if going:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("RUN", no_wrap=True, min_width=SHORT_ID)
        table.add_column("NAME", min_width=10)
        table.add_column("STATE", no_wrap=True, min_width=8)
        for name in ("FILES", "SIZE"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        for candidate in going[:_ROWS_SHOWN]:
            status = candidate.status
            titled = one_line(f"{status.experiment_name or 'Default'}/{status.run_name or ''}")
            shown = printable(status.run_id)[: None if is_wide(console) else SHORT_ID]
            state = printable(status.status or "")
            table.add_row(shown, titled, state, f"{candidate.files:,}", bytes_said(candidate.size))
        console.print(table)
        if len(going) > _ROWS_SHOWN:
            console.print(f"and {len(going) - _ROWS_SHOWN:,} more", highlight=False)
        size = bytes_said(sum(candidate.size for candidate in going))
        say(console, f"{counted(len(going), 'run')}, {size}: {proof}")
    reasons = Counter(item.reason for item in kept)
    if reasons:
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        say(console, f"kept: {told}{' (--older-than takes younger ones)' if reasons['too young'] else ''}")
