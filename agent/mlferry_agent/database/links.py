"""What a run used and put out: datasets with the tags of their use, models in and out. Rows of ``datasets``, ``inputs``."""

from __future__ import annotations

import uuid
from typing import Any

from mlferry_agent.database.bulk import insert_new
from mlferry_agent.database.opening import Database
from mlferry_agent.database.rows import dataset_row
from mlferry_agent.rewriting import Ids
from mlferry_spool.records import Dataset

__all__ = ["link_datasets", "link_models"]


def link_datasets(
    connection: Any, database: Database, run_id: str, experiment_id: int, datasets: list[Dataset], ids: Ids
) -> int:
    """Link a run to its datasets, each once and with the tags of its first use; returns how many were new."""
    known = {
        key: _dataset(connection, database, experiment_id, *key) for key in ((one.name, one.digest) for one in datasets)
    }
    new = 0
    for one in datasets:
        key = (one.name, one.digest)
        if known[key] is None:
            row = dataset_row(one, experiment_id, uuid.uuid4().hex, ids)
            insert_new(connection, database.tables.datasets, [row])
            known[key] = _dataset(connection, database, experiment_id, *key)
        made = _link(connection, database, ("DATASET", str(known[key])), ("RUN", run_id))
        if made is not None:
            new += 1
            tags = [{"input_uuid": made, "name": name, "value": value} for name, value in one.tags.items()]
            insert_new(connection, database.tables.input_tags, tags)
    return new


def link_models(connection: Any, database: Database, run_id: str, used: list[str], made: dict[str, int]) -> int:
    """Link a run to the models that it used, and to those that it put out, at their steps; returns how many were new."""
    new = [_link(connection, database, ("RUN_INPUT", run_id), ("MODEL_INPUT", model_id)) for model_id in used]
    new += [
        _link(connection, database, ("RUN_OUTPUT", run_id), ("MODEL_OUTPUT", model_id), step)
        for model_id, step in made.items()
    ]
    return sum(one is not None for one in new)


def _dataset(connection: Any, database: Database, experiment_id: int, name: str, digest: str) -> str | None:
    from sqlalchemy import select

    of = database.tables.datasets.c
    wanted = select(of.dataset_uuid).where(of.experiment_id == experiment_id, of.name == name, of.digest == digest)
    found = connection.execute(wanted).scalar()
    return None if found is None else str(found)


def _link(
    connection: Any, database: Database, source: tuple[str, str], destination: tuple[str, str], step: int = 0
) -> str | None:
    """Link two things; the new link's id, or None if they were linked."""
    from sqlalchemy import select

    table = database.tables.inputs
    of = table.c
    row = {
        "source_type": source[0],
        "source_id": source[1],
        "destination_type": destination[0],
        "destination_id": destination[1],
    }
    there = select(of.input_uuid).where(*(of[name] == value for name, value in row.items()))
    if connection.execute(there).first() is not None:
        return None
    made = uuid.uuid4().hex
    connection.execute(table.insert(), {**row, "input_uuid": made, "step": step})
    return made
