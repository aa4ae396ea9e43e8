"""Runs as their logs tell them: the list of `mlferry ls`, and all of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlferry_agent.answers import printable
from mlferry_agent.contents import Curve
from mlferry_agent.listing import NO_END, Listed
from mlferry_agent.status import RunStatus
from mlferry_agent.views.lines import put
from mlferry_agent.views.messages import notes, say
from mlferry_agent.views.plots import plot, sparkline
from mlferry_agent.views.statuses import SHORT_ID, concerns, is_wide, one_line
from mlferry_agent.views.words import ago, bytes_said, counted, duration, number

__all__ = ["delivery_said", "metrics_table", "show_list", "show_run"]

_COLOURS = {"RUNNING": "green", "FAILED": "red", "KILLED": "red", NO_END: "yellow"}

#: Rows of one kind that are shown of a run, before the rest is counted.
_ROWS_SHOWN = 40

_FACT = len("experiment")

_SPARK, _PLOT_HEIGHT, _PLOT_WIDTH = 24, 16, 100

T = TypeVar("T")

Columns = Mapping[str, Callable[[Listed], float | str | None]]


def show_list(console: Console, runs: Sequence[Listed], columns: Columns, left: int) -> None:
    """A row a run. ``left``: how many more there are that are not shown."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RUN", no_wrap=True, min_width=SHORT_ID)
    table.add_column("NAME", min_width=10)
    times = not columns or is_wide(console)  # where room is little, what was asked for goes before them
    for name, width in (("STATUS", 8), ("BEGUN", 10), ("TOOK", 6), ("DELIVERY", 9)):
        if times or name in ("STATUS", "DELIVERY"):
            table.add_column(name, no_wrap=True, min_width=width)
    for name in columns:
        table.add_column(escape(printable(name)), justify="right", overflow="ellipsis", no_wrap=True, min_width=6)
    for run in runs:
        shown = printable(run.run_id)[: None if is_wide(console) and not columns else SHORT_ID]
        extra = [_cell(value(run)) for value in columns.values()]
        titled = one_line(f"{run.experiment}/{run.name}")
        when = [ago(run.start_time), _took(run)] if times else []
        table.add_row(shown, titled, _status(run.status), *when, _delivery(run.delivery), *extra)
    if runs:
        console.print(table)
    more = f", {left:,} more ([bold]--all[/] lists them)" if left else ""
    put(console, f"{counted(len(runs), 'run')}{more}")


def show_run(console: Console, run: Listed, link: str | None, *, every: bool, plots: Sequence[str]) -> None:
    """All of a run. ``link``: where the server shows it. ``every``: leave nothing out. ``plots``: metrics to draw, which
    may be patterns (``train/*``)."""
    state = run.contents.state
    put(console, f"[bold]{escape(printable(run.name or run.run_id))}[/]")
    for name, said in _facts(run, link):
        put(console, f"[dim]{name:<{_FACT}}[/] {said}", hang=_FACT + 1)
    ours = {key: value for key, value in state.tags.values().items() if every or not key.startswith("mlflow.")}
    hidden = len(state.tags.values()) - len(ours)
    _pairs(console, "params", state.params.values(), every)
    _pairs(console, "tags", ours, every, f"{hidden} of MLflow's own (--all)" if hidden else "")
    _metrics(console, run.contents.curves, every)
    _files(console, run, every)
    _entities(console, run)
    for pattern in plots:
        _plots(console, run.contents.curves, pattern)
    notes(console, concerns(run.delivery), every=every, more=" (--all lists them)")
    if run.contents.lost:
        notes(console, [f"{counted(run.contents.lost, 'record')} of the logs cannot be read"])


def delivery_said(status: RunStatus) -> str:
    """How far a run is delivered, in full."""
    about = "~" if status.approximate else ""
    said = f"{counted(status.acknowledged, 'record')} acknowledged, {about}{status.pending:,} pending"
    return f"{said}, {len(status.quarantined):,} quarantined" if status.quarantined else said


