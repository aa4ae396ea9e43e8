"""Files on their way to the server: checked against their digest, and the one kind that names ids speaks the server's.

``MLmodel`` files are where MLflow writes ids into files; they are rewritten (``rewriting``) and sent from memory. All others
are streamed from the spool as they are.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mlferry_agent import requests
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import RecordRefused
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger
from mlferry_agent.models import Models
from mlferry_agent.planner import Target
from mlferry_agent.rewriting import Ids, ids_in, rewrite_mlmodel
from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.errors import BlobMismatch
from mlferry_spool.records import Artifact, ModelUpdate
from mlferry_spool.trust import open_trusted

__all__ = ["MOST_MLMODEL_BYTES", "Uploads", "ids_of", "is_mlmodel"]

#: Bytes of an ``MLmodel``, which is rewritten in memory; none that MLflow writes comes near this.
#: Beyond: the file is sent as it is, the ids in it stay those of the spool.
#: Test: tests/unit/agent/test_limits.py::test_an_mlmodel_that_is_too_large_to_be_one_is_sent_as_it_is
MOST_MLMODEL_BYTES = 16 << 20

_AS_BYTES = (("content-type", "application/octet-stream"),)


class Uploads:
    """Sends blobs to artifact locations. ``ids``: what the ledger knows of the server's names."""

    def __init__(self, ledger: Ledger, courier: Courier, identity: Identity, models: Models) -> None:
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._models = models
        self.ids = ids_of(ledger)

    async def upload(self, artifact: Artifact, directory: Path, target: Target) -> Reply:
        """Send a file of a run. Raises BlobMismatch, UntrustedFile, OSError, and as ``Courier.upload``."""
        request = requests.put_artifact(target.artifact_uri, artifact.path, target.workspace)
        return await self._send(request, artifact.path, Blob(artifact.sha256, artifact.size), directory)

    async def upload_of_model(self, update: ModelUpdate, directory: Path, workspace: str | None) -> Reply:
        """Send a file of a logged model. Raises as ``upload`` and as ``Models.known``."""
        await self._models.known(update.model_id, workspace)
        row = self._ledger.model(update.model_id)
        if row is None or not row.artifact_uri or update.artifact_path is None or update.artifact_sha256 is None:
            raise RecordRefused("the spool does not say which model this file belongs to")
        request = requests.put_artifact(row.artifact_uri, update.artifact_path, workspace)
        blob = Blob(update.artifact_sha256, update.artifact_size)
        return await self._send(request, update.artifact_path, blob, directory)

    async def know(self, text: str, workspace: str | None) -> None:
        """Have every run and model of the spool that a text names known to the server. Raises as ``Models.known``."""
        runs, models = ids_in(text)
        for run_id in sorted(runs):
            await self._identity.run(run_id)
        for model_id in sorted(models):
            await self._models.known(model_id, workspace)

    async def _send(self, request: requests.Request, path: str, blob: Blob, directory: Path) -> Reply:
        # What was checked is what is sent: the open file, whatever stands under its name by then.
        with _Opening(Blobs(directory).path(blob.sha256), blob) as opening:
            file = await asyncio.to_thread(opening.open)
            if not is_mlmodel(path) or blob.size > MOST_MLMODEL_BYTES:
                return await self._courier.upload(request, file, blob.size)
            content = await asyncio.to_thread(_whole, file, blob.size)
        await self.know(content.decode(errors="replace"), request.workspace)
        return await self._courier.ask(replace(request, body=rewrite_mlmodel(content, self.ids), headers=_AS_BYTES))


class _Opening:
    """A blob that is opened in a thread, and closed also where whoever waited for it was cancelled meanwhile.

    Then it is not read to its end either: a process ends with the last of its threads, and to digest a terabyte takes long.
    """

    def __init__(self, path: Path, expected: Blob) -> None:
        self._path, self._expected = path, expected
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._is_over = False

    def open(self) -> BinaryIO:
        """Raises as ``open_blob``."""
        file = open_blob(self._path, self._expected, self._go_on)
        with self._lock:
            self._file = file
            if self._is_over:
                file.close()
        return file

    def _go_on(self) -> None:
        if self._is_over:
            raise InterruptedError("nobody waits for this file any more")

    def __enter__(self) -> _Opening:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._is_over = True
            if self._file is not None:
                self._file.close()


def is_mlmodel(path: str) -> bool:
    """Whether a file is one in which MLflow writes ids."""
    return path.rpartition("/")[2] == "MLmodel"


def open_blob(path: Path, expected: Blob, go_on: Callable[[], None] = lambda: None) -> BinaryIO:
    """A blob that is what its name says, open. Raises ``BlobMismatch``, ``UntrustedFile``, OSError, and as ``go_on``."""
    file = os.fdopen(open_trusted(path), "rb")
    try:
        # The size first: a sparse file that claims a terabyte is not read to its end.
        if os.fstat(file.fileno()).st_size != expected.size or digest_of(file, go_on) != expected:
            raise BlobMismatch(path=path)
    except BaseException:
        file.close()
        raise
    return file


def _whole(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    return file.read(size)


def ids_of(ledger: Ledger) -> Ids:
    """What a ledger knows of the server's names."""

    def model(model_id: str) -> str | None:
        row = ledger.model(model_id)
        return None if row is None else row.server_model_id

    def run_artifacts(run_id: str) -> str | None:
        row = ledger.run(run_id)
        return None if row is None else row.artifact_uri

    def model_artifacts(model_id: str) -> str | None:
        row = ledger.model(model_id)
        return None if row is None else row.artifact_uri

    return Ids(ledger.server_run_id, model, run_artifacts, model_artifacts, ledger.version_number)
