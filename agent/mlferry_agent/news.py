"""Which runs have news: something was written, a writer died, or was silent for too long.

A run that was never looked at has news, unless the ledger says that it is delivered and its files are still those. A run
that is over is compared with a glance at a look everywhere; one that may grow is, at every look. Only where the glance does
not hold any more is the run's signature taken, and only where that is another one is the run delivered.

A writer that only says that it lives is no news while it holds its lock.

What time alone can change is looked for at a look everywhere: a writer that no lock speaks for grows stale, and a log that
was not read to its end may be readable by now.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlferry_agent.closing import WriterFacts, verdict
from mlferry_agent.discovery import RunLog, signature
from mlferry_agent.feeds import opening_from
from mlferry_agent.glances import Glance, delivered, is_caught_up
from mlferry_agent.ledger import Ledger, RunRow, WriterRow
from mlferry_agent.terms import Terms
from mlferry_spool.layout import segment_name
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.peek import are_heartbeats
from mlferry_spool.records import RunEnd
from mlferry_spool.tailer import Cursor

__all__ = ["News"]

#: Bytes that are read to tell whether they are more than heartbeats, of which a silent writer logs one every 30 seconds.
_FEW_BYTES = 256

#: The signature of a run's logs; None of one that the ledger answers for.
_Signature = tuple[tuple[str, int, int], ...] | None


class News:
    """What was seen of each run, and what the ledger says of it. ``open``: runs that may grow, or that are not closed."""

    def __init__(self, ledger: Ledger, terms: Terms) -> None:
        self._ledger, self.terms = ledger, terms
        self.open: dict[str, None] = {}
        self._seen: dict[str, tuple[_Signature, bool]] = {}
        self._glances: dict[str, Glance] = {}
        self._over: dict[str, frozenset[str]] = {}
        self._silent_since: dict[str, float] = {}
        self._foreign: set[str] = set()
        self._delivered: dict[str, dict[str, Cursor]] | None = None

    def unseen(self, runs: Iterable[str]) -> list[str]:
        """Those of the runs that were never looked at."""
        return [run_id for run_id in runs if run_id not in self._seen]

    def __len__(self) -> int:
        return len(self._seen)

    def changed(self) -> list[str]:
        """Runs that are over, and whose glance does not hold. It is called in a thread."""
        seen, known, going = list(self._seen), self._glances, self.open
        return [
            run_id
            for run_id in seen
            if run_id not in going and ((glance := known.get(run_id)) is None or not glance.holds())
        ]

    def may_have_grown(self, run_id: str) -> bool:
        """Whether a log of a run that is known grew, or nothing is known of it: as little as can be asked, for all runs that
        are being written, several times a second."""
        glance = self._glances.get(run_id)
        return glance is None or glance.has_grown()

    def of(self, run: RunLog, *, everywhere: bool) -> bool:
        """Whether a run has news. Raises OSError."""
        run_id = run.run_id
        if run_id not in self._seen:
            return not self.is_settled(run)
        before, was_held = self._seen[run_id]
        glance = self._glances.get(run_id)
        if glance is not None and glance.holds():
            is_held = self._is_held(run_id, glance.writers)
        else:
            found, is_held, glance = self._look_at(run)
            if found != before and not (is_held and was_held and _is_only_alive(run, before, found)):
                return True
            self._seen[run_id] = found, was_held
            self._keep_glance(run_id, glance)
        return is_held != was_held or (everywhere and not is_held and self._is_due(run_id))

    def is_settled(self, run: RunLog) -> bool:
        """Whether the ledger says that a run is delivered, and its files are those that were: then it is noted as seen."""
        if self._delivered is None:
            self._delivered = delivered(self._ledger)
        known = self._delivered.pop(run.run_id, None)
        if known is None:
            return False
        glance = Glance.of_settled(run, known, local_disk=self.terms.local_disk)
        if glance is not None:
            self._seen[run.run_id], self._over[run.run_id] = (None, False), frozenset(known)
            self._glances[run.run_id] = glance
        return glance is not None

    def note(self, run: RunLog) -> None:
        """A run is about to be delivered: what is written from now on is news. Raises OSError."""
        found, is_held, glance = self._look_at(run)
        self._seen[run.run_id] = found, is_held
        self._keep_glance(run.run_id, glance)
        if self._delivered is not None:
            self._delivered.pop(run.run_id, None)

    def was_delivered(self, run: RunLog) -> None:
        """A run was delivered as far as it goes: note whether it is over, and what may become of it. Raises
        ``LedgerUnusable``, OSError."""
        run_id, row, writers = run.run_id, self._ledger.run(run.run_id), self._ledger.writers(run.run_id)
        if row is not None and _is_closed(row):
            self.open.pop(run_id, None)
        else:
            self.open[run_id] = None
        here = self.terms.machine.boot_id
        openings = [writer.opening for writer in writers.values()]
        # Of a writer under another kernel silence tells, also where its lock is seen: it must be listened for.
        is_foreign = any(opening is not None and opening.get("boot_id") != here for opening in openings)
        (self._foreign.add if is_foreign else self._foreign.discard)(run_id)
        cursors = {writer_id: writer.cursor for writer_id, writer in writers.items()}
        is_read = row is not None and not row.in_doubt and is_caught_up(self._seen[run_id][0] or (), cursors)
        self._silent_since[run_id] = _silent_since(writers) if is_read else -math.inf
        if self._is_held(run_id, run.writers()):
            self._seen[run_id] = self._seen[run_id][0], True  # whose death would be news
        self._over[run_id] = frozenset(name for name, writer in writers.items() if _is_over(writer))

    def keep(self, runs: Mapping[str, RunLog], before: Mapping[str, RunLog]) -> None:
        """Forget all runs but these, and the glances at those that lie elsewhere than ``before``."""
        tables: tuple[dict[str, Any], ...] = (self.open, self._seen, self._glances, self._over, self._silent_since)
        for known in tables:
            for run_id in known.keys() - runs.keys():
                del known[run_id]
        self._foreign &= runs.keys()
        for run_id in [run_id for run_id in self._glances if runs[run_id] is not before.get(run_id)]:
            del self._glances[run_id]

    # -- what is there ----------------------------------------------------------------------------------------------------

    def _look_at(self, run: RunLog) -> tuple[_Signature, bool, Glance | None]:
        """Raises OSError."""
        over = self._over.get(run.run_id, frozenset())
        glance = Glance.of(run, over, local_disk=self.terms.local_disk)
        return signature(run), self._is_held(run.run_id, run.writers()), glance

    def _is_held(self, run_id: str, writers: Iterable[Path]) -> bool:
        """Whether a writer holds its lock, of a run of which that tells anything."""
        if run_id not in self.open or run_id in self._foreign:
            return False
        return any(probe(writer) is Lock.HELD for writer in writers)

    def _keep_glance(self, run_id: str, glance: Glance | None) -> None:
        if glance is None:
            self._glances.pop(run_id, None)
        else:
            self._glances[run_id] = glance

    def _is_due(self, run_id: str) -> bool:
        """Whether time has done something to a run that is not closed."""
        since = self._silent_since.get(run_id, math.inf)
        return run_id in self.open and time.time() * 1000 - since > self.terms.stale_after_s * 1000


def _is_only_alive(run: RunLog, before: _Signature, now: _Signature) -> bool:
    """Whether all that was written are a few signs of life, of writers whose locks say the same."""
    if before is None or now is None or [entry[:2] for entry in before] != [entry[:2] for entry in now]:
        return False
    grown = [
        (name, segment, size, new) for (name, segment, size), (*_, new) in zip(before, now, strict=True) if new != size
    ]
    return all(
        size < new <= size + _FEW_BYTES
        and any(are_heartbeats(place / name / segment_name(segment), size, new) for place in run.directories)
        for name, segment, size, new in grown
    )


def _is_closed(row: RunRow) -> bool:
    return not row.in_doubt and (row.end_time is not None or row.parked is not None or row.given_up is not None)


def _is_over(writer: WriterRow) -> bool:
    """Whether a writer ended its log itself, and all of it was read."""
    return writer.finished and writer.in_order and writer.trouble is None


def _silent_since(writers: Mapping[str, WriterRow]) -> float:
    """The oldest last sign of life of those that may still give one, Unix milliseconds; never, where none may and the run
    stays open all the same, as its program left it. Whose end was seen only after it was found alive is not done with."""
    silent = [writer.last_sign for writer in writers.values() if not writer.finished]
    if silent:
        return min(silent)
    facts = [
        WriterFacts(opening_from(writer.opening), _ending(writer), True, writer.last_sign, False, writer.in_order)
        for writer in writers.values()
        if writer.opening is not None
    ]
    return math.inf if facts and verdict(facts).end_time is None else -math.inf


def _ending(writer: WriterRow) -> RunEnd | None:
    return None if writer.ending is None else RunEnd(*writer.ending)
