"""States of the spool -> MLflow's entities, as its SQL store shows them. Owns the translation; looks up blobs alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import (
    DatasetInput,
    Experiment,
    ExperimentTag,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunTag,
)

from mlferry.plugin import uri
from mlferry.plugin.prompts import LINKED_PROMPTS, without_uids
from mlferry_spool.blobs import Blobs
from mlferry_spool.fold import ModelState, Point, RunState
from mlferry_spool.fold_store import ExperimentState
from mlferry_spool.records import BlobRef, Dataset

__all__ = ["experiment_entity", "logged_model", "metric", "run_entity", "run_info", "shown_tags"]


def run_entity(root: Path, state: RunState, experiment: ExperimentState, directories: list[Path]) -> Run:
    """A run with everything that was logged to it."""
    data = RunData(
        metrics=[metric(key, point) for key, point in state.metrics.items()],
        params=[Param(key, value) for key, value in state.params.values().items()],
        tags=[RunTag(key, value) for key, value in shown_tags(state.tags.values()).items()],
    )
    datasets = [_dataset_input(dataset, directories) for _, dataset in state.datasets.values()]
    inputs = RunInputs(datasets, [LoggedModelInput(model_id) for model_id in state.input_models])
    outputs = RunOutputs([LoggedModelOutput(output.model_id, output.step) for output in state.outputs.values()])
    return Run(run_info(root, state, experiment), data, inputs, outputs)


def run_info(root: Path, state: RunState, experiment: ExperimentState) -> RunInfo:
    opening = state.opening
    assert opening is not None
    return RunInfo(
        run_id=state.run_id,
        run_name=state.name.value,
        experiment_id=experiment.experiment_id,
        user_id=opening.user or "",
        status=state.status.value,
        start_time=opening.start_time,
        end_time=state.end_time.value,
        lifecycle_stage=state.lifecycle.value,
        artifact_uri=run_artifact_uri(root, experiment, state.run_id),
    )


def run_artifact_uri(root: Path, experiment: ExperimentState, run_id: str) -> str:
    """Where a run's artifacts are: in the spool, or in the place of its own that a local experiment has."""
    own = experiment.artifact_location
    if own is not None and is_local(own):
        return f"{own.rstrip('/')}/{run_id}/artifacts"
    return uri.run_artifacts(root, experiment.experiment_id, run_id)


def is_local(location: str) -> bool:
    """Whether an experiment's own artifact location can be written to without a network."""
    return location.startswith(("/", "file:"))


def experiment_entity(root: Path, state: ExperimentState) -> Experiment:
    return Experiment(
        experiment_id=state.experiment_id,
        name=state.name,
        artifact_location=state.artifact_location or uri.experiment_artifacts(root, state.experiment_id),
        lifecycle_stage=state.lifecycle,
        tags=[ExperimentTag(key, value) for key, value in state.tags.items()],
        # Nobody made Default: it is older than all others, and MLflow's searches compare numbers.
        creation_time=state.created or 0,
        last_update_time=state.updated or state.created or 0,
    )


def logged_model(
    root: Path, model: ModelState, experiment: ExperimentState, points: Iterable[tuple[str, str, Point]]
) -> LoggedModel:
    """A logged model; ``points`` are (run id, metric, point) of what was measured of it."""
    start = model.start
    assert start is not None
    measured = [
        Metric(
            key=key,
            value=point.value,
            timestamp=point.timestamp,
            step=point.step,
            model_id=model.model_id,
            dataset_name=point.dataset_name,
            dataset_digest=point.dataset_digest,
            run_id=run_id,
        )
        for run_id, key, point in points
    ]
    own = experiment.artifact_location
    local = own is not None and is_local(own)
    location = f"{str(own).rstrip('/')}/models/{model.model_id}/artifacts" if local else None
    return LoggedModel(
        experiment_id=experiment.experiment_id,
        model_id=model.model_id,
        name=start.name or "",
        artifact_location=location or uri.model_artifacts(root, experiment.experiment_id, model.model_id),
        creation_timestamp=start.timestamp,
        last_updated_timestamp=model.updated,
        model_type=start.model_type,
        source_run_id=start.source_run_id,
        status=LoggedModelStatus(model.status.value),
        tags=shown_tags(model.tags.values()),
        params=model.params.values(),
        metrics=measured,
    )


def shown_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags as MLflow knows them."""
    linked = tags.get(LINKED_PROMPTS)
    return tags if linked is None else {**tags, LINKED_PROMPTS: without_uids(linked)}


def metric(key: str, point: Point) -> Metric:
    return Metric(key=key, value=point.value, timestamp=point.timestamp, step=point.step)


def _dataset_input(dataset: Dataset, directories: list[Path]) -> DatasetInput:
    entity = MlflowDataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type=dataset.source_type,
        source=_text(dataset.source, directories),
        schema=_text(dataset.schema, directories),
        profile=_text(dataset.profile, directories),
    )
    return DatasetInput(entity, [InputTag(key, value) for key, value in dataset.tags.items()])


def _text(text: str | BlobRef | None, directories: list[Path]) -> Any:
    if not isinstance(text, BlobRef):
        return text
    for directory in directories:
        try:
            return Blobs(directory).path(text.sha256).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return None
