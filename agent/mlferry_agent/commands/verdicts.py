"""How runs stand, to a person or to a machine: what status, sync and drop end with."""

from __future__ import annotations

from mlferry_agent.commands.app import out, print_json
from mlferry_agent.status import RunStatus
from mlferry_agent.views.statuses import show_statuses

__all__ = ["show"]


def show(found: list[RunStatus], url: str | None, *, as_json: bool, quiet: bool = False, every: bool = True) -> None:
    """``every``: list all of these runs, were they thousands."""
    if as_json:
        print_json([status.as_json() for status in found])
    elif not quiet:
        show_statuses(out, found, url, every=every)
