"""What a path holds, told by its contents: the first bytes of a file, what lies in a folder. It opens nothing else."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent.carrying.places import Place
from mlferry_agent.carrying.sealing import AGE
from mlferry_agent.errors import BadSource

__all__ = ["Found", "Kind", "is_bundle", "may_be_part", "recognise"]

_SQLITE, _WANDB, _ZSTD = b"SQLite format 3\0", b":W&B", b"\x28\xb5\x2f\xfd"

#: The first record of an event file: length, checksum, and an Event with its version.
_TENSORBOARD = b"brain.Event:"
_HEAD_BYTES = 128

_META = "meta.yaml"


class Kind(enum.Enum):
    """What can be imported, in words."""

    BUNDLE = "a bundle"
    DATABASE = "an MLflow database"
    FILE_STORE = "an MLflow file store"
    TENSORBOARD = "TensorBoard event files"
    WANDB = "wandb runs"


@dataclass(frozen=True, slots=True)
class Found:
    """A source: what it is, and the file or folder to read."""

    kind: Kind
    path: Path


def recognise(path: Path) -> Found:
    """What is to be imported.

    Raises:
        BadSource: nothing that can be, or several things, of which one must be named. OSError: it cannot be read.
    """
    if not path.is_dir():
        kind = _of_file(path)
        if kind is None:
            raise BadSource(f"{path} is no bundle, no MLflow database, no event file and no wandb run")
        return Found(kind, path)
    if _is_file_store(path):
        return Found(Kind.FILE_STORE, path)
    found = list(_in_folder(path))
    if len(found) > 1:
        told = ", ".join(f"{item.kind.value} ({item.path})" for item in found)
        raise BadSource(f"{path} holds several things: {told}; name the one to import")
    if not found:
        raise BadSource(f"{path} holds nothing that can be imported")
    return found[0]


def is_bundle(place: Place) -> bool:
    """Whether a file begins as a bundle does, encrypted or not. Raises OSError, PlaceTrouble."""
    with place.open() as file:
        return file.read(_HEAD_BYTES).startswith((_ZSTD, AGE))


def may_be_part(path: Path) -> bool:
    """Whether a path may be a later part of a bundle, which begins with any bytes. Raises OSError."""
    return path.is_file() and _of_file(path) is None


def _of_file(path: Path) -> Kind | None:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_SQLITE):
        return Kind.DATABASE
    if head.startswith(_WANDB):
        return Kind.WANDB
    if head.startswith((_ZSTD, AGE)):
        return Kind.BUNDLE
    return Kind.TENSORBOARD if _TENSORBOARD in head else None


def _is_file_store(path: Path) -> bool:
    """An experiment lies in it, in use or deleted. A folder of artifacts alone has the same names and no description."""
    return any(
        entry.name.isdigit() and (entry / _META).is_file()
        for folder in (path, path / ".trash")
        if folder.is_dir()
        for entry in folder.iterdir()
    )


def _in_folder(path: Path) -> Iterator[Found]:
    for database in sorted(path.glob("*.db")):
        if database.is_file() and _of_file(database) is Kind.DATABASE:
            yield Found(Kind.DATABASE, database)
    if _is_file_store(path / "mlruns"):
        yield Found(Kind.FILE_STORE, path / "mlruns")
    kinds = set(_kinds_below(path))
    for kind in (Kind.TENSORBOARD, Kind.WANDB):
        if kind in kinds:
            yield Found(kind, path)


def _kinds_below(path: Path) -> Iterator[Kind]:
    """By the names that the libraries give their files; what an MLflow store keeps as an artifact is the store's."""
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if name not in ("mlruns", "mlartifacts")]
        for name in names:
            if name.endswith(".wandb"):
                yield Kind.WANDB
            elif "tfevents" in name and Path(folder, name).is_file():
                yield Kind.TENSORBOARD
