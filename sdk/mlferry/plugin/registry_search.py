"""Searching registered models and versions, with the semantics of MLflow's SQL store. Pure.

Filters and orders are parsed by MLflow's own utilities; what they mean is told here, because MLflow's own evaluation of
them is its file store's, which orders and refuses otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.search_utils import SearchModelUtils, SearchModelVersionUtils, SearchUtils

from mlferry.plugin.search import invalid

__all__ = ["models_found", "page_of", "versions_found"]

_EQUAL = ("=", "!=", "LIKE", "ILIKE")
_TEXT = (*_EQUAL, "IN", "NOT IN")
_OF_A_VERSION = {"source_path": "source", "version_number": "version"}
_NEWEST_FIRST = ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]


def models_found(
    models: list[RegisteredModel], filter_string: str | None, order_by: list[str] | None
) -> list[RegisteredModel]:
    """Registered models that meet the filter, in order. Raises MlflowException as MLflow's SQL store."""
    clauses = SearchModelUtils.parse_search_filter(filter_string)
    for clause in clauses:
        _check_text(clause)
    fields = [_order_of_models(clause) for clause in order_by or ()]
    _once(fields, order_by)
    prompts = _asks_for_prompts(clauses)
    found = [
        model
        for model in models
        if _is_prompt(model._tags) == prompts and _all_met(clauses, model._tags, _attributes_of(model))
    ]
    return _sorted(found, [*fields, ("name", True)])


def versions_found(
    known: Iterable[tuple[ModelVersion, bool]], filter_string: str | None, order_by: list[str] | None
) -> list[ModelVersion]:
    """Versions that meet the filter, in order; ``known`` tells of each whether it is a prompt's.
    Raises MlflowException as MLflow's SQL store."""
    clauses = SearchModelVersionUtils.parse_search_filter(filter_string)
    for clause in clauses:
        _check_of_version(clause)
    fields = [_order_of_versions(clause) for clause in order_by or _NEWEST_FIRST]
    _once(fields, order_by)
    prompts = _asks_for_prompts(clauses)
    found = [
        version
        for version, is_prompt in known
        if (prompts or not is_prompt) and _all_met(clauses, version.tags, _attributes_of(version))
    ]
    return _sorted(found, [*fields, ("name", True), ("version", False)])


def page_of(found: list[Any], max_results: int, page_token: str | None) -> PagedList[Any]:
    """One page. The SQL store asks for one result more than a page holds, and has a next page if it gets that many."""
    offset = SearchUtils.parse_start_offset_from_page_token(page_token)
    rest = found[offset : offset + max_results + 1] if max_results >= 0 else []
    token = SearchUtils.create_page_token(offset + max_results) if len(rest) == max_results + 1 else None
    return PagedList(rest[: max(max_results, 0)], token)


# -- filters -----------------------------------------------------------------------------------------------------------


def _check_text(clause: Mapping[str, Any]) -> None:
    kind, comparator = clause["type"], clause["comparator"]
    if comparator not in (_TEXT if kind == "attribute" else _EQUAL):
        raise invalid(f"Invalid comparator for {kind}: {comparator}")


def _check_of_version(clause: Mapping[str, Any]) -> None:
    key, comparator, value = clause["key"], clause["comparator"], clause["value"]
    if clause["type"] != "attribute" or key not in SearchModelVersionUtils.NUMERIC_ATTRIBUTES:
        _check_text(clause)
    elif comparator not in SearchModelVersionUtils.VALID_NUMERIC_ATTRIBUTE_COMPARATORS:
        raise invalid(f"Invalid comparator for attribute {key}: {comparator}")
    elif isinstance(value, float) or not _is_whole(value):
        raise invalid(f"Invalid value for numeric attribute '{key}': {value!r}")


def _is_whole(value: Any) -> bool:
    try:
        int(value)
    except (TypeError, ValueError):
        return False
    return True


def _all_met(clauses: list[dict[str, Any]], tags: Mapping[str, str], attribute: Callable[[str], Any]) -> bool:
    return all(
        _met(clause, tags.get(clause["key"]) if clause["type"] == "tag" else attribute(clause["key"]))
        for clause in clauses
        if clause["key"] != IS_PROMPT_TAG_KEY or clause["type"] != "tag"
    )


def _met(clause: Mapping[str, Any], known: Any) -> bool:
    """What is not there meets nothing, not even that it differs."""
    if known is None:
        return False
    comparator, value = clause["comparator"], clause["value"]
    if comparator in ("IN", "NOT IN"):
        return bool((known in value) == (comparator == "IN"))
    compare = SearchUtils.get_comparison_func(comparator)
    return bool(compare(known, int(value) if isinstance(known, int) else value))


def _attributes_of(entity: Any) -> Callable[[str], Any]:
    return lambda key: getattr(entity, _OF_A_VERSION.get(key, key))


def _asks_for_prompts(clauses: list[dict[str, Any]]) -> bool:
    told = [clause for clause in clauses if clause["type"] == "tag" and clause["key"] == IS_PROMPT_TAG_KEY]
    return bool(told) and (told[0]["comparator"], told[0]["value"].lower()) in (("=", "true"), ("!=", "false"))


def _is_prompt(tags: Mapping[str, str]) -> bool:
    return tags.get(IS_PROMPT_TAG_KEY) == "true"


# -- orders ------------------------------------------------------------------------------------------------------------


def _order_of_models(clause: str) -> tuple[str, bool]:
    key, ascending = SearchUtils.parse_order_by_for_search_registered_models(clause)
    return ("name" if key == "name" else "last_updated_timestamp"), ascending


def _order_of_versions(clause: str) -> tuple[str, bool]:
    _, key, ascending = SearchModelVersionUtils.parse_order_by_for_search_model_versions(clause)
    known = SearchModelVersionUtils.VALID_ORDER_BY_ATTRIBUTE_KEYS
    if key not in known:
        raise invalid(f"Invalid order by key '{key}' specified. Valid keys are {known}")
    return _OF_A_VERSION.get(key, key), ascending


def _once(fields: list[tuple[str, bool]], order_by: list[str] | None) -> None:
    if len({key for key, _ in fields}) < len(fields):
        raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")


def _sorted(found: list[Any], fields: list[tuple[str, bool]]) -> list[Any]:
    for key, ascending in reversed(fields):
        found = sorted(found, key=attrgetter(key), reverse=not ascending)
    return found
