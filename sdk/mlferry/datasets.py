"""Datasets -> INPUTS records. Owns MLflow's view of a dataset: name, digest, source, schema, profile; and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlferry import limits
from mlferry.errors import BadDataset
from mlferry_spool import records
from mlferry_spool.records import BlobRef

__all__ = ["Dataset", "dataset_record"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset to log with ``log_input``, for those who have no ``mlflow.data`` at hand.

    Attributes:
        name: at most 500 characters.
        digest: what tells this content from another, at most 36 characters.
        source: where it came from, for people to read; nothing ever opens it.
        source_type: MLflow's word for the kind of source, such as ``local``, ``http``, ``s3``, ``hugging_face``.
        schema, profile: JSON texts, or None.
    """

    name: str
    digest: str
    source: str = ""
    source_type: str = "local"
    schema: str | None = None
    profile: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """The fields by name, as ``mlflow.data.Dataset.to_dict`` gives them."""
        return {name: getattr(self, name) for name in self.__slots__}


def dataset_record(
    dataset: Any, context: str | None, tags: Mapping[str, Any] | None, keep: Callable[[str], BlobRef]
) -> records.Dataset:
    """A dataset as the spool keeps it.

    Args:
        dataset: ours, an ``mlflow.data`` Dataset, or MLflow's dataset entity.
        context: such as ``training``; it becomes the input tag ``mlflow.data.context``.
        keep: puts a text too long for a record into a blob.

    Raises:
        BadDataset: it is none of these, or beyond MLflow's limits.
    """
    given = _described(dataset)
    return records.Dataset(
        name=_fit("name", given.get("name"), limits.MAX_DATASET_NAME_CHARS),
        digest=_fit("digest", given.get("digest"), limits.MAX_DATASET_DIGEST_CHARS),
        source_type=_fit("source_type", given.get("source_type"), limits.MAX_DATASET_DIGEST_CHARS),
        source=_long("source", given.get("source") or "", limits.MAX_DATASET_SOURCE_CHARS, keep),
        schema=_optional("schema", given.get("schema"), limits.MAX_DATASET_SCHEMA_CHARS, keep),
        profile=_optional("profile", given.get("profile"), limits.MAX_DATASET_PROFILE_CHARS, keep),
        tags=_input_tags(context, tags or {}),
    )


def _described(dataset: Any) -> Mapping[str, Any]:
    try:
        if hasattr(dataset, "_to_mlflow_entity"):
            dataset = dataset._to_mlflow_entity()
        for method in ("to_dictionary", "to_dict"):
            if hasattr(dataset, method):
                described: Mapping[str, Any] = getattr(dataset, method)()
                return described
    except Exception as error:  # whatever somebody else's dataset raises when it describes itself
        raise BadDataset(f"{error!s:.200}") from None
    raise BadDataset(f"a dataset is expected, not {type(dataset).__name__}")


def _fit(what: str, text: Any, limit: int) -> str:
    if not isinstance(text, str):
        raise BadDataset(f"{what} is {type(text).__name__}, not a text")
    if len(text) > limit:
        raise BadDataset(f"{what} has {len(text)} characters, the limit is {limit}")
    return text


def _long(what: str, text: Any, limit: int, keep: Callable[[str], BlobRef]) -> str | BlobRef:
    fitting = _fit(what, text, limit)
    return fitting if len(fitting) <= limits.MAX_INLINE_CHARS else keep(fitting)


def _optional(what: str, text: Any, limit: int, keep: Callable[[str], BlobRef]) -> str | BlobRef | None:
    return None if text is None else _long(what, text, limit, keep)


def _input_tags(context: str | None, tags: Mapping[str, Any]) -> dict[str, str]:
    given = {str(key): str(value) for key, value in tags.items()}
    if context:
        given["mlflow.data.context"] = context
    for key, value in given.items():
        _fit("the name of an input tag", key, limits.MAX_INPUT_TAG_KEY_CHARS)
        _fit(f"input tag {key}", value, limits.MAX_INPUT_TAG_CHARS)
    return given
