"""Logged models -> rows of the database, under their own ids.

A model is written where its run is, or from the store's own logs. Its row may come early and bare, since points that were
measured of it name it; what else there is of it comes with its run. The model carries its id as a tag as well, so that
delivery over REST, should it ever meet it, knows it for what it is.
"""

from __future__ import annotations

from typing import Any

from mlferry_agent.database.bulk import insert_new, upsert
from mlferry_agent.database.files import Artifacts, Source
from mlferry_agent.database.marks import MARK_TAG
from mlferry_agent.database.opening import Database
from mlferry_agent.database.places import Place, Places
from mlferry_agent.errors import RecordRefused
from mlferry_agent.models import MODEL_ID_TAG, VERSIONS_TAG
from mlferry_agent.rewriting import LINKED_PROMPTS, rewrite_prompts
from mlferry_spool.fold import ModelState

__all__ = ["LoggedModels"]

#: The numbers of ``mlflow.entities.LoggedModelStatus``.
_STATUS = {"PENDING": 1, "LOGGED_MODEL_PENDING": 1, "READY": 2, "LOGGED_MODEL_READY": 2}
_STATUS |= {"FAILED": 3, "LOGGED_MODEL_UPLOAD_FAILED": 3}

_PENDING = 1


class LoggedModels:
    """Writes models, each into the experiment at a place."""

    def __init__(self, database: Database, places: Places, artifacts: Artifacts) -> None:
        self._database = database
        self._places = places
        self._artifacts = artifacts
        self._there: dict[str, bool] = {}

    def is_there(self, connection: Any, model_id: str) -> bool:
        """Whether the database has a model, to which points and runs may be linked."""
        if not self._there.get(model_id):
            self._there[model_id] = self._row(connection, model_id) is not None
        return self._there[model_id]

    def location(self, place: Place, model_id: str) -> str:
        """Where a model's files go."""
        return f"{place.location.rstrip('/')}/models/{model_id}/artifacts"

    def begin(self, connection: Any, model: ModelState, place: Place) -> None:
        """Have the model there, as it is when it is created. Raises RecordRefused: another one has its id, or it was
        delivered over REST."""
        start, model_id = model.start, model.model_id
        if start is None:
            raise RecordRefused("the spool does not say how this model began")
        if (other := self._places.model_delivered_as(model_id)) is not None:
            raise RecordRefused(f"it was delivered over REST, as {other}: `mlferry sync` goes on with it")
        row = self._row(connection, model_id)
        if row is None:
            self._insert(connection, model, place)
        elif self._tag(connection, model_id, MODEL_ID_TAG) != model_id:
            raise RecordRefused("another model of the database has this id")
        self._there[model_id] = True
        self._places.model_artifacts[model_id] = row or self.location(place, model_id)

    def _row(self, connection: Any, model_id: str) -> str | None:
        from sqlalchemy import select

        of = self._database.tables.logged_models.c
        found = connection.execute(select(of.artifact_location).where(of.model_id == model_id)).scalar()
        return None if found is None else str(found)

    def _tag(self, connection: Any, model_id: str, key: str) -> str | None:
        from sqlalchemy import select

        of = self._database.tables.logged_model_tags.c
        found = connection.execute(select(of.tag_value).where(of.model_id == model_id, of.tag_key == key)).scalar()
        return None if found is None else str(found)

    def _insert(self, connection: Any, model: ModelState, place: Place) -> None:
        from mlflow.utils.name_utils import _generate_random_name

        start, tables = model.start, self._database.tables
        assert start is not None
        row = {
            "model_id": model.model_id,
            "experiment_id": place.experiment_id,
            "name": start.name or _generate_random_name(),
            "artifact_location": self.location(place, model.model_id),
            "creation_timestamp_ms": start.timestamp,
            "last_updated_timestamp_ms": start.timestamp,
            "model_type": start.model_type,
            "status": _PENDING,
            "lifecycle_stage": "active",
            "source_run_id": None if start.source_run_id is None else self._places.run(start.source_run_id),
        }
        connection.execute(tables.logged_models.insert(), row)
        self._put_tags(connection, model.model_id, place, {MODEL_ID_TAG: model.model_id})

    def finish(self, connection: Any, model: ModelState, place: Place) -> None:
        """Bring params, tags, status and lifecycle to what the spool says, once its files are there."""
        from sqlalchemy import update

        tables, model_id = self._database.tables, model.model_id
        mark = _mark(model)
        if self._tag(connection, model_id, MARK_TAG) == mark:
            return
        key = {"model_id": model_id, "experiment_id": place.experiment_id}
        params = [{**key, "param_key": name, "param_value": value} for name, value in model.params.values().items()]
        insert_new(connection, tables.logged_model_params, params)
        tags = {name: value for name, value in self._tags(model).items() if name not in (MODEL_ID_TAG, MARK_TAG)}
        self._put_tags(connection, model_id, place, {**tags, MARK_TAG: mark})
        self._delete_tags(connection, model)
        told: dict[str, Any] = {"last_updated_timestamp_ms": model.updated}
        if model.status.value in _STATUS:
            told["status"] = _STATUS[model.status.value]
        if model.deleted:
            told["lifecycle_stage"] = "deleted"
        of = tables.logged_models
        connection.execute(update(of).where(of.c.model_id == model_id).values(**told))

    def _tags(self, model: ModelState) -> dict[str, str]:
        """Its tags but for the versions of it, which whoever registers them counts."""
        tags = {name: value for name, value in model.tags.values().items() if name != VERSIONS_TAG}
        if LINKED_PROMPTS in tags:
            tags[LINKED_PROMPTS] = rewrite_prompts(tags[LINKED_PROMPTS], self._places.ids.version)
        return tags

    def _put_tags(self, connection: Any, model_id: str, place: Place, tags: dict[str, str]) -> None:
        key = {"model_id": model_id, "experiment_id": place.experiment_id}
        rows = [{**key, "tag_key": name, "tag_value": value} for name, value in tags.items()]
        upsert(connection, self._database.tables.logged_model_tags, rows)

    def _delete_tags(self, connection: Any, model: ModelState) -> None:
        from sqlalchemy import delete

        gone, of = model.tags.gone(), self._database.tables.logged_model_tags
        if gone:
            connection.execute(delete(of).where(of.c.model_id == model.model_id, of.c.tag_key.in_(gone)))

    def carry_files(self, model: ModelState, source: Any) -> tuple[int, int, list[tuple[str, str]]]:
        """Copy its files; returns how many were new, how many there, and which (path, reason) cannot be."""
        new = there = 0
        aside: list[tuple[str, str]] = []
        uri = self._places.model_artifacts[model.model_id]
        for path, file in model.artifacts.values().items():
            try:
                blob: Source = source(file.sha256, file.size)
                is_new = self._artifacts.put(uri, path, blob, self._places.ids)
            except Exception as error:
                if not is_files_trouble(error):
                    raise
                aside.append((f"{model.model_id}/{path}", getattr(error, "reason", None) or str(error)))
            else:
                new, there = new + is_new, there + (not is_new)
        return new, there, aside


def is_files_trouble(error: Exception) -> bool:
    """Whether an error is about one file, so that others may go their way."""
    from mlferry_agent.errors import NoPlace, UndeliverableName
    from mlferry_spool.errors import SpoolError

    return isinstance(error, (NoPlace, UndeliverableName, SpoolError, OSError)) or (
        type(error).__module__.split(".")[0] in ("mlflow", "botocore", "boto3", "google", "azure")
    )


def _mark(model: ModelState) -> str:
    """What of a model was written, in short."""
    import hashlib

    told = repr(
        (
            sorted(model.params.values().items()),
            sorted(model.tags.values().items()),
            sorted(model.tags.gone()),
            (model.status.value, model.updated, model.deleted),
        )
    )
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]
