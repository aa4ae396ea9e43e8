"""Where the artifacts of an MLflow store lie on this machine: only below folders that the user named. Pure but for looks.

A store says of each run where its artifacts are, and whoever made it may have written ``/etc`` there. So what it says is
taken as a name: it is looked for below the folder of the store and the folders given with ``--artifacts``, first as it is,
then by its end (``<experiment>/<run>/artifacts``), since people move stores; nothing else is ever opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlferry_agent.importing.foreign import File, Folder

__all__ = ["ArtifactPlaces"]

#: What MLflow calls its folders of artifacts, beside or below which a store lies.
_USUAL = ((), ("mlruns",), ("mlartifacts",), ("artifacts",))


@dataclass(frozen=True, slots=True)
class ArtifactPlaces:
    """``folders`` are searched in order; ``left_out`` counts what lies elsewhere."""

    folders: tuple[Folder, ...]
    left_out: Counter[str]

    def files(self, uri: str | None, depth: int) -> Iterator[File]:
        """The files below an artifact URI. ``depth``: how many of its last parts MLflow made itself, one that a user
        cannot choose: they are looked for where the rest does not fit."""
        if not uri:
            return
        address = urlsplit(uri)
        if address.scheme not in ("", "file", "mlflow-artifacts"):
            self.left_out[f"artifacts of runs and models that lie at {address.scheme}://"] += 1
            return
        found = self._find(address.scheme, unquote(address.path), depth)
        if found is not None:
            yield from found[0].files(found[1], self.left_out)
        elif address.scheme == "mlflow-artifacts" or not self._is_ours(address.path):
            self.left_out["artifact folders that are not beside the store; name them with --artifacts"] += 1

    def _find(self, scheme: str, path: str, depth: int) -> tuple[Folder, tuple[str, ...]] | None:
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        for folder in self.folders:
            for below in self._spellings(folder, scheme, path, parts, depth):
                if folder.holds(*below):
                    return folder, below
        return None

    def _spellings(
        self, folder: Folder, scheme: str, path: str, parts: tuple[str, ...], depth: int
    ) -> Iterator[tuple[str, ...]]:
        root = folder.root.resolve().parts[1:]
        if scheme != "mlflow-artifacts" and path.startswith("/"):
            if parts[: len(root)] == root:
                yield parts[len(root) :]
        else:
            yield from ((*usual, *parts) for usual in _USUAL)
        for length in (depth + 1, depth):
            yield from ((*usual, *parts[-length:]) for usual in _USUAL if length <= len(parts))

    def _is_ours(self, path: str) -> bool:
        """Whether it would lie below one of the folders, if there were any artifacts: MLflow makes a folder with the first
        file in it."""
        return not path.startswith("/") or any(
            Path(unquote(path)).is_relative_to(folder.root.resolve()) for folder in self.folders
        )
