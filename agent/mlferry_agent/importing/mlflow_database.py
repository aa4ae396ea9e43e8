"""MLflow's database, as its own migration left it -> what it holds, in MLflow's terms. It is a copy of ours: see
``mlflow_copies``.

Read are the tables of MLflow 3 with the columns named one by one, by SQLite alone: a million points take seconds. Deleted
runs, models and experiments are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mlferry_agent.errors import BadSource
from mlferry_agent.importing.artifact_places import ArtifactPlaces
from mlferry_agent.importing.content import Experiment, Model, Points, Registered, Run, Spanned, Version
from mlferry_agent.importing.foreign import Folder
from mlferry_agent.importing.mlflow_copies import write_traces
from mlferry_spool.records import Dataset, ModelOutput

__all__ = ["MlflowDatabase"]

_MODEL_STATUS = {1: "PENDING", 2: "READY", 3: "FAILED"}
_PARENT = "mlflow.parentRunId"

#: Ends of artifact URIs that MLflow makes: ``<experiment>/<run>/artifacts``, ``<experiment>/models/<model>/artifacts``.
_RUN_DEPTH, _MODEL_DEPTH = 2, 3
_ARTIFACTS = re.compile(
    r"(?:^|/)(?P<experiment>\d+)/(?P<place>(?:models/m-[0-9a-f]{32}|[0-9a-f]{32})/artifacts(?:/.*)?)$"
)


#: Runs that a trace was linked to.
_LINKED_RUNS = (
    "SELECT destination_id FROM entity_associations"
    " WHERE lower(source_type) = 'trace' AND lower(destination_type) = 'run' AND source_id = ?"
)


class MlflowDatabase:
    """A source: see ``content.Source``.

    Raises:
        BadSource: it is no database of this schema.
    """

    def __init__(self, database: Path, folders: tuple[Folder, ...], left_out: Counter[str], kind: str) -> None:
        self.kind = kind
        self.left_out = left_out
        self._path = database
        self._places = ArtifactPlaces(folders, left_out)
        self._database = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        self._database.row_factory = sqlite3.Row
        try:
            self._names = {row["experiment_id"]: row["name"] for row in self._experiment_rows()}
            self._count = len(self._run_ids())
        except sqlite3.Error as error:
            raise BadSource(f"its tables are not those of MLflow 3: {error}") from error
        self._count_deleted()

    def close(self) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self._count

    # -- experiments and runs ------------------------------------------------------------------------------------------

    def experiments(self) -> Iterator[Experiment]:
        for row in self._experiment_rows():
            tags = self._texts("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", row["experiment_id"])
            yield Experiment(row["name"], row["creation_time"] or 0, tags)

    def runs(self) -> Iterator[Run]:
        """Parents before children, since the older runs come first."""
        for run_id in self._run_ids():
            [row] = self._rows("SELECT * FROM runs WHERE run_uuid = ?", run_id)
            tags = self._texts("SELECT key, value FROM tags WHERE run_uuid = ?", run_id)
            yield Run(
                run_id=run_id,
                experiment=self._names[row["experiment_id"]],
                start_time=row["start_time"] or 0,
                status=row["status"],
                end_time=row["end_time"],
                name=row["name"] or None,
                user=row["user_id"] or None,
                parent_run_id=tags.get(_PARENT),
                params=self._texts("SELECT key, value FROM params WHERE run_uuid = ?", run_id),
                tags=tags,
                datasets=list(self._datasets(run_id)),
                input_models=self._inputs(run_id),
                outputs=list(self._outputs(run_id)),
                models=[self._model(row) for row in self._model_rows("source_run_id = ?", run_id)],
                points=self._points(run_id),
                files=self._places.files(row["artifact_uri"], _RUN_DEPTH),
            )

    def _experiment_rows(self) -> list[sqlite3.Row]:
        return self._rows("SELECT * FROM experiments WHERE lifecycle_stage = 'active' ORDER BY experiment_id")

    def _run_ids(self) -> list[str]:
        sql = (
            "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND experiment_id IN"
            " (SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'active') ORDER BY start_time, run_uuid"
        )
        return [row["run_uuid"] for row in self._rows(sql)]

    def _count_deleted(self) -> None:
        for table in ("experiments", "runs"):
            [(count,)] = self._rows(f"SELECT count(*) FROM {table} WHERE lifecycle_stage = 'deleted'")
            self.left_out[f"{table} that were deleted"] += count

    # -- points --------------------------------------------------------------------------------------------------------

    def _points(self, run_id: str) -> Iterator[Points]:
        """A metric at a time. A point of a model is one of its run as well, and is told once, with the model."""
        of_models: dict[str, set[tuple[float, int, int]]] = {}
        sql = "SELECT key, step, timestamp FROM metrics WHERE run_uuid = ? AND is_nan"
        nans = {tuple(row) for row in self._database.execute(sql, (run_id,))}
        sql = (
            "SELECT metric_name, model_id, dataset_name, dataset_digest, metric_value, metric_step, metric_timestamp_ms"
            " FROM logged_model_metrics WHERE run_id = ? ORDER BY 1, 2, 3, 4, 7, 6"
        )
        for (key, *links), rows in groupby(self._database.execute(sql, (run_id,)), key=lambda row: tuple(row[:4])):
            found = [(_number(row[4], (key, row[5], row[6]) in nans), row[5], row[6]) for row in rows]
            of_models.setdefault(key, set()).update(found)
            yield Points.of(key, found, *links)
        sql = "SELECT key, value, is_nan, step, timestamp FROM metrics WHERE run_uuid = ? ORDER BY key, timestamp, step"
        for key, rows in groupby(self._database.execute(sql, (run_id,)), key=lambda row: row[0]):
            told = of_models.get(key, set())
            points = ((_number(row[1], bool(row[2])), row[3], row[4]) for row in rows)
            yield Points.of(key, [point for point in points if point not in told])

    # -- inputs and outputs --------------------------------------------------------------------------------------------

    def _datasets(self, run_id: str) -> Iterator[Dataset]:
        sql = (
            "SELECT inputs.input_uuid, datasets.* FROM inputs JOIN datasets ON inputs.source_id = datasets.dataset_uuid"
            " WHERE source_type = 'DATASET' AND destination_type = 'RUN' AND destination_id = ? ORDER BY inputs.rowid"
        )
        for row in self._rows(sql, run_id):
            tags = self._texts("SELECT name, value FROM input_tags WHERE input_uuid = ?", row["input_uuid"])
            told = (row["dataset_source_type"], row["dataset_source"], row["dataset_schema"], row["dataset_profile"])
            yield Dataset(row["name"], row["digest"], *told, tags)

    def _inputs(self, run_id: str) -> list[str]:
        sql = (
            "SELECT destination_id FROM inputs WHERE source_type = 'RUN_INPUT' AND destination_type = 'MODEL_INPUT'"
            " AND source_id = ? ORDER BY rowid"
        )
        return [row["destination_id"] for row in self._rows(sql, run_id)]

    def _outputs(self, run_id: str) -> Iterator[ModelOutput]:
        sql = (
            "SELECT destination_id, step FROM inputs WHERE source_type = 'RUN_OUTPUT'"
            " AND destination_type = 'MODEL_OUTPUT' AND source_id = ? ORDER BY rowid"
        )
        for row in self._rows(sql, run_id):
            yield ModelOutput(row["destination_id"], row["step"])

    # -- models --------------------------------------------------------------------------------------------------------

    def models(self) -> Iterator[Model]:
        runs = set(self._run_ids())
        for row in self._model_rows("1"):
            if row["source_run_id"] not in runs:
                yield self._model(row)

    def _model_rows(self, condition: str, *values: object) -> list[sqlite3.Row]:
        sql = f"SELECT * FROM logged_models WHERE {condition} AND lifecycle_stage = 'active'"
        rows = self._rows(f"{sql} ORDER BY creation_timestamp_ms, model_id", *values)
        return [row for row in rows if row["experiment_id"] in self._names]

    def _model(self, row: sqlite3.Row) -> Model:
        model_id = row["model_id"]
        return Model(
            model_id=model_id,
            experiment=self._names[row["experiment_id"]],
            created=row["creation_timestamp_ms"],
            name=row["name"] or None,
            model_type=row["model_type"] or None,
            source_run_id=row["source_run_id"],
            status=_MODEL_STATUS.get(row["status"], "PENDING"),
            params=self._texts("SELECT param_key, param_value FROM logged_model_params WHERE model_id = ?", model_id),
            tags=self._texts("SELECT tag_key, tag_value FROM logged_model_tags WHERE model_id = ?", model_id),
            files=self._places.files(row["artifact_location"], _MODEL_DEPTH),
        )

    # -- registry ------------------------------------------------------------------------------------------------------

    def registered(self) -> Iterator[Registered]:
        for row in self._rows("SELECT * FROM registered_models ORDER BY name"):
            name = row["name"]
            aliases = self._rows(
                "SELECT alias, version FROM registered_model_aliases WHERE name = ? ORDER BY alias", name
            )
            yield Registered(
                name=name,
                created=row["creation_time"] or 0,
                description=row["description"] or None,
                tags=self._texts("SELECT key, value FROM registered_model_tags WHERE name = ?", name),
                versions=list(self._versions(name)),
                aliases={alias["alias"]: alias["version"] for alias in aliases},
            )

    def _versions(self, name: str) -> Iterator[Version]:
        for row in self._rows("SELECT * FROM model_versions WHERE name = ? ORDER BY version", name):
            if row["current_stage"] == "Deleted_Internal":
                continue
            sql = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
            created = row["creation_time"] or 0
            yield Version(
                number=row["version"],
                uid=hashlib.sha256(json.dumps([name, row["version"], created]).encode()).hexdigest()[:32],
                created=created,
                source=_place(row["source"] or ""),
                run_id=row["run_id"] or None,
                run_link=row["run_link"] or None,
                description=row["description"] or None,
                stage=row["current_stage"] if row["current_stage"] not in (None, "", "None") else None,
                tags=self._texts(sql, name, row["version"]),
            )

    # -- traces --------------------------------------------------------------------------------------------------------

    def traces(self) -> Iterator[Spanned]:
        [(count,)] = self._rows("SELECT count(*) FROM trace_info")
        if count:
            with write_traces(self._path, self._path.parent).open(encoding="ascii") as file:
                for line in file:
                    yield self._trace(json.loads(line))

    def _trace(self, told: dict[str, Any]) -> Spanned:
        trace_id, info = told["trace_id"], told["info"]
        location = dict(info.get("tags") or {}).get("mlflow.artifactLocation")
        return Spanned(
            trace_id=trace_id,
            experiment=told["experiment"],
            created=told["created"],
            info=info,
            assessments=told["assessments"],
            spans=[b64decode(request) for request in told["spans"]],
            files=() if told["spans"] else self._places.files(location, _MODEL_DEPTH),
            runs=[row["destination_id"] for row in self._rows(_LINKED_RUNS, trace_id)],
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        return self._database.execute(sql, values).fetchall()

    def _texts(self, sql: str, *values: object) -> dict[str, str]:
        """Keys and values; SQLite keeps whatever was put into a column, so what is no text becomes one."""
        return {str(key): "" if value is None else str(value) for key, value in self._rows(sql, *values)}


def _number(value: float | None, is_nan: bool) -> float:
    """MLflow keeps a NaN as 0 beside a mark, which points of models lack; SQLite itself keeps one as NULL. Always the same
    object, since a NaN equals nothing else."""
    return math.nan if value is None or (is_nan and not value) else value


def _place(source: str) -> str:
    """A version's source: a folder of artifacts of the store becomes the same of the spool, which delivery makes the
    server's."""
    found = _ARTIFACTS.search(source)
    if found is None or source.startswith(("runs:", "models:")):
        return source
    return f"spool:/imported/artifacts/{found['experiment']}/{found['place']}"
