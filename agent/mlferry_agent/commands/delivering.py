"""The verbs that deliver, and the one that reads back what was delivered: agent, sync, verify."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict

import typer

from mlferry_agent.commands.app import (
    COMPARED,
    DELIVER,
    VERDICT,
    Dir,
    Http,
    Json,
    OnDeleted,
    Quiet,
    Runs,
    Stale,
    State,
    To,
    Wait,
    command,
    configured,
    err,
    out,
    print_json,
)

__all__ = ["say_beside"]


@command(
    "sync",
    DELIVER,
    "mlferry sync --to https://mlflow.example.org",
    "mlferry sync 4f2c --give-up-after 600",
    "mlferry sync --json --quiet || echo 'not all of it has arrived'",
    ends=VERDICT,
)
def sync(
    runs: Runs = None,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    stale_after: Stale = None,
    give_up_after: Wait = None,
    deleted: OnDeleted = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deliver now, and come back with the verdict.

    Beside a running agent it watches that one deliver. Interrupted at any moment, it goes on where it was: what is
    acknowledged stays so.
    """
    import asyncio

    from mlferry_agent import status as standing
    from mlferry_agent import syncing
    from mlferry_agent.commands.verdicts import show
    from mlferry_agent.destinations import destination_of, statuses
    from mlferry_agent.errors import AgentError, GaveUp
    from mlferry_agent.views.messages import complain, warn
    from mlferry_agent.views.progress import progress, waiting

    flags = {"to": to, "dir": dir, "state_dir": state_dir, "stale_after_s": stale_after, "deleted": deleted}
    config = configured(**flags, give_up_after_s=give_up_after)
    wanted = runs or []
    where = destination_of(config, os.environ)
    for warning in where.warnings:
        warn(err, warning)
    with waiting(err, "counting what waits", quiet or as_json):
        before = statuses(config, os.environ, wanted)
    failure: AgentError | None = None
    with progress(err, sum(status.pending for status in before), quiet or as_json) as meter:
        try:
            asyncio.run(syncing.sync(config, os.environ, wanted, meter.add, say_beside))
        except GaveUp as error:
            failure = error
    found = statuses(config, os.environ, wanted)
    show(found, where.url, as_json=as_json, quiet=quiet, every=bool(wanted))
    if failure is not None:
        complain(err, failure)
    raise typer.Exit(standing.PENDING if failure else standing.exit_code(found))


@command(
    "agent",
    DELIVER,
    "mlferry agent --to https://mlflow.example.org",
    "mlferry agent --http 127.0.0.1:9477",
    "systemctl enable --now mlferry-agent",
)
def agent(
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    stale_after: Stale = None,
    deleted: OnDeleted = None,
    http: Http = None,
) -> None:
    """Deliver continuously: the daemon that a unit starts.

    It waits for a server that is away, a token that is wrong and a spool that is not there yet; SIGTERM ends it.
    """
    import asyncio

    from mlferry_agent.service import serve

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    flags = {
        "to": to,
        "dir": dir,
        "state_dir": state_dir,
        "stale_after_s": stale_after,
        "deleted": deleted,
        "http": http,
    }
    asyncio.run(serve(lambda: configured(**flags), os.environ))


@command(
    "verify", DELIVER, "mlferry verify --to https://mlflow.example.org", "mlferry verify 4f2c --json", ends=COMPARED
)
def verify(
    runs: Runs = None,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read the server back and compare every record.

    Each point, param, tag, dataset, model and byte of a file. What is quarantined or was dropped is not expected there.
    """
    import asyncio

    from mlferry_agent import status as standing
    from mlferry_agent import syncing
    from mlferry_agent.discovery import discover
    from mlferry_agent.views.progress import counting
    from mlferry_agent.views.verifications import show_verifications

    config = configured(to=to, dir=dir, state_dir=state_dir)
    total = len(runs) if runs else len(discover(config.dir))
    with counting(err, "reading back", total, quiet or as_json) as on_run:
        found = asyncio.run(syncing.verify(config, os.environ, runs or [], on_run))
    if as_json:
        print_json([asdict(item) for item in found])
    elif not quiet:
        show_verifications(out, found, every=bool(runs))
    raise typer.Exit(standing.SET_ASIDE if any(item.differences for item in found) else standing.ALL_ACKNOWLEDGED)


def say_beside() -> None:
    """That somebody else delivers, and we watch."""
    err.print("An agent is delivering this spool to the same server; watching it.", highlight=False)
