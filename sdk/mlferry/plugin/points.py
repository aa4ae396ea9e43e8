"""MLflow's ``Metric`` entities -> the fields of METRICS records.

Nearly every batch of a training is plain: points of one time and one step, none linked to a model or dataset, under names
that have passed MLflow's validators before. One look over the entities tells, and is its record. It is a look at the fields
behind their properties: each property is a call in Python, and ten metrics have seventy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

__all__ = ["plain", "records"]

_PLAIN = {Metric}


def plain(metrics: Sequence[Metric], good_names: Set[str]) -> tuple[int, int, dict[str, float]] | None:
    """The one record of a batch to which no validator of MLflow's would object; None where they must look.

    Args:
        metrics: what MLflow gave its store.
        good_names: names that have passed its validators.
    """
    if not isinstance(metrics, (list, tuple)) or not 0 < len(metrics) <= MAX_METRICS_PER_BATCH:
        return None
    if set(map(type, metrics)) != _PLAIN:
        return None
    try:
        return _plain([metric.__dict__ for metric in metrics], good_names)
    except (KeyError, AttributeError):  # another MLflow keeps its fields elsewhere, or none in a dictionary
        return None


def _plain(metrics: list[dict[str, Any]], good_names: Set[str]) -> tuple[int, int, dict[str, float]] | None:
    timestamp, step = metrics[0]["_timestamp"], metrics[0]["_step"]
    if not (type(timestamp) is type(step) is int and 0 <= timestamp < 1 << 63 and -(1 << 63) <= step < 1 << 63):
        return None
    points: dict[str, float] = {}
    for fields in metrics:
        key, value = fields["_key"], fields["_value"]
        if not (
            type(key) is str
            and key in good_names
            and type(value) is float
            and fields["_timestamp"] == timestamp
            and fields["_step"] == step
            and fields["_model_id"] is None
            and fields["_dataset_name"] is None
            and fields["_dataset_digest"] is None
        ):
            return None
        points[key] = value
    return (timestamp, step, points) if len(points) == len(metrics) else None


def records(metrics: Iterable[Metric]) -> Iterator[tuple[Any, ...]]:
    """Points of one time, step and links go in one record; two of one name do not."""
    points: dict[str, float] = {}
    head: tuple[Any, ...] | None = None
    for metric in metrics:
        place = (metric.timestamp, metric.step or 0, metric.model_id, metric.dataset_name, metric.dataset_digest)
        key = metric.key
        if place != head or key in points:
            if head is not None:
                yield _fields(head, points)
            head, points = place, {}
        points[key] = float(metric.value)
    if head is not None:
        yield _fields(head, points)


def _fields(head: tuple[Any, ...], points: dict[str, float]) -> tuple[Any, ...]:
    timestamp, step, *links = head
    fields = (int(timestamp), int(step), points)
    return (*fields, *links) if any(links) else fields
