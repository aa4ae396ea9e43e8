"""Artifacts of runs and models in the spool: files become blobs and a record that names each; what is read is a blob.

When a method returns, the content is complete in the spool, so sources may vanish (MLflow's own are temporary files).
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from mlferry import guard
from mlferry.plugin import uri, versions
from mlferry.plugin.journal import journal_for
from mlferry.plugin.search import no_such
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.layout import store_directory
from mlferry_spool.records import Artifact, ArtifactDeleted, Kind, ModelUpdate

__all__ = ["SpoolArtifactRepository"]

_ABOVE = "artifacts/"


class SpoolArtifactRepository(ArtifactRepository):  # type: ignore[misc]
    """``mlflow.store.artifact.ArtifactRepository`` below a ``spool:`` URI.

    Raises:
        BadSpoolUri: the URI names no run, model or trace.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        versions.init_repository(super().__init__, artifact_uri, tracking_uri, registry_uri)
        self._owner = uri.parse_artifacts(artifact_uri)
        self._journal = journal_for(self._owner.root)

    # -- writing -------------------------------------------------------------------------------------------------------

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        path = posixpath.join(artifact_path or "", Path(local_file).name)
        self._keep(Path(local_file), path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        top = Path(local_dir)
        for directory, _, names in os.walk(top, followlinks=True):
            for name in sorted(names):
                source = Path(directory, name)
                self._keep(source, posixpath.join(artifact_path or "", source.relative_to(top).as_posix()))

    def _keep(self, source: Path, path: str) -> None:
        """A full disk is the journal's trouble and not the caller's; a file that is not there is the caller's."""
        home = self._home()
        if not source.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        try:
            blob = self._journal.blobs(home).put_file(source)
        except OSError as error:
            self._journal.refuse(home, Kind.ARTIFACT, guard.explained(error))
            return
        self._name(home, self._full(path), blob)

    def _name(self, home: str | None, path: str, blob: Blob) -> None:
        now, path = versions.now_ms(), self._inside(path)
        if self._owner.kind == "model":
            self._journal.put(
                home,
                ModelUpdate(
                    now,
                    self._owner.owner_id,
                    artifact_path=path,
                    artifact_sha256=blob.sha256,
                    artifact_size=blob.size,
                ),
            )
        else:
            self._journal.put(home, Artifact(now, self._prefix() + path, blob.sha256, blob.size))

    def _prefix(self) -> str:
        """The files of a trace stand in the store's log under its id."""
        return f"traces/{self._owner.owner_id}/" if self._owner.kind == "trace" else ""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        if self._owner.kind != "run":
            raise MlflowException("the files of a model or trace in a spool are not deleted", RESOURCE_DOES_NOT_EXIST)
        path = self._inside(self._full(artifact_path or ""))
        self._journal.put(self._owner.owner_id, ArtifactDeleted(versions.now_ms(), path))

    # -- reading -------------------------------------------------------------------------------------------------------

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Files and directories directly below ``path``; nothing where that is a file or is not there."""
        below = self._full(path or "").strip("/")
        found: dict[str, FileInfo] = {}
        for name, artifact in self._files():
            rest = _relative(name, below)
            if not rest:
                continue
            child, more, _ = rest.partition("/")
            place = posixpath.normpath(posixpath.join((path or "").strip("/"), child))
            found[place] = FileInfo(place, True, None) if more else FileInfo(place, False, artifact.size)
        return [found[place] for place in sorted(found)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        wanted = self._full(remote_file_path).strip("/")
        for name, artifact in self._files():
            if name == wanted:
                self._copy(artifact, Path(local_path), remote_file_path)
                return
        raise no_such(f"No such artifact: '{remote_file_path}'")

    def _copy(self, artifact: Artifact, local: Path, name: str) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        for directory in self._directories():
            try:
                shutil.copyfile(Blobs(directory).path(artifact.sha256), local)
                return
            except FileNotFoundError:
                continue
        raise no_such(f"No such artifact: '{name}': its bytes are not in the spool")

    def _files(self) -> Iterator[tuple[str, Artifact]]:
        """Every file by its path below the URI's owner, or below the directory above its artifacts."""
        above = _ABOVE if self._owner.above else ""
        return ((above + path, artifact) for path, artifact in self._artifacts())

    def _artifacts(self) -> Iterator[tuple[str, Artifact]]:
        catalogue = self._journal.catalogue
        if self._owner.kind == "model":
            found = catalogue.model(self._owner.owner_id)
            yield from () if found is None else found[0].artifacts.values().items()
        elif self._owner.kind == "run":
            state = catalogue.run(self._owner.owner_id)
            yield from () if state is None else state.artifacts.values().items()
        else:
            prefix = self._prefix()
            for path, file in catalogue.store().files.values().items():
                if path.startswith(prefix):
                    yield path[len(prefix) :], file

    def _directories(self) -> list[Path]:
        home = self._home()
        return [store_directory(self._owner.root)] if home is None else self._journal.catalogue.directories(home)

    def _home(self) -> str | None:
        """The run whose log and blobs these artifacts belong to, or None for the store's."""
        if self._owner.kind == "run":
            return self._owner.owner_id
        if self._owner.kind == "trace":
            return None
        found = self._journal.catalogue.model(self._owner.owner_id)
        if found is None:
            raise no_such(f"Logged model with ID '{self._owner.owner_id}' not found.")
        return found[1]

    def _full(self, path: str) -> str:
        """A path below this repository's URI as a path below the owner's artifacts."""
        below = posixpath.normpath(path) if path else "."
        if below.startswith("/") or below.split("/")[0] == "..":
            raise MlflowException(
                "Invalid path: resolved path is outside the artifact directory", INVALID_PARAMETER_VALUE
            )
        return self._owner.path if below == "." else posixpath.join(self._owner.path, below)

    def _inside(self, path: str) -> str:
        """Such a path as one below the artifacts. Raises MlflowException: it leads elsewhere."""
        if not self._owner.above:
            return path
        if not f"{path}/".startswith(_ABOVE):
            raise MlflowException(f"Invalid path: '{path}' is outside the artifact directory", INVALID_PARAMETER_VALUE)
        return path[len(_ABOVE) :]


def _relative(name: str, below: str) -> str:
    """What of ``name`` is below a directory; empty if nothing is."""
    if not below:
        return name
    return name[len(below) + 1 :] if name.startswith(f"{below}/") else ""
