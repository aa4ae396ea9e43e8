"""The verbs about this machine and its server: config, doctor, prepare."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mlferry_agent.commands.app import (
    DELIVER,
    MACHINE,
    Dir,
    Json,
    State,
    To,
    Wait,
    command,
    configured,
    err,
    out,
    print_json,
)

if TYPE_CHECKING:
    from mlferry_agent.config import Config
    from mlferry_agent.doctor.check import Check
    from mlferry_agent.reserving import Reservation, Wanted


@command("config", MACHINE, "mlferry config", "MLFERRY_UPLOADS=8 mlferry config --json")
def config(to: To = None, dir: Dir = None, state_dir: State = None, as_json: Json = False) -> None:
    """Show every setting with its value and where that came from."""
    from dataclasses import fields

    from mlferry_agent.views.machine import show_settings

    found = configured(to=to, dir=dir, state_dir=state_dir)
    names = [item.name for item in fields(found) if item.name != "origins"]
    settings = [(name, _shown(found, name), found.origins[name]) for name in names]
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in settings})
    else:
        show_settings(out, settings)


@command(
    "doctor",
    MACHINE,
    "mlferry doctor",
    "mlferry doctor --to https://mlflow.example.org --json",
    ends="Exit codes: 0 all works, 1 failed, 2 wrong usage, 3 something does not work.",
)
def doctor(to: To = None, dir: Dir = None, state_dir: State = None, as_json: Json = False) -> None:
    """Look whether all is well, here and at the server.

    File systems, locks, room, the ledger, agents and their unit; the server's address, version, store and clock, and whether
    we are let in. What is wrong is said with what to do.
    """
    import asyncio

    from mlferry_agent.doctor.check import Grade
    from mlferry_agent.views.machine import show_check, show_verdict

    checks: list[Check] = []

    def found(check: Check) -> None:
        checks.append(check)
        if not as_json:
            show_check(out, check)

    told = configured(to=to, dir=dir, state_dir=state_dir)
    for check in _local(told):
        found(check)
    asyncio.run(_remote(told, found))
    if as_json:
        print_json([check.as_json() for check in checks])
    else:
        show_verdict(out, checks)
    raise typer.Exit(3 if any(check.grade is Grade.BAD for check in checks) else 0)


@command(
    "prepare",
    DELIVER,
    'eval "$(mlferry prepare -e mnist)" && sbatch train.sh',
    "mlferry prepare --experiment mnist --name baseline --tag team=vision --json",
)
def prepare(
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment", "-e", metavar="NAME", help="Made if it is not there. Else MLFLOW_EXPERIMENT_NAME, Default."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The run's name; else MLflow's own.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Repeatable.")] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", metavar="ID", help="The server's id of a parent run.")
    ] = None,
    to: To = None,
    give_up_after: Wait = None,
    as_json: Json = False,
) -> None:
    """Reserve a run on the server for a job without network.

    Prints what to export for the job, which then logs into this run: so its id, and its link, are known beforehand. Until
    the first record arrives it says SCHEDULED.
    """
    import asyncio

    from mlferry_agent.reserving import Wanted
    from mlferry_agent.views.messages import say

    tags = dict(_tag(text) for text in tag or [])
    told = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    wanted = Wanted(told, name, _user(), tags, parent)
    made = asyncio.run(_reserve(configured(to=to, give_up_after_s=give_up_after), wanted))
    if as_json:
        print_json({"run_id": made.run_id, "experiment_id": made.experiment_id, "name": made.name})
        return
    sys.stdout.write(f"export MLFLOW_RUN_ID={shlex.quote(made.run_id)}\n")
    sys.stdout.write(f"export MLFLOW_EXPERIMENT_ID={shlex.quote(made.experiment_id)}\n")
    say(err, f"run {made.name} is reserved in {told}; the job needs these two, and MLFLOW_TRACKING_URI=spool:")


def _shown(config: Config, name: str) -> str:
    """A value for everybody's eyes: the server's address has no password in it."""
    from mlferry_agent.destinations import destination_of
    from mlferry_agent.errors import AgentError

    value = getattr(config, name)
    if name != "to" or value is None:
        return "" if value is None else str(value)
    try:
        return destination_of(config, os.environ).url
    except AgentError as error:
        return f"(unusable: {error.reason})"


def _local(config: Config) -> Iterator[Check]:
    from mlferry_agent.doctor.agents import agent_checks
    from mlferry_agent.doctor.local import local_checks

    yield from local_checks(config)
    yield from agent_checks(config)


async def _remote(config: Config, found: Callable[[Check], None]) -> None:
    from mlferry_agent.doctor.remote import remote_checks

    async for check in remote_checks(config, os.environ):
        found(check)


async def _reserve(config: Config, wanted: Wanted) -> Reservation:
    from mlferry_agent.courier import Courier
    from mlferry_agent.destinations import destination_of
    from mlferry_agent.reserving import reserve
    from mlferry_agent.sessions import check_server
    from mlferry_agent.transport import Transport

    where = destination_of(config, os.environ)
    async with Transport(where) as transport:
        courier = Courier(transport, patient=False, give_up_after_s=config.give_up_after_s)
        await check_server(courier, where)
        return await reserve(courier, wanted)


def _tag(text: str) -> tuple[str, str]:
    key, given, value = text.partition("=")
    if not given or not key:
        raise typer.BadParameter(f"{text!r} is no tag; write key=value")
    return key, value


def _user() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None
