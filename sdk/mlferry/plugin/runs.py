"""What is logged to runs -> records: the writing half of the tracking store that training scripts call all the time.

Each value passes MLflow's own validators, so that what is refused, and with which words, is what its SQL store refuses; a
metric's name is looked at once. No write reads a run back: what must be known of it (``Known``) is kept by the journal.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from mlflow.entities import (
    DatasetInput,
    LifecycleStage,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.validation import (
    _validate_batch_log_data,
    _validate_batch_log_limits,
    _validate_metric,
    _validate_param,
    _validate_param_keys_unique,
    _validate_run_id,
    _validate_tag,
)

from mlferry.plugin import entities, points, versions
from mlferry.plugin.entry import RESERVED
from mlferry.plugin.journal import Journal, Known
from mlferry.plugin.prompts import LINKED_PROMPTS, with_uids
from mlferry.plugin.search import Reads, no_such
from mlferry_spool.blobs import Blobs
from mlferry_spool.fold_store import ExperimentState
from mlferry_spool.layout import is_name, writer_name
from mlferry_spool.records import (
    BlobRef,
    Dataset,
    Inputs,
    Kind,
    ModelOutput,
    Open,
    Outputs,
    Params,
    RunUpdate,
    Tags,
    TagsDeleted,
)

__all__ = ["RunWrites"]

_METRICS = int(Kind.METRICS)
_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})

#: Names of metrics known to be good: a program that makes up names without end must not grow without end.
#: Beyond: all are forgotten, and each is checked anew when it is used again.
#: Test: tests/unit/plugin/test_writes.py::test_names_without_end_are_not_remembered_without_end
_MAX_NAMES = 100_000

#: Texts beyond this many characters are kept as blobs (a record holds 1 MiB).
_LONG = 60_000

#: Texts of one record: each up to 8000 characters of four bytes.
_TEXTS_A_RECORD = 25

#: Models that one record names as inputs or outputs of a run.
_MODELS_A_RECORD = 1000


class RunWrites(Reads):
    """The writing half of the tracking store, as far as runs go."""

    journal: Journal

    def __init__(self) -> None:
        super().__init__()
        self._good_names: set[str] = set()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Sequence[RunTag] | None, run_name: str | None
    ) -> Run:
        experiment = self._experiment_for_run(experiment_id)
        name, told = _named(run_name, list(tags or []))
        _given(user_id=user_id, start_time=start_time)
        run_id = uuid.uuid4().hex
        opening = self._opening(run_id, experiment, told, user=user_id or None, run_name=name, start_time=start_time)
        self.journal.create(opening, Known(experiment.experiment_id))
        self._put_tags(run_id, told)
        info = RunInfo(
            run_id=run_id,
            run_name=name,
            experiment_id=experiment.experiment_id,
            user_id=user_id,
            status="RUNNING",
            start_time=start_time,
            end_time=None,
            lifecycle_stage=LifecycleStage.ACTIVE,
            artifact_uri=entities.run_artifact_uri(self.root, experiment, run_id),
        )
        return Run(info, RunData(tags=told), RunInputs([]))

    def _experiment_for_run(self, experiment_id: str) -> ExperimentState:
        """The experiment of a new run. One that the environment named at the start may be known to the server alone."""
        wanted = str(experiment_id or "0")
        if wanted == RESERVED["MLFLOW_EXPERIMENT_ID"] and self.catalogue.store().experiments().get(wanted) is None:
            return self.catalogue.experiment(wanted) or ExperimentState(wanted, wanted)
        state = self._experiment(wanted)
        check_active("experiment", state.experiment_id, state.lifecycle == "deleted")
        return state

    def _opening(self, run_id: str, experiment: ExperimentState, tags: Iterable[RunTag], **more: Any) -> Open:
        now = versions.now_ms()
        reserved = experiment.experiment_id == RESERVED["MLFLOW_EXPERIMENT_ID"] and experiment.created is None
        reserved = reserved and experiment.experiment_id != "0"
        return Open(
            writer_id=writer_name(now, None, os.urandom(8).hex()),
            run_id=run_id,
            experiment_name=None if reserved else experiment.name,
            experiment_id=experiment.experiment_id if reserved else None,
            offline_experiment_id=None if reserved else experiment.experiment_id,
            parent_run_id=next((tag.value for tag in tags if tag.key == MLFLOW_PARENT_RUN_ID), None),
            workspace=versions.workspace(),
            attempt=uuid.uuid4().hex,
            **more,
        )

    def get_run(self, run_id: str) -> Run:
        if self.journal.known(run_id) is None:
            self._adopt(run_id)
        return super().get_run(run_id)

    def _adopt(self, run_id: str) -> None:
        """A run that was reserved on the server and given to the job: unknown here until it is first asked for."""
        if run_id and run_id == RESERVED["MLFLOW_RUN_ID"] and is_name(run_id):
            now = versions.now_ms()
            experiment = RESERVED["MLFLOW_EXPERIMENT_ID"] or None
            opening = Open(
                writer_id=writer_name(now, None, os.urandom(8).hex()),
                run_id=run_id,
                experiment_id=experiment,
                start_time=now,
                resumed=True,
                workspace=versions.workspace(),
                attempt=uuid.uuid4().hex,
            )
            self.journal.create(opening, Known(experiment or "0"))

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        known = self._writable(run_id)
        status = None if run_status is None else _status(run_status)
        if run_name:
            self.journal.put(run_id, RunUpdate(versions.now_ms(), run_name=run_name))
            self._put_tags(run_id, [RunTag(MLFLOW_RUN_NAME, run_name)])
        if status in _ENDED:
            known.running = False
            self.journal.end(run_id, status, self._end_of(run_id) if end_time is None else end_time)
        elif status == "RUNNING" and not run_name:
            known.running = True
            self.journal.resume(run_id)
        elif status is not None:
            self.journal.put(run_id, RunUpdate(versions.now_ms(), status=status))
        if end_time is not None and status not in _ENDED:
            self.journal.put(run_id, RunUpdate(versions.now_ms(), end_time=end_time))
        state = self.catalogue.run(run_id)
        assert state is not None
        return entities.run_info(self.root, state, self._experiment_of(state))

    def _end_of(self, run_id: str) -> int:
        """When the run ended, if it has, else now: for an end of which nobody says when it was."""
        state = self.catalogue.run(run_id)
        known = None if state is None else state.end_time.value
        return versions.now_ms() if known is None else known

    def delete_run(self, run_id: str) -> None:
        self._known(run_id).deleted = True
        self.journal.put(run_id, RunUpdate(versions.now_ms(), lifecycle="deleted"))

    def restore_run(self, run_id: str) -> None:
        self._known(run_id).deleted = False
        self.journal.put(run_id, RunUpdate(versions.now_ms(), lifecycle="active"))

    def _known(self, run_id: str) -> Known:
        known = self.journal.known(run_id)
        if known is None:
            self._adopt(run_id)
            known = self.journal.known(run_id)
        if known is None:
            raise no_such(f"Run with id={run_id} not found")
        return known

    def _writable(self, run_id: str) -> Known:
        known = self._known(run_id)
        check_active("run", run_id, known.deleted)
        return known

    # -- metrics -------------------------------------------------------------------------------------------------------

    def log_metric(self, run_id: str, metric: Metric) -> None:
        if self._log_plain(run_id, [metric]):
            return
        _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        _check_64_bits([metric])
        self._remember([metric])
        self._writable(run_id)
        self._put_metrics(run_id, [metric])

    def _log_plain(self, run_id: str, metrics: Sequence[Metric]) -> bool:
        """Write a batch that needs no closer look, to a run that this process has written to before; False: it does."""
        known = self.journal.remembered(run_id)
        if known is None or known.deleted:
            return False
        fields = points.plain(metrics, self._good_names)
        if fields is None:
            return False
        self.journal.append(run_id, _METRICS, fields)
        return True

    def _put_metrics(self, run_id: str, metrics: Iterable[Metric]) -> None:
        for fields in points.records(metrics):
            self.journal.append(run_id, _METRICS, fields)

    def _remember(self, metrics: Iterable[Metric]) -> None:
        if len(self._good_names) > _MAX_NAMES:
            self._good_names.clear()
        self._good_names.update(metric.key for metric in metrics)

    # -- params and tags -----------------------------------------------------------------------------------------------

    def log_param(self, run_id: str, param: Param) -> None:
        param = _validate_param(param.key, param.value)
        _check_values([param])
        known = self._writable(run_id)
        kept = known.params.get(param.key)
        if kept is not None and kept != param.value:
            raise MlflowException(
                f"Changing param values is not allowed. Param with key='{param.key}' was already logged with "
                f"value='{kept}' for run ID='{run_id}'. Attempted logging new value '{param.value}'.",
                INVALID_PARAMETER_VALUE,
            )
        self._put_params(run_id, known, [param])

    def _check_params(self, run_id: str, known: Known, params: Iterable[Param]) -> None:
        changed = [
            {"key": param.key, "old_value": known.params[param.key], "new_value": param.value}
            for param in params
            if known.params.get(param.key, param.value) != param.value
        ]
        if changed:
            raise MlflowException(
                f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{run_id}'.",
                INVALID_PARAMETER_VALUE,
            )

    def _put_params(self, run_id: str, known: Known, params: Iterable[Param]) -> None:
        new = {param.key: str(param.value) for param in params if param.key not in known.params}
        known.params.update(new)
        for part in _parts(new):
            self.journal.put(run_id, Params(versions.now_ms(), part))
        if new:
            self.journal.sync_soon(run_id)

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        tag = _validate_tag(tag.key, tag.value)
        self._writable(run_id)
        self._set_tags(run_id, [tag])

    def _set_tags(self, run_id: str, tags: Sequence[RunTag]) -> None:
        tags = [tag for tag in tags if tag.key != MLFLOW_RUN_NAME or tag.value]  # no run loses its name
        self._put_tags(run_id, tags)
        for tag in tags:
            if tag.key == MLFLOW_RUN_NAME:
                self.journal.put(run_id, RunUpdate(versions.now_ms(), run_name=str(tag.value)))

    def _put_tags(self, run_id: str, tags: Iterable[RunTag]) -> None:
        told = {tag.key: str(tag.value) for tag in tags}
        if LINKED_PROMPTS in told:
            told[LINKED_PROMPTS] = with_uids(told[LINKED_PROMPTS], self.journal.registry)
        for part in _parts(told):
            self.journal.put(run_id, Tags(versions.now_ms(), part))
        if told:
            self.journal.sync_soon(run_id)

    def delete_tag(self, run_id: str, key: str) -> None:
        self._writable(run_id)
        state = self.catalogue.run(run_id)
        if state is None or key not in state.tags:
            raise no_such(f"No tag with name: {key} in run with id {run_id}")
        self.journal.put(run_id, TagsDeleted(versions.now_ms(), (key,)))

    # -- batches -------------------------------------------------------------------------------------------------------

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        if not params and not tags and params is not None and tags is not None and self._log_plain(run_id, metrics):
            return
        _validate_run_id(run_id)
        metrics, params, tags = _validate_batch_log_data(metrics, params, tags)
        _validate_batch_log_limits(metrics, params, tags)
        _validate_param_keys_unique(params)
        _check_64_bits(metrics)
        self._remember(metrics)
        known = self._writable(run_id)
        if params:
            _check_values(params)
            self._check_params(run_id, known, params)
            self._put_params(run_id, known, params)
        self._put_metrics(run_id, metrics)
        if tags:
            self._set_tags(run_id, tags)

    def log_batch_async(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> RunOperations:
        """Written before this returns: that is faster than a queue, and keeps the order."""
        return done(lambda: self.log_batch(run_id, metrics, params, tags))

    def log_metric_async(self, run_id: str, metric: Metric) -> RunOperations:
        return self.log_batch_async(run_id, [metric], [], [])

    def log_param_async(self, run_id: str, param: Param) -> RunOperations:
        return self.log_batch_async(run_id, [], [param], [])

    def set_tag_async(self, run_id: str, tag: RunTag) -> RunOperations:
        return self.log_batch_async(run_id, [], [], [tag])

    def flush_async_logging(self) -> None:
        """Nothing waits."""

    def end_async_logging(self) -> None:
        """Nothing waits."""

    def shut_down_async_logging(self) -> None:
        """Nothing waits."""

    # -- inputs and outputs --------------------------------------------------------------------------------------------

    def log_inputs(
        self, run_id: str, datasets: list[DatasetInput] | None = None, models: list[LoggedModelInput] | None = None
    ) -> None:
        _validate_run_id(run_id)
        if datasets is not None:
            versions.validate_datasets(datasets)
        self._writable(run_id)
        for given in datasets or ():
            if given.dataset is None:
                raise MlflowException("Dataset input must have a dataset associated with it.", INTERNAL_ERROR)
        blobs = self.journal.blobs(run_id)
        model_ids = [model.model_id for model in models or ()]
        for given in datasets or ():  # its texts alone may fill most of a record
            self.journal.put(run_id, Inputs(versions.now_ms(), (_dataset(given, blobs),)))
        for start in range(0, len(model_ids), _MODELS_A_RECORD):
            self.journal.put(run_id, Inputs(versions.now_ms(), (), tuple(model_ids[start : start + _MODELS_A_RECORD])))

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        self._writable(run_id)
        outputs = [ModelOutput(model.model_id, model.step) for model in models]
        for start in range(0, len(outputs), _MODELS_A_RECORD):
            self.journal.put(run_id, Outputs(versions.now_ms(), tuple(outputs[start : start + _MODELS_A_RECORD])))


def check_active(what: str, entity_id: str, deleted: bool) -> None:
    """Raises MlflowException in the SQL store's words where something deleted would be written to."""
    if deleted:
        raise MlflowException(
            f"The {what} {entity_id} must be in the 'active' state. Current state is deleted.", INVALID_PARAMETER_VALUE
        )


