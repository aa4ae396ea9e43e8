"""The parts of a bundle, found and read as one stream: opened if they are encrypted, checked if they must be signed.

Nothing that is read here is to be believed before ``finish`` came back: it reads to the end of the last part, and what a
signature or the encryption says of a part is known at its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import RawIOBase
from typing import Any, BinaryIO, cast

from mlferry_agent.carrying.parts import part_name, split_name
from mlferry_agent.carrying.places import PARTIAL, Place
from mlferry_agent.carrying.sealing import AGE, decrypting
from mlferry_agent.carrying.signing import MOST_SIGNATURE_BYTES, SIGNATURE, check_signature, digesting
from mlferry_agent.errors import BadBundle, Locked

__all__ = ["RECEIPT", "Joined", "Trust", "find_parts", "read_small", "whole_name"]

_CHUNK = 1 << 20

#: How the name of a receipt ends.
RECEIPT = ".receipt.json"

#: What may lie beside parts, and comes along where a shell makes a list of all that begins alike.
_BESIDE = (RECEIPT, SIGNATURE, PARTIAL)

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Trust:
    """What opens files that are encrypted, and whose signatures count: if nobody's are named, none is needed."""

    identities: tuple[Any, ...] = ()
    signers: tuple[Any, ...] = ()


# -- which ----------------------------------------------------------------------------------------------------------------


def find_parts(given: Sequence[Place]) -> list[Place]:
    """The parts of a bundle in their order, of some that were named: one, or its first part, or the name of the whole.

    Raises:
        BadBundle: one is missing, or they belong to several bundles. OSError, PlaceTrouble.
    """
    named = [place for place in given if not place.name.endswith(_BESIDE)] or list(given)
    if len(named) == 1:
        return _all_of(named[0])
    found = {place: split_name(place.name) for place in named}
    if any(part is None for part in found.values()):
        return named  # named by hand, in their order
    numbers = {place: part[1] for place, part in found.items() if part is not None}
    stems = sorted({part[0] for part in found.values() if part is not None})
    if len(stems) > 1:
        raise BadBundle(f"{stems[0]} and {stems[1]} are two bundles; import one after the other")
    ordered = sorted(named, key=numbers.__getitem__)
    for number, place in enumerate(ordered):
        if numbers[place] != number:
            what = "is named twice" if numbers[place] < number else "is missing"
            raise BadBundle(f"{part_name(stems[0], min(number, numbers[place]))} {what}")
    return ordered


def _all_of(place: Place) -> list[Place]:
    part = split_name(place.name)
    if part is None:
        if place.exists() or not place.beside(part_name(place.name, 0)).exists():
            return [place]
        part = (place.name, 0)
    stem, number = part
    if number:
        return [place]  # alone, it will be found to be no beginning
    found = [place.beside(part_name(stem, 0))]
    while (following := place.beside(part_name(stem, len(found)))).exists():
        found.append(following)
    return found


def whole_name(place: Place) -> str:
    """The name of a bundle, of any part of it."""
    part = split_name(place.name)
    return part[0] if part else place.name


# -- bytes ----------------------------------------------------------------------------------------------------------------


class _File(RawIOBase):
    """The bytes of one part, hashed for its signature."""

    def __init__(self, place: Place, trust: Trust, on_bytes: OnBytes) -> None:
        self._place, self._trust, self._on_bytes = place, trust, on_bytes
        self._file, self._digest = place.open(), digesting()
        self._ahead = self._read(len(AGE))
        self.is_encrypted = self._ahead == AGE

    def readable(self) -> bool:
        return True

    def _read(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size and (data := self._file.read(size - len(parts))):
            parts += data
        return parts

    def readinto(self, buffer: Any) -> int:
        data, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        data = data or self._file.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self._digest.update(data)
        self._on_bytes(len(data))
        return len(data)

    def finish(self) -> None:
        """Read to the end. Raises BadBundle: it is not signed as it must be."""
        while self.read(_CHUNK):
            pass
        if self._trust.signers:
            signature = self._place.beside(self._place.name + SIGNATURE)
            if not signature.exists():
                raise BadBundle(f"{self._place} is not signed: {signature} is not there")
            check_signature(
                self._trust.signers,
                self._digest.digest(),
                read_small(signature, MOST_SIGNATURE_BYTES),
                str(self._place),
            )

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Opened:
    """A part, as what is in it."""

    def __init__(self, place: Place, trust: Trust, on_bytes: OnBytes) -> None:
        self.file = _File(place, trust, on_bytes)
        self.is_encrypted = self.file.is_encrypted
        self._content: Any = self.file
        if self.is_encrypted:
            if not trust.identities:
                self.file.close()
                raise Locked(f"{place} is encrypted; say with --identity FILE which key opens it")
            self._content = decrypting(cast(BinaryIO, self.file), trust.identities, str(place))

    def read(self, size: int) -> bytes:
        data: bytes = self._content.read(size)
        return data

    def finish(self) -> None:
        while self.read(_CHUNK):
            pass
        self.file.finish()

    def close(self) -> None:
        self._content.close()
        self.file.close()


class Joined(RawIOBase):
    """Several files read as one."""

    def __init__(self, places: Sequence[Place], trust: Trust, on_bytes: OnBytes = lambda count: None) -> None:
        self._places, self._trust, self._on_bytes = list(places), trust, on_bytes
        self._number = 0
        self._part: _Opened | None = None
        self._encrypted: bool | None = None

    @property
    def where(self) -> str:
        """The part that was read last."""
        return str(self._places[max(self._number - 1, 0)])

    @property
    def is_encrypted(self) -> bool:
        return bool(self._encrypted)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._part is not None or self._number < len(self._places):
            part = self._part or self._next()
            data = part.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._end()
        return 0

    def finish(self) -> None:
        """Raises BadBundle: what is left of the parts is not as it must be, or there are more of them. Locked."""
        if self._part is not None:
            self._end()
        if self._number < len(self._places):
            raise BadBundle(f"{self._places[self._number]} stands behind the end of the bundle; is it another's?")

    def _next(self) -> _Opened:
        place = self._places[self._number]
        self._number += 1
        part = _Opened(place, self._trust, self._on_bytes)
        if self._encrypted not in (None, part.is_encrypted):
            part.close()
            raise BadBundle(
                f"{place} is {'' if part.is_encrypted else 'not '}encrypted, and the parts before it are otherwise"
            )
        self._part, self._encrypted = part, part.is_encrypted
        return part

    def _end(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            with contextlib.closing(part):
                part.finish()

    def close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None
        super().close()


def read_small(place: Place, most: int, trust: Trust | None = None) -> bytes:
    """A whole file, opened and checked as it must be; one byte more than ``most`` if it is longer.

    Raises: BadBundle, Locked, OSError, PlaceTrouble.
    """
    if trust is None:
        with place.open() as file:
            return _at_most(file, most + 1)
    with contextlib.closing(Joined([place], trust)) as joined:
        content = _at_most(cast(BinaryIO, joined), most + 1)
        joined.finish()
    return content


def _at_most(file: BinaryIO, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (data := file.read(min(size - len(parts), _CHUNK))):
        parts += data
    return bytes(parts)
