"""Puts the agent's parts together for one destination, and takes them apart again.

Owns the order: configuration and credentials are checked, the ledger is taken, and the server is asked who it is before
anything else is sent, so that a wrong address or token is said at once and in one sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from mlferry_agent import requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.carrier import Carrier
from mlferry_agent.config import Config
from mlferry_agent.courier import Courier
from mlferry_agent.credentials import Destination
from mlferry_agent.destinations import destination_of
from mlferry_agent.errors import WrongDestination
from mlferry_agent.filesystems import is_local
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.terms import Terms
from mlferry_agent.transport import Transport

__all__ = ["Session", "check_server", "check_settings", "open_session"]


@dataclass(frozen=True, slots=True)
class Session:
    """What delivers: the carrier, its courier, its ledger and where they deliver to."""

    destination: Destination
    courier: Courier
    ledger: Ledger
    carrier: Carrier


def check_settings(config: Config, environ: Mapping[str, str]) -> None:
    """Whether a session could be opened by these, without opening one. Raises as ``destination_of``."""
    Transport(destination_of(config, environ))


@contextlib.asynccontextmanager
async def open_session(
    config: Config,
    environ: Mapping[str, str],
    *,
    patient: bool,
    on_progress: Callable[[str, int], None] = lambda run_id, records: None,
) -> AsyncIterator[Session]:
    """Ready to deliver. ``patient``: wait for an unreachable or badly configured server instead of raising.

    Raises:
        LedgerBusy, LedgerUnusable, NoDestination, WrongDestination, Misconfigured, GaveUp.
    """
    where = destination_of(config, environ)
    ledger = Ledger.open(ledger_path(config.state_dir, where.url), where.url)
    try:
        async with Transport(
            where, max_api_connections=config.connections, max_file_connections=config.uploads
        ) as transport:
            courier = Courier(
                transport,
                patient=patient,
                give_up_after_s=None if patient else config.give_up_after_s,
                connections=config.connections,
                uploads=config.uploads,
            )
            if not patient:
                await check_server(courier, where)
            terms = Terms(stale_after_s=config.stale_after_s, local_disk=is_local(config.dir), deleted=config.deleted)
            yield Session(where, courier, ledger, Carrier(config.dir, ledger, courier, terms, on_progress))
    finally:
        ledger.close()


async def check_server(courier: Courier, where: Destination) -> None:
    """Make sure that an MLflow server answers, and one that knows a repeated metric when it sees it.

    Raises:
        WrongDestination: it is no MLflow server, or keeps its runs in files.
    """
    reply = await courier.ask(requests.server_version())
    if reply.verdict is not Verdict.ACCEPTED:
        raise WrongDestination(f"{where.url} does not answer like an MLflow server: {reply.reason}")
    info = await courier.ask(requests.server_info())
    body = json_object(info.answer.body) if info.verdict is Verdict.ACCEPTED else None
    if body is not None and body.get("store_type") == "FileStore":
        raise WrongDestination(
            f"{where.url} keeps its runs in files, and such a store doubles metrics that are sent again;"
            " start the server with --backend-store-uri sqlite:///... or another database"
        )
