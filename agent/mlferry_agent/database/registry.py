"""Registered models, prompts and their versions: each operation once in effect, by MLflow's own registry.

Operations on one name, under whatever names it had, are a line of their own. How far a line was told stands as a tag on the
registered model; a version is known by the uid of its creation, as in delivery. So what was told before is not told again,
and what its owner has changed since in the database (an alias, a description) stays.

MLflow's server looks at where a version says that its files are before it believes it. That check stands before the store,
so it is repeated here: a place on this machine must be one that the database itself gave to the run or the model.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlferry_agent import encoding
from mlferry_agent.database.marks import MARK_TAG, mark_of, told_before
from mlferry_agent.database.models import LoggedModels
from mlferry_agent.database.opening import Database
from mlferry_agent.database.places import Places
from mlferry_agent.database.report import Report
from mlferry_agent.discovery import STORE
from mlferry_agent.errors import RecordRefused, RunParked, Unencodable
from mlferry_agent.registrations import VERSION_UID_TAG
from mlferry_agent.rewriting import rewrite
from mlferry_spool.records import RegistryOperation

__all__ = ["Line", "Registry", "lines"]

_EXPERIMENT_IDS, _RUN_IDS = "_mlflow_experiment_ids", "mlflow.prompt.associatedRunIds"

_MODEL_SOURCE = re.compile(r"models:/(m-[0-9a-f]{32})/?")

#: What it comes to when the details of an operation, which may be anything, are not those that such an operation has.
_MISSHAPEN = (TypeError, ValueError, KeyError, AttributeError, RecursionError)


@dataclass(slots=True)
class Line:
    """The operations on one registered model, in order, and the names that it had; the last one is its name now."""

    names: list[str]
    operations: list[RegistryOperation] = field(default_factory=list)
    is_deleted: bool = False


def lines(operations: list[RegistryOperation]) -> list[Line]:
    """Operations by what they are about: a model keeps its line when it is renamed, and ends it when it is deleted."""
    found: list[Line] = []
    current: dict[str, Line] = {}
    for one in operations:
        line = current.get(one.name)
        if line is None:
            line = current[one.name] = Line([one.name])
            found.append(line)
        line.operations.append(one)
        if one.operation == "rename_registered_model":
            line.names.append(str(one.details.get("new_name")))
            current[line.names[-1]] = current.pop(one.name)
        elif one.operation == "delete_registered_model":
            line.is_deleted = True
            del current[one.name]
    return found


class Registry:
    """Tells a database's registry what the spool registered."""

    def __init__(self, database: Database, places: Places, models: LoggedModels, report: Report) -> None:
        self._database, self._places, self._models, self._report = database, places, models, report
        self._store = database.registry

    def carry(self, operations: list[RegistryOperation]) -> None:
        """Bring every registered model to what the spool has made of it; what cannot be is set aside."""
        for line in lines(operations):
            self._carry(line)

    def _carry(self, line: Line) -> None:
        name, told = self._told(line)
        if told == len(line.operations) or (line.is_deleted and not told):
            self._report.there["registry operations"] += len(line.operations)
            return
        whole = True
        for one in line.operations[told:]:
            if one.operation == "rename_registered_model" and name in line.names[line.names.index(one.name) + 1 :]:
                continue
            whole &= self._try(replace(one, name=name))
            if one.operation == "rename_registered_model" and whole:
                name = str(one.details.get("new_name"))
        if whole and not line.is_deleted:
            from mlflow.entities.model_registry import RegisteredModelTag

            self._store.set_registered_model_tag(line.names[-1], RegisteredModelTag(MARK_TAG, mark_of(line.operations)))

    def _told(self, line: Line) -> tuple[str, int]:
        """Under which of its names the database has it from an earlier import, and how many of its operations it was told:
        none if one came in between, and then all are told again to what it is called now."""
        for name in reversed(line.names):
            found = self._find(name)
            if found is not None and MARK_TAG in found.tags:
                return name, told_before(line.operations, found.tags[MARK_TAG])
        return line.names[0], 0

    def _find(self, name: str) -> Any:
        try:
            return self._store.get_registered_model(name)
        except Exception as error:
            if type(error).__name__ != "MlflowException":
                raise
            return None

    def _try(self, one: RegistryOperation) -> bool:
        """Tell one operation; False if it had to be set aside."""
        try:
            self._apply(one)
        except (RecordRefused, RunParked, Unencodable) as error:
            reason = error.reason
        except _MISSHAPEN as error:
            reason = f"its details are not those of such an operation ({type(error).__name__}: {error!s:.200})"
        except Exception as error:
            if type(error).__name__ != "MlflowException":
                raise
            if _is_done(one, error):
                return True
            reason = f"{error!s:.300}"
        else:
            self._report.rows["registry operations"] += 1
            return True
        self._report.set_apart(STORE, "registry", f"{one.operation} {one.name}", reason)
        return False

    def _apply(self, one: RegistryOperation) -> None:
        """Raises MlflowException, RecordRefused, RunParked, Unencodable."""
        act = getattr(self, f"_{one.operation}", None) if one.operation in _OPERATIONS else None
        if act is None:
            raise RecordRefused(f"{one.operation!r} is no operation of a model registry")
        act(one, {str(key): value for key, value in one.details.items()})

    # -- registered models ----------------------------------------------------------------------------------------------

    def _create_registered_model(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        from mlflow.entities.model_registry import RegisteredModelTag

        tags = [RegisteredModelTag(key, self._text(one.name, key, value)) for key, value in _tags(details).items()]
        self._store.create_registered_model(encoding.text(one.name, "name"), tags, details.get("description"))

    def _update_registered_model(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.update_registered_model(one.name, encoding.text(str(details["description"]), "description"))

    def _rename_registered_model(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        new = encoding.text(str(details["new_name"]), "name")
        if self._find(one.name) is None and self._find(new) is not None:
            return
        self._store.rename_registered_model(one.name, new)
        self._places.versions = {
            uid: (new if name == one.name else name, number) for uid, (name, number) in self._places.versions.items()
        }

    def _delete_registered_model(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.delete_registered_model(one.name)

    def _set_registered_model_tag(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        from mlflow.entities.model_registry import RegisteredModelTag

        key = str(details["key"])
        self._store.set_registered_model_tag(
            one.name, RegisteredModelTag(key, self._text(one.name, key, details["value"]))
        )

    def _delete_registered_model_tag(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.delete_registered_model_tag(one.name, str(details["key"]))

    def _set_registered_model_alias(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.set_registered_model_alias(one.name, str(details["alias"]), self._number(details))

    def _delete_registered_model_alias(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.delete_registered_model_alias(one.name, str(details["alias"]))

    def _text(self, name: str, key: str, value: Any) -> str:
        """The value of a tag in the database's ids."""
        text = encoding.text(str(value), "tag value")
        if key == MARK_TAG:
            raise RecordRefused("mlferry itself sets this tag")
        if key == _EXPERIMENT_IDS:
            found = self._find(name)
            there = "" if found is None else str(found.tags.get(key, ""))
            told = [str(self._places.experiment(one, None).experiment_id) for one in text.split(",") if one]
            return f",{','.join(dict.fromkeys([*(one for one in there.split(',') if one), *told]))},"
        return ",".join(self._places.run(one) for one in text.split(",")) if key == _RUN_IDS else text

    # -- versions -------------------------------------------------------------------------------------------------------

    def _number(self, details: Mapping[str, Any]) -> str:
        """The database's number of the version that these details mean."""
        uid = details.get("uid")
        if uid is None and "version" in details:
            return str(int(details["version"]))
        if uid is None or str(uid) not in self._places.versions:
            raise RecordRefused("the version that this is about is not in the database")
        return self._places.versions[str(uid)][1]

    def _create_model_version(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        from mlflow.entities.model_registry import ModelVersionTag

        if one.uid is None:
            raise RecordRefused("the creation of a model version has no uid, so it could not be told from another")
        if one.uid in self._places.versions:
            return
        source = encoding.text(str(details.get("source") or ""), "source")
        named = _MODEL_SOURCE.fullmatch(source)
        model_id = details.get("model_id") or (named[1] if named else None)
        model_id = None if not model_id else self._places.model(str(model_id))
        run_id = self._places.run(str(details["run_id"])) if details.get("run_id") else None
        source = rewrite(source, self._places.ids)
        tags = {
            **{key: encoding.text(value, "tag value") for key, value in _tags(details).items()},
            VERSION_UID_TAG: one.uid,
        }
        self._check_source(source, run_id, model_id, is_prompt="mlflow.prompt.text" in tags)
        version = self._store.create_model_version(
            one.name,
            source,
            run_id=run_id,
            tags=[ModelVersionTag(key, value) for key, value in tags.items()],
            run_link=details.get("run_link") or "",  # as through a server, whose protobuf knows no absent text
            description=details.get("description") or "",
            model_id=model_id,
        )
        self._places.versions[one.uid] = (one.name, str(version.version))
        self._report.rows["model versions"] += 1
        if model_id is not None:
            self._database.store.set_model_versions_tags(name=one.name, version=version.version, model_id=model_id)

    def _check_source(self, source: str, run_id: str | None, model_id: str | None, *, is_prompt: bool) -> None:
        """Raises RecordRefused: the version would hand out files of this machine that are none of its run or model."""
        parts = urllib.parse.urlsplit(source)
        if parts.scheme not in ("", "file") or is_prompt:
            if ".." in urllib.parse.unquote(parts.path).split("/"):
                raise RecordRefused("its source leads out of where it begins")
            return
        ids = self._places.ids
        own = [ids.run_artifacts(run_id) if run_id else None, ids.model_artifacts(model_id) if model_id else None]
        path = posixpath.normpath(urllib.parse.unquote(parts.path))
        roots = [urllib.parse.unquote(urllib.parse.urlsplit(uri).path).rstrip("/") for uri in own if uri]
        if not any(root and f"{path}/".startswith(f"{root}/") for root in roots):
            raise RecordRefused("its source is a place on this machine that is none of its run or model")

    def _update_model_version(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        text = encoding.text(str(details["description"]), "description")
        self._store.update_model_version(one.name, self._number(details), text)

    def _transition_model_version_stage(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        others = bool(details.get("archive_existing_versions"))
        self._store.transition_model_version_stage(one.name, self._number(details), str(details["stage"]), others)

    def _delete_model_version(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        self._store.delete_model_version(one.name, self._number(details))

    def _set_model_version_tag(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        from mlflow.entities.model_registry import ModelVersionTag

        key = str(details["key"])
        if key == VERSION_UID_TAG:
            raise RecordRefused("mlferry itself sets this tag")
        tag = ModelVersionTag(key, self._text(one.name, key, details["value"]))
        self._store.set_model_version_tag(one.name, self._number(details), tag)

    def _delete_model_version_tag(self, one: RegistryOperation, details: Mapping[str, Any]) -> None:
        if details.get("key") != VERSION_UID_TAG:
            self._store.delete_model_version_tag(one.name, self._number(details), str(details["key"]))


_OPERATIONS = frozenset(
    {
        "create_registered_model",
        "update_registered_model",
        "rename_registered_model",
        "delete_registered_model",
        "set_registered_model_tag",
        "delete_registered_model_tag",
        "set_registered_model_alias",
        "delete_registered_model_alias",
        "create_model_version",
        "update_model_version",
        "transition_model_version_stage",
        "delete_model_version",
        "set_model_version_tag",
        "delete_model_version_tag",
    }
)


def _tags(details: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in dict(details.get("tags") or {}).items()}


def _is_done(one: RegistryOperation, error: Exception) -> bool:
    """Whether the registry refuses what is there already, or gone already."""
    code = str(getattr(error, "error_code", ""))
    if one.operation == "create_registered_model":
        return code == "RESOURCE_ALREADY_EXISTS"
    return one.operation.startswith("delete_") and code == "RESOURCE_DOES_NOT_EXIST"
