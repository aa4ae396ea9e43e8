"""What the page shows, as one JSON object: sentences, numbers and short lists. Pure, but for the clocks it is given.

Every text that comes from a run, a ledger or a server is made printable here; lists have a most, and say how many more there
are. The keys are those of ``/status.json``, which docs/monitoring.md describes.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mlferry_agent.answers import printable
from mlferry_agent.courier import Health
from mlferry_agent.discovery import STORE
from mlferry_agent.status import RunStatus
from mlferry_agent.web.pulse import BUCKET_S, Pulse
from mlferry_agent.web.surveys import Survey
from mlferry_agent.web.tallies import MOST_CONCERNS, Delivered, Tally

__all__ = ["Agent", "Counts", "counts", "told"]

#: Runs that stand in the status page's table.
#: Beyond: only their number is told.
#: Test: tests/unit/agent/test_web_state.py::test_living_runs_stand_first_then_what_waited_longest_and_the_rest_is_counted
_MOST_ROWS = 50

#: Seconds that a record may wait on its way, while the server answers, without a word of warning.
_FRESH_S = 60.0

#: The last millisecond that a browser's calendar knows; a record may name a later one.
_LATEST_MS = 8_640_000_000_000_000


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent that is shown. ``url``: its server. ``store``: the artifact stores that it reaches past it."""

    version: str
    host: str
    spool: Path
    url: str
    health: Health
    pulse: Pulse
    store: Health = field(default_factory=Health)

    @property
    def server(self) -> str:
        """How its server does, in one word."""
        if self.health.trouble is not None:
            return "misconfigured" if self.health.misconfigured else "unreachable"
        return "unknown" if self.health.answered_at is None else "answering"


@dataclass(frozen=True, slots=True)
class Counts:
    """Runs, each counted once: ``set_aside`` before ``live`` before ``waiting`` before ``delivered``; and records."""

    set_aside: int
    live: int
    waiting: int
    delivered: int
    pending: int
    approximate: bool
    lag_s: float | None


def counts(survey: Survey) -> Counts:
    """Count a survey's runs. Those that nobody came to look at yet are waiting, each with as much as the usual one has."""
    runs = [status for status in survey.statuses if status.run_id != STORE]
    sound = [status for status in runs if not status.is_set_aside]
    live = sum(status.live for status in sound)
    waiting = sum(status.is_pending and not status.live for status in sound)
    # What only its files say, and the ledger does not know.
    troubled = sum(status.is_set_aside and not status.parked and not status.quarantined for status in runs)
    usual = median([status.pending for status in runs if not status.live] or [0])
    lags = [status.lag_s for status in survey.statuses if status.lag_s is not None]
    return Counts(
        set_aside=survey.tally.set_aside_runs + troubled,
        live=live,
        waiting=waiting + survey.uncounted,
        delivered=survey.tally.delivered,
        pending=sum(status.pending for status in survey.statuses) + round(survey.uncounted * usual),
        approximate=survey.uncounted > 0 or any(status.approximate for status in survey.statuses),
        lag_s=max(lags, default=None),
    )


def told(agent: Agent, survey: Survey | None, now_s: float) -> dict[str, Any]:
    """Everything. ``now_s``: of the courier's clock."""
    found = None if survey is None else counts(survey)
    rate = agent.pulse.per_second()
    return {
        "agent": {"version": agent.version, "host": printable(agent.host), "spool": printable(str(agent.spool))},
        "says": _says(agent, survey, found),
        "server": _server(agent, now_s),
        "rate": {"per_s": round(rate, 2), "history": agent.pulse.history(), "bucket_s": BUCKET_S},
        "eta_s": None if found is None or agent.server != "answering" else _eta_s(found.pending, rate),
        "counts": None if survey is None or found is None else _numbers(survey.tally, found),
        "disks": [] if survey is None else [asdict(disk) for disk in survey.disks],
        "runs": [] if survey is None else _rows(survey),
        "more_runs": 0 if survey is None else max(len(survey.statuses) + survey.uncounted - _MOST_ROWS, 0),
        "concerns": [] if survey is None else _concerns(survey),
        "more_concerns": 0 if survey is None else max(_all_concerns(survey) - MOST_CONCERNS, 0),
        "latest": [] if survey is None else [_latest(row) for row in survey.tally.latest],
    }


def _eta_s(pending: int, rate: float) -> int | None:
    return round(pending / rate) if pending and rate else None


def _numbers(tally: Tally, found: Counts) -> dict[str, Any]:
    return {
        **asdict(found),
        "acknowledged": tally.acknowledged,
        "quarantined": tally.quarantined,
        "parked": tally.parked,
        "lost": tally.lost,
        "dropped": tally.dropped,
        "given_up": tally.given_up,
    }


# -- sentences ----------------------------------------------------------------------------------------------------------


