"""Deliver now and come back, and read back what was delivered: what `mlferry sync` and `mlferry verify` do.

Beside a running agent nothing is delivered twice: the agent holds the ledger, so sync watches it deliver instead, and
comes back when the runs in question have nothing pending.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from mlferry_agent import verification
from mlferry_agent.config import Config
from mlferry_agent.courier import Courier
from mlferry_agent.discovery import RunLog, discover
from mlferry_agent.errors import GaveUp, LedgerBusy
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.sessions import check_server, destination_of, open_session
from mlferry_agent.status import RunStatus, run_status, select
from mlferry_agent.transport import Transport
from mlferry_agent.verification import Verification

__all__ = ["known_url", "statuses", "sync", "verify"]

_WATCH_S = 0.5

OnProgress = Callable[[str, int], None]


async def sync(
    config: Config,
    environ: Mapping[str, str],
    wanted: Iterable[str],
    on_progress: OnProgress,
    on_beside: Callable[[], None],
) -> None:
    """Deliver the wanted runs (all if none is named). ``on_beside`` is called if an agent does it instead.

    Raises:
        NoSuchRun, NoDestination, WrongDestination, Misconfigured, LedgerUnusable: nothing was sent.
        GaveUp: the server was away for too long; what was acknowledged stays so.
    """
    runs = select(discover(config.dir), wanted)
    try:
        async with open_session(config, environ, patient=False, on_progress=on_progress) as session:
            await session.carrier.deliver(runs)
    except LedgerBusy:
        on_beside()
        await _watch(config, environ, runs, on_progress)


async def verify(config: Config, environ: Mapping[str, str], wanted: Iterable[str]) -> list[Verification]:
    """Read the server back and compare the wanted runs with the spool; beside a running agent too.

    Raises:
        NoSuchRun, NoDestination, WrongDestination, Misconfigured, LedgerUnusable, GaveUp.
    """
    runs = select(discover(config.dir), wanted)
    where = destination_of(config, environ)
    ledger = Ledger.read(ledger_path(config.state_dir, where.url))
    if ledger is None:
        return [Verification(run.run_id, differences=["the run was never delivered"]) for run in runs]
    try:
        async with Transport(where) as transport:
            courier = Courier(transport, patient=False, give_up_after_s=config.give_up_after_s)
            await check_server(courier, where)
            return [await verification.verify(run, ledger, courier, transport) for run in runs]
    finally:
        ledger.close()


def statuses(config: Config, environ: Mapping[str, str], wanted: Iterable[str] = ()) -> list[RunStatus]:
    """How the wanted runs stand towards the destination, or towards the only one that was ever delivered to.

    Raises:
        NoSuchRun, LedgerUnusable, WrongDestination, Misconfigured.
    """
    runs = select(discover(config.dir), wanted)
    ledger = _ledger(config, environ)
    try:
        return [run_status(run, ledger) for run in runs]
    finally:
        if ledger is not None:
            ledger.close()


async def _watch(config: Config, environ: Mapping[str, str], runs: list[RunLog], on_progress: OnProgress) -> None:
    """Wait for the agent; give up when nothing moves for ``give_up_after_s``."""
    names = [run.run_id for run in runs]
    before = {status.run_id: status for status in statuses(config, environ, names)}
    moved_at = time.monotonic()
    while any(status.pending and not status.parked for status in before.values()):
        await asyncio.sleep(_WATCH_S)
        for status in statuses(config, environ, names):
            if status.acknowledged > before[status.run_id].acknowledged:
                on_progress(status.run_id, status.acknowledged - before[status.run_id].acknowledged)
                moved_at = time.monotonic()
            before[status.run_id] = status
        if time.monotonic() - moved_at > config.give_up_after_s:
            raise GaveUp("an agent holds the ledger and delivers nothing; look at its log")


def known_url(config: Config, environ: Mapping[str, str]) -> str | None:
    """Where this spool goes: as configured, else the only destination that the state directory knows."""
    if config.to is not None:
        return destination_of(config, environ).url
    ledger = _ledger(config, environ)
    if ledger is None:
        return None
    try:
        return ledger.url
    finally:
        ledger.close()


def _ledger(config: Config, environ: Mapping[str, str]) -> Ledger | None:
    if config.to is not None:
        return Ledger.read(ledger_path(config.state_dir, destination_of(config, environ).url))
    known = sorted(config.state_dir.glob("*.sqlite"))
    return Ledger.read(known[0]) if len(known) == 1 else None
