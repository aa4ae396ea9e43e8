"""Operations on registered models, in order of time -> what the registry holds.

Versions number themselves as they come; the numbers are provisional, since the server numbers them anew when they are
delivered. So every operation on a version names it by the uid that its creation gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlferry_spool.records import RegistryOperation

__all__ = ["DELETED", "RegisteredState", "Registry", "VersionState", "fold"]

#: The stage of a version that is there no more; its number is not used again.
DELETED = "Deleted_Internal"


@dataclass(slots=True)
class VersionState:
    """A version of a registered model. Times are Unix milliseconds."""

    uid: str
    version: int
    created: int
    updated: int
    source: str | None
    storage: str | None
    run_id: str | None = None
    run_link: str | None = None
    model_id: str | None = None
    description: str | None = None
    stage: str = "None"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class RegisteredState:
    """A registered model. ``aliases``: alias -> version number."""

    name: str
    created: int
    updated: int
    description: str | None = None
    deployment_job_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    versions: list[VersionState] = field(default_factory=list)

    def find(self, uid: object) -> VersionState | None:
        return next((version for version in self.versions if version.uid == uid), None)


class Registry:
    """What the registry holds now, folded anew when there are more operations. ``operations``: all of them, in order."""

    def __init__(self, operations: Callable[[], list[RegistryOperation]]) -> None:
        self._operations = operations
        self._folded: tuple[int, dict[str, RegisteredState]] = (-1, {})

    def models(self) -> dict[str, RegisteredState]:
        """Every registered model by its name."""
        operations = self._operations()
        if self._folded[0] != len(operations):
            self._folded = len(operations), fold(operations)
        return self._folded[1]


def fold(operations: Iterable[RegistryOperation]) -> dict[str, RegisteredState]:
    """Every registered model by its name."""
    models: dict[str, RegisteredState] = {}
    for operation in operations:
        _apply(models, operation)
    return models


def _apply(models: dict[str, RegisteredState], operation: RegistryOperation) -> None:
    name, details, now = operation.name, operation.details, operation.timestamp
    if operation.operation == "create_registered_model":
        state = RegisteredState(name, now, now, details.get("description"), details.get("deployment_job_id"))
        models.setdefault(name, state).tags.update(details.get("tags", {}))
    elif name in models:
        if operation.operation == "delete_registered_model":
            del models[name]
        elif operation.operation == "rename_registered_model":
            _rename(models, name, str(details["new_name"]), now)
        elif "version" in operation.operation or operation.operation.endswith("stage"):
            _apply_to_version(models[name], operation, details, now)
        else:
            _apply_to_model(models[name], operation.operation, details, now)


def _rename(models: dict[str, RegisteredState], name: str, new_name: str, now: int) -> None:
    state = models.pop(name)
    state.name, state.updated = new_name, now
    for version in state.versions:
        version.updated = now
    models[new_name] = state


def _apply_to_model(state: RegisteredState, operation: str, details: dict[str, Any], now: int) -> None:
    match operation:
        case "update_registered_model":
            state.description, state.updated = details.get("description"), now
        case "set_registered_model_tag":
            state.tags[details["key"]] = details["value"]
        case "delete_registered_model_tag":
            state.tags.pop(details["key"], None)
        case "set_registered_model_alias":
            version = state.find(details["uid"])
            if version is not None:
                state.aliases[details["alias"]] = version.version
        case "delete_registered_model_alias":
            state.aliases.pop(details["alias"], None)


def _apply_to_version(state: RegisteredState, record: RegistryOperation, details: dict[str, Any], now: int) -> None:
    if record.operation == "create_model_version":
        state.updated = now
        state.versions.append(_created(state, record, details))
        return
    version = state.find(details.get("uid"))
    if version is None:
        return
    match record.operation:
        case "update_model_version":
            version.description, version.updated = details.get("description"), now
        case "transition_model_version_stage":
            _transition(state, version, details, now)
        case "delete_model_version":
            version.stage, version.updated, state.updated = DELETED, now, now
            state.aliases = {alias: number for alias, number in state.aliases.items() if number != version.version}
        case "set_model_version_tag":
            version.tags[details["key"]] = details["value"]
        case "delete_model_version_tag":
            version.tags.pop(details["key"], None)


def _created(state: RegisteredState, record: RegistryOperation, details: dict[str, Any]) -> VersionState:
    number = max((version.version for version in state.versions), default=0) + 1
    made = VersionState(record.uid or "", number, record.timestamp, record.timestamp, details.get("source"), None)
    made.storage = details.get("storage") or made.source
    made.run_id, made.run_link, made.model_id = details.get("run_id"), details.get("run_link"), details.get("model_id")
    made.description, made.tags = details.get("description"), dict(details.get("tags", {}))
    return made


def _transition(state: RegisteredState, version: VersionState, details: dict[str, Any], now: int) -> None:
    if details.get("archive_existing_versions"):
        for other in state.versions:
            if other is not version and other.stage == details["stage"]:
                other.stage, other.updated = "Archived", now
    version.stage, version.updated, state.updated = details["stage"], now, now
