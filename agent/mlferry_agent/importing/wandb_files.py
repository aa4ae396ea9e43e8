"""The bytes of a ``.wandb`` file -> records, as far as an import needs them.

The file is a LevelDB log (blocks of 32 KiB; CRC-32, length and type before each piece of a record) behind a header of seven
bytes; a record is a protobuf message. wandb itself reads it in Go, and ships 60 MB for that; the few fields below stand in
its ``wandb_internal.proto`` since 0.10 under these numbers. What a reader does not name, protobuf passes over.

Damage costs what it hits: the rest of a block is passed over, as wandb's own reader does, and counted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO

__all__ = ["records"]

_HEADER_BYTES, _BLOCK, _PIECE = 7, 32768, struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

#: Bytes of one record of a ``.wandb`` file; wandb refuses to write larger ones.
#: Beyond: passed over and counted as damage.
#: Test: tests/unit/importing/test_wandb.py::test_a_record_larger_than_any_is_passed_over
_MOST_RECORD_BYTES = 256 << 20

_STRING, _INT32, _INT64, _BOOL, _MESSAGE = 9, 5, 3, 8, 11

#: Message -> field -> number, type, and for a message which one; a ``*`` says that it is repeated.
_ITEM = {"key": (1, _STRING, ""), "nested_key*": (2, _STRING, ""), "value_json": (16, _STRING, "")}
_MESSAGES: dict[str, dict[str, tuple[int, int, str]]] = {
    "Time": {"seconds": (1, _INT64, ""), "nanos": (2, _INT32, "")},
    "Item": _ITEM,
    "Step": {"num": (1, _INT64, "")},
    "History": {"item*": (1, _MESSAGE, "Item"), "step": (2, _MESSAGE, "Step")},
    "Changes": {"update*": (1, _MESSAGE, "Item"), "remove*": (2, _MESSAGE, "Item")},
    "Stats": {"timestamp": (2, _MESSAGE, "Time"), "item*": (3, _MESSAGE, "StatsItem")},
    "StatsItem": {"key": (1, _STRING, ""), "value_json": (16, _STRING, "")},
    "Exit": {"exit_code": (1, _INT32, ""), "runtime": (2, _INT32, "")},
    "Git": {"remote_url": (1, _STRING, ""), "commit": (2, _STRING, "")},
    "Artifact": {"name": (5, _STRING, "")},
    "Run": {
        "run_id": (1, _STRING, ""),
        "entity": (2, _STRING, ""),
        "project": (3, _STRING, ""),
        "config": (4, _MESSAGE, "Changes"),
        "run_group": (6, _STRING, ""),
        "job_type": (7, _STRING, ""),
        "display_name": (8, _STRING, ""),
        "notes": (9, _STRING, ""),
        "tags*": (10, _STRING, ""),
        "sweep_id": (12, _STRING, ""),
        "host": (13, _STRING, ""),
        "start_time": (17, _MESSAGE, "Time"),
        "git": (21, _MESSAGE, "Git"),
    },
    "Record": {
        "num": (1, _INT64, ""),
        "history": (2, _MESSAGE, "History"),
        "summary": (3, _MESSAGE, "Changes"),
        "config": (5, _MESSAGE, "Changes"),
        "stats": (7, _MESSAGE, "Stats"),
        "artifact": (8, _MESSAGE, "Artifact"),
        "run": (17, _MESSAGE, "Run"),
        "exit": (18, _MESSAGE, "Exit"),
    },
}


def records(file: BinaryIO, damaged: Callable[[], None]) -> Iterator[Any]:
    """Each record of an open ``.wandb`` file, as a protobuf message with the fields above. ``damaged`` is called for each
    that cannot be read; a record that is cut off at the end, which a killed process leaves, is passed over.

    Raises:
        ImportError: protobuf is not installed.
    """
    from google.protobuf.message import DecodeError

    record = _record_class()
    for data in _pieces_joined(file, damaged):
        try:
            yield record.FromString(data)
        except DecodeError:
            damaged()


def _pieces_joined(file: BinaryIO, damaged: Callable[[], None]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for kind, data in _pieces(file, damaged):
        if kind in (_FULL, _FIRST):
            parts = []
        elif not parts:
            continue  # its beginning was damaged
        parts.append(data)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
        elif sum(map(len, parts)) > _MOST_RECORD_BYTES:
            damaged()
            parts = []


def _pieces(file: BinaryIO, damaged: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each piece; 0 stands where something is missing in between."""
    file.seek(0)
    block, at = file.read(_BLOCK), _HEADER_BYTES
    while block:
        while at + _PIECE.size <= len(block):
            crc, size, kind = _PIECE.unpack_from(block, at)
            data = block[at + _PIECE.size : at + _PIECE.size + size]
            if not (crc or size or kind):
                break  # zeros: what a power cut leaves
            if len(data) < size and len(block) < _BLOCK:
                return  # the end was never written
            if len(data) < size or zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc:
                damaged()
                break
            yield kind, data
            at += _PIECE.size + size
        block, at = file.read(_BLOCK), 0


@lru_cache(maxsize=1)
def _record_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    described = descriptor_pb2.FileDescriptorProto(name="mlferry/wandb.proto", package="mlferry_wandb", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = described.message_type.add(name=name)
        for field, (number, kind, of) in fields.items():
            message.field.add(
                name=field.rstrip("*"),
                number=number,
                type=kind,
                label=3 if field.endswith("*") else 1,
                type_name=f".mlferry_wandb.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mlferry_wandb.Record"))
