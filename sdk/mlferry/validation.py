"""Names and texts as MLflow accepts them. Owns the rules and the set of names known to be good; writes nothing.

The rules are those of ``mlflow.utils.validation`` 3.17.2; a test runs both side by side. One is stricter here: a name that
ends in a line break passes MLflow's ``$`` and no user ever meant it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlferry import limits
from mlferry.errors import BadArtifactPath, BadExperiment, BadKey, BadRunId, BadText, MlferryError, TextTooLong
from mlferry.guard import explained
from mlferry_spool.templates import Template, template

__all__ = [
    "KNOWN_KEYS",
    "TEMPLATES",
    "artifact_path",
    "check_experiment_name",
    "check_key",
    "check_run_id",
    "entries",
    "learn_metric",
    "param_text",
    "partition",
    "readable",
    "tag_text",
]

_KEY = re.compile(r"[/\w.\- :]*")
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)

#: Names that passed ``check_key`` in this process: the hot path looks here first.
KNOWN_KEYS: set[str] = set()

#: What ``learn_metric`` made of those that are metrics' names.
TEMPLATES: dict[str, Template] = {}


def check_key(key: Any) -> str:
    """A metric's, param's or tag's name.

    Raises:
        BadKey: MLflow would refuse it.
    """
    if type(key) is str and key in KNOWN_KEYS:
        return key
    if not isinstance(key, str):
        raise BadKey(f"a text is expected, not {type(key).__name__}")
    if not _KEY.fullmatch(key) or _resolves_elsewhere(key):
        raise BadKey(f"{key!r:.100}")
    if len(key) > limits.MAX_KEY_CHARS:
        raise BadKey(f"{key[:40]!r}... has {len(key)} characters")
    if len(KNOWN_KEYS) >= limits.MAX_KNOWN_KEYS:
        KNOWN_KEYS.clear()
        TEMPLATES.clear()
    KNOWN_KEYS.add(str(key))
    return str(key)


def learn_metric(key: Any) -> str:
    """A metric's name, whose template is made the first time. Raises BadKey."""
    name = check_key(key)
    if name not in TEMPLATES:
        TEMPLATES[name] = template(name)
    return name


def _resolves_elsewhere(key: str) -> bool:
    """MLflow may keep entries as files, so a name must be the path that it resolves to."""
    normal = posixpath.normpath(key)
    return normal != key or normal == "." or normal.startswith(("..", "/"))


def param_text(key: str, value: Any, *, truncate: bool, warn: Callable[[str], None]) -> str:
    """A param's value as MLflow keeps it: ``str(value)``, cut at 6000 characters.

    Raises:
        TextTooLong: it is longer, and ``truncate`` is off.
        BadText: it cannot be encoded.
    """
    return _fit(f"param {key}", _text(value), limits.MAX_PARAM_CHARS, truncate, warn)


def tag_text(key: str, value: Any, *, truncate: bool, warn: Callable[[str], None]) -> str:
    """A tag's value: ``str(value)``, cut at 8000 characters. Raises as ``param_text``."""
    return _fit(f"tag {key}", _text(value), limits.MAX_TAG_CHARS, truncate, warn)


def _text(value: Any) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadText(str(error)) from None
    return text


def _fit(what: str, text: str, limit: int, truncate: bool, warn: Callable[[str], None]) -> str:
    if len(text) <= limit:
        return text
    if not truncate:
        raise TextTooLong(f"{what} has {len(text)} characters, the limit is {limit}")
    warn(f"{what} has {len(text)} characters; it is cut at {limit}, which is what MLflow keeps")
    return text[:limit]


def readable(value: Any) -> str:
    """A text that UTF-8 can hold, of anything: the environment carries other bytes as lone surrogates."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def entries(mapping: Any) -> tuple[list[tuple[Any, Any]], list[MlferryError]]:
    """The entries of what a user gave as a mapping; or the error, where it is none or fails when it is asked for them."""
    try:
        if isinstance(mapping, Mapping):
            return [(key, value) for key, value in mapping.items()], []
        return [], [BadKey(f"a mapping is expected, not {type(mapping).__name__}")]
    except Exception as error:  # whatever somebody else's class raises
        return [], [explained(error, BadKey)]


def partition(
    items: Iterable[tuple[Any, Any]], accept: Callable[[Any, Any], Any]
) -> tuple[dict[str, Any], list[MlferryError]]:
    """What ``accept`` makes of each item, and the errors of those it refuses: one bad entry stops only itself."""
    good: dict[str, Any] = {}
    errors: list[MlferryError] = []
    for key, value in items:
        try:
            name = check_key(key)
            good[name] = accept(name, value)
        except Exception as error:  # whatever somebody else's class raises when it is asked for its text
            errors.append(explained(error, BadText))
    return good, errors


def artifact_path(*parts: str | None) -> str:
    """A path inside a run's artifacts, from its parts; ``a//b/./c`` is ``a/b/c``, as MLflow resolves it.

    Raises:
        BadArtifactPath: it leaves the run's artifacts, is empty, or holds what no name should.
    """
    joined = "/".join(str(part) for part in parts if part)
    normal = posixpath.normpath(joined) if joined else ""
    if normal in ("", ".") or normal.startswith("/") or ".." in joined.split("/") or "\\" in joined:
        raise BadArtifactPath(f"{joined!r:.100}")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in joined):
        raise BadArtifactPath(f"{joined!r:.100}")
    return normal


def check_run_id(run_id: Any) -> str:
    """A run id, which is also a directory's name in the spool. Raises BadRunId."""
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise BadRunId(f"{run_id!r:.150}")
    return run_id


def check_experiment_name(name: Any) -> str:
    """An experiment's name. Raises BadExperiment."""
    if not isinstance(name, str) or not 0 < len(name) <= limits.MAX_EXPERIMENT_CHARS or readable(name) != name:
        raise BadExperiment(f"{name!r:.100}")
    return name
