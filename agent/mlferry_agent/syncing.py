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
from mlferry_agent.destinations import destination_of, statuses
from mlferry_agent.discovery import STORE, RunLog, discover
from mlferry_agent.errors import GaveUp, LedgerBusy
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.sessions import check_server, open_session
from mlferry_agent.status import RunStatus, everything, select
from mlferry_agent.transport import Transport
from mlferry_agent.verification import Verification

__all__ = ["sync", "verify"]

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
    runs = everything(config.dir, wanted)
    try:
        async with open_session(config, environ, patient=False, on_progress=on_progress) as session:
            await session.carrier.deliver(run for run in runs if run.run_id != STORE)
    except LedgerBusy:
        on_beside()
        await _watch(config, environ, runs, on_progress)


async def verify(
    config: Config, environ: Mapping[str, str], wanted: Iterable[str], on_run: Callable[[], None] = lambda: None
) -> list[Verification]:
    """Read the server back and compare the wanted runs with the spool; beside a running agent too. ``on_run`` is called
    after each.

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
            found = []
            for run in runs:
                found.append(await verification.verify(run, ledger, courier, transport))
                on_run()
            return found
    finally:
        ledger.close()


def _moves(status: RunStatus, goal: int) -> bool:
    """Whether there is something to wait for: records, of which the server is to have ``goal``, or the run's end."""
    if status.pending:
        return not status.parked and status.acknowledged < goal
    return status.end_pending and not status.is_set_aside


async def _watch(config: Config, environ: Mapping[str, str], runs: list[RunLog], on_progress: OnProgress) -> None:
    """Wait for the agent to deliver what is there now; give up when nothing moves for ``give_up_after_s``."""
    names = [] if runs and runs[-1].run_id == STORE else [run.run_id for run in runs]
    before = {status.run_id: status for status in statuses(config, environ, names)}
    goals = {status.run_id: status.acknowledged + status.pending for status in before.values()}
    moved_at = time.monotonic()
    while any(_moves(status, goals[status.run_id]) for status in before.values()):
        await asyncio.sleep(_WATCH_S)
        for status in statuses(config, environ, names):
            before.setdefault(status.run_id, status)
            goals.setdefault(status.run_id, 0)  # of what came later nothing is waited for
            if status.acknowledged > before[status.run_id].acknowledged:
                on_progress(status.run_id, status.acknowledged - before[status.run_id].acknowledged)
                moved_at = time.monotonic()
            before[status.run_id] = status
        if time.monotonic() - moved_at > config.give_up_after_s:
            raise GaveUp("an agent holds the ledger and delivers nothing; look at its log")
