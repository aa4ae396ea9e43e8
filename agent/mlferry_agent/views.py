"""What a person sees: tables, progress, sentences. What names a run or quotes a server is made printable first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlferry_agent.answers import printable
from mlferry_agent.errors import AgentError
from mlferry_agent.status import RunStatus
from mlferry_agent.verification import Verification
from mlferry_spool.errors import SpoolError

#: From this many columns on, run ids are shown whole; commands take any unambiguous beginning of one.
_WIDE, _SHORT_ID = 120, 12

__all__ = ["Meter", "complain", "progress", "show_statuses", "show_verifications"]


def complain(console: Console, error: AgentError | SpoolError) -> None:
    """One error: what happened in the words of its class, the particulars, nothing of where in the code."""
    says = " ".join((type(error).__doc__ or "").split())
    particulars = error.reason if isinstance(error, AgentError) else error.detail
    console.print(f"[bold red]error:[/] {escape(printable(particulars))}", highlight=False, soft_wrap=True)
    console.print(escape(says), highlight=False, soft_wrap=True)


def show_statuses(console: Console, statuses: list[RunStatus], url: str | None) -> None:
    """A table of runs, then what needs a person, then one line that says it all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RUN", no_wrap=True, min_width=_SHORT_ID)
    table.add_column("NAME", overflow="ellipsis", min_width=len("NAME"))
    table.add_column("STATE", no_wrap=True, min_width=len("FINISHED"))
    for column in ("ACKED", "PENDING", "QUARANTINED", "LAG"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for status in statuses:
        table.add_row(*_row(status, wide=console.width >= _WIDE))
    if statuses:
        console.print(table)
    for status in statuses:
        _show_concerns(console, status)
    console.print(_summary(statuses, url), highlight=False, soft_wrap=True)


def show_verifications(console: Console, found: list[Verification]) -> None:
    """What was read back, and each difference."""
    for item in found:
        counts = (
            f"{item.points:,} metric points, {item.params:,} params, {item.tags:,} tags, {item.artifacts:,} artifacts,"
            f" {item.datasets:,} datasets"
        )
        word = "[red]differs[/]" if item.differences else "[green]verified[/]"
        console.print(f"{word} {escape(printable(item.run_id))}: {counts}", highlight=False, soft_wrap=True)
        for difference in item.differences:
            console.print(f"  [yellow]![/] {escape(printable(difference))}", highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Meter:
    """Counts what is acknowledged while a progress bar shows it."""

    acknowledged: int = 0
    bar: Progress | None = None
    task: object = None

    def add(self, run_id: str, records: int) -> None:
        """``records`` more of a run are acknowledged."""
        self.acknowledged += records
        if self.bar is not None and records:
            self.bar.advance(self.task, records)  # type: ignore[arg-type]


@contextlib.contextmanager
def progress(console: Console, total: int, quiet: bool) -> Iterator[Meter]:
    """A bar of ``total`` records on a terminal; nothing on a pipe."""
    if quiet or not console.is_terminal or not total:
        yield Meter()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, _Rate("{task.speed}"), TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Meter(bar=bar, task=bar.add_task("delivering", total=total))


class _Rate(TextColumn):
    """Records a second."""

    def render(self, task):  # type: ignore[no-untyped-def]
        from rich.text import Text

        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


def _row(status: RunStatus, *, wide: bool) -> tuple[str, ...]:
    run_id = printable(status.run_id)
    name = f"{printable(status.experiment_name or 'Default')}/{printable(status.run_name or '')}"
    return (
        escape(run_id if wide else run_id[:_SHORT_ID]),
        escape(name),
        _state(status),
        f"{status.acknowledged:,}",
        f"{'~' if status.approximate else ''}{status.pending:,}",
        str(len(status.quarantined) or ""),
        _duration(status.lag_s),
    )


def _state(status: RunStatus) -> str:
    if status.parked:
        return "[red]parked[/]"
    if status.live:
        return "[green]live[/]"
    return escape(printable(status.status or "spooled"))


def _show_concerns(console: Console, status: RunStatus) -> None:
    run = printable(status.run_id)
    lines = [f"{run} parked: {status.parked}"] if status.parked else []
    lines += [f"{run} quarantined: {entry.action} {entry.name!r}: {entry.reason}" for entry in status.quarantined]
    lines += [f"{run}: {trouble}" for trouble in status.troubles]
    if status.dropped:
        lines.append(
            f"{run}: {status.dropped} records could not be stored while the run was logging (disk full or refused)"
        )
    for line in lines:
        console.print(f"[yellow]![/] {escape(printable(line))}", highlight=False, soft_wrap=True)


def _summary(statuses: list[RunStatus], url: str | None) -> str:
    acknowledged = sum(status.acknowledged for status in statuses)
    pending = sum(status.pending for status in statuses)
    quarantined = sum(len(status.quarantined) for status in statuses)
    where = f" at {escape(url)}" if url else ""
    counts = f"{acknowledged:,} records acknowledged{where}, {pending:,} pending, {quarantined:,} quarantined"
    return f"{len(statuses)} runs: {counts}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
