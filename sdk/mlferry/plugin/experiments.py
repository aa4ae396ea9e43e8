"""What is done to experiments -> records of the store's log, with the semantics of MLflow's SQL store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow.entities import ExperimentTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_STATE, RESOURCE_ALREADY_EXISTS
from mlflow.utils.uri import resolve_uri_if_local
from mlflow.utils.validation import (
    _validate_experiment_artifact_location_length,
    _validate_experiment_name,
    _validate_experiment_tag,
)

from mlferry.plugin import versions
from mlferry.plugin.runs import RunWrites, check_active
from mlferry.plugin.search import no_such
from mlferry_spool.fold_store import ExperimentState, candidate_ids
from mlferry_spool.records import ExperimentOperation

__all__ = ["ExperimentWrites"]


class ExperimentWrites(RunWrites):
    """The writing half of the tracking store, as far as experiments go."""

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: Sequence[ExperimentTag] | None = None
    ) -> str:
        _validate_experiment_name(name)
        if artifact_location:
            artifact_location = resolve_uri_if_local(artifact_location)
            _validate_experiment_artifact_location_length(artifact_location)
        for tag in tags or ():
            _validate_experiment_tag(tag.key, tag.value)
        if self.catalogue.experiment_by_name(name) is not None:
            raise MlflowException(f"Experiment(name={name}) already exists.", RESOURCE_ALREADY_EXISTS)
        taken = self.catalogue.experiments()
        experiment_id = next(candidate for candidate in candidate_ids(name) if candidate not in taken)
        details: dict[str, Any] = {"tags": {tag.key: str(tag.value) for tag in tags or ()}}
        if artifact_location:
            details["artifact_location"] = artifact_location
        self._tell("create", ExperimentState(experiment_id, name), details)
        return experiment_id

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        _validate_experiment_name(new_name)
        state = self._experiment(experiment_id)
        if state.lifecycle == "deleted":
            raise MlflowException("Cannot rename a non-active experiment.", INVALID_STATE)
        holder = self.catalogue.experiment_by_name(new_name)
        if holder is not None and holder.experiment_id != state.experiment_id:
            raise MlflowException(f"Experiment(name={new_name}) already exists.", BAD_REQUEST)  # the SQL store's code
        self._tell("rename", state, {"new_name": new_name})

    def delete_experiment(self, experiment_id: str) -> None:
        """Its runs are deleted with it, as in MLflow."""
        state = self._experiment(experiment_id, ViewType.ACTIVE_ONLY)
        for run, _ in self._runs_of([state.experiment_id], ViewType.ACTIVE_ONLY):
            self.delete_run(run.run_id)
        self._tell("delete", state, {})

    def restore_experiment(self, experiment_id: str) -> None:
        """Its runs are restored with it, as in MLflow."""
        state = self._experiment(experiment_id, ViewType.DELETED_ONLY)
        self._tell("restore", state, {})
        for run, _ in self._runs_of([state.experiment_id], ViewType.DELETED_ONLY):
            self.restore_run(run.run_id)

    def set_experiment_tag(self, experiment_id: str, tag: ExperimentTag) -> None:
        _validate_experiment_tag(tag.key, tag.value)
        state = self._experiment(experiment_id)
        check_active("experiment", state.experiment_id, state.lifecycle == "deleted")
        self._tell("set_tag", state, {"key": tag.key, "value": str(tag.value)})

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        state = self._experiment(experiment_id)
        check_active("experiment", state.experiment_id, state.lifecycle == "deleted")
        if key not in state.tags:
            raise no_such(f"No tag with name: {key} in experiment with id {experiment_id}")
        self._tell("delete_tag", state, {"key": key})

    def _tell(self, operation: str, state: ExperimentState, details: dict[str, Any]) -> None:
        record = ExperimentOperation(versions.now_ms(), operation, state.name, details, state.experiment_id)
        self.journal.put(None, record)
        self.journal.sync_soon(None)
