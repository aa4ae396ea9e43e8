"""What a good answer of each endpoint looks like, as far as the agent reads it.

Whatever stands between the agent and MLflow may answer 200 with JSON of its own (a gateway, a mock, a hostile server). An
answer of another shape is none: nothing behind this gate has to doubt a field that is listed here. Fields that nobody reads
are not looked at, and no value is judged by its meaning. Pure.

A shape is a check, a list of one shape, or an object's fields; a name that ends in ``?`` may be absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from mlferry_agent.limits import INT64_MAX, INT64_MIN

__all__ = ["has_shape", "is_shaped"]

Check: TypeAlias = Callable[[Any], bool]
Shape: TypeAlias = Any  # Check | list[Shape] | dict[str, Shape], which a type alias cannot say of itself


def has_shape(method: str, endpoint: str) -> bool:
    """Whether the agent reads anything of an endpoint's answers; ``endpoint`` is its path below ``mlflow/``."""
    return _shape_of(method, endpoint) is not None


def is_shaped(method: str, endpoint: str, answer: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what such an endpoint answers with."""
    return _fits(answer, _shape_of(method, endpoint) or {})


def _shape_of(method: str, endpoint: str) -> Shape | None:
    return next((shape for of, path, shape in _SHAPES if method == of and path.fullmatch(endpoint)), None)


def _fits(value: Any, shape: Shape) -> bool:
    if isinstance(shape, list):
        return type(value) is list and all(_fits(item, shape[0]) for item in value)
    if not isinstance(shape, dict):
        return bool(shape(value))
    if type(value) is not dict:
        return False
    for field, below in shape.items():
        name = field.removesuffix("?")
        if name not in value:
            if name == field:
                return False
        elif not _fits(value[name], below):
            return False
    return True


def _text(value: Any) -> bool:
    """A text that a database and a URL can hold: no lone surrogates."""
    try:
        return type(value) is str and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _whole(value: Any) -> bool:
    return type(value) is int and INT64_MIN <= value <= INT64_MAX


def _id(value: Any) -> bool:
    return _whole(value) or (_text(value) and value != "")


def _number(value: Any) -> bool:
    """A whole number, also one that is written as a text."""
    return _whole(value) or (type(value) is str and re.fullmatch(r"-?[0-9]{1,18}", value) is not None)


def _value(value: Any) -> bool:
    """A metric's value: NaN and the infinities are written as texts."""
    try:
        return type(value) in (int, float, str) and float(value) is not None
    except (ValueError, OverflowError):
        return False


_PAIRS = [{"key": _text, "value?": _text}]
_FULL_PAIRS = [{"key": _text, "value": _text}]
_INFO = {"run_id": _text, "artifact_uri?": _text, "experiment_id?": _id, "lifecycle_stage?": _text}
_MODELS = [{"model_id": _text}]
_RUN = {
    "info": _INFO,
    "data?": {"params?": _FULL_PAIRS, "tags?": _FULL_PAIRS, "metrics?": [{}]},
    "inputs?": {"dataset_inputs?": [{"dataset": {"name": _text, "digest": _text}}], "model_inputs?": _MODELS},
    "outputs?": {"model_outputs?": _MODELS},
}
_FOUND_RUN = {**_RUN, "info": {**_INFO, "start_time": _whole}}
_MODEL = {
    "info": {"model_id": _text, "artifact_uri?": _text, "tags?": _PAIRS, "creation_timestamp_ms?": _whole},
    "data?": {"params?": _PAIRS},
}
_EXPERIMENT = {"experiment": {"experiment_id": _id, "lifecycle_stage?": _text}}
_TRACE = {
    "trace?": {"trace_info?": {"tags?": {}, "assessments?": [{"assessment_id?": _text, "metadata?": {}}]}},
}
_POINTS = [{"value": _value, "timestamp": _number, "step?": _number}]

_SHAPES: tuple[tuple[str, re.Pattern[str], Shape], ...] = tuple(
    (method, re.compile(pattern), shape)
    for method, pattern, shape in (
        ("POST", "runs/create", {"run": _RUN}),
        ("GET", "runs/get", {"run": _RUN}),
        ("POST", "runs/search", {"runs?": [_FOUND_RUN]}),
        ("GET", "experiments/get(-by-name)?", _EXPERIMENT),
        ("POST", "experiments/create", {"experiment_id": _id}),
        ("GET", "metrics/get-history", {"metrics?": _POINTS, "next_page_token?": _text}),
        ("POST", "logged-models", {"model": _MODEL}),
        ("GET", "logged-models/[^/]+", {"model": _MODEL}),
        ("POST", "logged-models/search", {"models?": [_MODEL]}),
        ("POST", "model-versions/create", {"model_version": {"version": _number}}),
        ("GET", "model-versions/search", {"model_versions?": [{"version": _number}]}),
        ("GET", "traces/[^/]+", _TRACE),
    )
)
