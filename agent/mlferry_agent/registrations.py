"""Registered models and their versions: each operation once in effect, with the server's names for what it speaks of.

Only the creation of a version makes another one when it is repeated. So it goes as with runs (``identity``): the version
carries a tag with the uid of its creation, that we are about to create is written down first, and after an answer that did
not come it is looked up by that tag. All else may be repeated: what is there already, or gone already, is done.
Version numbers of the spool are provisional; operations name a version by its uid, and the ledger knows its number.

Two tags of prompts hold ids that MLflow wrote: of experiments, which are added to those that the server's prompt of this
name has already, as MLflow's client would, and of runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlferry_agent import entity_requests as requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.encoding import Entity
from mlferry_agent.errors import RecordRefused, RunDelayed
from mlferry_agent.experiments import Experiments
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger, VersionRow
from mlferry_agent.models import Models, settled
from mlferry_agent.rewriting import rewrite
from mlferry_agent.uploads import Uploads
from mlferry_spool.records import RegistryOperation

__all__ = ["VERSION_UID_TAG", "Registrations"]

#: On every model version that mlferry delivers: the uid of its creation.
VERSION_UID_TAG = "mlferry.version_uid"

_EXPERIMENT_IDS, _RUN_IDS = "_mlflow_experiment_ids", "mlflow.prompt.associatedRunIds"

_MODEL_SOURCE = re.compile(r"models:/(m-[0-9a-f]{32})/?")

#: Operation -> method, endpoint, what of the details goes into the body, and whether it is about a version.
_SIMPLE: dict[str, tuple[str, str, tuple[str, ...], bool]] = {
    "update_registered_model": ("PATCH", "registered-models/update", ("description",), False),
    "rename_registered_model": ("POST", "registered-models/rename", ("new_name",), False),
    "delete_registered_model": ("DELETE", "registered-models/delete", (), False),
    "set_registered_model_tag": ("POST", "registered-models/set-tag", ("key", "value"), False),
    "delete_registered_model_tag": ("DELETE", "registered-models/delete-tag", ("key",), False),
    "set_registered_model_alias": ("POST", "registered-models/alias", ("alias",), True),
    "delete_registered_model_alias": ("DELETE", "registered-models/alias", ("alias",), False),
    "update_model_version": ("PATCH", "model-versions/update", ("description",), True),
    "transition_model_version_stage": (
        "POST",
        "model-versions/transition-stage",
        ("stage", "archive_existing_versions"),
        True,
    ),
    "delete_model_version": ("DELETE", "model-versions/delete", (), True),
    "set_model_version_tag": ("POST", "model-versions/set-tag", ("key", "value"), True),
    "delete_model_version_tag": ("DELETE", "model-versions/delete-tag", ("key",), True),
}


class Registrations:
    """Delivers REGISTRY records."""

    def __init__(
        self,
        ledger: Ledger,
        courier: Courier,
        identity: Identity,
        models: Models,
        uploads: Uploads,
        experiments: Experiments,
    ) -> None:
        self._experiments = experiments
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._models = models
        self._uploads = uploads

    async def apply(self, record: RegistryOperation, workspace: str | None) -> None:
        """Deliver one operation.

        Raises:
            RecordRefused, Unencodable: it can never be delivered. RunDelayed, GaveUp, Misconfigured: the server is unwell.
        """
        if record.operation == "create_registered_model":
            settled(await self._courier.ask(_creation(record, workspace)))
        elif record.operation == "create_model_version":
            await self._create(record, workspace)
        elif record.operation in _SIMPLE:
            await self._change(record, workspace)
        else:
            raise RecordRefused(f"{record.operation!r} is no operation of a model registry")

    async def _change(self, record: RegistryOperation, workspace: str | None) -> None:
        method, endpoint, fields, is_about_version = _SIMPLE[record.operation]
        body: Entity = {"name": record.name, **{key: record.details[key] for key in fields if key in record.details}}
        if "key" in body and "value" in body:
            body["value"] = await self._tag(record.name, str(body["key"]), str(body["value"]), workspace)
        if is_about_version:
            body["version"] = self.number(record.details)
        reply = await self._courier.ask(requests.registry(method, endpoint, body, workspace))
        if record.operation == "rename_registered_model" and reply.verdict is not Verdict.ACCEPTED:
            if reply.verdict is not Verdict.GONE or not await self._is_there(str(body.get("new_name")), workspace):
                raise RecordRefused(reply.reason)
            return
        settled(reply, gone_is_done=method == "DELETE")

    async def _tag(self, name: str, key: str, value: str, workspace: str | None) -> str:
        """The value of a tag in the server's ids."""
        if key == _EXPERIMENT_IDS:
            told = [await self._experiments.known(one, workspace) for one in value.split(",") if one]
            there = await self._tag_of(name, key, workspace)
            return f",{','.join(dict.fromkeys([*(one for one in there.split(',') if one), *told]))},"
        if key == _RUN_IDS:
            return ",".join([await self._identity.run(one) for one in value.split(",")])
        return value

    async def _tag_of(self, name: str, key: str, workspace: str | None) -> str:
        found = await self._courier.ask(requests.get_registered_model(name, workspace))
        model: Any = (json_object(found.answer.body) or {}).get("registered_model") or {}
        return next((str(tag["value"]) for tag in model.get("tags") or [] if tag.get("key") == key), "")

    def number(self, details: Mapping[str, Any]) -> str:
        """The server's number of the version that these details mean. Raises ``RecordRefused``."""
        uid = details.get("uid")
        if uid is None and "version" in details:
            return str(details["version"])
        row = None if uid is None else self._ledger.version(str(uid))
        if row is None or row.version is None:
            raise RecordRefused("the version that this is about was not delivered")
        return row.version

    async def _is_there(self, name: str, workspace: str | None) -> bool:
        found = await self._courier.ask(requests.get_registered_model(name, workspace))
        return found.verdict is Verdict.ACCEPTED

    # -- versions -------------------------------------------------------------------------------------------------------

    async def _create(self, record: RegistryOperation, workspace: str | None) -> None:
        if record.uid is None:
            raise RecordRefused("the creation of a model version has no uid, so it could not be told from another")
        row = self._ledger.version(record.uid) or VersionRow(record.uid, record.name)
        if row.version is not None:
            return
        # Another life of this agent, with another ledger, may have made it.
        found = await self._search(record, workspace)
        if found is None:
            row, found = await self._make(row, record, workspace)
        self._put(replace(row, version=str(found["version"]), in_doubt=False))

    async def _make(
        self, row: VersionRow, record: RegistryOperation, workspace: str | None
    ) -> tuple[VersionRow, Mapping[str, Any]]:
        source, details = await self._translated(record, workspace)
        tags = {str(key): str(value) for key, value in dict(record.details.get("tags") or {}).items()}
        tags[VERSION_UID_TAG] = str(record.uid)
        request = requests.create_version(record.name, source, details, tags, workspace)
        attempts = self._courier.attempts()
        while True:
            row = self._put(replace(row, in_doubt=True), durable=True)
            reply = await self._courier.ask_once(request, attempts)
            found = _version(reply)
            if found is not None:
                return row, found
            if reply.verdict is not Verdict.RETRY:
                settled(reply)
                raise RunDelayed("the server says that it made the model version, and shows none")
            found = await self._search(record, workspace)
            if found is not None:
                return row, found

    async def _translated(self, record: RegistryOperation, workspace: str | None) -> tuple[str, dict[str, Any]]:
        """The source and the other details of a creation, in the server's ids."""
        details = dict(record.details)
        source = str(details.get("source") or "")
        await self._uploads.know(source, workspace)
        named = _MODEL_SOURCE.fullmatch(source)
        model_id = details.get("model_id") or (named[1] if named is not None else None)
        if model_id:
            details["model_id"] = await self._models.known(str(model_id), workspace)
        if details.get("run_id"):
            details["run_id"] = await self._identity.run(str(details["run_id"]))
        return rewrite(source, self._uploads.ids), details

    async def _search(self, record: RegistryOperation, workspace: str | None) -> Mapping[str, Any] | None:
        """The oldest version that this creation made. Raises as ``apply``."""
        request = requests.search_versions_by_tag(record.name, VERSION_UID_TAG, str(record.uid), workspace)
        reply = await self._courier.ask(request)
        settled(reply)
        found: Any = (json_object(reply.answer.body) or {}).get("model_versions") or []
        return min(found, key=lambda version: int(version["version"]), default=None)

    def _put(self, row: VersionRow, *, durable: bool = False) -> VersionRow:
        with self._ledger.transaction(durable=durable):
            self._ledger.put_version(row)
        return row


def _creation(record: RegistryOperation, workspace: str | None) -> Any:
    tags = [{"key": key, "value": str(value)} for key, value in dict(record.details.get("tags") or {}).items()]
    body: Entity = {"name": record.name, "tags": tags}
    if record.details.get("description"):
        body["description"] = record.details["description"]
    return requests.registry("POST", "registered-models/create", body, workspace)


def _version(reply: Reply) -> Mapping[str, Any] | None:
    found = (json_object(reply.answer.body) or {}).get("model_version")
    return found if reply.verdict is Verdict.ACCEPTED and isinstance(found, dict) else None
