"""What `mlferry export` and `mlferry import` do with a bundle, once their options are understood, and what they say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlferry_agent.commands.app import err, out, print_json

if TYPE_CHECKING:
    from mlferry_agent.bundles import Entry, Manifest
    from mlferry_agent.carrying.parts import Seal
    from mlferry_agent.carrying.places import Place
    from mlferry_agent.carrying.reading import Trust
    from mlferry_agent.carrying.unfinished import Unfinished
    from mlferry_agent.config import Config
    from mlferry_agent.ferrying import Exported, Imported

__all__ = ["Crossing", "Wanted", "export_bundle", "import_bundle", "read_receipts", "show_import"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an export was asked for, in the words of the command."""

    runs: Sequence[str]
    since: Sequence[str]
    split_mb: int | None
    recipients: Sequence[str]
    overwrite: bool


@dataclass(frozen=True, slots=True)
class Crossing:
    """How files are closed and opened, and whether somebody wants to see it."""

    seal: Seal
    trust: Trust
    quiet: bool


def read_receipts(receipts: Sequence[str], trust: Trust) -> list[Entry]:
    """What has arrived. Raises as ``ferrying.read_receipt``."""
    from mlferry_agent.carrying.addresses import place_of
    from mlferry_agent.ferrying import read_receipt

    return [entry for receipt in receipts for entry in read_receipt(place_of(receipt), trust)]


# -- export ---------------------------------------------------------------------------------------------------------------


def export_bundle(config: Config, to: str, wanted: Wanted, crossing: Crossing) -> tuple[Manifest, Exported]:
    """Decide what a bundle holds, and write it; or go on with one that was broken off."""
    from mlferry_agent import ferrying
    from mlferry_agent.carrying.addresses import place_of
    from mlferry_agent.views.progress import carrying

    place = place_of(to)
    known = read_receipts(wanted.since, crossing.trust)
    with _noted(config, place, wanted) as noted:
        manifest = _decided(config, place, wanted, known, noted, quiet=crossing.quiet)
        total = sum(entry.size for entry in manifest.files)
        with carrying(err, "exporting", total, crossing.quiet) as on_bytes:
            done = ferrying.export_bundle(
                config.dir,
                manifest,
                place,
                split_bytes=None if wanted.split_mb is None else wanted.split_mb * 1_000_000,
                seal=crossing.seal,
                replace=wanted.overwrite,
                unfinished=noted,
                on_bytes=on_bytes,
            )
        if noted is not None:
            noted.end()
    return manifest, done


@contextlib.contextmanager
def _noted(config: Config, place: Place, wanted: Wanted) -> Iterator[Unfinished | None]:
    """What is noted of an export in parts; one file is made in one go, and nothing is noted of it."""
    from mlferry_agent.carrying.unfinished import unfinished
    from mlferry_agent.errors import PlaceTrouble
    from mlferry_agent.views.messages import warn
    from mlferry_agent.views.words import counted

    if wanted.split_mb is None:
        yield None
        return
    request = {
        "dir": str(config.dir.absolute()),
        "runs": sorted(wanted.runs),
        "since": sorted(wanted.since),
        "split": wanted.split_mb,
        "recipients": sorted(wanted.recipients),
    }
    with unfinished(config.state_dir, place, request) as noted:
        try:
            yield noted
        except (OSError, PlaceTrouble):
            if noted.parts:
                warn(
                    err, f"{counted(len(noted.parts), 'part')} made; the same command, given again, goes on from there"
                )
            raise


def _decided(
    config: Config, place: Place, wanted: Wanted, known: Sequence[Entry], noted: Unfinished | None, *, quiet: bool
) -> Manifest:
    from mlferry_agent import ferrying
    from mlferry_agent.carrying.parts import part_name
    from mlferry_agent.carrying.places import in_the_way
    from mlferry_agent.status import everything
    from mlferry_agent.views.messages import say
    from mlferry_agent.views.progress import waiting

    if noted is not None and noted.manifest is not None and not wanted.overwrite:
        if not quiet:
            say(err, f"going on with the export that was broken off, of which {len(noted.parts):,} parts were made")
        return noted.manifest
    if noted is not None and noted.is_of_another_request and not wanted.overwrite:
        first = place.beside(part_name(place.name, 0))
        if first.exists():
            raise in_the_way(first)
    with waiting(err, "reading what is there", quiet):
        manifest = ferrying.plan_export(config.dir, everything(config.dir, list(wanted.runs)), known)
    if noted is not None:
        noted.begin(manifest)
    return manifest


# -- import ---------------------------------------------------------------------------------------------------------------


def import_bundle(
    root: Path, parts: Sequence[Place], receipt: str | None, crossing: Crossing
) -> tuple[Imported, Place]:
    """Import, and write the receipt; where it was written. Raises as ``ferrying``; FileTrouble: no receipt was written."""
    from mlferry_agent import ferrying
    from mlferry_agent.carrying.addresses import place_of
    from mlferry_agent.carrying.reading import RECEIPT, whole_name
    from mlferry_agent.errors import FileTrouble, PlaceTrouble
    from mlferry_agent.views.progress import carrying

    place = place_of(receipt) if receipt else parts[0].beside(whole_name(parts[0]) + RECEIPT)
    with carrying(err, "importing", sum(part.size() for part in parts), crossing.quiet) as on_bytes:
        done = ferrying.import_bundle(root, parts, crossing.trust, on_bytes)
    try:
        ferrying.write_receipt(done.receipt, place, crossing.seal)
    except (OSError, PlaceTrouble) as error:
        told = error.reason if isinstance(error, PlaceTrouble) else f"{place}: {error.strerror or error}"
        raise FileTrouble(
            f"all of it was imported, but no receipt was written: {told}; import again with --receipt ELSEWHERE"
        ) from error
    return done, place


def show_import(done: Imported, receipt: Place, *, as_json: bool = False) -> None:
    from mlferry_agent.views.messages import say
    from mlferry_agent.views.words import counted

    if as_json:
        print_json({"new": done.new, "there": done.there, "receipt": str(receipt)})
        return
    say(out, f"{counted(done.new, 'file')} imported, {done.there:,} were there; receipt: {receipt}")
