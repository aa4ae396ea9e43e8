"""Sentences: errors, warnings, names of both sides, what is about to be given up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mlferry_agent.answers import printable
from mlferry_agent.errors import AgentError
from mlferry_agent.views.lines import put
from mlferry_spool.errors import SpoolError

if TYPE_CHECKING:
    from mlferry_agent.drops import Drop
    from mlferry_agent.ledger import Quarantined
    from mlferry_agent.naming import Names

__all__ = ["complain", "notes", "say", "show_drop", "show_names", "told_of_record", "warn"]

#: Lines about single records or runs that are shown before the rest is only counted.
#: Beyond: the others are counted.
#: Test: tests/unit/agent/test_limits.py::test_of_very_many_records_that_are_to_be_dropped_the_rest_is_counted
_MOST_LISTED = 20


def say(console: Console, text: str) -> None:
    """A sentence as it stands: nothing in it is markup."""
    put(console, escape(printable(text)))


def notes(console: Console, lines: Iterable[str], *, every: bool = False, more: str = "") -> None:
    """What somebody should read, marked, a line each; the rest of very many is counted. ``more``: how to see it."""
    found = list(lines)
    for line in found if every else found[:_MOST_LISTED]:
        warn(console, line)
    if len(found) > _MOST_LISTED and not every:
        put(console, f"and {len(found) - _MOST_LISTED:,} more{more}")


def told_of_record(entry: Quarantined) -> str:
    """A record of the quarantine, in a sentence."""
    return f"record {entry.id} of {entry.run_id} quarantined: {entry.action} {entry.name!r}: {entry.reason}"


def show_names(console: Console, found: list[Names]) -> None:
    """What things are called on both sides, a line each; ids are never cut."""
    for item in found:
        line = f"{item.kind}: offline {item.offline_id}, server {item.server_id or '(not delivered)'}"
        named = f"{line}, {item.name}" if item.name else line
        say(console, named)


def show_drop(console: Console, chosen: Drop) -> None:
    """What is about to be given up."""
    lines = [f"{run.run_id}, all that was not delivered of it: {run.parked}" for run in chosen.runs]
    lines += [told_of_record(entry) for entry in chosen.records]
    for line in lines[:_MOST_LISTED]:
        put(console, f"[yellow]-[/] {escape(printable(line))}", hang=2)
    if len(lines) > _MOST_LISTED:
        console.print(f"and {len(lines) - _MOST_LISTED:,} more", highlight=False)
    if not lines:
        console.print("Nothing is set aside there.", highlight=False)


def complain(console: Console, error: AgentError | SpoolError) -> None:
    """One error: what happened in the words of its class, the particulars, nothing of where in the code."""
    says = " ".join((type(error).__doc__ or "").split())
    particulars = error.reason if isinstance(error, AgentError) else error.detail
    put(console, f"[bold red]error:[/] {escape(printable(particulars))}")
    put(console, escape(says))


def warn(console: Console, warning: str) -> None:
    """What the operator should change, though the command goes on."""
    put(console, f"[yellow]![/] {escape(printable(warning))}", hang=2)
