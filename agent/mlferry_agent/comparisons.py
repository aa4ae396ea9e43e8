"""What a server holds of files and logged models, compared with what was spooled: each difference in words.

Files stream in and are hashed as they come. An ``MLmodel`` is expected as it was sent, with the server's ids in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlferry_agent import entity_requests, requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier
from mlferry_agent.errors import NotProxied, UndeliverableName
from mlferry_agent.feeds import read_blob
from mlferry_agent.folding import Files, FoldedModel
from mlferry_agent.ledger import Ledger
from mlferry_agent.models import VERSIONS_TAG
from mlferry_agent.rewriting import rewrite_mlmodel
from mlferry_agent.transport import Transport
from mlferry_agent.uploads import MOST_MLMODEL_BYTES, ids_of, is_mlmodel
from mlferry_spool.blobs import Blobs
from mlferry_spool.errors import SpoolError
from mlferry_spool.records import Artifact

__all__ = ["Comparisons", "short"]


class Comparisons:
    """Compares what the blobs in ``directories`` and the ledger tell with what a server has, in one ``workspace``."""

    def __init__(
        self,
        directories: list[Path],
        ledger: Ledger,
        courier: Courier,
        transport: Transport,
        workspace: str | None = None,
    ) -> None:
        self._directories = directories
        self._workspace = workspace
        self._ledger = ledger
        self._courier = courier
        self._transport = transport

    async def files(self, expected: Files, artifact_uri: str) -> list[str]:
        """Differences of the files below an artifact URI. Raises ``Unreachable``."""
        found = []
        for path, (_, artifact) in expected.items():
            problem = await self._file(artifact_uri, path, artifact)
            if problem:
                found.append(f"artifact {path!r}: {problem}")
        return found

    async def model(self, model_id: str, expected: FoldedModel) -> list[str]:
        """Differences of one logged model. Raises as ``Courier.ask``, and ``Unreachable``."""
        row = self._ledger.model(model_id)
        server_model_id = model_id if row is None or row.server_model_id is None else row.server_model_id
        reply = await self._courier.ask(entity_requests.get_model(server_model_id, self._workspace))
        if reply.verdict is Verdict.GONE:
            return [] if expected.deleted else [f"model {model_id} is missing"]
        model = (json_object(reply.answer.body) or {}).get("model")
        if reply.verdict is not Verdict.ACCEPTED or not isinstance(model, dict):
            return [f"model {model_id} cannot be read: {reply.reason}"]
        found = ["it was deleted and is there"] if expected.deleted else []
        found += _texts(expected, model)
        found += await self.files(expected.files, str(model.get("info", {}).get("artifact_uri", "")))
        return [f"model {model_id}: {difference}" for difference in found]

    async def _file(self, artifact_uri: str, path: str, artifact: Artifact | None) -> str | None:
        sha256 = hashlib.sha256()
        try:
            request = requests.get_artifact(artifact_uri, path, self._workspace)
            answer = await self._transport.download(request, sha256.update)
        except (NotProxied, UndeliverableName) as error:
            return error.reason
        there = answer.status == 200
        if artifact is None:
            return "it was deleted and is there" if there else None
        if not there:
            return f"it is missing (HTTP {answer.status})"
        return None if sha256.digest() in self._digests(path, artifact) else "its bytes differ"

    def _digests(self, path: str, artifact: Artifact) -> Iterator[bytes]:
        """What the file may be: as it was logged, or with the server's ids."""
        if not is_mlmodel(path) or artifact.size > MOST_MLMODEL_BYTES:
            yield artifact.sha256
            return
        for directory in self._directories:
            try:
                content = read_blob(Blobs(directory), artifact.sha256, MOST_MLMODEL_BYTES)
            except (SpoolError, OSError):
                continue
            yield hashlib.sha256(rewrite_mlmodel(content, ids_of(self._ledger))).digest()


def _texts(expected: FoldedModel, model: Mapping[str, Any]) -> Iterator[str]:
    info, data = model.get("info") or {}, model.get("data") or {}
    params = {item["key"]: item.get("value", "") for item in data.get("params") or []}
    tags = {item["key"]: item.get("value", "") for item in info.get("tags") or []}
    for key, value in expected.params.items():
        if params.get(key) != value:
            yield f"param {key!r}: {short(params.get(key))} instead of {short(value)}"
    for key, (_, tag) in expected.tags.items():
        if key != VERSIONS_TAG and tags.get(key) != tag:
            yield f"tag {key!r}: {short(tags.get(key))} instead of {short(tag)}"
    status = entity_requests.MODEL_STATUS.get(expected.status[1])
    if info.get("status") != status:
        yield f"status {short(info.get('status'))} instead of {short(status)}"


def short(text: str | None) -> str:
    """A value for people: quoted, and not too long."""
    return "nothing" if text is None else repr(text if len(text) <= 60 else text[:60] + "...")
