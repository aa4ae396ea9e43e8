"""A run's state -> rows of MLflow's tables but for its points. Pure, given the database's names for what it speaks of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlferry_agent.database.points import LatestRow
from mlferry_agent.limits import MAX_PARAM_VALUE_LENGTH, MAX_TAG_VALUE_LENGTH
from mlferry_agent.rewriting import Ids, rewrite, rewrite_tag
from mlferry_spool.records import Dataset, Open

__all__ = ["TooLong", "cut", "dataset_row", "first_row", "latest_rows", "pair_rows", "tag_rows"]


@dataclass(frozen=True, slots=True)
class TooLong:
    """A value that this MLflow is told not to cut (``MLFLOW_TRUNCATE_LONG_VALUES=false``)."""

    key: str
    reason: str


def cut(values: Mapping[str, str], limit: int) -> tuple[dict[str, str], list[TooLong]]:
    """Values as MLflow keeps them: cut, or refused where it is told not to cut."""
    if all(len(value) <= limit for value in values.values()):
        return dict(values), []
    if os.environ.get("MLFLOW_TRUNCATE_LONG_VALUES", "true").lower() not in ("false", "0"):
        return {key: value[:limit] for key, value in values.items()}, []
    reason = f"it has more than the {limit} characters that MLflow takes"
    refused = [TooLong(key, reason) for key, value in values.items() if len(value) > limit]
    return {key: value for key, value in values.items() if len(value) <= limit}, refused


def first_row(run_id: str, name: str, opening: Open, experiment_id: int, artifact_uri: str) -> dict[str, Any]:
    """A row of ``runs``, of one that goes on."""
    return {
        "run_uuid": run_id,
        "name": name,
        "artifact_uri": artifact_uri,
        "experiment_id": experiment_id,
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "source_version": "",
        "user_id": opening.user,
        "status": "RUNNING",
        "start_time": opening.start_time or opening.opened,
        "lifecycle_stage": "active",
    }


def pair_rows(run_id: str, values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of ``params`` or ``tags``."""
    return [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]


def tag_rows(run_id: str, tags: Mapping[str, str], ids: Ids) -> tuple[list[dict[str, Any]], list[TooLong]]:
    """Rows of ``tags``, in the database's ids where MLflow wrote ids."""
    told, refused = cut({key: rewrite_tag(key, value, ids) for key, value in tags.items()}, MAX_TAG_VALUE_LENGTH)
    return pair_rows(run_id, told), refused


def param_rows(run_id: str, params: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[TooLong]]:
    """Rows of ``params``."""
    told, refused = cut(params, MAX_PARAM_VALUE_LENGTH)
    return pair_rows(run_id, told), refused


def latest_rows(run_id: str, latest: Mapping[str, LatestRow]) -> Iterator[dict[str, Any]]:
    """Rows of ``latest_metrics``."""
    for key, (step, timestamp, value, is_nan) in latest.items():
        yield {
            "run_uuid": run_id,
            "key": key,
            "step": step,
            "timestamp": timestamp,
            "value": value,
            "is_nan": bool(is_nan),
        }


def dataset_row(dataset: Dataset, experiment_id: int, uuid: str, ids: Ids) -> dict[str, Any]:
    """A row of ``datasets``; its long texts were read from the blobs."""
    return {
        "dataset_uuid": uuid,
        "experiment_id": experiment_id,
        "name": dataset.name,
        "digest": dataset.digest,
        "dataset_source_type": dataset.source_type,
        "dataset_source": rewrite(str(dataset.source), ids),
        "dataset_schema": dataset.schema,
        "dataset_profile": dataset.profile,
    }
