"""The verbs for what is quarantined or parked: retry, drop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mlferry_agent.commands.app import (
    ASIDE,
    VERDICT,
    Dir,
    Json,
    NamedRuns,
    Runs,
    State,
    To,
    Wait,
    Yes,
    command,
    configured,
    err,
    out,
)
from mlferry_agent.commands.delivering import say_beside
from mlferry_agent.views.words import counted

if TYPE_CHECKING:
    from mlferry_agent.config import Config
    from mlferry_agent.errors import AgentError


@command("retry", ASIDE, "mlferry retry", "mlferry retry 4f2c && mlferry sync", "mlferry retry --dropped 4f2c")
def retry(
    runs: Runs = None,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="What was dropped too.")] = False,
) -> None:
    """Try again what was set aside, once its cause is gone.

    That is, what `mlferry status` shows as quarantined or parked. It is delivered by the next `mlferry sync`, or by the
    agent; stop the agent before, for a ledger has one owner at a time.
    """
    from mlferry_agent.destinations import destination_of, statuses
    from mlferry_agent.discovery import STORE
    from mlferry_agent.ledger import Ledger, ledger_path

    config = configured(to=to, dir=dir, state_dir=state_dir)
    url = destination_of(config, os.environ).url
    standing = statuses(config, os.environ, runs or [])
    found = [status for status in standing if status.is_set_aside or (dropped and status.given_up)]
    ledger = Ledger.open(ledger_path(config.state_dir, url), url)
    try:
        freed = sum(
            (ledger.retry_records if status.run_id == STORE else ledger.retry)(status.run_id, dropped=dropped)
            for status in found
        )
    finally:
        ledger.close()
    next_step = "; deliver them with: mlferry sync" if freed else ""
    out.print(f"{freed:,} set free in {counted(len(found), 'run')}{next_step}", highlight=False)


@command(
    "drop",
    ASIDE,
    "mlferry drop 4f2c",
    "mlferry drop --record 3fa9c2d1b0",
    "mlferry drop --all --yes",
    ends=VERDICT,
)
def drop(
    runs: NamedRuns = None,
    record: Annotated[
        list[str] | None, typer.Option("--record", metavar="ID", help="Only this one, as status names it; repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all runs.")] = False,
    yes: Yes = False,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    give_up_after: Wait = None,
    as_json: Json = False,
) -> None:
    """Give up what was set aside: it is never sent.

    Of a run that is quarantined, those records; of one that is parked, all that was not delivered. It stays in the spool,
    the server is told how much is missing, and `mlferry retry --dropped` takes it back. Asks before.
    """
    from mlferry_agent import drops
    from mlferry_agent import status as standing
    from mlferry_agent.commands.verdicts import show
    from mlferry_agent.destinations import destination_of, statuses
    from mlferry_agent.discovery import STORE
    from mlferry_agent.ledger import Ledger, ledger_path
    from mlferry_agent.views.messages import show_drop

    if not (runs or record or everything):
        raise typer.BadParameter("name runs, or records with --record, or say --all")
    config = configured(to=to, dir=dir, state_dir=state_dir, give_up_after_s=give_up_after)
    url = destination_of(config, os.environ).url
    chosen = drops.choose(statuses(config, os.environ, runs or []), record or [])
    show_drop(err, chosen)
    failure: AgentError | None = None
    if chosen.run_ids:
        if not yes:
            typer.confirm("Give this up?", abort=True, err=True)
        ledger = Ledger.open(ledger_path(config.state_dir, url), url)
        try:
            drops.drop(ledger, chosen)
        finally:
            ledger.close()
        failure = _tell(config, [run_id for run_id in chosen.run_ids if run_id != STORE])
    found = statuses(config, os.environ, runs or [])
    if record:
        found = [status for status in found if status.run_id in chosen.run_ids]
    show(found, url, as_json=as_json, every=bool(runs))
    raise typer.Exit(standing.PENDING if failure else standing.exit_code(found))


def _tell(config: Config, runs: list[str]) -> AgentError | None:
    """Deliver what is left to say of these runs; what a server that is away was not told, it is told by the next sync."""
    import asyncio

    from mlferry_agent import syncing
    from mlferry_agent.errors import GaveUp
    from mlferry_agent.views.messages import complain

    try:
        if runs:
            asyncio.run(syncing.sync(config, os.environ, runs, lambda run_id, records: None, say_beside))
    except GaveUp as error:
        complain(err, error)
        return error
    return None
