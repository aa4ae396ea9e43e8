"""Is this machine fit to log on, and to deliver from: places, file systems, locks, room, the ledgers."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlferry_agent.config import Config
from mlferry_agent.doctor.check import Check, bad, fine, note, poor
from mlferry_agent.errors import LedgerUnusable
from mlferry_agent.filesystems import file_system, is_local
from mlferry_agent.ledger import Ledger
from mlferry_agent.views.words import bytes_said
from mlferry_spool.appender import IS_COMPILED
from mlferry_spool.layout import new_run_directory, store_directory
from mlferry_spool.trust import check_root

__all__ = ["ledgers", "local_checks", "places", "room", "software"]

#: Below this a training that logs checkpoints is soon without room.
_LITTLE_BYTES, _LITTLE_INODES = 2 * 10**9, 20_000

#: A record that is made durable each second must not take a good part of it.
_SLOW_SYNC_S = 0.5

#: File systems of which it is known that SQLite's write-ahead log does not work on them, or not between machines.
_SHARED = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "9p", "fuse.sshfs", "afs", "wekafs"}
)


def local_checks(config: Config) -> Iterator[Check]:
    """Everything about this machine but its agents."""
    yield software()
    yield from places(config)
    for name, path in (("spool's disk", config.dir), ("ledger's disk", config.state_dir)):
        yield from room(name, _existing(path))
    yield from ledgers(config.state_dir)
    if (config.dir / ".clean").exists():
        yield note("clean", "one was interrupted, and runs wait below .clean", "mlferry clean finishes it")


def software() -> Check:
    """Versions, whether the hot path is compiled, and whether MLflow code can log here."""
    said = f"mlferry {version('mlferry')} ({'compiled' if IS_COMPILED else 'Python alone'})"
    if importlib.util.find_spec("mlflow") is None:
        return note("software", f"{said}, without MLflow", "MLflow code needs it to log: pip install 'mlferry[mlflow]'")
    try:
        return fine("software", f"{said}, MLflow {version('mlflow')}")
    except PackageNotFoundError:
        return fine("software", f"{said}, MLflow {version('mlflow-skinny')} (skinny)")


def places(config: Config) -> Iterator[Check]:
    """The spool and the ledger's directory: whose they are, what they lie on, whether locks work there."""
    spool, state = config.dir, config.state_dir
    yield _spool(spool)
    kind = file_system(spool) or "unknown"
    if is_local(spool):
        yield fine("spool on", f"{kind}, local")
    else:
        said = f"{kind}, shared: new records are found by looking, twice a second"
        advice = f"a process on another host that is silent for {config.stale_after_s:.0f} s counts as dead"
        yield note("spool on", said, advice)
    where = _existing(spool)
    if os.access(where, os.W_OK):
        yield from _locks(where)
    kind = file_system(state) or "unknown"
    if kind in _SHARED:
        advice = "SQLite's log does not work across machines: MLFERRY_STATE_DIR on a local disk"
        yield poor("ledger on", f"{kind}, shared", advice)
    elif not os.access(_existing(state), os.W_OK):
        yield bad(
            "ledger on", f"{state} cannot be written", "make it yours, or name another one with MLFERRY_STATE_DIR"
        )
    else:
        yield fine("ledger on", f"{kind}")


def _spool(path: Path) -> Check:
    if not path.exists():
        if os.access(_existing(path), os.W_OK):
            return note("spool", f"{path} is not there yet", "the first run makes it")
        return bad("spool", f"{path} cannot be made", "name another one with MLFERRY_DIR")
    try:
        for below in (new_run_directory(path, "run", 0), store_directory(path)):
            check_root(below)
    except PermissionError as error:
        return bad("spool", f"{path}: {error.strerror}", "nothing is logged there until that is changed")
    if not os.access(path, os.R_OK | os.X_OK):
        return bad("spool", f"{path} cannot be read by this user", "run this as the user whose runs they are")
    if not os.access(path, os.W_OK):
        return note("spool", f"{path} can be read and not written: enough to deliver, not to log")
    return fine("spool", str(path))


def _locks(directory: Path) -> Iterator[Check]:
    """Two takers of one lock, and how long a small write takes to be durable; in a file of its own."""
    path = directory / f".doctor-{os.urandom(6).hex()}"
    try:
        with path.open("xb") as first, path.open("rb") as second:
            began = time.monotonic()
            first.write(b"x" * 4096)
            first.flush()
            os.fdatasync(first.fileno())
            took = time.monotonic() - began
            yield _lock(first.fileno(), second.fileno())
    except OSError as error:
        yield bad("locks", f"a file cannot be made in {directory}: {error.strerror}", "make room, or make it writable")
        return
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    if took > _SLOW_SYNC_S:
        yield poor("sync", f"4 kB took {took:.1f} s to be durable", "MLFERRY_FSYNC=never, or a spool on a faster disk")
    else:
        yield fine("sync", f"4 kB are durable in {1000 * took:.0f} ms")


def _lock(first: int, second: int) -> Check:
    advice = "whether a process lives is then judged by its silence alone (MLFERRY_STALE_AFTER_S)"
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return note("locks", f"the file system has none: {error.strerror}", advice)
    try:
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return fine("locks", "work")
    except OSError as error:
        return note("locks", f"cannot be asked: {error.strerror}", advice)
    return poor("locks", "are given twice at once", advice)


def room(name: str, directory: Path) -> Iterator[Check]:
    """Bytes and inodes that this user may still use."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        yield bad(name, f"{directory}: {error.strerror}", "look at its mount")
        return
    free = found.f_bavail * found.f_frsize
    said = f"{bytes_said(free)} free"
    inodes = found.f_favail if found.f_files else None
    said += "" if inodes is None else f", {inodes:,} files more"
    if free < _LITTLE_BYTES or (inodes is not None and inodes < _LITTLE_INODES):
        yield poor(name, said, "mlferry clean frees what has arrived; a quota may be tighter than this")
    else:
        yield fine(name, said)


def ledgers(state_dir: Path) -> Iterator[Check]:
    """Every ledger here: readable, whole."""
    paths = sorted(state_dir.glob("*.sqlite"))
    if not paths:
        yield note("ledger", "none yet: nothing was delivered from here")
    for path in paths:
        yield _ledger(path)


def _ledger(path: Path) -> Check:
    advice = f"move it away; delivery begins anew, and nothing arrives twice: mv {path} {path}.broken"
    try:
        ledger = Ledger.read(path)
        if ledger is None:
            return note("ledger", f"{path.name} is empty")
        try:
            damage, url = ledger.damage(), ledger.url
        finally:
            ledger.close()
    except LedgerUnusable as error:
        return bad("ledger", error.reason, advice)
    return bad("ledger", f"{path.name}: {damage}", advice) if damage else fine("ledger", f"whole, of {url}")


def _existing(path: Path) -> Path:
    """The directory, or the nearest one above that exists."""
    return next((place for place in (path, *path.parents) if place.is_dir()), Path("/"))
