"""Strict encoding: what passes here, the server stores as it is; what would not is `Unencodable`.

Owns the form of every entity inside a request body. Never sends, never groups, never repairs a value.

Why this module is strict. MLflow parses a body with protobuf's `ParseDict`, catches the `ParseError`, and carries on
with the half-filled message (server/handlers.py, `_get_request_message`). A field the parser refuses (a step of 2**63,
a step of 1.5, a raw NaN, a number as a param value, a lone surrogate) is therefore answered `200 OK`: the bad entity is
stored mangled and *every entity after it in the body is dropped*. The server cannot be trusted to refuse, so nothing
that its parser refuses may leave here. Beside that stand MLflow's own rules (utils/validation.py), which are answered
400 for the whole batch: checking them here costs one record instead of a bisection.

Long values. A param over 6000 or a tag over 8000 characters is *not* refused: online, the client sends it and the
server cuts it (or refuses it, where MLFLOW_TRUNCATE_LONG_VALUES=false). It is sent on unchanged so that the end is the
same as online under either setting, save that beyond MAX_SENT_VALUE_LENGTH the tail, which no server keeps, stays here.

NUL is refused in every string: SQLite would keep it, PostgreSQL answers 500 for ever.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache

from mlferry_agent import limits
from mlferry_agent.errors import Unencodable

Entity = dict[str, object]

RUN_STATUSES = frozenset({"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"})
"""service.proto RunStatus. Any other word is ignored by the server with 200."""

# utils/validation.py `validate_param_and_metric_name` (POSIX). `\w` is Unicode; `$` lets one trailing newline through.
_KEY = re.compile(r"^[/\w.\- :]*$")

_WORKSPACE = re.compile(r"[A-Za-z0-9._-]{1,255}")


def metric(
    key: str,
    value: float,
    timestamp: int,
    step: int,
    *,
    model_id: str | None = None,
    dataset_name: str | None = None,
    dataset_digest: str | None = None,
) -> Entity:
    """One metric point of a log-batch.

    `timestamp` is in milliseconds since the epoch. NaN and the infinities travel as protobuf's strings; a SQL store
    keeps NaN, and keeps an infinity as +-1.7976931348623157e308.

    Raises:
        Unencodable: bad key; `value` not a number; `timestamp` negative or beyond int64; `step` beyond int64.
    """
    point: Entity = {
        "key": _key(key),
        "value": _double(value),
        "timestamp": _int64(timestamp, "timestamp", minimum=0),
        "step": _int64(step, "step"),
    }
    if model_id is not None:
        point["model_id"] = _text(model_id, "model id")
    if dataset_name is not None:
        point["dataset_name"] = _text(dataset_name, "dataset name", limits.MAX_DATASET_NAME_LENGTH)
    if dataset_digest is not None:
        point["dataset_digest"] = _text(dataset_digest, "dataset digest", limits.MAX_DATASET_DIGEST_LENGTH)
    return point


def param(key: str, value: str) -> Entity:
    """One param of a log-batch; a long value is the server's to cut (see the module).

    Raises:
        Unencodable: bad key; `value` not a string, or with NUL or a lone surrogate.
    """
    return {"key": _key(key), "value": _long_text(value, "param value")}


def tag(key: str, value: str) -> Entity:
    """One run tag of a log-batch, set-tag or runs/create; a long value is the server's to cut (see the module).

    Raises:
        Unencodable: bad key; `value` not a string, or with NUL or a lone surrogate.
    """
    return {"key": _key(key), "value": _long_text(value, "tag value")}


def experiment_tag(key: str, value: str) -> Entity:
    """One tag of an experiment.

    Raises:
        Unencodable: as for `tag`, and when the value is over 20,000 characters, which the server refuses.
    """
    return {"key": _key(key), "value": _text(value, "experiment tag", limits.MAX_EXPERIMENT_TAG_VALUE_LENGTH)}


def dataset_input(
    name: str,
    digest: str,
    source_type: str,
    source: str,
    *,
    schema: str | None = None,
    profile: str | None = None,
    tags: Iterable[tuple[str, str]] = (),
) -> Entity:
    """One dataset of a log-inputs, with the tags of this use of it (`mlflow.data.context`).

    Raises:
        Unencodable: a field is no string or over its limit in `limits`.
    """
    dataset: Entity = {
        "name": _text(name, "dataset name", limits.MAX_DATASET_NAME_LENGTH),
        "digest": _text(digest, "dataset digest", limits.MAX_DATASET_DIGEST_LENGTH),
        "source_type": _text(source_type, "dataset source type"),
        "source": _text(source, "dataset source", limits.MAX_DATASET_SOURCE_LENGTH),
    }
    if schema is not None:
        dataset["schema"] = _text(schema, "dataset schema", limits.MAX_DATASET_SCHEMA_LENGTH)
    if profile is not None:
        dataset["profile"] = _text(profile, "dataset profile", limits.MAX_DATASET_PROFILE_LENGTH)
    return {"dataset": dataset, "tags": [_input_tag(key, value) for key, value in tags]}


def experiment_name(name: str) -> str:
    """`name`, fit for experiments/create.

    Raises:
        Unencodable: empty, over 500 characters, or no proper text.
    """
    return _text(name, "experiment name", limits.MAX_EXPERIMENT_NAME_LENGTH, required=True)


def run_name(name: str) -> str:
    """`name`, fit for runs/create and runs/update.

    Raises:
        Unencodable: longer than the tag that repeats it may be, or no proper text.
    """
    return _text(name, "run name", limits.MAX_TAG_VALUE_LENGTH)


def run_status(status: str) -> str:
    """`status`, one of RUN_STATUSES.

    Raises:
        Unencodable: any other word: the server would answer 200 and change nothing.
    """
    if status not in RUN_STATUSES:
        raise Unencodable(f"{status!r} is not a run status")
    return status


def workspace(name: str) -> str:
    """`name`, fit for the X-MLFLOW-WORKSPACE header. Wider than MLflow's own rule (lower case, digits, dashes).

    Raises:
        Unencodable: empty, over 255 characters, or with anything but ASCII letters, digits and `. _ -`.
    """
    if not _WORKSPACE.fullmatch(_text(name, "workspace")):
        raise Unencodable("the workspace name cannot be put into a header")
    return name


def text(value: str, what: str) -> str:
    """`value` if it is a string without NUL or lone surrogates; `what` names it in the reason.

    Raises:
        Unencodable: otherwise.
    """
    return _text(value, what)


def milliseconds(value: int, what: str) -> int:
    """`value` if it is an int64; `what` names it in the reason.

    Raises:
        Unencodable: otherwise: beyond int64 the server answers 200 and stores 0.
    """
    return _int64(value, what)


def dumps(body: object) -> bytes:
    """Compact UTF-8 JSON without NaN or Infinity literals, which are no JSON and which the server swallows with 200.

    Raises:
        Unencodable: a non-finite float, a lone surrogate, or something JSON has no word for.
    """
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Unencodable(f"no JSON: {type(error).__name__}") from error


def _key(key: str) -> str:
    """Runs name the same few keys again and again: checked once, a key costs a look-up."""
    return _checked_key(key) if type(key) is str else _text(key, "key")


@lru_cache(maxsize=4096)
def _checked_key(key: str) -> str:
    _text(key, "key", limits.MAX_KEY_LENGTH, required=True)
    if not _KEY.match(key):
        raise Unencodable(f"key {_shown(key)}: only letters, digits, space and / . - _ : are allowed")
    normal = posixpath.normpath(key)
    if normal != key or normal == "." or normal.startswith(("..", "/")):
        raise Unencodable(f"key {_shown(key)}: as a path it would mean {_shown(normal)}")
    return key


def _double(value: float) -> float | str:
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unencodable(f"metric value is a {type(value).__name__}, not a number")
    try:
        number = float(value)
    except OverflowError:
        raise Unencodable("metric value is beyond a 64-bit float") from None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _int64(value: int, what: str, minimum: int = limits.INT64_MIN) -> int:
    if type(value) is int and minimum <= value <= limits.INT64_MAX:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unencodable(f"{what} is a {type(value).__name__}, not an integer")
    if not minimum <= value <= limits.INT64_MAX:
        raise Unencodable(f"{what} is outside {minimum}..{limits.INT64_MAX}")
    return int(value)


def _text(value: str, what: str, limit: int | None = None, *, required: bool = False) -> str:
    if not isinstance(value, str):
        raise Unencodable(f"{what} is a {type(value).__name__}, not a string")
    if required and not value:
        raise Unencodable(f"{what} is empty")
    if limit is not None and len(value) > limit:
        raise Unencodable(f"{what} has {len(value)} characters, MLflow takes {limit}")
    if "\0" in value:
        raise Unencodable(f"{what} contains a NUL character")
    if not _is_unicode(value):
        raise Unencodable(f"{what} contains a lone surrogate, which is no Unicode text")
    return value


def _long_text(value: str, what: str) -> str:
    return _text(value, what)[: limits.MAX_SENT_VALUE_LENGTH]


def _input_tag(key: str, value: str) -> Entity:
    return {
        "key": _text(key, "dataset tag key", limits.MAX_INPUT_TAG_KEY_LENGTH),
        "value": _text(value, "dataset tag value", limits.MAX_INPUT_TAG_VALUE_LENGTH),
    }


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 80 else value[:80] + "...")
