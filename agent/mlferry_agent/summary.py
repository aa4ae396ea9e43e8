"""What is going on, in a few numbers, and the one thing to do next: what `mlferry` alone answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent.discovery import STORE
from mlferry_agent.status import RunStatus

__all__ = ["Step", "Summary", "next_step", "summary"]

_SOMEWHERE = "http://your-mlflow-server:5000"


@dataclass(frozen=True, slots=True)
class Summary:
    """A spool and its way to the server. Runs are counted once: ``set_aside`` before ``live`` before ``waiting`` before
    ``delivered``. ``records``: that wait. ``url``: None while nobody said which server. ``is_delivering``: an agent, or a
    sync, holds the ledger. ``is_named``: the next command needs no ``--to``."""

    root: Path
    url: str | None
    is_named: bool
    is_delivering: bool
    runs: int
    set_aside: int
    live: int
    waiting: int
    delivered: int
    records: int
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A command line, and what it does or why."""

    command: str
    why: str


def summary(
    root: Path, statuses: Sequence[RunStatus], url: str | None, *, is_named: bool, is_delivering: bool
) -> Summary:
    """Count a spool's runs."""
    sorts = [_sort_of(status) for status in statuses if status.run_id != STORE or status.is_set_aside]
    runs = [status for status in statuses if status.run_id != STORE]
    lags = [status.lag_s for status in statuses if status.lag_s is not None]
    return Summary(
        root=root,
        url=url,
        is_named=is_named,
        is_delivering=is_delivering,
        runs=len(runs),
        set_aside=sorts.count("set aside"),
        live=sorts.count("live"),
        waiting=sorts.count("waiting"),
        delivered=sorts.count("delivered"),
        records=sum(status.pending for status in statuses),
        lag_s=max(lags, default=None),
    )


def next_step(found: Summary) -> Step:
    """What to do next: first what only a person can do, then what a command can."""
    to = "" if found.is_named else f" --to {found.url or _SOMEWHERE}"
    if not found.runs and not found.records and not found.set_aside:
        return Step("MLFLOW_TRACKING_URI=spool: python train.py", "logs here; `mlferry demo` shows the whole way")
    if found.set_aside:
        return Step(f"mlferry status{to}", "says what was refused and why; then mlferry retry, or mlferry drop")
    if found.is_delivering and (found.records or found.waiting or found.live):
        return Step("mlferry watch", "shows it arrive")
    if found.records or found.waiting:
        return Step(f"mlferry sync{to}", "delivers what waits")
    if found.live:
        return Step(f"mlferry agent{to}", "delivers while the training goes on")
    return Step(f"mlferry clean{to}", "reads the server back, and frees the space of what it has for a day")


def _sort_of(status: RunStatus) -> str:
    if status.is_set_aside:
        return "set aside"
    if status.live:
        return "live"
    return "waiting" if status.is_pending else "delivered"
