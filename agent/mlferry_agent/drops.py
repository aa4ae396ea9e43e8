"""What `mlferry drop` gives up: chosen from what is set aside, then noted in the ledger. Never touches the spool.

A record that is quarantined is given up alone; of a run that is parked, all that was not delivered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlferry_agent.errors import NoSuchRecord
from mlferry_agent.ledger import Ledger, Quarantined
from mlferry_agent.status import RunStatus

__all__ = ["Drop", "choose", "drop"]


@dataclass(frozen=True, slots=True)
class Drop:
    """What is to be given up: records of the quarantine, and runs that are parked."""

    records: list[Quarantined]
    runs: list[RunStatus]

    @property
    def run_ids(self) -> list[str]:
        """The runs it is about, each once, in order."""
        return list(dict.fromkeys([*(entry.run_id for entry in self.records), *(run.run_id for run in self.runs)]))


def choose(statuses: Iterable[RunStatus], records: Iterable[str] = ()) -> Drop:
    """Everything of these runs that is set aside; if records are named by their ids, those alone.

    Raises:
        NoSuchRecord: nothing in quarantine there has this id.
    """
    found = list(statuses)
    entries = [entry for status in found for entry in status.quarantined]
    wanted = list(records)
    if not wanted:
        return Drop(entries, [status for status in found if status.parked])
    by_id = {entry.id: entry for entry in entries}
    unknown = [name for name in wanted if name not in by_id]
    if unknown:
        raise NoSuchRecord(", ".join(unknown))
    return Drop([by_id[name] for name in dict.fromkeys(wanted)], [])


def drop(ledger: Ledger, chosen: Drop) -> None:
    """Give it up, all or nothing. Raises ``LedgerUnusable``."""
    with ledger.transaction():
        ledger.drop(chosen.records)
        for run in chosen.runs:
            ledger.give_up(run.run_id, run.parked or "")
