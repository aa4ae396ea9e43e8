"""A record of the spool -> the pieces that an MLflow server is asked for. Pure; strict by way of ``encoding``.

What cannot be said to a server at all comes back as a refusal beside the pieces that can: one bad point of ten stops only
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlferry_agent import encoding
from mlferry_agent.errors import Unencodable
from mlferry_agent.lanes import Action, Item, Piece
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Dataset,
    Inputs,
    Metrics,
    ModelStart,
    ModelUpdate,
    Outputs,
    Params,
    Record,
    RunUpdate,
    Series,
    Tags,
    TagsDeleted,
)

__all__ = ["RUN_ID_TAG", "Refusal", "Translation", "translate"]

#: On every run that mlferry delivers: the id the run had offline.
RUN_ID_TAG = "mlferry.run_id"

#: JSON around one metric, param or tag, generously.
_ENTITY_OVERHEAD = 120


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in a record that no server can be told, and why."""

    action: str
    name: str
    reason: str


@dataclass(slots=True)
class Translation:
    """What became of one record."""

    pieces: list[Piece] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def translate(item: Item, record: Record) -> Translation:
    """Pieces and refusals of a record."""
    done = Translation()
    if isinstance(record, Metrics):
        _add_points(done, item, record)
        return done
    for action, name, make in _wishes(record):
        try:
            entity, size = make()
        except Unencodable as error:
            done.refusals.append(Refusal(action.value, name, error.reason))
        else:
            done.pieces.append(Piece(item, action, name, entity, size))
    return done


Wish = tuple[Action, str, Callable[[], tuple[Any, int]]]


def _wishes(record: Record) -> Iterator[Wish]:
    if isinstance(record, Series):
        yield from _series(record)
    elif isinstance(record, Params):
        yield from ((Action.PARAM, key, _text(encoding.param, key, value)) for key, value in record.values.items())
    elif isinstance(record, Tags):
        yield from ((Action.TAG, key, _text(_tag, key, value)) for key, value in record.values.items())
    elif isinstance(record, TagsDeleted):
        yield from ((Action.DELETE_TAG, key, _tag_name(key)) for key in record.keys)
    elif isinstance(record, RunUpdate):
        if record.lifecycle is None:  # that is said last of all: see ``Feed.lifecycle``
            yield Action.UPDATE, "run", _constant(record)
    elif isinstance(record, Inputs):
        yield from ((Action.DATASET, dataset.name, _dataset(dataset)) for dataset in record.datasets)
        if record.model_ids:
            yield Action.MODEL_LINK, "inputs", _constant(record)
    elif isinstance(record, Outputs):
        yield Action.MODEL_LINK, "outputs", _constant(record)
    elif isinstance(record, ModelStart):
        yield Action.MODEL, record.model_id, _constant(record)
    elif isinstance(record, ModelUpdate):
        yield from _model_changes(record)
    elif isinstance(record, Artifact):
        yield Action.UPLOAD, record.path, _constant(record, record.size)
    elif isinstance(record, ArtifactDeleted):
        yield Action.DELETE_ARTIFACT, record.path, _constant(record)


def _model_changes(record: ModelUpdate) -> Iterator[Wish]:
    if record.artifact_path is not None:
        yield Action.MODEL_FILE, f"{record.model_id}/{record.artifact_path}", _constant(record, record.artifact_size)
    else:
        yield Action.MODEL, record.model_id, _constant(record)


def _add_points(done: Translation, item: Item, record: Metrics) -> None:
    """The points of one call: without the detour by wishes, since nearly all that is delivered are these."""
    timestamp, step = record.timestamp, record.step
    links = {"model_id": record.model_id, "dataset_name": record.dataset_name, "dataset_digest": record.dataset_digest}
    for key, value in record.values.items():
        try:
            entity = encoding.metric(key, value, timestamp, step, **links)
        except Unencodable as error:
            done.refusals.append(Refusal(Action.METRIC.value, key, error.reason))
        else:
            done.pieces.append(Piece(item, Action.METRIC, key, entity, len(key.encode()) + _ENTITY_OVERHEAD))


def _series(record: Series) -> Iterator[Wish]:
    for value, step, timestamp in record.points():
        yield Action.METRIC, record.key, _metric(record, record.key, value, timestamp, step)


def _metric(record: Series, key: str, value: float, timestamp: int, step: int) -> Callable[[], tuple[Any, int]]:
    def make() -> tuple[Any, int]:
        links = {"dataset_name": record.dataset_name, "dataset_digest": record.dataset_digest}
        entity = encoding.metric(key, value, timestamp, step, model_id=record.model_id, **links)
        return entity, len(key.encode()) + _ENTITY_OVERHEAD

    return make


def _text(encode: Callable[[str, str], Any], key: str, value: str) -> Callable[[], tuple[Any, int]]:
    def make() -> tuple[Any, int]:
        entity = encode(key, value)
        return entity, len(encoding.dumps(entity))

    return make


def _tag(key: str, value: str) -> encoding.Entity:
    """Raises ``Unencodable`` also for our own tag: by it a run is found again, so tags copied from another run may not
    bring it along."""
    if key == RUN_ID_TAG:
        raise Unencodable("mlferry itself sets this tag")
    return encoding.tag(key, value)


def _tag_name(key: str) -> Callable[[], tuple[Any, int]]:
    def make() -> tuple[Any, int]:
        return _tag(key, "")["key"], len(key)

    return make


def _dataset(dataset: Dataset) -> Callable[[], tuple[Any, int]]:
    def make() -> tuple[Any, int]:
        entity = encoding.dataset_input(
            dataset.name,
            dataset.digest,
            dataset.source_type,
            _resolved(dataset.source),
            schema=None if dataset.schema is None else _resolved(dataset.schema),
            profile=None if dataset.profile is None else _resolved(dataset.profile),
            tags=dataset.tags.items(),
        )
        return entity, len(encoding.dumps(entity))

    return make


def _resolved(text: object) -> str:
    if not isinstance(text, str):
        raise Unencodable("a long text of this dataset is not in the run's blobs")
    return text


def _constant(entity: Any, size: int = 0) -> Callable[[], tuple[Any, int]]:
    return lambda: (entity, size)
