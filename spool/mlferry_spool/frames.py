"""Bytes <-> frames. Owns the layout of preamble and frame, and nothing else: no file, no clock, no record.

Why this layout. A reader follows a file while it grows, so at any moment the last frame may be cut anywhere; and a disk
may flip any bit. Those two must not be confused: a cut tail is waited for, a damaged frame is skipped and counted.

* The header has a checksum of its own. A flipped length is seen at once; without that it would either stall the reader
  (waiting for bytes that never come) or throw it out of step.
* Both checksums are seeded with the segment's random salt, so frames of another segment inside a payload (somebody logs
  a spool file as a text) never look like frames of this one when the reader searches for the next good header.
* Every frame is one msgpack ext 32 object and the preamble one ext 8, so a plain ``msgpack.Unpacker`` walks a segment.
* Zero is no kind and no marker byte, so a tail of zeros (a hole, a crashed file system) is never a frame.

See FORMAT.md for the byte tables and a worked example.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from zlib import crc32

from mlferry_spool.errors import CorruptSegment, RecordTooLarge, UnsupportedVersion
from mlferry_spool.limits import MAX_PAYLOAD_BYTES

__all__ = [
    "BEYOND_LENGTH",
    "CHECKS",
    "EXT32",
    "HEAD",
    "HEADER",
    "MAJOR",
    "MINOR",
    "OVERHEAD",
    "PREAMBLE_BYTES",
    "SKIPPABLE_FROM",
    "Damage",
    "Frame",
    "Preamble",
    "encode",
    "find_header",
    "next_frame",
    "preamble",
    "read_preamble",
    "sequence_at",
]

MAJOR, MINOR = 1, 0

EXT32 = 0xC9
HEADER = struct.Struct(">BIbI")  # marker, ext length, kind, sequence
CHECKS = struct.Struct(">II")  # header CRC, payload CRC
HEAD = struct.Struct(f">{HEADER.size}sII")  # both at once: the hot path is spared a concatenation
OVERHEAD = HEADER.size + CHECKS.size
BEYOND_LENGTH = OVERHEAD - 6  #: What the ext length counts besides the payload: sequence and the two CRCs.

_PREAMBLE = struct.Struct(">BBb7sBBIII")
PREAMBLE_BYTES = _PREAMBLE.size
_MAGIC = b"MLFERRY"
_PREAMBLE_KIND = 0x4D

#: What can be a header at all: marker, a length up to the limit, a kind above zero. Overlapping matches count.
_CANDIDATE = re.compile(rb"\xc9(?=\x00[\x00-\x10]..[\x01-\x7f])", re.DOTALL)

#: Kinds from here on may be skipped by a reader that does not know them; an unknown kind below stops it.
SKIPPABLE_FROM = 64


@dataclass(frozen=True, slots=True)
class Preamble:
    """The first 24 bytes of a segment. ``damaged``: its checksum is wrong but its salt was proved by the frame after."""

    major: int
    minor: int
    salt: int
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One intact frame: ``start`` and ``end`` are byte positions in the buffer it was found in."""

    kind: int
    sequence: int
    payload: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes ``start`` to ``end`` hold no frame, and a good header follows at ``end``."""

    start: int
    end: int


def preamble(salt: int) -> bytes:
    """The 24 bytes that open a segment. The salt stands twice so that no single flipped byte can lose the segment."""
    body = _PREAMBLE.pack(0xC7, PREAMBLE_BYTES - 3, _PREAMBLE_KIND, _MAGIC, MAJOR, MINOR, salt, salt, 0)
    return body[:-4] + crc32(body[:-4]).to_bytes(4, "big")


def read_preamble(buffer: bytes) -> Preamble | None:
    """Read the preamble, or None while it is incomplete.

    Raises:
        UnsupportedVersion: intact, and of another major version.
        CorruptSegment: this is no segment.
    """
    if len(buffer) >= PREAMBLE_BYTES:
        *_, magic, major, minor, salt, again, check = _PREAMBLE.unpack_from(buffer)
        if check == crc32(buffer[: PREAMBLE_BYTES - 4]) and magic == _MAGIC:
            if major != MAJOR:
                raise UnsupportedVersion(f"segment version {major}.{minor}, this reader knows {MAJOR}.{MINOR}")
            return Preamble(major, minor, salt)
        for candidate in (salt, again):
            if _good_header(buffer, PREAMBLE_BYTES, candidate):
                return Preamble(MAJOR, minor, candidate, damaged=True)
    if _is_cut(buffer):
        return None
    raise CorruptSegment("no preamble")


def _is_cut(buffer: bytes) -> bool:
    """The beginning of a preamble and no more, perhaps followed by zeros that stand for bytes not written yet."""
    fixed = bytes((0xC7, PREAMBLE_BYTES - 3, _PREAMBLE_KIND)) + _MAGIC
    written = buffer.rstrip(b"\0")
    return len(written) < PREAMBLE_BYTES and fixed.startswith(written[: len(fixed)])


def encode(kind: int, sequence: int, payload: bytes, salt: int) -> bytes:
    """One frame. The writer's hot path inlines exactly these lines.

    Raises:
        RecordTooLarge: the payload exceeds ``MAX_PAYLOAD_BYTES``.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RecordTooLarge(f"{len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    header = HEADER.pack(EXT32, len(payload) + BEYOND_LENGTH, kind, sequence)
    check = crc32(header, salt)
    return HEAD.pack(header, check, crc32(payload, check)) + payload


def next_frame(buffer: bytes, at: int, salt: int) -> Frame | Damage | None:
    """What stands at byte ``at``: a frame, damage up to the next good header, or None for "more bytes are needed".

    None is also the answer to garbage that nothing good follows: on a growing file it may be a write in progress, and
    only the caller knows whether the writer still lives.
    """
    if len(buffer) - at < OVERHEAD:
        return None
    if _good_header(buffer, at, salt):
        _, length, kind, sequence = HEADER.unpack_from(buffer, at)
        end = at + OVERHEAD + length - BEYOND_LENGTH
        if end > len(buffer):
            return _damage_if_followed(buffer, at, salt)
        header_check, payload_check = CHECKS.unpack_from(buffer, at + HEADER.size)
        payload = buffer[at + OVERHEAD : end]
        if crc32(payload, header_check) == payload_check:
            return Frame(kind, sequence, payload, at, end)
    return _damage_if_followed(buffer, at, salt)


def find_header(buffer: bytes, at: int, salt: int) -> int | None:
    """Where from byte ``at`` on the first good header stands."""
    for candidate in _CANDIDATE.finditer(buffer, at):
        found = candidate.start()
        # Nearly all candidates fail here, and somebody may have filled a file with them.
        if crc32(buffer[found : found + HEADER.size], salt) == int.from_bytes(
            buffer[found + HEADER.size : found + HEADER.size + 4], "big"
        ) and _good_header(buffer, found, salt):
            return found
    return None


def sequence_at(buffer: bytes, at: int) -> int:
    """The sequence number in the good header at byte ``at``."""
    return int.from_bytes(buffer[at + HEADER.size - 4 : at + HEADER.size], "big")


def _damage_if_followed(buffer: bytes, at: int, salt: int) -> Damage | None:
    found = find_header(buffer, at + 1, salt)
    return None if found is None else Damage(at, found)


def _good_header(buffer: bytes, at: int, salt: int) -> bool:
    if len(buffer) - at < OVERHEAD or buffer[at] != EXT32:
        return False
    _, length, kind, _ = HEADER.unpack_from(buffer, at)
    check = int.from_bytes(buffer[at + HEADER.size : at + HEADER.size + 4], "big")
    return (
        kind > 0
        and BEYOND_LENGTH <= length <= MAX_PAYLOAD_BYTES + BEYOND_LENGTH
        and crc32(buffer[at : at + HEADER.size], salt) == check
    )
