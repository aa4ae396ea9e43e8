"""What belongs to no run: experiments, registered models, traces and models of their own. Pure, like ``fold``.

An experiment's offline id follows from its name, so that two processes that make one name at once make one experiment and
need not talk to each other; "0" is MLflow's default experiment, which nobody makes.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlferry_spool.fold import ModelState, Place, Register
from mlferry_spool.records import (
    Artifact,
    ExperimentOperation,
    ModelStart,
    ModelUpdate,
    Record,
    RegistryOperation,
    Spans,
    Trace,
)

__all__ = [
    "DEFAULT_EXPERIMENT",
    "DEFAULT_EXPERIMENT_ID",
    "ExperimentState",
    "StoreState",
    "TraceState",
    "candidate_ids",
]

DEFAULT_EXPERIMENT_ID, DEFAULT_EXPERIMENT = "0", "Default"


def candidate_ids(name: str) -> Iterator[str]:
    """Offline ids for an experiment of this name, the first of which is free unless another experiment had the name before
    it was renamed: 18 decimal digits, as MLflow's file store made them."""
    count = 0
    while True:
        digest = hashlib.sha256(f"{name}\0{count}".encode()).digest()
        yield str(10**17 + int.from_bytes(digest[:8], "big") % (9 * 10**17))
        count += 1


@dataclass(slots=True)
class ExperimentState:
    """An experiment of the spool. Times are Unix milliseconds, None for one that no record made."""

    experiment_id: str
    name: str
    artifact_location: str | None = None
    lifecycle: str = "active"
    tags: dict[str, str] = field(default_factory=dict)
    created: int | None = None
    updated: int | None = None

    def apply(self, operation: ExperimentOperation) -> None:
        details = operation.details
        if operation.operation not in ("set_tag", "delete_tag"):  # as in MLflow's SQL store
            self.updated = operation.timestamp
        match operation.operation:
            case "create":
                self.created = operation.timestamp if self.created is None else self.created
                self.tags = {**{key: str(value) for key, value in details.get("tags", {}).items()}, **self.tags}
                self.artifact_location = self.artifact_location or details.get("artifact_location")
            case "rename":
                self.name = str(details.get("new_name", self.name))
            case "delete":
                self.lifecycle = "deleted"
            case "restore":
                self.lifecycle = "active"
            case "set_tag":
                self.tags[str(details.get("key"))] = str(details.get("value"))
            case "delete_tag":
                self.tags.pop(str(details.get("key")), None)


class TraceState:
    """A trace: every change to it in order, and its spans as they were sent (OTLP requests)."""

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id
        self._changes: list[tuple[Place, Trace]] = []
        self._spans: list[tuple[Place, Spans]] = []

    def change(self, record: Trace, place: Place) -> None:
        insort(self._changes, (place, record), key=lambda entry: entry[0])

    def extend(self, record: Spans, place: Place) -> None:
        insort(self._spans, (place, record), key=lambda entry: entry[0])

    @property
    def changes(self) -> list[Trace]:
        return [record for _, record in self._changes]

    @property
    def spans(self) -> list[bytes]:
        return [record.otlp for _, record in self._spans]

    @property
    def size(self) -> int:
        """How many records there are of it."""
        return len(self._changes) + len(self._spans)

    @property
    def history(self) -> list[tuple[Place, Trace | Spans]]:
        """All that was logged of it, in order."""
        entries: list[tuple[Place, Trace | Spans]] = [*self._changes, *self._spans]
        return sorted(entries, key=lambda entry: entry[0])


@dataclass(slots=True)
class StoreState:
    """What the store's logs amount to. ``revision`` grows with every record."""

    models: dict[str, ModelState] = field(default_factory=dict)
    traces: dict[str, TraceState] = field(default_factory=dict)
    files: Register[Artifact] = field(default_factory=Register)
    revision: int = 0
    lost: int = 0
    _experiments: list[tuple[Place, ExperimentOperation]] = field(default_factory=list)
    _folded: dict[str, ExperimentState] = field(default_factory=dict)
    _folded_from: int = -1
    _registry: list[tuple[Place, RegistryOperation]] = field(default_factory=list)

    def add(self, writer: str, offset: int, record: Record) -> None:
        """Fold one record in."""
        self.revision += 1
        match record:
            case ExperimentOperation():
                insort(self._experiments, (Place(record.timestamp, writer, offset), record), key=lambda entry: entry[0])
            case RegistryOperation():
                insort(self._registry, (Place(record.timestamp, writer, offset), record), key=lambda entry: entry[0])
            case ModelStart():
                self._model(record.model_id).begin(record, Place(record.timestamp, writer, offset))
            case ModelUpdate():
                self._model(record.model_id).change(record, Place(record.timestamp, writer, offset))
            case Trace():
                self._trace(record.trace_id).change(record, Place(record.timestamp, writer, offset))
            case Artifact():
                self.files.set(record.path, record, Place(record.timestamp, writer, offset))
            case Spans():
                self._trace(record.trace_id).extend(record, Place(record.timestamp, writer, offset))
            case _:
                pass

    def experiments(self) -> dict[str, ExperimentState]:
        """Every experiment by its offline id, the default one included."""
        if self._folded_from != len(self._experiments):
            self._folded, self._folded_from = self._fold_experiments(), len(self._experiments)
        return self._folded

    def _fold_experiments(self) -> dict[str, ExperimentState]:
        states = {DEFAULT_EXPERIMENT_ID: ExperimentState(DEFAULT_EXPERIMENT_ID, DEFAULT_EXPERIMENT)}
        for _, operation in self._experiments:
            experiment_id = operation.offline_experiment_id or next(candidate_ids(operation.name))
            states.setdefault(experiment_id, ExperimentState(experiment_id, operation.name)).apply(operation)
        return states

    def operations_on(self, experiment_id: str) -> list[ExperimentOperation]:
        """Every change to one experiment, in order of time."""
        named = ((one.offline_experiment_id or next(candidate_ids(one.name)), one) for _, one in self._experiments)
        return [one for offline_id, one in named if offline_id == experiment_id]

    @property
    def registry(self) -> list[RegistryOperation]:
        """Operations on registered models, in order of time."""
        return [operation for _, operation in self._registry]

    def _model(self, model_id: str) -> ModelState:
        return self.models.setdefault(model_id, ModelState(model_id))

    def _trace(self, trace_id: str) -> TraceState:
        return self.traces.setdefault(trace_id, TraceState(trace_id))
