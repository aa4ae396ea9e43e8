"""What waits to be delivered of one run, by lane, and how far each writer's log is acknowledged in each lane. Pure.

A run's records go to the server in lanes, so that a checkpoint of 10 GB does not hold up the loss curve: each lane is in
order, lanes do not wait for each other. A record (``Item``) becomes one or more pieces (one param, one metric point, one
file); it is acknowledged when each of them is settled: delivered, or set aside in quarantine.

What may be stored for a writer in a lane is the offset of its first record there that is not yet acknowledged, or, with none
outstanding, as far as the log was read.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mlferry_spool.records import Kind, ModelUpdate

__all__ = ["CONTROL", "Action", "Item", "Lane", "LaneQueue", "Piece", "lane_of"]

#: What one lane may hold in memory. Records (all, or those of requests on their way too) and pieces that are ready: a few
#: requests' worth of metrics. Bytes: one dataset may have 16 MB.
#: Beyond: the log is not read on until something is acknowledged.
#: Test: tests/unit/agent/test_lanes.py::test_many_records_or_points_or_bytes_fill_a_lane_until_they_are_settled,
#: tests/unit/agent/test_feeds.py::test_a_long_log_is_read_only_as_fast_as_it_is_delivered
_MOST_RECORDS, _MOST_PIECES, _MOST_BYTES = 2_000, 2_000, 32 << 20


class Lane(enum.Enum):
    """The lanes in the order in which a run's small requests are sent."""

    PARAMS = "params"
    ATTRIBUTES = "attributes"
    MODELS = "models"
    METRICS = "metrics"
    INPUTS = "inputs"
    ARTIFACTS = "artifacts"
    OTHER = "other"


_LANE_OF: dict[int, Lane] = {
    Kind.PARAMS: Lane.PARAMS,
    Kind.TAGS: Lane.ATTRIBUTES,
    Kind.TAGS_DELETED: Lane.ATTRIBUTES,
    Kind.RUN_UPDATE: Lane.ATTRIBUTES,
    Kind.METRICS: Lane.METRICS,
    Kind.SERIES: Lane.METRICS,
    Kind.SERIES_NARROW: Lane.METRICS,
    Kind.INPUTS: Lane.INPUTS,
    Kind.ARTIFACT: Lane.ARTIFACTS,
    Kind.ARTIFACT_DELETED: Lane.ARTIFACTS,
    Kind.OUTPUTS: Lane.MODELS,
    Kind.MODEL_START: Lane.MODELS,
    Kind.MODEL_UPDATE: Lane.MODELS,
    Kind.EXPERIMENT: Lane.OTHER,
    Kind.REGISTRY: Lane.OTHER,
    Kind.TRACE: Lane.OTHER,
    Kind.SPANS: Lane.OTHER,
}


def lane_of(kind: int, record: object) -> Lane:
    """The lane of a record. A file of a model goes with the files, so that it does not hold up the model's metrics."""
    if isinstance(record, ModelUpdate) and record.artifact_path is not None:
        return Lane.ARTIFACTS
    return _LANE_OF.get(kind, Lane.OTHER)


#: Kinds that speak about the log or the run's life, not about what a user logged.
CONTROL = frozenset({Kind.OPEN, Kind.RUN_END, Kind.DROPPED, Kind.SEGMENT_END, Kind.HEARTBEAT})


class Action(enum.Enum):
    """What one piece asks of the server."""

    PARAM = "param"
    TAG = "tag"
    DELETE_TAG = "delete tag"
    UPDATE = "run update"
    METRIC = "metric"
    DATASET = "dataset"
    UPLOAD = "artifact"
    DELETE_ARTIFACT = "delete artifact"
    MODEL = "model"
    MODEL_LINK = "model link"
    MODEL_FILE = "model file"


@dataclass(slots=True, eq=False)
class Item:
    """A record in a lane; ``left`` pieces are not settled yet, ``delivered`` were taken by the server. ``is_whole``: all
    of its pieces are in the lane, or were; a series comes in parts."""

    writer_id: str
    offset: int
    kind: int
    left: int = 0
    delivered: int = 0
    is_whole: bool = True

    @property
    def is_settled(self) -> bool:
        return self.is_whole and not self.left


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One thing to deliver. ``name`` is what a person calls it; ``size`` its bytes in a request or on disk."""

    item: Item
    action: Action
    name: str
    entity: Any
    size: int


@dataclass(slots=True)
class LaneQueue:
    """One lane of one run."""

    lane: Lane
    ready: deque[Piece] = field(default_factory=deque)
    _items: dict[str, deque[Item]] = field(default_factory=dict)
    _records: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)

    def add(self, item: Item, pieces: list[Piece], *, more: bool = False) -> int:
        """Queue a record's pieces, in order of the writer's log: all of them, or a part, with ``more`` to come. Returns
        how many records are acknowledged by that: those of which the last part holds nothing to deliver."""
        items = self._items.setdefault(item.writer_id, deque())
        if item.is_whole:  # else its first part has brought it
            items.append(item)
            self._records += 1
        item.left += len(pieces)
        item.is_whole = not more
        self.ready.extend(pieces)
        self._bytes += sum(piece.size for piece in pieces)
        return self._acknowledge(items)

    def settle(self, piece: Piece, *, delivered: bool) -> int:
        """A piece was delivered or set aside. Returns how many records of its writer are acknowledged by that.

        Records count in the order of the log: one that was settled early waits for those before it, so that what is
        counted and what the stored cursor covers are the same.
        """
        piece.item.left -= 1
        piece.item.delivered += delivered
        self._bytes -= piece.size
        return self._acknowledge(self._items[piece.item.writer_id])

    def _acknowledge(self, items: deque[Item]) -> int:
        acknowledged = 0
        while items and items[0].is_settled:
            acknowledged += items.popleft().delivered > 0
            self._records -= 1
        return acknowledged

    def acknowledged(self, writer_id: str, read: int) -> int:
        """Every record of the writer before this offset is settled, given that its log was read up to ``read``."""
        items = self._items.get(writer_id)
        return items[0].offset if items else read

    @property
    def outstanding(self) -> int:
        """Records queued or in flight."""
        return self._records

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read for now. The bytes of artifacts stay on disk and do not count."""
        if self._records >= _MOST_RECORDS or len(self.ready) >= _MOST_PIECES:
            return True
        return self._bytes >= _MOST_BYTES and self.lane is not Lane.ARTIFACTS
