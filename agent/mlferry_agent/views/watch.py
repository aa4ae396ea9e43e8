"""One look of `mlferry watch`: a frame that fits the terminal, or a line where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.text import Text

from mlferry_agent.answers import printable
from mlferry_agent.listing import Listed
from mlferry_agent.status import RunStatus
from mlferry_agent.views.plots import plot
from mlferry_agent.views.runs import delivery_said, metrics_table
from mlferry_agent.views.statuses import is_wide, state_of, table_of_statuses, totals
from mlferry_agent.views.words import duration, number

__all__ = ["line_of_run", "line_of_spool", "run_frame", "spool_frame"]

#: Lines that a frame needs beside its table and its plot; the least that a plot is worth drawing in.
_AROUND, _LEAST_PLOT, _MOST_PLOT = 7, 8, 20


def run_frame(console: Console, run: Listed, per_s: float, drawn: str | None) -> RenderableType:
    """A run while it trains. ``per_s``: records acknowledged a second. ``drawn``: the metric to plot, if there is room."""
    curves = run.contents.curves
    room = max(3, console.height - _AROUND)
    shown = dict(sorted(curves.items())[: room if drawn is None else max(3, room - _LEAST_PLOT)])
    name = escape(printable(f"{run.experiment}/{run.name}"))
    parts: list[RenderableType] = [
        Text.from_markup(
            f"[bold]{name}[/]  {state_of(run.delivery)}  [dim]{run.run_id}[/]", emoji=False, overflow="ellipsis"
        ),
        Text(_delivery(run.delivery, per_s), overflow="ellipsis"),
        Text(""),
    ]
    if curves:
        parts.append(metrics_table(shown, console.width, ascii_only=console.options.ascii_only))
        if len(shown) < len(curves):
            parts.append(Text(f"and {len(curves) - len(shown):,} metrics more"))
    else:
        parts.append(Text("no metric was logged yet"))
    height = min(_MOST_PLOT, room - len(shown))
    if drawn in curves and height >= _LEAST_PLOT and (points := curves[drawn].points()):
        xlabel = "seconds" if curves[drawn].is_by_time else "step"
        ascii_only = console.options.ascii_only
        parts.append(
            Text(plot(points, printable(drawn), xlabel, min(console.width - 1, 100), height, ascii_only=ascii_only))
        )
    return Group(*parts)


def spool_frame(console: Console, statuses: Sequence[RunStatus], url: str | None, per_s: float) -> RenderableType:
    """Every run with which something is going on, and the totals."""
    moving = [status for status in statuses if status.live or status.is_pending or status.is_set_aside]
    room = max(3, console.height - _AROUND)
    parts: list[RenderableType] = []
    if moving:
        parts.append(table_of_statuses(moving[-room:], wide=is_wide(console)))
    else:
        parts.append(Text("nothing moves: no run lives, nothing waits"))
    if len(moving) > room:
        parts.append(Text(f"and {len(moving) - room:,} more"))
    parts += [
        Text(""),
        Text.from_markup(totals(list(statuses), url), emoji=False),
        Text(_pace(_pending(statuses), per_s), style="dim"),
    ]
    return Group(*parts)


def line_of_run(run: Listed) -> str:
    """A run's last values in a line, for a pipe."""
    last = [f"{key}={number(curve.last[2])}" for key, curve in sorted(run.contents.curves.items())]
    step = max((curve.last[0] for curve in run.contents.curves.values()), default=0)
    return f"step {step}: {' '.join(last) or 'no metrics'}; {delivery_said(run.delivery)}"


def line_of_spool(statuses: Sequence[RunStatus], url: str | None) -> str:
    """The totals, for a pipe."""
    return Text.from_markup(totals(list(statuses), url), emoji=False).plain


def _pending(statuses: Sequence[RunStatus]) -> int:
    return sum(status.pending for status in statuses)


def _delivery(status: RunStatus, per_s: float) -> str:
    late = f", the oldest for {duration(status.lag_s)}" if status.lag_s is not None else ""
    return f"{delivery_said(status)}{late}{_pace(status.pending, per_s, ', ')}"


def _pace(pending: int, per_s: float, before: str = "") -> str:
    if per_s <= 0:
        return ""
    left = f", {duration(pending / per_s)} to go" if pending else ""
    return f"{before}{per_s:,.0f} records/s acknowledged{left}"
