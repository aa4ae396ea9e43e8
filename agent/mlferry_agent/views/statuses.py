"""How runs stand: the table of `mlferry status`, what of it needs a person, and one line that says it all.

A spool may hold thousands of runs that are long delivered. Then only those are listed that something is going on with, and
the rest is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlferry_agent.answers import printable
from mlferry_agent.discovery import STORE
from mlferry_agent.status import RunStatus
from mlferry_agent.views.lines import put
from mlferry_agent.views.messages import notes, told_of_record
from mlferry_agent.views.words import counted, duration

__all__ = ["SHORT_ID", "concerns", "is_wide", "one_line", "show_statuses", "state_of", "table_of_statuses", "totals"]

#: From this many columns on, run ids are shown whole; commands take any unambiguous beginning of one.
_WIDE, SHORT_ID = 120, 12

#: Runs of one sort that are listed unless all are asked for.
_ROWS_SHOWN = 20


def is_wide(console: Console) -> bool:
    """Whether whole run ids fit beside the rest."""
    return console.width >= _WIDE


def show_statuses(console: Console, statuses: list[RunStatus], url: str | None, *, every: bool = True) -> None:
    """A table of runs, then what needs a person, then one line that says it all. ``every``: leave no run out."""
    shown = statuses if every else [*_worth_a_row(statuses)]
    if shown:
        console.print(table_of_statuses(shown, wide=is_wide(console)))
    left = _left_out(statuses, shown)
    if left:
        put(console, f"{left} ([bold]--all[/] lists them)")
    lines = [line for status in statuses for line in concerns(status)]
    notes(console, lines, every=every, more=" (--all lists them)")
    put(console, totals(statuses, url))


def table_of_statuses(statuses: Iterable[RunStatus], *, wide: bool) -> Table:
    """A row a run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RUN", no_wrap=True, min_width=SHORT_ID)
    table.add_column("NAME", min_width=len("NAME"))
    table.add_column("STATE", no_wrap=True, min_width=len("FINISHED"))
    for column in ("ACKED", "PENDING", "QUARANTINED", "LAG"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for status in statuses:
        table.add_row(*_row(status, wide=wide))
    return table


def one_line(name: str) -> Text:
    """A name in a column that gives way to all others: cut where the room ends, never broken."""
    return Text(printable(name), no_wrap=True, overflow="ellipsis")


def _name_of(status: RunStatus) -> str:
    name = status.run_name or ""
    return name if status.run_id == STORE else f"{status.experiment_name or 'Default'}/{name}"


def state_of(status: RunStatus) -> str:
    """One word, with its colour: where the run stands."""
    if status.parked:
        return "[red]parked[/]"
    if status.given_up_why:
        return "dropped"
    if status.live:
        return "[green]live[/]"
    return escape(printable(status.status or "spooled"))


def totals(statuses: list[RunStatus], url: str | None) -> str:
    """The verdict in one line, as markup."""
    acknowledged = sum(status.acknowledged for status in statuses)
    pending = sum(status.pending for status in statuses)
    quarantined = sum(len(status.quarantined) for status in statuses)
    about = "~" if any(status.approximate for status in statuses) else ""
    where = f" at {escape(printable(url))}" if url else ""
    said = f"{counted(acknowledged, 'record')} acknowledged{where}, {about}{pending:,} pending"
    runs = sum(status.run_id != STORE for status in statuses)
    return f"{counted(runs, 'run')}: {said}, {quarantined:,} quarantined"


def _worth_a_row(statuses: list[RunStatus]) -> Iterator[RunStatus]:
    """All of them while they are few; else what needs somebody, lives or waits, the newest of each sort; in order."""
    if len(statuses) <= _ROWS_SHOWN:
        yield from statuses
        return
    by_sort: dict[str, list[int]] = {}
    for place, status in enumerate(statuses):
        by_sort.setdefault(_sort_of(status), []).append(place)
    by_sort.pop("at rest", None)
    for place in sorted(place for places in by_sort.values() for place in places[-_ROWS_SHOWN:]):
        yield statuses[place]


def _sort_of(status: RunStatus) -> str:
    if status.is_set_aside:
        return "set aside"
    if status.live:
        return "live"
    return "waiting" if status.is_pending else "at rest"


def _left_out(statuses: list[RunStatus], shown: list[RunStatus]) -> str:
    """What the table leaves out, counted by its sort; empty if nothing is."""
    counts = Counter(_sort_of(status) for status in statuses)
    counts.subtract(_sort_of(status) for status in shown)
    words = {
        "set aside": "need you",
        "live": "live",
        "waiting": "waiting",
        "at rest": "delivered",
    }
    return ", ".join(f"{counts[sort]:,} more {said}" for sort, said in words.items() if counts[sort])


def _row(status: RunStatus, *, wide: bool) -> tuple[str | Text, ...]:
    run_id = printable(status.run_id)
    return (
        escape(run_id if wide else run_id[:SHORT_ID]),
        one_line(_name_of(status)),
        state_of(status),
        f"{status.acknowledged:,}",
        f"{'~' if status.approximate else ''}{status.pending:,}",
        str(len(status.quarantined) or ""),
        duration(status.lag_s),
    )


def concerns(status: RunStatus) -> list[str]:
    """What of a run needs a person, or is good to know: a sentence each."""
    run = printable(status.run_id)
    lines = [f"{run} parked: {status.parked}"] if status.parked else []
    lines += [told_of_record(entry) for entry in status.quarantined]
    lines += [f"{run}: {trouble}" for trouble in status.troubles]
    if status.dropped:
        many = counted(status.dropped, "record")
        lines.append(f"{run}: {many} could not be stored while the run was logging (disk full or refused)")
    if status.given_up_why:
        lines.append(f"{run} was dropped, {counted(status.given_up, 'record')} of it: {status.given_up_why}")
    elif status.given_up:
        lines.append(f"{run}: {counted(status.given_up, 'record')} dropped")
    return lines
