"""What a source holds -> records of a spool that waits to be put into place, without what the spool has already.

A run is written as its program would have logged it: its models begin before anything that names them, its files come
before the end, and its end is said last. Each import of a run is a log of its own beside those before it, with only what is
new in it; so importing again adds nothing, whatever was delivered meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlferry_agent.importing.content import Model, Points, Run
from mlferry_agent.importing.foreign import File
from mlferry_agent.importing.known import Known
from mlferry_agent.importing.logs import ImportLog
from mlferry_agent.importing.reports import Report
from mlferry_spool.blobs import digest_of
from mlferry_spool.fold import ModelState, Register
from mlferry_spool.fold_store import DEFAULT_EXPERIMENT, DEFAULT_EXPERIMENT_ID, candidate_ids
from mlferry_spool.introductions import now_ms
from mlferry_spool.layout import is_name, new_run_directory
from mlferry_spool.limits import MAX_SERIES_POINTS
from mlferry_spool.records import (
    Artifact,
    BlobRef,
    Dataset,
    Inputs,
    ModelStart,
    ModelUpdate,
    Open,
    Outputs,
    Params,
    Record,
    RunEnd,
    RunUpdate,
    Series,
    Tags,
)

__all__ = ["RunWriting", "offline_id", "without_ours", "write_model"]

#: A text of a dataset that is longer goes into a blob (bytes).
_LONG_TEXT_BYTES = 64 << 10

_ENDED = ("FINISHED", "FAILED", "KILLED")

#: By these mlferry finds again what it made on a server: a run that was delivered once and is imported from that server
#: must not bring them along.
_OURS = frozenset({"mlferry.run_id", "mlferry.model_id", "mlferry.version_uid"})
_OUR_TAGS = "tags by which an earlier delivery by mlferry is found again"


class RunWriting:
    """Writes runs into ``waiting``. ``held``: directories of each run that the spool has, those of its writers below."""

    def __init__(self, waiting: Path, held: Mapping[str, tuple[Path, ...]], report: Report) -> None:
        self._waiting = waiting
        self._held = held
        self._report = report
        #: Names of experiments that the store's log knows: a run of another names its experiment and no more.
        self.experiments: set[str] = set()

    def write(self, run: Run) -> None:
        """Write what is new of a run.

        Raises:
            FileTrouble: the disk takes no more. SpoolError: the spool's own logs of the run cannot be read. OSError.
        """
        if not is_name(run.run_id):
            self._report.left_out["runs whose id is none"] += 1
            return
        places = self._held.get(run.run_id, ())
        known = Known(run.run_id, (writer for place in places for writer in sorted(place.iterdir()) if writer.is_dir()))
        name = places[0].name if places else new_run_directory(Path(), run.run_id, run.start_time).name
        identity = offline_id(run.experiment) if run.experiment in self.experiments else None
        one = _OneRun(run, known, self._waiting / "runs" / name, identity, self._report)
        try:
            one.write()
        except BaseException:
            one.log.abandon()
            raise
        if one.log.was_written:
            self._report.run_ids.append(run.run_id)
            self._report.grown += bool(places)
            self._report.runs += not places
        else:
            self._report.unchanged += 1


class _OneRun:
    def __init__(self, run: Run, known: Known, directory: Path, experiment_id: str | None, report: Report) -> None:
        self._run, self._known, self._report = run, known, report
        self._experiment_id = experiment_id
        self._is_new = known.state.opening is None
        #: What changes something that is there must come after it.
        self._now = run.start_time if self._is_new else now_ms()
        self.log = ImportLog(directory, self._opening, report.left_out)

    def write(self) -> None:
        run, state = self._run, self._known.state
        if self._is_new:
            self.log.open()
        elif run.name not in (None, state.name.value) and not run.name_is_ours:
            self.log.put(RunUpdate(self._now, run_name=run.name))
        if run.status == "SCHEDULED" and state.status.value != "SCHEDULED":
            self.log.put(RunUpdate(self._now, status="SCHEDULED"))
        for model in run.models:
            write_model(self.log, model, state.models.get(model.model_id), self._report)
        held = state.params.values()
        params = {key: value for key, value in run.params.items() if key not in held}
        self.log.put_texts(lambda batch: Params(self._now, batch), params)
        tags = without_ours(run.tags, self._report)
        changed = {key: value for key, value in tags.items() if state.tags.get(key) != value}
        self.log.put_texts(lambda batch: Tags(self._now, batch), changed)
        self._write_links()
        for points in run.points:
            self._write_points(self._known.new_points(points))
        for path, blob_record in _new_files(self.log, run.files, state.artifacts, self._report):
            self.log.put(Artifact(self._now, path, blob_record.sha256, blob_record.size))
        self._close()

    def _close(self) -> None:
        run, state = self._run, self._known.state
        if run.status not in _ENDED:
            self.log.close()
            return
        end_time = run.start_time if run.end_time is None else run.end_time
        if (state.status.value, state.end_time.value) != (run.status, end_time):
            self.log.open()
        self.log.close(RunEnd(end_time, run.status))

    def _opening(self, writer_id: str) -> Open:
        run = self._run
        return Open(
            writer_id=writer_id,
            run_id=run.run_id,
            experiment_name=run.experiment,
            run_name=run.name,
            user=run.user,
            start_time=run.start_time,
            parent_run_id=run.parent_run_id,
            attempt=uuid.uuid4().hex,
            offline_experiment_id=self._experiment_id,
        )

    def _write_links(self) -> None:
        run, state = self._run, self._known.state
        for dataset in run.datasets:
            if (dataset.name, dataset.digest) not in state.datasets:
                self.log.put(Inputs(self._now, (_shortened(self.log, dataset),)))
        inputs = tuple(model_id for model_id in run.input_models if model_id not in state.input_models)
        if inputs:
            self.log.put(Inputs(self._now, (), inputs))
        for output in run.outputs:
            if output.model_id not in state.outputs:
                self.log.put(Outputs(self._now, (output,)))

    def _write_points(self, points: Points) -> None:
        size, step = len(points.values), 8 * MAX_SERIES_POINTS
        for at in range(0, size, step):
            part = slice(at, at + step)
            links = (points.model_id, points.dataset_name, points.dataset_digest)
            columns = (points.values[part], points.steps[part], points.timestamps[part])
            if self.log.put(Series(points.key, *columns, *links)):
                self._report.points += len(columns[0]) // 8


def write_model(log: ImportLog, model: Model, known: ModelState | None, report: Report) -> None:
    """Write what is new of a logged model. Raises as ``RunWriting.write``."""
    tags = without_ours(model.tags, report)
    held = ModelState(model.model_id) if known is None or known.start is None else known
    now = model.created if held.start is None else now_ms()
    if held.start is None:
        report.models += 1
        log.put(_start(model))
    params = {key: value for key, value in model.params.items() if key not in held.params.values()}
    log.put_texts(lambda batch: ModelUpdate(now, model.model_id, params=batch), params)
    changed = {key: value for key, value in tags.items() if held.tags.get(key) != value}
    log.put_texts(lambda batch: ModelUpdate(now, model.model_id, tags=batch), changed)
    for path, file in _new_files(log, model.files, held.artifacts, report):
        update = ModelUpdate(
            now, model.model_id, artifact_path=path, artifact_sha256=file.sha256, artifact_size=file.size
        )
        log.put(update)
    if model.status != held.status.value:
        log.put(ModelUpdate(now, model.model_id, status=model.status))


def _start(model: Model) -> Record:
    return ModelStart(
        timestamp=model.created,
        model_id=model.model_id,
        name=model.name,
        model_type=model.model_type,
        source_run_id=model.source_run_id,
        experiment_name=model.experiment,
        offline_experiment_id=offline_id(model.experiment),
    )


def _new_files(
    log: ImportLog, files: Iterable[File], held: Register[Artifact], report: Report
) -> Iterable[tuple[str, BlobRef]]:
    """Path and stored bytes of each file that the spool does not have under its path."""
    for file in files:
        known = held.get(file.path)
        try:
            source = file.open()
        except OSError:
            report.left_out["files that cannot be read"] += 1
            continue
        with source:
            if known is not None and digest_of(source).sha256 == known.sha256:
                continue
            blob = log.blobs.put_open(source)
        report.files += 1
        report.bytes += blob.size
        yield file.path, BlobRef(blob.sha256, blob.size)


def _shortened(log: ImportLog, dataset: Dataset) -> Dataset:
    """A dataset whose long texts are blobs."""

    def short(text: str | BlobRef | None) -> str | BlobRef | None:
        if not isinstance(text, str) or len(text) < _LONG_TEXT_BYTES // 4:
            return text
        blob = log.put_text_blob(text)
        return BlobRef(blob.sha256, blob.size)

    source = short(dataset.source)
    assert source is not None
    schema, profile = short(dataset.schema), short(dataset.profile)
    return Dataset(dataset.name, dataset.digest, dataset.source_type, source, schema, profile, dataset.tags)


def offline_id(experiment: str) -> str:
    """What the spool calls the experiment of this name."""
    return DEFAULT_EXPERIMENT_ID if experiment == DEFAULT_EXPERIMENT else next(candidate_ids(experiment))


def without_ours(tags: Mapping[str, str], report: Report) -> dict[str, str]:
    """Tags without those that mlferry itself sets; that is counted."""
    report.left_out[_OUR_TAGS] += sum(key in _OURS for key in tags)
    return {key: value for key, value in tags.items() if key not in _OURS}
