"""The whole ledger in a few queries, however many runs it knows; of what could be long, the beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlferry_agent.ledger import Ledger, Quarantined

__all__ = ["MOST_CONCERNS", "MOST_LATEST", "Delivered", "Parked", "Refused", "Tally", "tally"]

#: Records and runs that the status page lists because they need a person.
#: Beyond: only their number is told.
#: Test: tests/unit/agent/test_web_surveys.py::test_what_is_set_aside_is_counted_by_runs_and_by_records
MOST_CONCERNS = 50

#: Runs that the status page lists because they have arrived.
#: Beyond: only their number is told.
#: Test: tests/unit/agent/test_web_surveys.py::test_delivered_runs_are_known_from_the_ledger_alone
MOST_LATEST = 10


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that cannot be delivered as things stand, and why."""

    run_id: str
    run_name: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A record in quarantine, and what its run is called."""

    entry: Quarantined
    run_name: str | None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A run whose end the server was told. ``end_time``: Unix milliseconds."""

    run_id: str
    run_name: str | None
    experiment_name: str | None
    status: str | None
    end_time: int


@dataclass(frozen=True, slots=True)
class Tally:
    """``delivered``: runs whose end the server was told, or that somebody dropped, and of which nothing is set aside.
    ``set_aside_runs``: those of which something is, or all. ``given_up``: records that somebody dropped."""

    delivered: int = 0
    acknowledged: int = 0
    lost: int = 0
    dropped: int = 0
    given_up: int = 0
    quarantined: int = 0
    parked: int = 0
    set_aside_runs: int = 0
    records: list[Refused] = field(default_factory=list)
    parked_runs: list[Parked] = field(default_factory=list)
    latest: list[Delivered] = field(default_factory=list)


_ASIDE = (
    "SELECT run_id FROM runs WHERE parked IS NOT NULL UNION SELECT run_id FROM quarantine WHERE at != 0 AND NOT dropped"
)


def tally(ledger: Ledger | None) -> Tally:
    """Raises ``LedgerUnusable``."""
    if ledger is None:
        return Tally()
    acknowledged, lost, dropped, given_up = ledger.rows(
        "SELECT total(acknowledged), total(lost), total(dropped), total(given_up) FROM writers"
    )[0]
    return Tally(
        delivered=_count(
            ledger, f"runs WHERE (end_time IS NOT NULL OR given_up IS NOT NULL) AND run_id NOT IN ({_ASIDE})"
        ),
        acknowledged=int(acknowledged),
        lost=int(lost),
        dropped=int(dropped),
        given_up=int(given_up) + _count(ledger, "quarantine WHERE at != 0 AND dropped"),
        quarantined=_count(ledger, "quarantine WHERE at != 0 AND NOT dropped"),
        parked=_count(ledger, "runs WHERE parked IS NOT NULL"),
        set_aside_runs=_count(ledger, f"({_ASIDE})"),
        records=_records(ledger),
        parked_runs=[
            Parked(*row)
            for row in ledger.rows(
                "SELECT run_id, run_name, parked FROM runs WHERE parked IS NOT NULL ORDER BY directory LIMIT ?",
                (MOST_CONCERNS,),
            )
        ],
        latest=_latest(ledger),
    )


def _count(ledger: Ledger, of: str) -> int:
    return int(ledger.rows(f"SELECT count(*) FROM {of}")[0][0])


def _records(ledger: Ledger) -> list[Refused]:
    """The newest, for they are news."""
    found = ledger.rows(
        "SELECT run_name, quarantine.run_id, writer_id, offset, action, name, reason, at FROM quarantine"
        " LEFT JOIN runs ON runs.run_id = quarantine.run_id WHERE at != 0 AND NOT dropped"
        " ORDER BY at DESC, quarantine.rowid DESC LIMIT ?",
        (MOST_CONCERNS,),
    )
    return [Refused(Quarantined(*row[1:]), row[0]) for row in found]


def _latest(ledger: Ledger) -> list[Delivered]:
    found = ledger.rows(
        "SELECT run_id, run_name, experiment_name, status, end_time FROM runs WHERE end_time IS NOT NULL"
        " ORDER BY end_time DESC LIMIT ?",
        (MOST_LATEST,),
    )
    return [Delivered(*row) for row in found]
