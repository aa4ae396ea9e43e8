"""Prints segments frame by frame: what a person or another program looks at when a spool is in question."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError
from mlferry_spool.frames import PREAMBLE_BYTES, read_preamble
from mlferry_spool.layout import segment_offset
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.records import Kind
from mlferry_spool.tailer import Cursor, Entry, Lost, scan
from mlferry_spool.trust import open_trusted

__all__ = ["dump_segment"]


def dump_segment(path: Path) -> Iterator[dict[str, Any]]:
    """Each frame of a segment as plain data: byte positions, kind, record; damage and a torn tail as such.

    Raises:
        CorruptSegment: this is no segment.
        UnsupportedVersion: it is one of a newer format.
        UntrustedFile: it is a pipe, a link or otherwise no plain file.
    """
    with os.fdopen(open_trusted(path), "rb") as file:
        data = file.read(MAX_SEGMENT_BYTES)
    preamble = read_preamble(data)
    if preamble is None:
        yield {"torn": len(data), "at": 0}
        return
    yield {"at": 0, "version": f"{preamble.major}.{preamble.minor}", "salt": preamble.salt, "damaged": preamble.damaged}
    base = segment_offset(path.name) or 0
    events, end = scan(Cursor(base, PREAMBLE_BYTES, 0), data[PREAMBLE_BYTES:], preamble.salt)
    start = PREAMBLE_BYTES
    for event in events:
        yield {"at": start, **_describe(event)}
        start = event.after.byte
    if end.byte < len(data):
        yield {"at": end.byte, "torn": len(data) - end.byte}


def _describe(event: Entry | Lost) -> dict[str, Any]:
    if isinstance(event, Lost):
        return {"damaged": event.end - event.start, "frames_lost": event.frames}
    name = Kind(event.kind).name.lower() if event.kind in Kind._value2member_map_ else f"kind {event.kind}"
    try:
        record = decode(event.kind, event.payload)
    except SpoolError as error:
        return {"offset": event.offset, "kind": name, "error": str(error)}
    return {"offset": event.offset, "kind": name, "record": _plain(record)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
        return {name: item for name, item in named.items() if item is not None}
    if isinstance(value, bytes):
        return value.hex() if len(value) == 32 else f"base64:{base64.b64encode(value).decode()}"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
