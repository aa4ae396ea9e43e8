"""What `mlferry` alone shows."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from mlferry_agent.answers import printable
from mlferry_agent.summary import Summary, next_step
from mlferry_agent.views.lines import put
from mlferry_agent.views.words import counted, duration

__all__ = ["show_overview"]


def show_overview(console: Console, found: Summary) -> None:
    """The spool, the server, the runs, and the next command."""
    _line(console, "spool", f"{escape(printable(str(found.root)))}, {counted(found.runs, 'run')}")
    _line(console, "server", _server(found))
    if found.runs or found.set_aside:
        _line(console, "runs", ", ".join(_runs(found)))
    if found.records:
        _line(console, "waiting", _waiting(found))
    step = next_step(found)
    console.print()
    put(console, f"Next: [bold]{escape(printable(step.command))}[/]")
    put(console, f"      {step.why}", hang=6)


def _line(console: Console, name: str, said: str) -> None:
    put(console, f"[dim]{name:<8}[/] {said}", hang=9)


def _server(found: Summary) -> str:
    if found.url is None:
        return "not named yet"
    doing = "[green]delivering[/]" if found.is_delivering else "nothing is delivering now"
    return f"{escape(printable(found.url))}, {doing}"


def _runs(found: Summary) -> list[str]:
    told = [
        (found.set_aside, f"[yellow]{found.set_aside:,} need{'s' if found.set_aside == 1 else ''} you[/]"),
        (found.live, f"[green]{found.live:,} live[/]"),
        (found.waiting, f"{found.waiting:,} waiting"),
        (found.delivered, f"{found.delivered:,} delivered"),
    ]
    return [said for count, said in told if count]


def _waiting(found: Summary) -> str:
    late = f", the oldest for {duration(found.lag_s)}" if found.lag_s is not None else ""
    return f"{counted(found.records, 'record')}{late}"
