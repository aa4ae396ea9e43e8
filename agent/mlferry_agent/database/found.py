"""What the database has of runs before they are imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FoundRun", "find_run", "known_runs"]

#: As many values as any SQLite takes in a statement.
_IDS_A_QUERY = 900


@dataclass(slots=True)
class FoundRun:
    """What the database has of a run. ``tags``: those of mlferry."""

    artifact_uri: str
    lifecycle: str
    experiment_id: str
    tags: dict[str, str] = field(default_factory=dict)


def find_run(connection: Any, tables: Any, run_id: str) -> FoundRun | None:
    """A run as it stands; None: it is not there."""
    from sqlalchemy import select

    runs, tags = tables.runs.c, tables.tags.c
    wanted = select(runs.artifact_uri, runs.lifecycle_stage, runs.experiment_id).where(runs.run_uuid == run_id)
    found = connection.execute(wanted).first()
    if found is None:
        return None
    ours = select(tags.key, tags.value).where(tags.run_uuid == run_id, tags.key.like("mlferry.%"))
    place, lifecycle, experiment_id = map(str, found)
    return FoundRun(place, lifecycle, experiment_id, {str(key): str(value) for key, value in connection.execute(ours)})


def known_runs(connection: Any, tables: Any, run_ids: list[str]) -> frozenset[str]:
    """Which of these runs are there."""
    from sqlalchemy import select

    of, found = tables.runs.c, set[str]()
    for at in range(0, len(run_ids), _IDS_A_QUERY):
        wanted = select(of.run_uuid).where(of.run_uuid.in_(run_ids[at : at + _IDS_A_QUERY]))
        found.update(str(run_id) for run_id in connection.execute(wanted).scalars())
    return frozenset(found)
