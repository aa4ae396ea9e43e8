"""MLflow's ``Metric`` entities -> the fields of METRICS records.

Nearly every batch of a training is plain: points of one time and one step, none linked to a model or dataset, under names
that have passed MLflow's validators before. One look over the entities tells, and is its record. Each look at an attribute
of theirs is a call in Python, and ten metrics have seventy: so an entity is asked for all of them at once, by the fields
that its properties read, as long as these are where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from operator import attrgetter
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

__all__ = ["plain", "records"]

_PLAIN = {Metric}

_NAMES = ("key", "value", "timestamp", "step", "model_id", "dataset_name", "dataset_digest")


def look_of(probe: Metric) -> Callable[[Metric], tuple[Any, ...]]:
    """What looks at the attributes of such an entity: at its fields if they hold what the properties say."""
    fields = [f"_{name}" for name in _NAMES]
    by_property = attrgetter(*_NAMES)
    is_as_known = by_property(probe) == tuple(vars(probe).get(field) for field in fields)
    return attrgetter(*fields) if is_as_known else by_property


_look = look_of(Metric("key", 0.5, 1, 2, model_id="m", dataset_name="d", dataset_digest="e"))


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
    looked = list(map(_look, metrics))
    _, _, timestamp, step, *_ = looked[0]
    if not (type(timestamp) is type(step) is int and 0 <= timestamp < 1 << 63 and -(1 << 63) <= step < 1 << 63):
        return None
    points: dict[str, float] = {}
    for key, value, its_timestamp, its_step, model_id, dataset_name, dataset_digest in looked:
        if not (
            type(key) is str
            and key in good_names
            and type(value) is float
            and its_timestamp == timestamp
            and its_step == step
            and model_id is dataset_name is dataset_digest is None
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
