"""`mlferry` alone: what is going on, and what to do next."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from mlferry_agent.commands.app import configured, err, out

if TYPE_CHECKING:
    from mlferry_agent.config import Config
    from mlferry_agent.ledger import Ledger

__all__ = ["overview"]


def overview() -> None:
    """Look, say it for each server that this spool is delivered to, and end with the verdict's exit code."""
    from mlferry_agent import status as standing
    from mlferry_agent.destinations import known_url
    from mlferry_agent.holding import is_held
    from mlferry_agent.ledger import ledger_path
    from mlferry_agent.status import survey
    from mlferry_agent.summary import summary
    from mlferry_agent.views.overview import show_overview
    from mlferry_agent.views.progress import waiting

    config, found = configured(), []
    with _ledgers(config) as ledgers:
        for number, ledger in enumerate(ledgers):
            with waiting(err, "counting"):
                statuses = survey(config.dir, ledger)
            url = known_url(config, os.environ) if ledger is None else ledger.url
            held = url is not None and is_held(ledger_path(config.state_dir, url))
            if number:
                out.print()
            named = config.to is not None
            show_overview(out, summary(config.dir, statuses, url, is_named=named, is_delivering=held))
            found += statuses
    raise typer.Exit(standing.exit_code(found))


@contextlib.contextmanager
def _ledgers(config: Config) -> Iterator[list[Ledger | None]]:
    """The destination's, if one is named; else of every server that anything was delivered to; None where there is none."""
    from mlferry_agent.destinations import read_ledger, used_ledgers

    with contextlib.ExitStack() as stack:
        used = [] if config.to is not None else used_ledgers(config.state_dir)
        for ledger in used:
            stack.callback(ledger.close)
        if len(used) < 2:
            only = read_ledger(config, os.environ)
            if only is not None:
                stack.callback(only.close)
            yield [only]
        else:
            yield [*used]
