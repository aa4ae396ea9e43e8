"""Files on their way to the server: checked against their digest, and the one kind that names ids speaks the server's.

A file is digested while it is sent, so it is read once, and its last bytes are given out only when all of them are what its
name says. What is not is broken off before its end, and a server keeps nothing of a body that is shorter than announced. So
what was checked is what was sent, and no check keeps the network waiting.

``MLmodel`` files are where MLflow writes ids into files; they are rewritten (``rewriting``) and sent from memory, as are
small files. All others are streamed from the spool as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
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
from mlferry_agent.transport import Content
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.errors import BlobMismatch
from mlferry_spool.records import Artifact, ModelUpdate
from mlferry_spool.trust import open_trusted

__all__ = ["MOST_MLMODEL_BYTES", "CheckedBlob", "Uploads", "ids_of", "is_mlmodel", "open_blob"]

#: Bytes of an ``MLmodel``, which is rewritten in memory; none that MLflow writes comes near this.
#: Beyond: the file is sent as it is, the ids in it stay those of the spool.
#: Test: tests/unit/agent/test_limits.py::test_an_mlmodel_that_is_too_large_to_be_one_is_sent_as_it_is
MOST_MLMODEL_BYTES = 16 << 20

#: Bytes of a file that is read in one piece, and checked before anything of it is sent.
#: Beyond: it is streamed.
#: Test: tests/unit/agent/test_uploads.py::test_of_a_small_file_that_has_rotted_nothing_is_sent
_SMALL_BYTES = 256 << 10

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
        place, is_model = Blobs(directory).path(blob.sha256), is_mlmodel(path) and blob.size <= MOST_MLMODEL_BYTES
        if not is_model and (blob.size > _SMALL_BYTES or request.is_direct):  # past the server goes what has a name
            with _Opening(place, blob) as opening:
                return await self._courier.upload(request, await asyncio.to_thread(opening.open), blob.size)
        content = await asyncio.to_thread(_whole, place, blob)
        if not is_model:
            return await self._courier.upload(request, Content(content), blob.size)
        await self.know(content.decode(errors="replace"), request.workspace)
        return await self._courier.ask(replace(request, body=rewrite_mlmodel(content, self.ids), headers=_AS_BYTES))


class CheckedBlob(io.BufferedReader):
    """A blob that is read from its beginning on. The read that would come to its end raises ``BlobMismatch`` where the
    bytes are not those of its name; so does the opening, where its size is another one: a sparse file that claims a terabyte
    is not read to its end.

    It is not for several readers at once. Raises ``UntrustedFile``, OSError as well.
    """

    def __init__(self, path: Path, expected: Blob) -> None:
        super().__init__(io.FileIO(open_trusted(path), "rb"))
        self._path, self._expected = path, expected
        self._sha256, self._at = hashlib.sha256(), 0
        if os.fstat(self.fileno()).st_size != expected.size:
            self.close()
            raise BlobMismatch(path=path)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Begin again; there is no other place to go to."""
        if offset or whence:
            raise io.UnsupportedOperation("a blob is read from its beginning")
        self._sha256, self._at = hashlib.sha256(), 0
        return super().seek(0)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._sha256.update(data)
        self._at += len(data)
        if self._at >= self._expected.size and self._sha256.digest() != self._expected.sha256:
            raise BlobMismatch(path=self._path)
        return data


class _Opening:
    """A blob that is opened in a thread, and closed also where whoever waited for it was cancelled meanwhile."""

    def __init__(self, path: Path, expected: Blob) -> None:
        self._path, self._expected = path, expected
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._is_over = False

    def open(self) -> BinaryIO:
        """Raises as ``open_blob``."""
        file = open_blob(self._path, self._expected)
        with self._lock:
            self._file = file
            if self._is_over:
                file.close()
        return file

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


def open_blob(path: Path, expected: Blob) -> CheckedBlob:
    """Raises as ``CheckedBlob``."""
    return CheckedBlob(path, expected)


def _whole(path: Path, expected: Blob) -> bytes:
    """All of a blob. Raises as ``CheckedBlob``."""
    with open_blob(path, expected) as file:
        return file.read(expected.size)


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
