"""Ids of the spool -> ids of the server, in the texts in which MLflow itself writes ids. Pure.

Where MLflow writes ids (mlflow 3.17: ``mlflow/models/model.py``, ``tracking/_model_registry/fluent.py``,
``utils/mlflow_tags.py``): ``run_id``, ``model_id``, ``model_uuid`` and ``artifact_path`` in an ``MLmodel`` file; the tags
below; URIs ``runs:/<id>/...`` and ``models:/m-<id>`` in sources of datasets and of model versions; and artifact URIs, which
offline begin with ``spool:``. Prompts are linked by name and number in a tag and in an attribute of spans; the plugin adds
the uid of the version there, since the server numbers anew.
What a user wrote, params above all, is never touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ID_TAGS", "LINKED_PROMPTS", "Ids", "ids_in", "rewrite", "rewrite_mlmodel", "rewrite_prompts", "rewrite_tag"]

#: Tags whose value holds ids that MLflow wrote.
ID_TAGS = frozenset(
    {
        "mlflow.parentRunId",
        "mlflow.rootRunId",
        "mlflow.sourceRun",
        "mlflow.modelId",
        "mlflow.log-model.history",
        "mlflow.datasets",
        "mlflow.artifactLocation",
    }
)

#: A tag of runs, models and traces, and an attribute of spans: the versions of prompts that were used.
LINKED_PROMPTS = "mlflow.linkedPrompts"

_RUN = r"(?<![0-9A-Za-z_-])[0-9a-f]{32}(?![0-9A-Za-z_-])"
_MODEL = r"(?<![0-9A-Za-z_-])m-[0-9a-f]{32}(?![0-9A-Za-z_-])"
_ANY = re.compile(f"(?P<model>{_MODEL})|(?P<run>{_RUN})")
_PLACE = re.compile(
    r"spool:/{1,3}[^\s\"'?#]*?/artifacts/(?P<experiment>[\w-]+)/(?:(?P<kind>models|traces)/)?(?P<id>[\w.-]+)/artifacts"
)
_LINE = re.compile(r"^(?P<key>run_id|model_id|model_uuid|artifact_path):(?P<value> .*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ids:
    """The server's names for things of the spool; each answers None for what it does not know.

    ``run`` and ``model`` map ids; ``run_artifacts`` and ``model_artifacts`` map an id to the artifact URI on the server;
    ``version`` maps the uid of a version of a registered model or prompt to its number there.
    """

    run: Callable[[str], str | None]
    model: Callable[[str], str | None]
    run_artifacts: Callable[[str], str | None]
    model_artifacts: Callable[[str], str | None]
    version: Callable[[str], str | None]


def ids_in(text: str) -> tuple[set[str], set[str]]:
    """What looks like run ids and model ids in a text: what must be known before it is rewritten."""
    runs: set[str] = set()
    models: set[str] = set()
    for found in _ANY.finditer(text):
        (models if found["model"] else runs).add(found[0])
    for place in _PLACE.finditer(text):
        (models if place["kind"] == "models" else runs).add(place["id"])
    return runs, models


def rewrite(text: str, ids: Ids) -> str:
    """A text with every id and place of the spool in it as the server calls it; what is unknown stays."""

    def place(found: re.Match[str]) -> str:
        look = ids.model_artifacts if found["kind"] == "models" else ids.run_artifacts
        return (look(found["id"]) if found["kind"] != "traces" else None) or found[0]

    def name(found: re.Match[str]) -> str:
        return (ids.model if found["model"] else ids.run)(found[0]) or found[0]

    return _ANY.sub(name, _PLACE.sub(place, text))


def rewrite_tag(key: str, value: str, ids: Ids) -> str:
    """The value of a tag as the server would have it: where MLflow wrote ids, with the server's."""
    if key == LINKED_PROMPTS:
        return rewrite_prompts(value, ids.version)
    return (ids.run(value) or rewrite(value, ids)) if key in ID_TAGS else value


def rewrite_prompts(value: str, version: Callable[[str], str | None]) -> str:
    """Linked prompts under the numbers that ``version`` knows by their uids, and without uids, which MLflow has not."""
    try:
        linked: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(linked, list) or not any(isinstance(one, dict) and "uid" in one for one in linked):
        return value
    return json.dumps([_numbered(one, version) if isinstance(one, dict) else one for one in linked])


def _numbered(prompt: dict[str, Any], version: Callable[[str], str | None]) -> dict[str, Any]:
    told = {key: value for key, value in prompt.items() if key != "uid"}
    number = version(str(prompt["uid"])) if "uid" in prompt else None
    return told if number is None else {**told, "version": number}


def rewrite_mlmodel(content: bytes, ids: Ids) -> bytes:
    """An ``MLmodel`` file that speaks of the server's ids; every line that names none stays as it is, to the byte."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return _LINE.sub(lambda line: f"{line['key']}:{rewrite(line['value'], ids)}", text).encode()
