"""Logged models: each that was made offline gets exactly one on the server, and every change to it after that.

MLflow makes model ids on the server, and a repeated create makes another model. So it goes as with runs (``identity``): the
model carries its offline id as a tag, and is looked up by it whenever a create may have been carried out: that we are about
to create is written down first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from mlferry_agent import entity_requests as requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import RecordRefused, RunDelayed
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger, ModelRow
from mlferry_agent.requests import get_run
from mlferry_agent.rewriting import LINKED_PROMPTS, rewrite_prompts
from mlferry_spool.records import Inputs, ModelStart, ModelUpdate, Outputs

__all__ = ["MODEL_ID_TAG", "VERSIONS_TAG", "Models", "settled"]

#: On every logged model that mlferry delivers: the id that it had offline.
MODEL_ID_TAG = "mlferry.model_id"

_DONE = (Verdict.ACCEPTED, Verdict.ALREADY)

#: Params of a logged model in one request, as MLflow takes them.
#: Beyond: the rest goes in the next request.
#: Test: tests/e2e/test_models.py::test_a_model_arrives_whole_and_loads_by_its_run_and_by_its_own_id
_PARAMS_AT_ONCE = 100

#: The versions in the registry that were made of a model: the server sets it itself, with its own numbers.
VERSIONS_TAG = "mlflow.modelVersions"


class Models:
    """Finds or makes the server's side of logged models.

    Args:
        start_of: the MODEL_START of a model anywhere in the spool; None if the spool has none.
    """

    def __init__(
        self, ledger: Ledger, courier: Courier, identity: Identity, start_of: Callable[[str], ModelStart | None]
    ) -> None:
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._start_of = start_of
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def known(self, model_id: str, workspace: str | None) -> str:
        """The server's id of a model, which is made there if the spool has it; any other id is the server's own.

        Raises:
            RecordRefused: the server refuses the model. RunDelayed, GaveUp, Misconfigured: the server is unwell.
        """
        row = self._ledger.model(model_id)
        if row is not None and row.server_model_id is not None:
            return row.server_model_id
        start = self._start_of(model_id)
        return model_id if start is None else (await self.place(start, workspace)).server_model_id or model_id

    async def place(self, start: ModelStart, workspace: str | None) -> ModelRow:
        """The server's model for one of the spool. Raises as ``known``."""
        async with self._locks.setdefault(start.model_id, asyncio.Lock()):
            row = self._ledger.model(start.model_id) or ModelRow(start.model_id)
            if row.server_model_id is None:
                row = await self._find_or_create(row, start, workspace)
            return row

    async def _find_or_create(self, row: ModelRow, start: ModelStart, workspace: str | None) -> ModelRow:
        run_id = None if start.source_run_id is None else await self._identity.run(start.source_run_id)
        run = None if start.source_run_id is None else self._ledger.run(start.source_run_id)
        experiment_id = run.experiment_id if run is not None else None
        if experiment_id is None:
            name, offline = start.experiment_name, start.offline_experiment_id
            experiment_id = await self._identity.experiment(workspace, name, offline)
        found = await self._search(start.model_id, experiment_id, workspace)
        if found is None:
            row, found = await self._create(row, start, experiment_id, run_id, workspace)
        info = found.get("info", {})
        row = ModelRow(start.model_id, str(info["model_id"]), str(info.get("artifact_uri", "")))
        return self._put(row)

    async def _create(
        self, row: ModelRow, start: ModelStart, experiment_id: str, run_id: str | None, workspace: str | None
    ) -> tuple[ModelRow, dict[str, Any]]:
        params = dict(list(start.params.items())[:_PARAMS_AT_ONCE])
        tags = {**self._tags(start.tags), MODEL_ID_TAG: start.model_id}
        request = requests.create_model(experiment_id, start.name, start.model_type, run_id, params, tags, workspace)
        attempts = self._courier.attempts()
        while True:
            row = self._put(replace(row, in_doubt=True), durable=True)
            reply = await self._courier.ask_once(request, attempts)
            found = _model(reply)
            if reply.verdict is Verdict.ACCEPTED and found is not None:
                return row, found
            if reply.verdict is not Verdict.RETRY:
                settled(reply)
                raise RunDelayed("the server says that it made the model, and shows none")
            found = await self._search(start.model_id, experiment_id, workspace)
            if found is not None:
                return row, found

    async def _search(self, model_id: str, experiment_id: str, workspace: str | None) -> dict[str, Any] | None:
        reply = await self._courier.ask(requests.search_models_by_tag(experiment_id, MODEL_ID_TAG, model_id, workspace))
        settled(reply)
        models: Any = (json_object(reply.answer.body) or {}).get("models") or []
        return min(models, key=lambda model: model["info"].get("creation_timestamp_ms", 0), default=None)

    # -- changes -------------------------------------------------------------------------------------------------------

    async def begin(self, start: ModelStart, workspace: str | None) -> None:
        """Deliver a MODEL_START. Raises as ``known``."""
        row = await self.place(start, workspace)
        names = list(start.params)[_PARAMS_AT_ONCE:]
        await self._params(row.server_model_id or "", {name: start.params[name] for name in names}, workspace)

    async def change(self, update: ModelUpdate, workspace: str | None) -> None:
        """Deliver a MODEL_UPDATE, but for the file it names. Raises as ``known``."""
        model_id = await self.known(update.model_id, workspace)
        await self._params(model_id, update.params, workspace)
        tags = {key: value for key, value in self._tags(update.tags).items() if key != VERSIONS_TAG}
        if tags:
            settled(await self._courier.ask(requests.set_model_tags(model_id, tags, workspace)))
        for key in update.tags_deleted:
            settled(await self._courier.ask(requests.delete_model_tag(model_id, key, workspace)), gone_is_done=True)
        if update.status is not None and update.status != "PENDING":
            settled(await self._courier.ask(requests.finalize_model(model_id, update.status, workspace)))
        if update.deleted:
            settled(await self._courier.ask(requests.delete_model(model_id, workspace)), gone_is_done=True)

    def _tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        if LINKED_PROMPTS not in tags:
            return dict(tags)
        return {**tags, LINKED_PROMPTS: rewrite_prompts(str(tags[LINKED_PROMPTS]), self._ledger.version_number)}

    async def _params(self, model_id: str, params: Mapping[str, str], workspace: str | None) -> None:
        """What is there already is refused when it is sent again, so that is left out."""
        if not params:
            return
        there = await self._params_of(model_id, workspace)
        names = [name for name in params if name not in there]
        for start in range(0, len(names), _PARAMS_AT_ONCE):
            part = {name: params[name] for name in names[start : start + _PARAMS_AT_ONCE]}
            reply = await self._courier.ask(requests.log_model_params(model_id, part, workspace))
            if reply.verdict not in _DONE and not part.keys() <= await self._params_of(model_id, workspace):
                settled(reply)

    async def _params_of(self, model_id: str, workspace: str | None) -> set[str]:
        reply = await self._courier.ask(requests.get_model(model_id, workspace))
        data: Any = (_model(reply) or {}).get("data") or {}
        return {item["key"] for item in data.get("params") or []}

    async def link(self, server_run_id: str, record: Inputs | Outputs, workspace: str | None) -> None:
        """Deliver the models that a run used or put out. Raises as ``known``."""
        if isinstance(record, Inputs):
            ids = [await self.known(model_id, workspace) for model_id in record.model_ids]
            settled(await self._courier.ask(requests.log_model_inputs(server_run_id, ids, workspace)))
            return
        outputs = [(await self.known(output.model_id, workspace), output.step) for output in record.models]
        there = await self._outputs(server_run_id, workspace)
        new = [(model_id, step) for model_id, step in outputs if model_id not in there]
        if not new:
            return
        reply = await self._courier.ask(requests.log_outputs(server_run_id, new, workspace))
        # A try whose answer was lost may have been carried out: then the next one was refused.
        if reply.verdict not in _DONE and not {model_id for model_id, _ in new} <= await self._outputs(
            server_run_id, workspace
        ):
            settled(reply)

    async def _outputs(self, server_run_id: str, workspace: str | None) -> set[str]:
        """A model that the run has put out already would be refused."""
        reply = await self._courier.ask(get_run(server_run_id, workspace))
        settled(reply)
        run: Any = (json_object(reply.answer.body) or {}).get("run") or {}
        return {item["model_id"] for item in (run.get("outputs") or {}).get("model_outputs") or []}

    def _put(self, row: ModelRow, *, durable: bool = False) -> ModelRow:
        with self._ledger.transaction(durable=durable):
            self._ledger.put_model(row)
        return row


def settled(reply: Reply, *, gone_is_done: bool = False) -> None:
    """Go on where the request was carried out.

    Raises:
        RunDelayed: the server is unwell. RecordRefused: it will never take this.
    """
    if reply.verdict in _DONE or (gone_is_done and reply.verdict is Verdict.GONE):
        return
    if reply.verdict is Verdict.SUSPECT and not 400 <= reply.judgement.status < 500:
        raise RunDelayed(reply.reason)
    raise RecordRefused(reply.reason)


def _model(reply: Reply) -> dict[str, Any] | None:
    found = (json_object(reply.answer.body) or {}).get("model")
    return found if reply.verdict is Verdict.ACCEPTED and isinstance(found, dict) else None
