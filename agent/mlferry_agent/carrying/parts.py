"""A bundle's bytes on their way to places: in one file or in parts, hashed, and encrypted and signed where that is asked.

Each part is encrypted by itself, so that one that is finished need not be made again. An export that goes on where another
was broken off makes all bytes anew (it is the reading and compressing that costs, the medium is spared), and compares each
part that was finished: on the medium with what was noted of it, and what was noted with what it would write now. What is the
same is kept, and from the first that is not, all are written again.

A part for another machine is made here first, in a file of the state directory: so that its upload can be tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from mlferry_agent.carrying.places import Creation, Place, in_the_way
from mlferry_agent.carrying.sealing import Encrypting, age_overhead
from mlferry_agent.carrying.signing import SIGNATURE, Signer, digesting
from mlferry_agent.carrying.unfinished import Made, Unfinished
from mlferry_agent.errors import BadBundle, PlaceTrouble

__all__ = ["Changed", "Parts", "Seal", "digest_of", "part_name", "split_name"]

_CHUNK = 1 << 20

#: Seconds before an upload that was broken off is tried again, each time.
_PAUSES_S = (1.0, 5.0, 20.0, 60.0)


@dataclass(frozen=True, slots=True)
class Seal:
    """For whom it is encrypted (if for nobody, it is not), and who signs it."""

    recipients: tuple[Any, ...] = ()
    signer: Signer | None = None


class Changed(Exception):
    """A part that was finished would come out otherwise now, and so would all that follow. ``args``: its number."""


def part_name(name: str, number: int) -> str:
    return f"{name}.{number:03d}"


def split_name(name: str) -> tuple[str, int] | None:
    """The name of the whole and the number of a part; None: it is not named as a part is."""
    stem, _, number = name.rpartition(".")
    return (stem, int(number)) if stem and len(number) >= 3 and number.isascii() and number.isdigit() else None


class _Digested:
    """What takes a file's last bytes, and hashes them on the way."""

    def __init__(self, to: Any) -> None:
        self._to = to
        self.sha256, self.blake2b, self.size = hashlib.sha256(), digesting(), 0

    def write(self, data: bytes, /) -> int:
        self._to.write(data)
        self.sha256.update(data)
        self.blake2b.update(data)
        self.size += len(data)
        return len(data)


class _Part:
    """One file on its way."""

    def __init__(self, place: Place, seal: Seal, creation: Creation) -> None:
        self.place, self._creation = place, creation
        self._digested = _Digested(creation)
        self._sealed = Encrypting(self._digested, seal.recipients) if seal.recipients else None
        self._plain = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._plain.update(data)
        (self._sealed or self._digested).write(data)

    def finish(self, note: Callable[[Made], None]) -> bytes:
        """Noted before it appears: what appears is known to be ours. Returns the digest to sign."""
        if self._sealed is not None:
            self._sealed.close()
        found = self._digested
        note(Made(self.place.name, found.size, found.sha256.hexdigest(), self._plain.hexdigest()))
        self._creation.commit()
        digest: bytes = found.blake2b.digest()
        return digest

    def abort(self) -> None:
        with contextlib.suppress(Exception):
            if self._sealed is not None:
                self._sealed.abandon()
        self._creation.abort()


class _Kept:
    """One that is there already, as it was noted; what would be written is compared alone."""

    def __init__(self, place: Place, number: int, made: Made, digest: bytes) -> None:
        self.place = place
        self._number, self._made, self._digest, self._plain = number, made, digest, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._plain.update(data)

    def finish(self, note: Callable[[Made], None]) -> bytes:
        if self._plain.hexdigest() != self._made.plain_sha256:
            raise Changed(self._number)
        return self._digest

    def abort(self) -> None:
        """Nothing was touched."""


