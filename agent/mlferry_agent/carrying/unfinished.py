"""What an export in parts notes in the state directory, so that it goes on where it was when it is broken off and repeated.

A directory for each place that is exported to, named by a digest, locked while somebody works in it:

    request     what was asked for; another request is another export
    manifest    what the bundle holds, decided once
    parts       a line for each part: written before the part appears under its name, so that what appears is known

It goes when the export is complete. Losing it costs that the next export begins anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlferry_agent.bundles import Manifest
from mlferry_agent.carrying.places import Place
from mlferry_agent.errors import BadBundle
from mlferry_spool.files import make_directory

__all__ = ["Made", "Unfinished", "unfinished"]

_REQUEST, _MANIFEST, _PARTS, _STAGING = "request", "manifest", "parts", "staging"


@dataclass(frozen=True, slots=True)
class Made:
    """A part: its name, the bytes that it has and their SHA-256 in hex, and that of what is in it before encryption."""

    name: str
    size: int
    sha256: str
    plain_sha256: str


class Unfinished:
    """``manifest``: what was decided by an export that was broken off; None: there is none. ``parts``: by their names."""

    def __init__(self, directory: Path, request: str) -> None:
        self._directory, self._request = directory, request
        self.staging = directory / _STAGING
        self.manifest: Manifest | None = None
        self.parts: dict[str, Made] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, BadBundle):
            if (directory / _REQUEST).read_text("utf-8") == request:
                self.manifest = Manifest.decoded((directory / _MANIFEST).read_bytes())
                self.parts = {made.name: made for made in _made(directory / _PARTS)}

    @property
    def is_of_another_request(self) -> bool:
        """Whether one was broken off that was asked for something else."""
        return self.manifest is None and (self._directory / _MANIFEST).exists()

    def begin(self, manifest: Manifest) -> None:
        """Forget what was before. Raises OSError."""
        for name in (_REQUEST, _MANIFEST, _PARTS):
            (self._directory / name).unlink(missing_ok=True)
        self.manifest, self.parts = manifest, {}
        _write(self._directory / _MANIFEST, manifest.encoded())
        _write(self._directory / _REQUEST, self._request.encode())

    def add(self, made: Made) -> None:
        """Raises OSError."""
        self.parts[made.name] = made
        with (self._directory / _PARTS).open("a", encoding="ascii") as file:
            file.write(json.dumps(asdict(made)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _made(path: Path) -> Iterator[Made]:
    """The last line may be one that was being written."""
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("ascii").splitlines():
            with contextlib.suppress(ValueError):
                yield Made(**json.loads(line))


@contextlib.contextmanager
def unfinished(state_dir: Path, place: Place, request: Mapping[str, Any]) -> Iterator[Unfinished]:
    """What is noted of exports to a place. Raises FileExistsError: somebody is exporting there; OSError."""
    name = str(Path(str(place)).resolve()) if place.is_local else str(place)
    directory = state_dir / "exports" / hashlib.sha256(name.encode()).hexdigest()[:32]
    make_directory(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(errno.EEXIST, "another mlferry exports there now", str(place)) from None
        yield Unfinished(directory, json.dumps(request, sort_keys=True))
    finally:
        os.close(fd)
