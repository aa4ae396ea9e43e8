"""From what is ready in a lane to the next request. Pure: looks at the queue, takes pieces, says what to send.

One kind of entity goes in one request, because the server's log-batch is no transaction: params commit, then metrics, then
model metrics, then tags, and a failure leaves a prefix (mlflow ``sqlalchemy_store.log_batch``). Limits are MLflow's.

Within a run, order is what makes tags and params come out right, so they go one request at a time, and nothing beside them.
Points need none: MLflow keeps them as a set, by key, time, step and value, and of each key as its latest the one that is
greatest by (step, time, value), whenever it came (``_update_latest_metrics_if_necessary``; rows are locked in the order of
their keys, and a deadlock is tried again by the server). So full requests of points may go side by side. But for NaN, which
is stored as the value 0 with a mark: of a NaN and a 0 of the same step and time the one that came first stays the latest.
And but for points of models, of which MLflow mends a repeated request badly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from mlferry_agent import limits, requests
from mlferry_agent.encoding import Entity
from mlferry_agent.lanes import Action, Lane, LaneQueue, Piece
from mlferry_agent.requests import Request
from mlferry_agent.rewriting import ID_TAGS, Ids, rewrite, rewrite_tag
from mlferry_spool.records import RunUpdate

__all__ = ["Batch", "Target", "next_batch", "next_small", "next_transfer", "request_for", "split", "texts_with_ids"]

#: Bytes of JSON around the entities of a request.
_ENVELOPE = 200

#: Points that carry a model id: with more, the server answers 400 to a repeated request for ever
#: (mlflow ``sqlalchemy_store._log_model_metrics`` re-adds instances per slice of 100 keys).
#: Beyond: the rest goes in the next request.
#: Test: tests/unit/agent/test_planner.py::test_points_of_models_go_alone_and_a_hundred_at_a_time
_MAX_MODEL_METRICS = 100

#: Files among which the next one is chosen: a look at all of ten thousand before each would take longer than sending them.
#: Beyond: a small file far behind waits its turn.
#: Test: tests/unit/agent/test_planner.py::test_choosing_a_file_takes_no_longer_the_more_of_them_wait
_FILES_LOOKED_AT = 64

_MOST = {
    Action.METRIC: limits.MAX_METRICS_PER_BATCH,
    Action.PARAM: limits.MAX_PARAMS_TAGS_PER_BATCH,
    Action.TAG: limits.MAX_PARAMS_TAGS_PER_BATCH,
    Action.DATASET: limits.MAX_PARAMS_TAGS_PER_BATCH,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A run as the server knows it."""

    server_run_id: str
    artifact_uri: str
    workspace: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces of one kind that go in one request."""

    lane: Lane
    pieces: tuple[Piece, ...]

    @property
    def action(self) -> Action:
        return self.pieces[0].action


def next_small(queues: Mapping[Lane, LaneQueue], lanes: Iterable[Lane], beside: Collection[Batch]) -> Batch | None:
    """Take the next request from the first of these lanes in which something is ready; None if there is none, or if it has
    to wait for what is on its way, ``beside``."""
    for lane in lanes:
        queue = queues[lane]
        if queue.ready:
            return next_batch(queue) if not beside or _may_go_beside(queue, beside) else None
    return None


def _may_go_beside(queue: LaneQueue, beside: Collection[Batch]) -> bool:
    """Half a request costs a server nearly as much as a whole one: what is not full waits, and is fuller then."""
    full = limits.MAX_METRICS_PER_BATCH
    if queue.lane is not Lane.METRICS or len(queue.ready) < full:
        return False
    return _is_unordered(islice(queue.ready, full)) and all(_is_unordered(batch.pieces) for batch in beside)


def _is_unordered(pieces: Iterable[Piece]) -> bool:
    return all(
        piece.action is Action.METRIC and "model_id" not in piece.entity and piece.entity["value"] != "NaN"
        for piece in pieces
    )


def next_batch(queue: LaneQueue) -> Batch | None:
    """Take the next request's pieces from a lane of small things, in order; None if nothing is ready."""
    if not queue.ready:
        return None
    first = queue.ready[0]
    taken: list[Piece] = []
    size, most = _ENVELOPE, _most(first)
    while queue.ready and len(taken) < most and _goes_with(first, queue.ready[0]):
        piece = queue.ready[0]
        if taken and (size + piece.size > limits.MAX_REQUEST_BYTES or _conflicts(piece, taken)):
            break
        taken.append(queue.ready.popleft())
        size += piece.size + 1
    return Batch(queue.lane, tuple(taken))


def next_transfer(queue: LaneQueue, busy: set[str]) -> Batch | None:
    """Take the smallest of the first ready artifacts whose path is not ``busy``.

    What is said of one path keeps its order, and so does what is said of a folder (its deletion) and of what lies in it.
    """
    before = _Paths()
    for name in busy:
        before.add(name)
    candidates: list[Piece] = []
    for piece in islice(queue.ready, _FILES_LOOKED_AT):
        if not before.touch(piece.name):
            candidates.append(piece)
        before.add(piece.name)
    if not candidates:
        return None
    chosen = min(candidates, key=lambda piece: piece.size)
    _remove(queue.ready, chosen)
    return Batch(queue.lane, (chosen,))


