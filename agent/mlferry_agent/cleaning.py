"""What `mlferry clean` may delete, and how it goes: never before somebody else has it, never a live run, never by halves.

Which runs. Every record acknowledged, the end told, nothing set aside, no writer that might still write, delivered to every
server that this machine delivers to. That is what the ledger says; ``proofs`` then makes sure of it.

How. A run is moved out of ``runs/`` first, by renames, into a folder of its own below ``.clean/``. There it is looked at
once more: a job that was requeued may have begun to write between the proof and the move, and then all of it is moved back.
Only then it is renamed to a name that means *decided*, and what has such a name is deleted. So after a kill at any point,
what lies below ``.clean/`` tells by its name what is to be done: a decided run is deleted to its end, any other is put back
whole. Renames are made durable before anything is unlinked.

A writer that enters a run in the very moment of the move (a run that nobody touched for a day, as a rule) finds its
directory gone, makes it anew and goes on; what it began is put beside it again.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlferry_agent.closing import is_alive
from mlferry_agent.config import Config
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import CleanBusy, FileTrouble, LedgerBusy, LedgerUnusable
from mlferry_agent.feeds import opening_from, written_at
from mlferry_agent.filesystems import is_local
from mlferry_agent.holding import hold
from mlferry_agent.ledger import Ledger, RunRow, WriterRow
from mlferry_agent.status import RunStatus, run_status
from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError, UntrustedFile
from mlferry_spool.files import make_directory, sync_directory
from mlferry_spool.layout import writer_directories
from mlferry_spool.liveness import Lock, probe, this_machine
from mlferry_spool.peek import newest_change
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Kind, Open
from mlferry_spool.tailer import Entry, Lost

__all__ = ["Candidate", "Kept", "Limits", "choose", "cleaner", "remove", "spare"]

_PLACE, _DECIDED = ".clean", ".gone-"

#: Every file of a run with its size: what must be the same before and after the move.
Fingerprint = frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept although it could go. ``older_than_s``: seconds since somebody wrote to it. ``keep_runs``: so many of the
    newest runs of the spool. ``keep_bytes``: the newest that fit. ``dropped``: runs that were given up may go too."""

    older_than_s: float = 86_400.0
    keep_runs: int = 0
    keep_bytes: int = 0
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that may go, and what it was when that was found."""

    run: RunLog
    status: RunStatus
    fingerprint: Fingerprint

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, size in self.fingerprint)

    @property
    def files(self) -> int:
        return len(self.fingerprint)


@dataclass(frozen=True, slots=True)
class Kept:
    """A run that stays. ``reason``: in a few words; the same words for all runs of one kind."""

    run_id: str
    reason: str


@dataclass(slots=True)
class _Chosen:
    candidates: list[Candidate] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


# -- which runs -----------------------------------------------------------------------------------------------------------


def choose(
    config: Config, runs: Iterable[RunLog], ledgers: Sequence[Ledger], limits: Limits, *, by_ledger: bool
) -> tuple[list[Candidate], list[Kept]]:
    """The runs that may go, oldest first, and why the others stay. ``ledgers``: of every server that this machine delivers
    to. ``by_ledger``: they must say that everything is acknowledged; else something else proves it.

    Raises:
        OSError: a run cannot be looked at. LedgerUnusable.
    """
    found = _Chosen()
    local = is_local(config.dir)
    for run in runs:
        reason = _why_kept(config, run, ledgers, limits, by_ledger=by_ledger, local=local)
        if reason is None:
            status = run_status(run, ledgers[0] if ledgers else None)
            found.candidates.append(Candidate(run, status, fingerprint(run.directories)))
        else:
            found.kept.append(Kept(run.run_id, reason))
    return found.candidates, found.kept


def spare(
    candidates: Sequence[Candidate], everything: Sequence[RunLog], limits: Limits
) -> tuple[list[Candidate], list[Kept]]:
    """What is left of the candidates when the newest are kept, as the limits say."""
    newest = {run.run_id for run in everything[len(everything) - limits.keep_runs :]} if limits.keep_runs else set()
    going = [candidate for candidate in candidates if candidate.run.run_id not in newest]
    if limits.keep_bytes:
        sizes = {run.run_id: sum(size for _, size in fingerprint(run.directories)) for run in everything}
        surplus, going, before = sum(sizes.values()) - limits.keep_bytes, [], going
        for candidate in before:
            if surplus > 0:
                going.append(candidate)
                surplus -= candidate.size
    stays = {candidate.run.run_id for candidate in candidates} - {candidate.run.run_id for candidate in going}
    return going, [Kept(run_id, "kept by --keep") for run_id in sorted(stays)]


def _why_kept(
    config: Config, run: RunLog, ledgers: Sequence[Ledger], limits: Limits, *, by_ledger: bool, local: bool
) -> str | None:
    """The first reason for which a run stays; None: it may go."""
    rows = [row for ledger in ledgers for row in ledger.writers(run.run_id).values()]
    if any(_may_write(writer, rows, config, local=local) for writer in _writers(run)):
        return "live"
    if by_ledger and not ledgers:
        return "never delivered"
    for ledger in ledgers:
        reason = _why_not_delivered(run, ledger, limits)
        if reason is not None:
            return reason
    age = time.time() - max(newest_change(directory) for directory in run.directories) / 1000
    return None if age >= limits.older_than_s else "too young"


def _writers(run: RunLog) -> Iterator[Path]:
    """All of them, those included that have written nothing yet."""
    for directory in run.directories:
        yield from writer_directories(directory)


def _why_not_delivered(run: RunLog, ledger: Ledger, limits: Limits) -> str | None:
    status, row = run_status(run, ledger), ledger.run(run.run_id)
    if status.given_up or status.given_up_why:
        return None if limits.dropped and not status.is_set_aside and not status.pending else "dropped"
    if status.is_set_aside:
        return "needs you"
    if status.is_pending or row is None or not _end_is_told(row, ledger.writers(run.run_id)):
        return f"not all delivered to {ledger.url}"
    return None


def _end_is_told(row: RunRow, writers: Mapping[str, WriterRow]) -> bool:
    """A run that its program left running is running on the server too; one that died there is closed there."""
    return row.end_time is not None or (row.server_run_id is not None and all(one.in_order for one in writers.values()))


def _may_write(writer: Path, rows: Sequence[WriterRow], config: Config, *, local: bool) -> bool:
    """Whether somebody may still write to a log: its lock is held, or nothing says that its process is over."""
    lock = probe(writer)
    if lock is Lock.HELD:
        return True
    row = next((row for row in rows if row.writer_id == writer.name), None) or WriterRow("", writer.name)
    reader = LogReader(writer, row.cursor)
    opening = opening_from(row.opening) if row.opening else None
    if row.in_order and not reader.pending_bytes():
        return False
    with contextlib.suppress(SpoolError, OSError):
        while events := reader.read():
            opening = next(filter(None, map(_opening, events)), opening)
    if reader.ended:
        return False
    last_sign = max(written_at(writer), row.last_sign)
    if opening is None:
        return time.time() - max(last_sign, newest_change(writer.parent)) / 1000 <= config.stale_after_s
    return is_alive(
        opening,
        lock,
        this_machine(),
        local_disk=local,
        last_sign=last_sign,
        now=time.time_ns() // 1_000_000,
        stale_after_s=config.stale_after_s,
    )


def _opening(event: Entry | Lost) -> Open | None:
    if not isinstance(event, Entry) or event.kind != Kind.OPEN:
        return None
    with contextlib.suppress(SpoolError):
        record = decode(event.kind, event.payload)
        return record if isinstance(record, Open) else None
    return None


def fingerprint(directories: Iterable[Path]) -> Fingerprint:
    """Every file with its size, by its name below the directory's own. Raises OSError."""
    found: set[tuple[str, int]] = set()
    for directory in directories:
        for place, _, names in os.walk(directory, onerror=_raise):
            below = Path(directory.name) / Path(place).relative_to(directory)
            found.update((str(below / name), (Path(place) / name).lstat().st_size) for name in names)
            found.add((str(below), 0))
    return frozenset(found)


