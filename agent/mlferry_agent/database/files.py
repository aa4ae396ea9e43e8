"""Blobs of the spool -> files where the runs of a database have theirs: on a disk of this machine, or in any other store.

Only the database says where that is (an artifact URI), and the command's ``--artifacts`` where a server that serves
artifacts itself keeps them; a record names a path below, which passes the checks of delivery. A file is complete before it
has its name, and what the copy's own digest says; where the disk can, it shares the extents of the spool's blob.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlferry_agent.errors import NoPlace
from mlferry_agent.requests import artifact_path
from mlferry_agent.rewriting import Ids, rewrite_mlmodel
from mlferry_agent.uploads import MOST_MLMODEL_BYTES, is_mlmodel
from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.errors import BlobMismatch
from mlferry_spool.trust import open_trusted

__all__ = ["Artifacts", "Source"]

_FICLONE = 0x40049409  # linux/fs.h
_CHUNK = 1 << 20
_TEMPORARY = ".mlferry-"


@dataclass(frozen=True, slots=True)
class Source:
    """A blob in one of a run's directories."""

    directories: tuple[Path, ...]
    blob: Blob

    def open(self) -> int:
        """A descriptor of it. Raises OSError, UntrustedFile."""
        paths = [Blobs(directory).path(self.blob.sha256) for directory in self.directories]
        found = next((path for path in paths if path.is_file()), paths[0])
        return open_trusted(found)


class Artifacts:
    """Puts files below artifact URIs. ``served``: where a server that serves artifacts itself keeps them (a folder, or a
    URI), or None if nobody said."""

    def __init__(self, served: str | None) -> None:
        self._served = served
        self._repositories: dict[str, Any] = {}

    def put(self, uri: str, path: str, source: Source, ids: Ids) -> bool:
        """Have a file there; returns whether it was not yet.

        Raises:
            NoPlace: nobody said where that is. UndeliverableName: no server would take the name.
            BlobMismatch, UntrustedFile, OSError: the blob is not what it should be, or the disk.
        """
        artifact_path("mlflow-artifacts:/run", path)
        folder = self._resolved(uri)
        content = self._rewritten(path, source, ids)
        if isinstance(folder, Path):
            return _put_local(folder / PurePosixPath(path), source, content)
        self._send(folder, path, source, content)
        return True

    def delete(self, uri: str, path: str) -> None:
        """Take away a file that was put there. Raises as ``put``."""
        artifact_path("mlflow-artifacts:/run", path)
        folder = self._resolved(uri)
        if isinstance(folder, Path):
            (folder / PurePosixPath(path)).unlink(missing_ok=True)
        else:
            self._repository(folder).delete_artifacts(path)

    def _resolved(self, uri: str) -> Path | str:
        """A folder of this machine, or a URI for MLflow."""
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme == "mlflow-artifacts":
            if self._served is None:
                raise NoPlace(
                    f"{uri}: the server serves its artifacts itself; say where it keeps them with --artifacts"
                )
            root, below = self._served, parts.path.strip("/")
            if "://" not in root:
                return Path(root) / below
            return f"{root.rstrip('/')}/{below}"
        if parts.scheme in ("", "file"):
            return Path(urllib.parse.unquote(parts.path) if parts.scheme else uri)
        if parts.scheme in ("http", "https"):
            raise NoPlace(f"{uri}: files of this run go through a server; deliver it with mlferry sync")
        return uri

    def _rewritten(self, path: str, source: Source, ids: Ids) -> bytes | None:
        """The content of the one kind of file that names ids and places; None for all others."""
        if not is_mlmodel(path) or source.blob.size > MOST_MLMODEL_BYTES:
            return None
        with os.fdopen(source.open(), "rb") as file:
            content = file.read(source.blob.size + 1)
        if Blob(hashlib.sha256(content).digest(), len(content)) != source.blob:
            raise BlobMismatch(path=path)
        return rewrite_mlmodel(content, ids)

    def _send(self, uri: str, path: str, source: Source, content: bytes | None) -> None:
        """By MLflow's own repository, which wants the file under its name on a disk."""
        *folders, name = path.split("/")
        with tempfile.TemporaryDirectory(prefix="mlferry-") as scratch:
            file = Path(scratch) / name
            _put_local(file, source, content)
            self._repository(uri).log_artifact(str(file), "/".join(folders) or None)

    def _repository(self, uri: str) -> Any:
        if uri not in self._repositories:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            if len(self._repositories) > _REPOSITORIES_KEPT:
                self._repositories.clear()
            self._repositories[uri] = get_artifact_repository(uri)
        return self._repositories[uri]


#: Connections to artifact stores that are kept, each for one run.
_REPOSITORIES_KEPT = 64


def _put_local(path: Path, source: Source, content: bytes | None) -> bool:
    if _has(path, source.blob if content is None else Blob(hashlib.sha256(content).digest(), len(content))):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for one file: what an import that was killed has half copied is found by the next, and shown to nobody.
    temporary = path.parent / f"{_TEMPORARY}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}"
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(fd, "w+b") as copy:
            if content is None:
                _copy(source, copy, path)
            else:
                copy.write(content)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _has(path: Path, blob: Blob) -> bool:
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.stat().st_size != blob.size:
            return False
        with path.open("rb") as file:
            return digest_of(file) == blob
    return False


def _copy(source: Source, copy: Any, path: Path) -> None:
    """Raises BlobMismatch: the blob is not what its name says."""
    with os.fdopen(source.open(), "rb") as original:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            while chunk := original.read(_CHUNK):
                copy.write(chunk)
        copy.flush()
        if digest_of(copy) != source.blob:
            raise BlobMismatch(path=path)
