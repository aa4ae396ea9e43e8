"""What belongs to no run -> records of the store's logs: experiments, the registry, models without a run, traces.

There are two logs: experiments are put into place before the runs that lie in them, everything else after the runs that it
speaks of. An operation is written if the spool does not have it as the last word on its subject.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlferry_agent.importing.content import Experiment, Model, Registered, Spanned, Version
from mlferry_agent.importing.logs import ImportLog
from mlferry_agent.importing.reports import Report
from mlferry_agent.importing.writing import offline_id, without_ours, write_model
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.fold_store import DEFAULT_EXPERIMENT_ID
from mlferry_spool.introductions import now_ms
from mlferry_spool.records import Artifact, ExperimentOperation, Open, RegistryOperation, Spans, Trace

__all__ = ["StoreWriting"]

_HIDDEN_TAG = "mlflow.artifactLocation"


class StoreWriting:
    """Writes into the store of the spool that waits at ``waiting``; ``root`` is the spool that it is for.

    Raises:
        SpoolError: the store's own logs cannot be read.
    """

    def __init__(self, root: Path, waiting: Path, report: Report) -> None:
        self._report = report
        self._held = Catalogue(root).store()
        self._said = {_subject(operation): operation.details for operation in self._held.registry}
        self._experiments = ImportLog(waiting / "experiments" / "store", _opening, report.left_out)
        self._rest = ImportLog(waiting / "store", _opening, report.left_out)

    def close(self) -> None:
        """Raises FileTrouble: something was not stored."""
        self._experiments.close()
        self._rest.close()

    def abandon(self) -> None:
        """Let go of the files: what was written is not wanted."""
        self._experiments.abandon()
        self._rest.abandon()

    def experiment(self, experiment: Experiment) -> None:
        """Write what is new of an experiment. Raises FileTrouble."""
        identity = offline_id(experiment.name)
        held = self._held.experiments().get(identity)
        tags, known = without_ours(experiment.tags, self._report), {} if held is None else held.tags
        if held is None:
            self._say(experiment.created, "create", experiment.name, {"tags": {}}, identity)
        elif identity != DEFAULT_EXPERIMENT_ID and held.name != experiment.name:
            self._report.left_out["tags of experiments that the spool has renamed"] += len(tags)
            return
        for key, value in tags.items():
            if known.get(key) != value:
                self._say(now_ms(), "set_tag", experiment.name, {"key": key, "value": value}, identity)

    def _say(self, timestamp: int, operation: str, name: str, details: dict[str, Any], identity: str) -> None:
        self._experiments.put(ExperimentOperation(timestamp, operation, name, details, identity))

    def model(self, model: Model) -> None:
        """Write what is new of a model that no run made. Raises as ``RunWriting.write``."""
        write_model(self._rest, model, self._held.models.get(model.model_id), self._report)

    # -- registry ------------------------------------------------------------------------------------------------------

    def registered(self, model: Registered) -> None:
        """Write what is new of a registered model. Raises FileTrouble."""
        for operation in self._operations(model):
            subject = _subject(operation)
            if self._said.get(subject, _UNSAID) == operation.details:
                continue
            if subject in self._said and operation.operation.startswith("create_"):
                continue  # what was said at its creation stays; later changes are operations of their own
            self._said[subject] = operation.details
            if self._rest.put(operation):
                self._report.versions += operation.operation == "create_model_version"

    def _operations(self, model: Registered) -> Iterator[RegistryOperation]:
        name = model.name
        yield _say(name, "create_registered_model")
        if model.description is not None:
            yield _say(name, "update_registered_model", description=model.description)
        for key, value in without_ours(model.tags, self._report).items():
            yield _say(name, "set_registered_model_tag", key=key, value=value)
        for version in model.versions:
            yield from self._of_version(name, version)
        numbers = {version.number: version.uid for version in model.versions}
        for alias, number in model.aliases.items():
            if number in numbers:
                yield _say(name, "set_registered_model_alias", alias=alias, uid=numbers[number], version=str(number))

    def _of_version(self, name: str, version: Version) -> Iterator[RegistryOperation]:
        links = {"run_id": version.run_id, "run_link": version.run_link}
        told = {key: value for key, value in links.items() if value is not None}
        details = {"source": version.source, **told}
        yield RegistryOperation(now_ms(), "create_model_version", name, version.uid, details)
        if version.description is not None:
            yield _say(name, "update_model_version", uid=version.uid, description=version.description)
        for key, value in without_ours(version.tags, self._report).items():
            yield _say(name, "set_model_version_tag", uid=version.uid, key=key, value=value)
        if version.stage is not None:
            stage = {"stage": version.stage, "archive_existing_versions": False}
            yield _say(name, "transition_model_version_stage", uid=version.uid, **stage)

    # -- traces --------------------------------------------------------------------------------------------------------

    def trace(self, trace: Spanned) -> None:
        """Write a trace that the spool does not have; one that it has is taken as it is. Raises FileTrouble."""
        if trace.trace_id in self._held.traces:
            return
        place = (trace.experiment, offline_id(trace.experiment))
        info = {**trace.info, "tags": {key: text for key, text in _tags(trace.info).items() if key != _HIDDEN_TAG}}
        self._rest.put(Trace(trace.created, trace.trace_id, info, None, *place))
        for request in trace.spans:
            self._rest.put(Spans(trace.created, trace.trace_id, request))
        for run_id in trace.runs:
            self._rest.put(Trace(trace.created, trace.trace_id, {"run_id": run_id}, "link"))
        for assessment in trace.assessments:
            self._rest.put(Trace(trace.created, trace.trace_id, {"assessment": dict(assessment)}, "assess"))
        for file in trace.files:
            with file.open() as source:
                blob = self._rest.blobs.put_open(source)
            self._rest.put(Artifact(trace.created, f"traces/{trace.trace_id}/{file.path}", blob.sha256, blob.size))
        self._report.traces += 1


def _say(name: str, operation: str, **details: object) -> RegistryOperation:
    return RegistryOperation(now_ms(), operation, name, None, details)


def _tags(info: Mapping[str, object]) -> Mapping[str, object]:
    tags = info.get("tags")
    return tags if isinstance(tags, dict) else {}


#: Equals the details of no operation.
_UNSAID: Mapping[str, object] = {"": None}


def _subject(operation: RegistryOperation) -> str:
    """What an operation sets: of two with one subject the later counts."""
    details = operation.details
    return json.dumps(
        [
            operation.operation,
            operation.name,
            operation.uid,
            details.get("uid"),
            details.get("key"),
            details.get("alias"),
        ]
    )


def _opening(writer_id: str) -> Open:
    return Open(writer_id=writer_id)
