"""The check that ends every scenario: journals, spool, ledger and server agree, record by record.

Each is read in its own way: the journals are what the trainings wrote beside their calls, the spool is folded by the tests'
own reader, the server's database is queried behind its back, the ledger is asked through ``mlferry status``, and ``mlferry
verify`` must come to the same verdict. Owns the comparison and its counts; it waits for nothing and mends nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.jobs import Job
from tests.servers import MlflowServer, Point
from tests.spooling import Ferry, Logged, differences, server_runs, stored_point
from tests.spools import Told, only, read_run, run_ids, told

from mlferry_agent.lanes import CONTROL
from mlferry_spool.codec import KIND_OF
from mlferry_spool.records import Dropped


@dataclass(slots=True)
class Agreement:
    """What was compared, and what was found.

    Attributes:
        records: points, params, tags and files that the server had to hold.
        stated: records that the trainings could not store, and said so in their logs.
        lost: what is missing, wherever it was lost.
        doubled: what is there once too often: runs, points.
        apart: every difference in words.
    """

    records: int = 0
    stated: int = 0
    lost: int = 0
    doubled: int = 0
    apart: list[str] = field(default_factory=list)

    def add(self, other: Agreement) -> None:
        self.records += other.records
        self.stated += other.stated
        self.lost += other.lost
        self.doubled += other.doubled
        self.apart += other.apart


def agree(ferry: Ferry, server: MlflowServer, jobs: Iterable[Job], *, stated_may: bool = False) -> Agreement:
    """Compare everything about one spool. ``stated_may``: trainings may have dropped records, if their logs say so."""
    found, jobs = Agreement(), list(jobs)
    by_run = {job.run_id: job for job in jobs if job.run_id is not None}
    statuses = ferry.statuses()
    spooled = run_ids(ferry.spool)
    for run_id in spooled:
        kept, job = told(ferry.spool, run_id), by_run.get(run_id)
        found.stated += kept.dropped
        _compare_server(server, run_id, kept, job, found)
        _compare_ledger(server, ferry.spool, run_id, statuses.get(run_id), found)
        if job is not None:
            _compare_journal(job, kept, ferry.spool, found)
    for run_id in by_run.keys() - set(spooled):
        _miss(found, 1, f"run {run_id} is not in the spool")
    if found.stated and not stated_may:
        found.apart.append(f"{found.stated} records were dropped with nothing in their way")
    verified = ferry("verify", "--json", deadline_s=300)
    if verified.returncode:
        found.apart.append(f"mlferry verify: {verified.stdout[-1500:]}{verified.stderr[-500:]}")
    return found


def _compare_server(server: MlflowServer, run_id: str, kept: Told, job: Job | None, found: Agreement) -> None:
    there = server_runs(server, run_id)
    if not kept.opens:  # its process was killed before it had said anything
        found.doubled += len(there)
        found.apart += [f"run {run_id} was never opened, and is there: {there}"] if there else []
        return
    logged = Logged(
        run_id,
        Counter(stored_point(key, value, at, step) for key, value, step, at in kept.points),
        kept.params,
        kept.tags,
        kept.artifacts,
        status="FINISHED" if job is not None and job.is_finished else "KILLED",
    )
    found.records += len(logged.points) + len(logged.params) + len(logged.tags) + len(logged.artifacts)
    deleted = [server_id for server_id, stage in there if stage == "deleted"]
    apart = differences(server, logged, removed=len(deleted))
    found.apart += [f"run {run_id}: {words}" for words in apart]
    standing = [server_id for server_id, stage in there if stage == "active"]
    found.doubled += max(len(standing) - 1, 0)
    if not standing:
        return _miss(found, 1, f"run {run_id} is not on the server")
    points = Counter(server.metric_points(standing[0]))
    expected: Counter[Point] = Counter(dict.fromkeys(logged.points, 1))
    found.lost += sum((expected - points).values())
    found.doubled += sum((points - expected).values())
    stored, files = server.stored(standing[0]), server.artifacts(standing[0])
    found.lost += len(logged.params.keys() - stored.params.keys()) + len(logged.tags.keys() - stored.tags.keys())
    found.lost += len(logged.artifacts.keys() - files.keys())
    return None


def _compare_ledger(
    server: MlflowServer, spool: Path, run_id: str, status: Mapping[str, Any] | None, found: Agreement
) -> None:
    if status is None:
        found.apart.append(f"run {run_id}: mlferry status does not list it")
        return
    records = [record for record in read_run(spool, run_id) if KIND_OF[type(record)] not in CONTROL]
    wrong = {
        name: value
        for name, value, right in (
            ("acknowledged", status["acknowledged"], len(records)),
            ("pending", status["pending"], 0),
            ("quarantined", len(status["quarantined"]), 0),
            ("parked", status["parked"], None),
            ("lost", status["lost"], 0),
        )
        if value != right
    }
    if wrong:
        found.apart.append(f"run {run_id}: of {len(records)} records the ledger says {wrong}")
    there = [server_id for server_id, stage in server_runs(server, run_id) if stage == "active"]
    if there and status["server_run_id"] not in there:
        found.apart.append(f"run {run_id}: the ledger's run is {status['server_run_id']}, the server's are {there}")


def _compare_journal(job: Job, kept: Told, spool: Path, found: Agreement) -> None:
    """Every call that has returned is in the spool, or stated as dropped by its kind."""
    points = {(key, step, at, value) for key, value, step, at in kept.points}
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in kept.artifacts.items()}
    missing: Counter[str] = Counter()
    for what, *fields in job.notes():
        if what == "metrics":
            step, at, values = fields
            missing["metrics"] += any((key, step, at, value) not in points for key, value in values.items())
        elif what == "params":
            missing["params"] += not (fields[0].items() <= kept.params.items())
        elif what == "tag":
            missing["tags"] += int(kept.tags.get(fields[0], -1)) < int(fields[1])
        elif what == "artifact":
            missing["artifact"] += digests.get(fields[0]) != fields[1]
    stated: Counter[str] = Counter()
    for record in only(Dropped, read_run(spool, str(job.run_id))):
        stated.update(record.kinds)
    for what, count in (missing - stated).items():
        _miss(found, count, f"run {job.run_id}: {count} calls that log {what} had returned, and are not in the spool")
    found.apart += [f"run {job.run_id}: a logging call raised: {words}" for words in job.failures]


def _miss(found: Agreement, count: int, words: str) -> None:
    found.lost += count
    found.apart.append(words)
