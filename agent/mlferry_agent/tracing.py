"""Traces and their spans. Trace ids are MLflow's client's own and stay, so what is sent again is the same trace.

Assessments get their ids from the server, and a repeated creation makes another one. Each carries the id that it had
offline in its metadata and is looked for by that first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlferry_agent import entity_requests as requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier
from mlferry_agent.errors import RecordRefused
from mlferry_agent.experiments import Experiments
from mlferry_agent.identity import Identity
from mlferry_agent.models import settled
from mlferry_agent.otlp import change_attributes
from mlferry_agent.planner import Target
from mlferry_agent.rewriting import ID_TAGS, LINKED_PROMPTS, rewrite_prompts, rewrite_tag
from mlferry_agent.uploads import Uploads
from mlferry_spool.records import Artifact, Spans, Trace

__all__ = ["ASSESSMENT_ID_KEY", "Tracing"]

#: In the metadata of every assessment that mlferry delivers: the id that it had offline.
ASSESSMENT_ID_KEY = "mlferry.assessment_id"

_ARTIFACTS = "mlflow.artifactLocation"
_EXPERIMENT_ID = "mlflow.experimentId"


class Tracing:
    """Delivers TRACE and SPANS records.

    Args:
        place_of: (offline experiment id, its name) of a trace in this spool.
        number_of: the server's number of a model version that a record names (``Registrations.number``).
    """

    def __init__(
        self,
        courier: Courier,
        identity: Identity,
        experiments: Experiments,
        uploads: Uploads,
        place_of: Any,
        number_of: Callable[[Mapping[str, Any]], str],
    ) -> None:
        self._courier = courier
        self._identity = identity
        self._experiments = experiments
        self._uploads = uploads
        self._place_of = place_of
        self._number_of = number_of

    async def spans(self, record: Spans, workspace: str | None) -> None:
        """Deliver spans. Raises as ``change``."""
        experiment_id = await self._experiment(record.trace_id, workspace)
        offline_id, _ = self._place_of(record.trace_id)

        def named(name: str, text: str) -> str | None:
            if name == _EXPERIMENT_ID and text == offline_id:
                return experiment_id
            return rewrite_prompts(text, self._uploads.ids.version) if name == LINKED_PROMPTS else None

        otlp = change_attributes(record.otlp, named)
        settled(await self._courier.ask(requests.upload_spans(otlp, experiment_id, workspace)))

    async def file(self, record: Artifact, directory: Path, workspace: str | None) -> None:
        """Deliver a file of a trace, ``traces/<trace id>/...``: its spans, as MLflow kept them before 3.4. Raises as
        ``change``, and as ``Uploads.upload``."""
        _, trace_id, path = f"{record.path}//".split("/", 2)
        reply = await self._courier.ask(requests.trace("GET", f"/{quote(trace_id, safe='')}", None, workspace))
        settled(reply)
        trace: Any = (json_object(reply.answer.body) or {}).get("trace") or {}
        location = str((trace.get("trace_info") or {}).get("tags", {}).get(_ARTIFACTS, ""))
        named = replace(record, path=path.rstrip("/"))
        settled(await self._uploads.upload(named, directory, Target("", location, workspace)))

    async def change(self, record: Trace, workspace: str | None) -> None:
        """Deliver a change to a trace.

        Raises:
            RecordRefused, Unencodable: it can never be delivered. RunDelayed, GaveUp, Misconfigured: the server is unwell.
        """
        path, info = f"/{quote(record.trace_id, safe='')}", record.info
        match record.operation:
            case None:
                settled(await self._courier.ask(requests.start_trace(await self._info(record, workspace), workspace)))
            case "locate":
                await self._experiment(record.trace_id, workspace)
            case "set_tag":
                value = info.get("value")
                told = await self._texts({str(info.get("key")): "" if value is None else value}, workspace)
                for key, text in told.items():
                    body: dict[str, Any] = {"key": key, "value": text}
                    settled(await self._courier.ask(requests.trace("PATCH", f"{path}/tags", body, workspace)))
            case "delete_tag":
                body = {"key": str(info.get("key"))}
                reply = await self._courier.ask(requests.trace("DELETE", f"{path}/tags", body, workspace))
                settled(reply, gone_is_done=True)
            case "link":
                run_id = await self._identity.run(str(info.get("run_id")))
                linked: dict[str, Any] = {"trace_ids": [record.trace_id], "run_id": run_id}
                settled(await self._courier.ask(requests.link_traces(linked, workspace)))
            case "link_prompts":
                used: dict[str, Any] = {"trace_id": record.trace_id, "prompt_versions": self._prompts(record)}
                settled(await self._courier.ask(requests.link_prompts(used, workspace)))
            case "assess":
                await self._assess(record, workspace)
            case "delete":
                experiment_id = await self._experiment(record.trace_id, workspace)
                gone: dict[str, Any] = {"experiment_id": experiment_id, "request_ids": [record.trace_id]}
                reply = await self._courier.ask(requests.delete_traces(gone, workspace))
                settled(reply, gone_is_done=True)
            case other:
                raise RecordRefused(f"{other!r} is no operation on a trace")

    async def _experiment(self, trace_id: str, workspace: str | None) -> str:
        offline_id, name = self._place_of(trace_id)
        return await self._experiments.place(offline_id, name, workspace)

    async def _info(self, record: Trace, workspace: str | None) -> dict[str, Any]:
        experiment_id = await self._experiment(record.trace_id, workspace)
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        info = {**record.info, "trace_id": record.trace_id, "trace_location": place}
        info.pop("assessments", None)
        milliseconds = info.pop("execution_duration_ms", None)
        if isinstance(milliseconds, int):  # the API knows it as a protobuf Duration
            info["execution_duration"] = f"{milliseconds // 1000}.{milliseconds % 1000:03}s"
        for part in ("tags", "trace_metadata"):
            info[part] = await self._texts(dict(info.get(part) or {}), workspace)
        return info

    async def _texts(self, texts: Mapping[str, Any], workspace: str | None) -> dict[str, str]:
        told = {key: str(value) for key, value in texts.items() if key != _ARTIFACTS}
        for key in told.keys() & ID_TAGS:
            await self._uploads.know(told[key], workspace)
        return {key: rewrite_tag(key, value, self._uploads.ids) for key, value in told.items()}

    def _prompts(self, record: Trace) -> list[dict[str, str]]:
        try:
            return [{"name": str(told["name"]), "version": self._number_of(told)} for told in record.info["prompts"]]
        except (AttributeError, KeyError, TypeError):
            raise RecordRefused("these are no versions of prompts") from None

    # -- assessments ----------------------------------------------------------------------------------------------------

    async def _assess(self, record: Trace, workspace: str | None) -> None:
        told = dict(record.info.get("assessment") or {})
        offline_id = str(told.pop("assessment_id", ""))
        there = await self._assessments(record.trace_id, workspace)
        known = _ours(there, offline_id)
        path = f"/{quote(record.trace_id, safe='')}/assessments"
        metadata = {**{key: str(value) for key, value in dict(told.get("metadata") or {}).items()}}
        told |= {"metadata": {**metadata, ASSESSMENT_ID_KEY: offline_id}, "trace_id": record.trace_id}
        if known is not None:
            place = f"{path}/{quote(known, safe='')}"
            is_overridden = any(one.get("overrides") == known for one in there)
            if is_overridden and not record.info.get("deleted"):
                # It keeps its id, which another one names, and pays with the time of its last change.
                settled(await self._courier.ask(requests.trace("PATCH", place, _changes(told), workspace)))
                return
            settled(await self._courier.ask(requests.trace("DELETE", place, None, workspace)), gone_is_done=True)
        if record.info.get("deleted"):
            return
        if told.get("overrides"):
            told["overrides"] = _ours(there, str(told["overrides"])) or told["overrides"]
        settled(await self._courier.ask(requests.assess(record.trace_id, told, workspace)))

    async def _assessments(self, trace_id: str, workspace: str | None) -> list[dict[str, Any]]:
        """What the server has of a trace."""
        reply = await self._courier.ask(requests.trace("GET", f"/{quote(trace_id, safe='')}", None, workspace))
        if reply.verdict is Verdict.GONE:
            return []
        settled(reply)
        trace: Any = (json_object(reply.answer.body) or {}).get("trace") or {}
        found: list[dict[str, Any]] = (trace.get("trace_info") or {}).get("assessments") or []
        return found


def _ours(there: list[dict[str, Any]], offline_id: str) -> str | None:
    """The server's id of an assessment of ours."""
    of_ours = (one for one in there if (one.get("metadata") or {}).get(ASSESSMENT_ID_KEY) == offline_id)
    return next((str(one["assessment_id"]) for one in of_ours), None)


def _changes(told: Mapping[str, Any]) -> dict[str, Any]:
    """All of an assessment that can be changed."""
    named = ("assessment_name", "feedback", "expectation", "rationale", "metadata")
    changed = {key: told[key] for key in named if key in told}
    # In JSON, protobuf's FieldMask names fields in its own case; others are passed over without a word.
    return {"assessment": changed, "update_mask": ",".join(changed).replace("assessment_name", "assessmentName")}
