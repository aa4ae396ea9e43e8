"""clean: frees the space of runs that somebody else has now."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlferry_agent.commands.app import (
    ASIDE,
    COMPARED,
    Dir,
    Json,
    Quiet,
    Runs,
    State,
    To,
    Wait,
    Yes,
    command,
    configured,
    err,
    out,
    print_json,
)
from mlferry_agent.commands.crossing import read_receipts
from mlferry_agent.commands.keys import Identity, SignedBy, trust_of

if TYPE_CHECKING:
    from mlferry_agent.bundles import Entry
    from mlferry_agent.cleaning import Candidate, Kept
    from mlferry_agent.config import Config
    from mlferry_agent.ledger import Ledger

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@command(
    "clean",
    ASIDE,
    "mlferry clean --dry-run",
    "mlferry clean --older-than 30d --yes",
    "mlferry clean --keep 500GB --yes",
    "mlferry clean --receipt monday.tar.zst.receipt.json",
    ends=COMPARED,
)
def clean(
    runs: Runs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Only what nobody wrote to for so long: 90m, 12h, 7d, 0.")
    ] = "1d",
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="N|SIZE", help="Keep the newest runs: so many (10), or what fits (500GB)."),
    ] = None,
    receipt: Annotated[
        list[str] | None,
        typer.Option("--receipt", metavar="FILE|URL", help="Proof: the far side's receipt. Repeatable."),
    ] = None,
    identity: Identity = None,
    signed_by: SignedBy = None,
    trust_ledger: Annotated[
        bool, typer.Option("--trust-ledger", help="Proof: that the server acknowledged it; do not read it back.")
    ] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Runs of which something was dropped, too.")] = False,
    yes: Yes = False,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    give_up_after: Wait = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete runs that the server has, proven by reading it back.

    Only runs of which every record was acknowledged and nobody writes any more, and that differ in nothing from what the
    server has. Asks before. Killed at any moment it leaves each run whole or gone.
    """
    from mlferry_agent import status as standing
    from mlferry_agent.cleaning import Limits, cleaner
    from mlferry_agent.proofs import DIFFERS

    if receipt and trust_ledger:
        raise typer.BadParameter("--receipt and --trust-ledger are two proofs; name one")
    arrived = read_receipts(receipt, trust_of(identity, signed_by)) if receipt else None
    keep_runs, keep_bytes = _kept(keep)
    limits = Limits(_seconds(older_than), keep_runs, keep_bytes, dropped)
    config = configured(to=to, dir=dir, state_dir=state_dir, give_up_after_s=give_up_after)
    busy = quiet or as_json
    with contextlib.nullcontext() if dry_run or not config.dir.is_dir() else cleaner(config.dir):
        going, kept = _chosen(config, runs or [], limits, arrived, trust_ledger=trust_ledger, quiet=busy)
        _announce(going, kept, config, receipt or [], trust_ledger=trust_ledger, quiet=busy)
        if going and not dry_run:
            if not yes:
                typer.confirm("Delete them?", abort=True, err=True)
            going, stayed = _removed(config.dir, going, busy)
            kept += stayed
    _conclude(going, kept, dry_run=dry_run, as_json=as_json, quiet=quiet)
    raise typer.Exit(standing.SET_ASIDE if any(item.reason == DIFFERS for item in kept) else 0)


def _chosen(
    config: Config, wanted: Sequence[str], limits: Any, arrived: list[Entry] | None, *, trust_ledger: bool, quiet: bool
) -> tuple[list[Candidate], list[Kept]]:
    """What may go, proven, and what stays. ``arrived``: what receipts say; None: they are not the proof."""
    import asyncio

    from mlferry_agent.cleaning import choose, spare
    from mlferry_agent.destinations import destination_of
    from mlferry_agent.discovery import discover
    from mlferry_agent.proofs import by_receipts, by_server
    from mlferry_agent.status import select
    from mlferry_agent.views.progress import counting, waiting

    runs = discover(config.dir)
    with _ledgers(config, needed=arrived is None) as ledgers:
        with waiting(err, "looking", quiet):
            going, kept = choose(config, select(runs, wanted), ledgers, limits, by_ledger=arrived is None)
            going, spared = spare(going, runs, limits)
        if trust_ledger or not going:
            return going, kept + spared
        if arrived is None:
            destination_of(config, os.environ)
        with counting(err, "reading back" if arrived is None else "comparing", len(going), quiet) as on_run:
            if arrived is not None:
                going, unproven = by_receipts(config.dir, arrived, going, on_run)
            else:
                going, unproven = asyncio.run(by_server(config, os.environ, ledgers[0], going, on_run))
    return going, kept + spared + unproven