def metrics_table(curves: Mapping[str, Curve], width: int, *, ascii_only: bool) -> Table:
    """A row a metric: its last point, its range, its shape."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("METRIC", overflow="ellipsis", no_wrap=True, min_width=6)
    for name in ("STEP", "LAST", "MIN", "MAX", "POINTS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    spark = _SPARK if width >= 100 else 14
    for key, curve in curves.items():
        table.add_row(
            escape(printable(key)),
            f"{curve.last[0]:,}",
            number(curve.last[2]),
            "" if curve.least is None else number(curve.least),
            "" if curve.greatest is None else number(curve.greatest),
            f"{curve.count:,}",
            sparkline(curve.points(), spark, ascii_only=ascii_only) if curve.count > 1 else "",
        )
    return table


def _facts(run: Listed, link: str | None) -> list[tuple[str, str]]:
    delivery, opening = run.delivery, run.contents.state.opening
    begun = "" if run.start_time is None else f", begun {ago(run.start_time)}"
    took = f", took {_took(run)}" if run.end_time is not None else ""
    facts = [
        ("run", escape(printable(run.run_id))),
        ("experiment", escape(printable(run.experiment))),
        ("status", f"{_status(run.status)}{begun}{took}"),
        ("delivery", delivery_said(delivery)),
    ]
    if delivery.server_run_id:
        facts.append(("server", escape(printable(link or delivery.server_run_id))))
    if opening is not None and (opening.user or opening.host):
        facts.append(("by", escape(printable(f"{opening.user or 'somebody'} on {opening.host or 'some host'}"))))
    if opening is not None and opening.parent_run_id:
        facts.append(("parent", escape(printable(opening.parent_run_id))))
    return facts


def _title(console: Console, name: str, count: int, more: str = "") -> None:
    console.print(f"\n[bold]{name}[/] [dim]({count:,}{', ' if more else ''}{more})[/]", highlight=False)


def _pairs(console: Console, name: str, values: Mapping[str, str], every: bool, more: str = "") -> None:
    if not values and not more:
        return
    _title(console, name, len(values), more)
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True, max_width=console.width // 2)
    table.add_column(overflow="fold" if every else "ellipsis", no_wrap=not every)
    for key, value in _some(sorted(values.items()), every):
        table.add_row(f"  {escape(printable(key))}", escape(printable(value)))
    console.print(table)
    _rest(console, len(values), every)


def _metrics(console: Console, curves: Mapping[str, Curve], every: bool) -> None:
    if not curves:
        return
    _title(console, "metrics", len(curves))
    shown = dict(_some(sorted(curves.items()), every))
    console.print(metrics_table(shown, console.width, ascii_only=console.options.ascii_only))
    _rest(console, len(curves), every)


def _files(console: Console, run: Listed, every: bool) -> None:
    files = run.contents.state.artifacts.values()
    if not files:
        return
    _title(console, "artifacts", len(files), bytes_said(sum(file.size for file in files.values())))
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for path, file in _some(sorted(files.items()), every):
        table.add_row(f"  {escape(printable(path))}", bytes_said(file.size))
    console.print(table)
    _rest(console, len(files), every)


def _entities(console: Console, run: Listed) -> None:
    """Datasets and models: a line each."""
    state = run.contents.state
    if state.datasets:
        _title(console, "datasets", len(state.datasets))
        for name, digest in state.datasets:
            say(console, f"  {name} ({digest})")
    if state.models:
        _title(console, "models", len(state.models))
        for model in state.models.values():
            name = "" if model.start is None else f"  {model.start.name}"
            say(console, f"  {model.model_id}{name}  {model.status.value}")


def _plots(console: Console, curves: Mapping[str, Curve], pattern: str) -> None:
    fitting = [key for key in sorted(curves) if key == pattern or fnmatchcase(key, pattern)]
    if not fitting:
        notes(console, [f"there is no metric {pattern!r}"])
    for key in fitting:
        curve = curves[key]
        points, xlabel = curve.points(), "seconds" if curve.is_by_time else "step"
        width = min(console.width - 1, _PLOT_WIDTH)
        if points:
            ascii_only = console.options.ascii_only
            drawn = plot(points, printable(key), xlabel, width, _PLOT_HEIGHT, ascii_only=ascii_only)
            console.print(f"\n{drawn}", highlight=False, markup=False, soft_wrap=True)


def _some(items: list[tuple[str, T]], every: bool) -> list[tuple[str, T]]:
    return items if every else items[:_ROWS_SHOWN]


def _rest(console: Console, count: int, every: bool) -> None:
    if count > _ROWS_SHOWN and not every:
        console.print(f"  and {count - _ROWS_SHOWN:,} more (--all lists them)", highlight=False)


def _status(status: str) -> str:
    colour = _COLOURS.get(status)
    said = escape(printable(status))
    return f"[{colour}]{said}[/]" if colour else said


def _took(run: Listed) -> str:
    if run.start_time is None or run.end_time is None:
        return ""
    return duration(max(0.0, (run.end_time - run.start_time) / 1000))


def _delivery(status: RunStatus) -> str:
    if status.is_set_aside:
        return "[yellow]needs you[/]"
    if status.given_up_why:
        return "dropped"
    if status.pending:
        return f"{'~' if status.approximate else ''}{status.pending:,} pending"
    return "end pending" if status.is_pending else "delivered"


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else escape(printable(value))