def split(batch: Batch) -> tuple[Batch, Batch]:
    """Two halves, in order: how the one bad entity of a refused batch is found."""
    middle = len(batch.pieces) // 2
    return Batch(batch.lane, batch.pieces[:middle]), Batch(batch.lane, batch.pieces[middle:])


def request_for(batch: Batch, target: Target, ids: Ids) -> Request:
    """The request that delivers a batch of anything but models, which take several: see ``models``.

    Raises:
        Unencodable, UndeliverableName, NotProxied: it cannot be said to this server.
    """
    run_id, workspace = target.server_run_id, target.workspace
    entities = [piece.entity for piece in batch.pieces]
    match batch.action:
        case Action.PARAM:
            return requests.log_batch(run_id, params=entities, workspace=workspace)
        case Action.METRIC:
            return requests.log_batch(run_id, metrics=[_linked(point, ids) for point in entities], workspace=workspace)
        case Action.TAG:
            return requests.log_batch(run_id, tags=[_renamed(tag, ids) for tag in entities], workspace=workspace)
        case Action.DATASET:
            return requests.log_inputs(run_id, [_resourced(given, ids) for given in entities], workspace=workspace)
        case Action.DELETE_TAG:
            return requests.delete_tag(run_id, entities[0], workspace=workspace)
        case Action.UPDATE:
            return _update(run_id, entities[0], workspace)
        case Action.UPLOAD:
            return requests.put_artifact(target.artifact_uri, entities[0].path, workspace)
        case Action.DELETE_ARTIFACT:
            return requests.delete_artifact(target.artifact_uri, entities[0].path, workspace)
        case _:
            raise ValueError(f"{batch.action} is no single request")


def texts_with_ids(batch: Batch) -> Iterator[str]:
    """The texts of a batch in which MLflow writes ids: what they name must be known before ``request_for``."""
    if batch.action is Action.METRIC and "model_id" not in batch.pieces[0].entity:
        return  # nor have the others one: see ``_goes_with``
    for piece in batch.pieces:
        if batch.action is Action.TAG and piece.entity["key"] in ID_TAGS:
            yield str(piece.entity["value"])
        elif batch.action is Action.METRIC and "model_id" in piece.entity:
            yield str(piece.entity["model_id"])
        elif batch.action is Action.DATASET:
            yield str(piece.entity["dataset"]["source"])


def _update(run_id: str, update: RunUpdate, workspace: str | None) -> Request:
    # How a run ended is said when everything of it has arrived, whoever said it and when: see ``closing``.
    status = update.status if update.status in ("RUNNING", "SCHEDULED") else None
    return requests.update_run(
        run_id, status=status, end_time=update.end_time, run_name=update.run_name, workspace=workspace
    )


def _renamed(tag: Entity, ids: Ids) -> Entity:
    """A tag in which MLflow wrote ids names the server's."""
    return {**tag, "value": rewrite_tag(str(tag["key"]), str(tag["value"]), ids)}


def _linked(point: Entity, ids: Ids) -> Entity:
    model_id = point.get("model_id")
    return point if model_id is None else {**point, "model_id": ids.model(str(model_id)) or model_id}


def _resourced(given: Entity, ids: Ids) -> Entity:
    dataset: Any = given["dataset"]
    source = rewrite(str(dataset["source"]), ids)
    return given if source == dataset["source"] else {**given, "dataset": {**dataset, "source": source}}


def _most(piece: Piece) -> int:
    if piece.action is Action.METRIC and "model_id" in piece.entity:
        return _MAX_MODEL_METRICS
    return _MOST.get(piece.action, 1)


def _goes_with(first: Piece, piece: Piece) -> bool:
    same = piece.action is first.action
    return same and (first.action is not Action.METRIC or ("model_id" in piece.entity) == ("model_id" in first.entity))


def _conflicts(piece: Piece, taken: list[Piece]) -> bool:
    """The server refuses a batch that names one param twice; apart, the second is accepted if it says the same."""
    return piece.action is Action.PARAM and any(piece.name == other.name for other in taken)


class _Paths:
    """Paths that come first."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._folders: set[str] = set()

    def add(self, path: str) -> None:
        if path not in self._paths:
            self._paths.add(path)
            self._folders.update(_folders(path))

    def touch(self, path: str) -> bool:
        """Whether one of them is this path, lies in it or holds it."""
        return path in self._paths or path in self._folders or not self._paths.isdisjoint(_folders(path))


@lru_cache(maxsize=16 * _FILES_LOOKED_AT)
def _folders(path: str) -> tuple[str, ...]:
    """Every folder that holds a path. Remembered, since each file is looked at many times before its turn."""
    parts = path.strip("/").split("/")
    return tuple("/".join(parts[:count]) for count in range(1, len(parts)))


def _remove(ready: deque[Piece], chosen: Piece) -> None:
    for index, piece in enumerate(ready):
        if piece is chosen:
            del ready[index]
            return
