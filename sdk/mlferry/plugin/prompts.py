"""Versions of prompts that runs, models, traces and spans name: by number for MLflow, by uid as well in the spool.

MLflow links a prompt by ``[{"name": ..., "version": ...}]`` in a tag or an attribute. A version's number is this spool's own
and becomes another on the server, so each entry is kept with the uid of the version's creation, which nobody who reads the
spool through MLflow sees. Delivery knows the server's number by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mlferry.limits import MAX_TAG_CHARS
from mlferry.plugin.registry_fold import Registry

__all__ = ["LINKED_PROMPTS", "uid_of", "with_uids", "without_uids"]

LINKED_PROMPTS = "mlflow.linkedPrompts"


def uid_of(registry: Registry, name: str, version: int | str) -> str | None:
    """The uid of a version of a prompt; None if this spool did not make it."""
    state = registry.models().get(name)
    found = (one.uid for one in (state.versions if state is not None else ()) if str(one.version) == str(version))
    return next(found, None)


def with_uids(value: str, registry: Registry) -> str:
    """Linked prompts as the spool keeps them. Anything but what MLflow itself writes stays as it is."""

    def known(prompt: dict[str, Any]) -> dict[str, Any]:
        uid = uid_of(registry, str(prompt["name"]), str(prompt["version"]))
        return prompt if uid is None else {**prompt, "uid": uid}

    told = _each(value, lambda prompt: known(prompt) if prompt.keys() == {"name", "version"} else prompt)
    return told if len(told) <= MAX_TAG_CHARS else value


def without_uids(value: str) -> str:
    """Linked prompts as MLflow knows them."""
    return _each(value, lambda prompt: {key: text for key, text in prompt.items() if key != "uid"})


def _each(value: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    try:
        linked: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(linked, list) or not all(isinstance(one, dict) for one in linked):
        return value
    return json.dumps([change(one) for one in linked]) if json.dumps(linked) == value else value