def _raise(error: OSError) -> None:
    raise error


# -- how they go ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cleaner(root: Path) -> Iterator[None]:
    """Alone on this spool: first, what a clean that was killed has left is finished or put back.

    Raises:
        CleanBusy: another one is at work. FileTrouble, UntrustedFile, OSError: the spool is not ours to clean.
    """
    try:
        lock = hold(root / _PLACE)
    except LedgerBusy as error:
        raise CleanBusy(str(root)) from error
    except LedgerUnusable as error:  # it is a lock of the same kind, and no ledger
        raise FileTrouble(error.reason) from error
    try:
        _recover(root)
        yield
    finally:
        with contextlib.suppress(OSError):
            (root / _PLACE).rmdir()
        os.close(lock)


def remove(root: Path, candidate: Candidate) -> str | None:
    """Delete a run. Returns None, or why it stays after all.

    Raises:
        OSError: the disk; the run is then whole in its place, or decided and deleted by the next clean.
    """
    place = root / _PLACE
    make_directory(place)
    staged = place / candidate.run.run_id
    staged.mkdir(mode=0o700)
    try:
        for directory in candidate.run.directories:
            directory.rename(staged / directory.name)
        moved = RunLog(candidate.run.run_id, tuple(staged / item.name for item in candidate.run.directories))
        changed = fingerprint(moved.directories) != candidate.fingerprint
        if changed or any(probe(writer) is Lock.HELD for writer in _writers(moved)):
            _put_back(root, staged)
            return "somebody writes to it"
    except OSError:
        _put_back(root, staged)
        raise
    decided = place / f"{_DECIDED}{os.urandom(8).hex()}"
    sync_directory(staged)
    staged.rename(decided)
    sync_directory(place)
    sync_directory(root / "runs")
    shutil.rmtree(decided)
    return None


def _recover(root: Path) -> None:
    place = root / _PLACE
    if place.is_symlink():
        raise UntrustedFile("a link where a directory must be", path=place)
    if not place.is_dir():
        return
    for entry in sorted(place.iterdir()):
        if entry.name.startswith(_DECIDED):
            shutil.rmtree(entry)
        else:
            _put_back(root, entry)


def _put_back(root: Path, staged: Path) -> None:
    for directory in list(staged.iterdir()):
        _merge(directory, root / "runs" / directory.name)
    sync_directory(root / "runs")
    staged.rmdir()


def _merge(source: Path, target: Path) -> None:
    """Move what is in one place to the other, where somebody may have begun anew meanwhile. Nothing there is replaced: what
    has the same name is the same (writers' names are unique, blobs are called by their content). Raises OSError."""
    if not target.exists():
        source.rename(target)
        return
    if source.is_dir():
        for entry in list(source.iterdir()):
            _merge(entry, target / entry.name)
        source.rmdir()
    elif filecmp.cmp(source, target, shallow=False):
        source.unlink()
    else:
        raise FileExistsError(errno.EEXIST, "another file is there", str(target))
