"""What proves that a run may be deleted here: the server, read back record by record, or the far side's receipt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlferry_agent import verification
from mlferry_agent.bundles import Entry
from mlferry_agent.cleaning import Candidate, Kept
from mlferry_agent.config import Config
from mlferry_agent.courier import Courier
from mlferry_agent.destinations import destination_of
from mlferry_agent.ferrying import plan_export
from mlferry_agent.ledger import Ledger
from mlferry_agent.sessions import check_server
from mlferry_agent.transport import Transport

__all__ = ["DIFFERS", "by_receipts", "by_server"]

#: Why a run stays that is not on the server as it is here.
DIFFERS = "differs on the server (mlferry verify says how)"


async def by_server(
    config: Config,
    environ: Mapping[str, str],
    ledger: Ledger,
    candidates: Sequence[Candidate],
    on_run: Callable[[], None] = lambda: None,
) -> tuple[list[Candidate], list[Kept]]:
    """Read each run back; returns those of which the server has everything, and why the others stay.

    Raises:
        NoDestination, WrongDestination, Misconfigured, GaveUp. SpoolError, OSError: the spool cannot be read.
    """
    proven: list[Candidate] = []
    kept: list[Kept] = []
    where = destination_of(config, environ)
    async with Transport(where) as transport:
        courier = Courier(transport, patient=False, give_up_after_s=config.give_up_after_s)
        await check_server(courier, where)
        for candidate in candidates:
            found = await verification.verify(candidate.run, ledger, courier, transport)
            if found.differences:
                kept.append(Kept(candidate.run.run_id, DIFFERS))
            elif found.deleted:
                kept.append(Kept(candidate.run.run_id, "deleted on the server"))
            else:
                proven.append(candidate)
            on_run()
    return proven, kept


def by_receipts(
    root: Path, arrived: Sequence[Entry], candidates: Sequence[Candidate], on_run: Callable[[], None] = lambda: None
) -> tuple[list[Candidate], list[Kept]]:
    """Those of which every file, as it is now, has arrived on the far side, as receipts say. Raises SpoolError, OSError."""
    proven: list[Candidate] = []
    kept: list[Kept] = []
    for candidate in candidates:
        if plan_export(root, [candidate.run], arrived).files:
            kept.append(Kept(candidate.run.run_id, "not all in the receipts"))
        else:
            proven.append(candidate)
        on_run()
    return proven, kept