class Parts(RawIOBase):
    """Files of at most ``limit`` bytes: ``name.000``, ``name.001``...; with no limit, one file of the name itself.

    ``unfinished``: what was noted of parts that were made before. ``keep``: so many of them at most.
    """

    def __init__(
        self,
        to: Place,
        seal: Seal,
        limit: int | None = None,
        *,
        unfinished: Unfinished | None = None,
        replace: bool = False,
        keep: int = 1 << 30,
    ) -> None:
        self.finished: list[Place] = []
        self.kept = 0
        self._to, self._seal, self._limit, self._replace, self._keep = to, seal, limit, replace, keep
        self._unfinished = unfinished
        self._room = self._most = _room(seal, limit)
        self._part: _Part | _Kept | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view, written = memoryview(data), 0
        while written < len(view):
            if self._part is None or not self._room:
                self._next()
            assert self._part is not None
            piece = view[written : written + self._room]
            self._part.write(bytes(piece))
            self._room -= len(piece)
            written += len(piece)
        return written

    def finish(self) -> None:
        """Raises Changed, OSError, PlaceTrouble."""
        if self._part is not None:
            part, self._part = self._part, None
            try:
                digest = part.finish(self._note)
            except BaseException:
                part.abort()
                raise
            self.finished.append(part.place)
            _sign(part.place, self._seal, digest)

    def abort(self) -> None:
        """The part that is being written goes; those before it stay."""
        if self._part is not None:
            self._part.abort()
            self._part = None

    def _note(self, made: Made) -> None:
        if self._unfinished is not None:
            self._unfinished.add(made)

    def _next(self) -> None:
        self.finish()
        number = len(self.finished)
        place = self._to if self._limit is None else self._to.beside(part_name(self._to.name, number))
        self._part = self._begin(place, number)
        self._room = self._most

    def _begin(self, place: Place, number: int) -> _Part | _Kept:
        replace = self._replace
        made = self._unfinished.parts.get(place.name) if self._unfinished else None
        if made is not None and (digest := digest_of(place, made)):
            replace = True  # it is ours
            if number < self._keep:
                self.kept += 1
                return _Kept(place, number, made, digest)
        if self._unfinished is not None and not place.is_local:
            creation: Creation = _Staged(place, self._unfinished.staging, replace)
        else:
            creation = place.create(replace=replace)
        return _Part(place, self._seal, creation)


def _room(seal: Seal, limit: int | None) -> int:
    """Bytes that a part holds, before they are encrypted. Raises BadBundle: none."""
    if limit is None:
        return 1 << 62
    room = limit - (age_overhead(seal.recipients, limit) if seal.recipients else 0)
    if room <= 0:
        raise BadBundle(f"parts of {limit:,} bytes hold nothing when they are encrypted")
    return room


def digest_of(place: Place, made: Made) -> bytes | None:
    """The digest to sign of a part that is as it was noted; None: it is not, or not there."""
    if not place.exists() or place.size() != made.size:
        return None
    sha256, blake2b = hashlib.sha256(), digesting()
    with place.open() as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            blake2b.update(chunk)
    return blake2b.digest() if sha256.hexdigest() == made.sha256 else None


def _sign(place: Place, seal: Seal, digest: bytes) -> None:
    if seal.signer is not None:
        creation = place.beside(place.name + SIGNATURE).create(replace=True)
        creation.write(seal.signer(digest, place.name))
        creation.commit()


class _Staged:
    """A part for another machine: a file here until it is whole, then an upload, again when it breaks off."""

    def __init__(self, place: Place, staging: Path, replace: bool) -> None:
        if not replace and place.exists():
            raise in_the_way(place)
        self._place, self._replace, self._staging = place, replace, staging
        self._file = staging.open("wb")

    def write(self, data: bytes, /) -> int:
        return self._file.write(data)

    def commit(self) -> None:
        try:
            self._file.close()
            for pause_s in self._pauses():
                try:
                    self._upload()
                    return
                except PlaceTrouble as trouble:
                    if pause_s is None or not trouble.again:
                        raise
                    time.sleep(pause_s)
        finally:
            self._staging.unlink(missing_ok=True)

    def _pauses(self) -> Iterator[float | None]:
        yield from _PAUSES_S
        yield None

    def _upload(self) -> None:
        creation = self._place.create(replace=self._replace)
        try:
            with self._staging.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    creation.write(chunk)
        except BaseException:
            creation.abort()
            raise
        creation.commit()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._staging.unlink(missing_ok=True)
