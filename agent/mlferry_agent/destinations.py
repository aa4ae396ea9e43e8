"""Which server a spool goes to, and how its runs stand towards it: answered from configuration and ledger alone.

Nothing here asks the server, so these answers come at once, offline too, and beside whoever delivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mlferry_agent.config import Config
from mlferry_agent.credentials import Destination, destination
from mlferry_agent.errors import NoDestination
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.naming import Names, look_up
from mlferry_agent.status import RunStatus, everything, run_statuses
from mlferry_agent.stores import parse

__all__ = ["destination_of", "known_url", "names", "read_ledger", "statuses", "used_ledgers"]


def destination_of(config: Config, environ: Mapping[str, str]) -> Destination:
    """Raises ``NoDestination``, ``WrongDestination``, ``Misconfigured``."""
    if config.to is None:
        raise NoDestination("no --to, no MLFERRY_TO, and MLFLOW_TRACKING_URI is no http(s) address")
    found = destination(config.to, environ, config.origins.get("to", ""))
    return replace(found, stores=parse(config.stores or ""))


def statuses(config: Config, environ: Mapping[str, str], wanted: Iterable[str] = ()) -> list[RunStatus]:
    """How the wanted runs stand towards the destination, or towards the only one that was ever delivered to.

    Raises:
        NoDestination: there are several. NoSuchRun, LedgerUnusable, WrongDestination, Misconfigured.
    """
    runs = everything(config.dir, wanted)
    ledger = read_ledger(config, environ)
    try:
        return run_statuses(runs, ledger)
    finally:
        if ledger is not None:
            ledger.close()


def names(config: Config, environ: Mapping[str, str], given: str) -> list[Names]:
    """What has this id, here or on the destination. Raises NoDestination, LedgerUnusable, WrongDestination."""
    ledger = read_ledger(config, environ)
    if ledger is None:
        return []
    try:
        return look_up(ledger, given)
    finally:
        ledger.close()


def known_url(config: Config, environ: Mapping[str, str]) -> str | None:
    """Where this spool goes: as configured, else the only destination that the state directory knows."""
    if config.to is not None:
        return destination_of(config, environ).url
    ledger = read_ledger(config, environ)
    if ledger is None:
        return None
    try:
        return ledger.url
    finally:
        ledger.close()


def read_ledger(config: Config, environ: Mapping[str, str]) -> Ledger | None:
    """The ledger of the destination, to look at; None if nothing was ever delivered. Raises as ``statuses``."""
    if config.to is not None:
        return Ledger.read(ledger_path(config.state_dir, destination_of(config, environ).url))
    return _only_ledger(config.state_dir)


def used_ledgers(state_dir: Path) -> list[Ledger]:
    """Every ledger by which something was delivered, to look at; for the caller to close. Raises LedgerUnusable."""
    found = []
    for path in sorted(state_dir.glob("*.sqlite")):
        ledger = Ledger.read(path)
        if ledger is not None and ledger.is_unused:
            ledger.close()
        elif ledger is not None:
            found.append(ledger)
    return found


def _only_ledger(state_dir: Path) -> Ledger | None:
    """The ledger by which anything was ever delivered: a mistyped address leaves one too, in which nothing stands.

    Raises:
        NoDestination: there are several, and what is acknowledged at one may be pending at another.
    """
    paths = sorted(state_dir.glob("*.sqlite"))
    used = [(path, url) for path in paths if (url := _used_for(path)) is not None] if len(paths) > 1 else []
    if len(used) > 1:
        raise NoDestination(f"this machine has delivered to several: {', '.join(url for _, url in used)}")
    paths = [path for path, _ in used] or paths
    return Ledger.read(paths[0]) if len(paths) == 1 else None


def _used_for(path: Path) -> str | None:
    """The destination of a ledger in which something stands."""
    ledger = Ledger.read(path)
    if ledger is None:
        return None
    try:
        return None if ledger.is_unused else ledger.url
    finally:
        ledger.close()
