"""Payload bytes <-> records. Owns the msgpack settings of both directions; pure, like ``frames``.

Decoding is the gate for foreign bytes: sizes are bounded before anything is allocated, there are no ext types and no hooks,
and a fresh decoder serves each frame (a reused msgpack ``Unpacker`` is not safe after an error, GHSA-6v7p-g79w-8964).
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import msgpack

from mlferry_spool.checks import construct
from mlferry_spool.errors import CorruptRecord, Unencodable, UnsupportedKind
from mlferry_spool.frames import SKIPPABLE_FROM
from mlferry_spool.limits import MAX_PAYLOAD_BYTES, MAX_VALUES
from mlferry_spool.records import RECORDS, BlobRef, Dataset, Kind, Metrics, ModelOutput, Record
from mlferry_spool.shape import check_shape

__all__ = ["KIND_OF", "as_fields", "decode", "pack", "packer"]

_INT64 = (-(1 << 63), (1 << 63) - 1)

KIND_OF: dict[type[Any], Kind] = {record: kind for kind, record in RECORDS.items()}


def packer() -> msgpack.Packer:
    """A msgpack packer with the settings of the format. It is not thread-safe: its owner holds a lock."""
    return msgpack.Packer(use_bin_type=True)


def pack(record: Record) -> bytes:
    """A record's payload.

    Raises:
        Unencodable: a text has characters that UTF-8 does not have, or an integer exceeds 64 bits.
    """
    try:
        return bytes(packer().pack(as_fields(record)))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unencodable(str(error)) from error


def as_fields(record: Record) -> Any:
    """What a writer packs for a record: a map without what is absent, or an array without trailing absences."""
    if getattr(record, "AS_MAP", False):
        return {name: value for name, value in asdict(record).items() if value is not None}
    values = [_plain(getattr(record, item.name)) for item in fields(record)]
    while values and values[-1] is None:
        values.pop()
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BlobRef):
        return {"sha256": value.sha256, "size": value.size}
    if isinstance(value, (Dataset, ModelOutput)):
        return [_plain(getattr(value, item.name)) for item in fields(value)]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def decode(kind: int, payload: bytes) -> Record | None:
    """The record in a frame, or None for an unknown kind that may be skipped.

    Raises:
        UnsupportedKind: unknown, and not to be skipped.
        CorruptRecord: the payload is not a record of this kind.
    """
    record = RECORDS.get(kind)  # type: ignore[call-overload]
    if record is None:
        if kind >= SKIPPABLE_FROM:
            return None
        raise UnsupportedKind(f"kind {kind}")
    try:
        values = _unpack(payload)
        if type(values) is not (dict if getattr(record, "AS_MAP", False) else list):
            raise ValueError(f"the payload is a {type(values).__name__}")
        plain = _plain_metrics(values) if kind == Kind.METRICS else None
        made: Record = construct(record, values) if plain is None else plain
        return made
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise CorruptRecord(f"{record.__name__}: {error!s:.200}") from error


def _plain_metrics(values: Any) -> Metrics | None:
    """The record that nearly all are, checked in a third of the time of ``construct``, which decides in every other case."""
    if len(values) != 3:
        return None
    timestamp, step, points = values
    if type(timestamp) is not int or type(step) is not int or type(points) is not dict:
        return None
    if not (_INT64[0] <= timestamp <= _INT64[1] and _INT64[0] <= step <= _INT64[1]):
        return None
    for key, value in points.items():
        if type(key) is not str or type(value) is not float:
            return None
    return Metrics(timestamp, step, points)


def _unpack(payload: bytes) -> Any:
    check_shape(payload)
    return msgpack.unpackb(
        payload,
        raw=False,
        strict_map_key=True,
        max_str_len=MAX_PAYLOAD_BYTES,
        max_bin_len=MAX_PAYLOAD_BYTES,
        max_array_len=MAX_VALUES,
        max_map_len=MAX_VALUES // 2,
        max_ext_len=0,
    )