def _says(agent: Agent, survey: Survey | None, found: Counts | None) -> list[dict[str, str]]:
    """What is so, the most important first."""
    says, why = [], printable(agent.health.trouble or "")
    if agent.server == "misconfigured":
        says.append(
            _say("aside", f"The server refuses this agent: {why}. Everything is kept; mend it, and it goes on.")
        )
    if found is not None and found.set_aside:
        need = "needs" if found.set_aside == 1 else "need"
        says.append(_say("aside", f"{_counted(found.set_aside, 'run')} {need} you; all else goes on."))
    if agent.server == "unreachable":
        says.append(
            _say("waiting", f"The server does not answer: {why}. Everything is kept, and delivered when it does.")
        )
    if agent.store.trouble is not None:
        why = printable(agent.store.trouble)
        says.append(_say("waiting", f"Files cannot be stored: {why}. They are kept and sent later; all else goes on."))
    if survey is not None and (trouble := survey.work.blind or survey.trouble):
        says.append(_say("aside", f"Not everything can be seen: {printable(trouble)}"))
    if found is None:
        says.append(_say("waiting", "Counting what waits."))
    elif found.pending or found.waiting:
        says.append(_backlog(agent, found))
    elif not says:
        says.append(_say("well", "Everything that was logged is on the server."))
    return says


def _backlog(agent: Agent, found: Counts) -> dict[str, str]:
    """What waits; that a little of what is logged right now does is as it should be."""
    records = f"{'About ' if found.approximate else ''}{_counted(found.pending, 'record')}"
    is_fresh = found.lag_s is not None and found.lag_s < _FRESH_S and not found.approximate
    if agent.server == "answering" and is_fresh:
        return _say("well", f"{records} on the way.")
    return _say("waiting", f"{records} to deliver.")


def _say(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _server(agent: Agent, now_s: float) -> dict[str, Any]:
    health = agent.health
    return {
        "url": printable(agent.url),
        "state": agent.server,
        "trouble": None if health.trouble is None else printable(health.trouble),
        "failing_s": None if health.failing_since is None else round(now_s - health.failing_since),
        "answered_s": None if health.answered_at is None else round(now_s - health.answered_at),
        "requests": health.requests,
        "failures": health.failures,
    }


# -- lists --------------------------------------------------------------------------------------------------------------


def _rows(survey: Survey) -> list[dict[str, Any]]:
    """What moves first, then what has waited longest."""
    work = survey.work

    def place(status: RunStatus) -> tuple[bool, bool, float]:
        return not status.live, status.run_id not in work.active, -(status.lag_s or 0.0)

    return [_row(status, survey) for status in sorted(survey.statuses, key=place)[:_MOST_ROWS]]


def _row(status: RunStatus, survey: Survey) -> dict[str, Any]:
    delayed = survey.work.delayed.get(status.run_id)
    return {
        "run_id": printable(status.run_id),
        "run": printable(status.run_name or ""),
        "experiment": "" if status.run_id == STORE else printable(status.experiment_name or "Default"),
        "state": _state(status, status.run_id in survey.work.active, delayed),
        "acknowledged": status.acknowledged,
        "pending": status.pending,
        "approximate": status.approximate,
        "quarantined": len(status.quarantined),
        "lag_s": None if status.lag_s is None else round(status.lag_s, 1),
        "note": printable(status.parked or delayed or ""),
    }


def _state(status: RunStatus, is_active: bool, delayed: str | None) -> str:
    if status.parked:
        return "parked"
    if status.given_up_why:
        return "dropped"
    if delayed:
        return "delayed"
    if status.live:
        return "live"
    return "delivering" if is_active else printable(status.status or "waiting")


def _concerns(survey: Survey) -> list[dict[str, Any]]:
    """What needs a person, and the commands that there are for it."""
    found = [
        _concern(run.run_id, run.run_name, "parked", run.reason, "retry", "drop") for run in survey.tally.parked_runs
    ]
    for refused in survey.tally.records:
        entry = refused.entry
        what = f"{entry.action} {entry.name!r}"
        found.append(_concern(entry.run_id, refused.run_name, what, entry.reason, "retry", f"drop --record {entry.id}"))
    for status in survey.statuses:
        for trouble in status.troubles:
            found.append(_concern(status.run_id, status.run_name, "damaged or unreadable", trouble))
    return found[:MOST_CONCERNS]


def _concern(run_id: str, run_name: str | None, what: str, why: str, *verbs: str) -> dict[str, Any]:
    run = printable(run_id)
    ways = [f"mlferry {verb}" if "--record" in verb else f"mlferry {verb} {shlex.quote(run)}" for verb in verbs]
    name = printable(run_name or "")
    return {"run_id": run, "run": name, "what": printable(what), "why": printable(why), "ways": ways}


def _all_concerns(survey: Survey) -> int:
    return survey.tally.parked + survey.tally.quarantined + sum(len(status.troubles) for status in survey.statuses)


def _latest(row: Delivered) -> dict[str, Any]:
    return {
        "run_id": printable(row.run_id),
        "run": printable(row.run_name or ""),
        "experiment": printable(row.experiment_name or "Default"),
        "status": printable(row.status or ""),
        "end_time": row.end_time if 0 <= row.end_time <= _LATEST_MS else None,
    }