@contextlib.contextmanager
def _ledgers(config: Config, *, needed: bool) -> Iterator[list[Ledger]]:
    """The ledger of the destination, if it is ``needed``; and those of all other servers that this machine delivers to."""
    from mlferry_agent.destinations import read_ledger, used_ledgers

    with contextlib.ExitStack() as stack:
        found = []
        first = read_ledger(config, os.environ) if needed else None
        if first is not None:
            stack.callback(first.close)
            found.append(first)
        for other in used_ledgers(config.state_dir):
            stack.callback(other.close)
            if first is None or other.url != first.url:
                found.append(other)
        yield found if first is not None or not needed else []


def _removed(root: Path, going: Sequence[Candidate], quiet: bool) -> tuple[list[Candidate], list[Kept]]:
    from mlferry_agent.cleaning import Kept, remove
    from mlferry_agent.views.progress import counting

    gone: list[Candidate] = []
    stayed: list[Kept] = []
    with counting(err, "deleting", len(going), quiet) as on_run:
        for candidate in going:
            reason = remove(root, candidate)
            if reason is None:
                gone.append(candidate)
            else:
                stayed.append(Kept(candidate.run.run_id, reason))
            on_run()
    return gone, stayed


def _announce(
    going: Sequence[Candidate],
    kept: Sequence[Kept],
    config: Config,
    receipts: Sequence[str],
    *,
    trust_ledger: bool,
    quiet: bool,
) -> None:
    from mlferry_agent.destinations import known_url
    from mlferry_agent.views.cleaning import show_plan

    if quiet:
        return
    if receipts:
        proof = f"{'receipts list' if len(receipts) > 1 else 'the receipt lists'} every file of them"
    elif trust_ledger:
        proof = f"{known_url(config, os.environ)} acknowledged all of them; not read back"
    else:
        proof = f"read back from {known_url(config, os.environ)}, every record" if going else ""
    show_plan(err, going, kept, proof)


def _conclude(going: Sequence[Candidate], kept: Sequence[Kept], *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    from mlferry_agent.views.messages import say
    from mlferry_agent.views.words import bytes_said, counted

    freed = sum(candidate.size for candidate in going)
    if as_json:
        deleted = [candidate.run.run_id for candidate in going]
        stays = {item.run_id: item.reason for item in kept}
        print_json({"dry_run": dry_run, "deleted": deleted, "kept": stays, "freed_bytes": freed})
    elif not quiet:
        would = "would be " if dry_run else ""
        say(out, f"{counted(len(going), 'run')} {would}deleted, {bytes_said(freed)} {would}freed; {len(kept):,} kept")


def _seconds(text: str) -> float:
    """A span of time. Raises BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhdw]?)", text)
    if found is None or (not found[2] and float(found[1])):
        raise typer.BadParameter(f"{text!r} is no age; write 90m, 12h, 7d, or 0")
    return float(found[1]) * _SPANS.get(found[2], 0)


def _kept(text: str | None) -> tuple[int, int]:
    """So many runs, or so many bytes; the other is 0. Raises BadParameter."""
    if text is None:
        return 0, 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(B|kB|MB|GB|TB)?", text)
    if found is None or (found[2] is None and "." in found[1]):
        raise typer.BadParameter(f"{text!r} is neither a number of runs nor a size such as 500GB")
    return (int(found[1]), 0) if found[2] is None else (0, int(float(found[1]) * _SIZES[found[2]]))
