"""What is done to LoggedModels -> records, in the log of the run that made the model, or in the store's.

A model's home is where its first record stands; its files are blobs there, and every later record of it goes there too.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from mlflow.entities import LoggedModel, LoggedModelParameter, LoggedModelStatus, LoggedModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, RESOURCE_DOES_NOT_EXIST
from mlflow.utils.name_utils import _generate_random_name

from mlferry.plugin import entities, versions
from mlferry.plugin.experiments import ExperimentWrites
from mlferry.plugin.prompts import LINKED_PROMPTS, with_uids
from mlferry.plugin.runs import check_active
from mlferry.plugin.search import as_shown, no_such
from mlferry_spool.fold import ModelState, Place
from mlferry_spool.records import ModelStart, ModelUpdate

__all__ = ["ModelWrites"]

_TEXTS_A_RECORD = 25


class ModelWrites(ExperimentWrites):
    """The writing half of the tracking store, as far as logged models go."""

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        versions.validate_model_name(name)
        experiment = self._experiment(experiment_id)
        check_active("experiment", experiment.experiment_id, experiment.lifecycle == "deleted")
        texts = {param.key: str(param.value) for param in params or ()}
        first = dict(list(texts.items())[:_TEXTS_A_RECORD])
        start = ModelStart(
            timestamp=versions.now_ms(),
            model_id=f"m-{uuid.uuid4().hex}",
            name=name or _generate_random_name(),
            model_type=model_type,
            source_run_id=source_run_id,
            experiment_name=experiment.name,
            params=first,
            tags=self._tag_texts(tags or ()),
            offline_experiment_id=experiment.experiment_id,
        )
        home = source_run_id if source_run_id and self.journal.known(source_run_id) is not None else None
        self.journal.put(home, start)
        self.journal.sync_soon(home)
        self._put_model_params(home, start.model_id, dict(list(texts.items())[_TEXTS_A_RECORD:]))
        state = ModelState(start.model_id)
        state.begin(start, Place(start.timestamp, "", 0))
        state.params.add(texts, Place(start.timestamp, "", 0))
        return as_shown(entities.logged_model(self.root, state, experiment, []))

    def log_logged_model_params(self, model_id: str, params: list[LoggedModelParameter]) -> None:
        model, home = self._model(model_id)
        texts = {param.key: str(param.value) for param in params}
        if again := texts.keys() & model.params.values().keys() or len(texts) < len(params):
            words = f"UNIQUE constraint failed: logged_model_params: a param is written once, {again or 'not twice'}"
            raise MlflowException(words, BAD_REQUEST)
        self._put_model_params(home, model_id, texts)

    def _put_model_params(self, home: str | None, model_id: str, texts: dict[str, str]) -> None:
        names = list(texts)
        for begin in range(0, len(names), _TEXTS_A_RECORD):
            part = {name: texts[name] for name in names[begin : begin + _TEXTS_A_RECORD]}
            self.journal.put(home, ModelUpdate(versions.now_ms(), model_id, params=part))

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus | str) -> LoggedModel:
        _, home = self._model(model_id)
        word = LoggedModelStatus(status).value
        self.journal.put(home, ModelUpdate(versions.now_ms(), model_id, status=word))
        self.journal.sync_soon(home)
        return self.get_logged_model(model_id, allow_deleted=True)

    def set_logged_model_tags(self, model_id: str, tags: Sequence[LoggedModelTag]) -> None:
        _, home = self._model(model_id)
        self.journal.put(home, ModelUpdate(versions.now_ms(), model_id, tags=self._tag_texts(tags)))

    def _tag_texts(self, tags: Sequence[LoggedModelTag]) -> dict[str, str]:
        told = {tag.key: str(tag.value) for tag in tags}
        if LINKED_PROMPTS in told:
            told[LINKED_PROMPTS] = with_uids(told[LINKED_PROMPTS], self.journal.registry)
        return told

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        model, home = self._model(model_id)
        if key not in model.tags:
            raise no_such(f"No tag with key {key!r} found for model with ID {model_id!r}.")
        self.journal.put(home, ModelUpdate(versions.now_ms(), model_id, tags_deleted=(key,)))

    def delete_logged_model(self, model_id: str) -> None:
        _, home = self._model(model_id)
        self.journal.put(home, ModelUpdate(versions.now_ms(), model_id, deleted=True))

    def _model(self, model_id: str) -> tuple[ModelState, str | None]:
        found = self.catalogue.model(model_id)
        if found is None or found[0].start is None:
            raise MlflowException(f"Logged model with ID '{model_id}' not found.", RESOURCE_DOES_NOT_EXIST)
        return found