def done(call: Any) -> RunOperations:
    """What MLflow waits for after an asynchronous call, for one that has been made."""
    from concurrent.futures import Future

    future: Future[None] = Future()
    try:
        call()
        future.set_result(None)
    except Exception as error:
        future.set_exception(error)
    return RunOperations(operation_futures=[future])


def _given(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is None:
            raise MlflowException(f"{name} cannot be None", INTERNAL_ERROR)


def _status(number: int) -> str:
    try:
        return str(RunStatus.to_string(number))
    except Exception as error:
        raise MlflowException(str(error), INTERNAL_ERROR) from error


def _check_64_bits(metrics: Iterable[Metric]) -> None:
    for metric in metrics:
        for number in (metric.timestamp, metric.step or 0):
            if not -(1 << 63) <= int(number) < 1 << 63:
                raise MlflowException(f"{number} of metric {metric.key!r} does not fit 64 bits", INTERNAL_ERROR)


def _check_values(params: Iterable[Param]) -> None:
    for param in params:
        if param.value is None:
            words = f"NOT NULL constraint failed: params.value: the param {param.key!r} has no value"
            raise MlflowException(words, BAD_REQUEST)


def _named(run_name: str | None, tags: list[RunTag]) -> tuple[str, list[RunTag]]:
    """The run's name and its tags with it, as the SQL store makes them."""
    tagged = next((tag.value for tag in tags if tag.key == MLFLOW_RUN_NAME), None)
    if run_name and tagged and run_name != tagged:
        raise MlflowException(
            "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with "
            f"different values (run_name='{run_name}', mlflow.runName='{tagged}').",
            INVALID_PARAMETER_VALUE,
        )
    name = run_name or tagged or _generate_random_name()
    return name, tags if tagged else [*tags, RunTag(MLFLOW_RUN_NAME, name)]


def _parts(texts: dict[str, str]) -> Iterable[dict[str, str]]:
    names = list(texts)
    for start in range(0, len(names), _TEXTS_A_RECORD):
        yield {name: texts[name] for name in names[start : start + _TEXTS_A_RECORD]}


def _dataset(given: DatasetInput, blobs: Blobs) -> Dataset:
    dataset = given.dataset
    return Dataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type=dataset.source_type,
        source=_kept(dataset.source, blobs) or "",
        schema=_kept(dataset.schema, blobs),
        profile=_kept(dataset.profile, blobs),
        tags={tag.key: str(tag.value) for tag in given.tags or ()},
    )


def _kept(text: str | None, blobs: Blobs) -> str | BlobRef | None:
    if text is None or len(text) <= _LONG:
        return text
    blob = blobs.put_bytes(text.encode())
    return BlobRef(blob.sha256, blob.size)
