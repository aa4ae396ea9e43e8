"""How a payload is nested, found from its msgpack headers alone: the gate before a decoder that allocates on their word.

A decoder makes room for an array when it reads its header, so a kilobyte of nested headers that claim much each costs tens
of megabytes; and a megabyte of empty arrays is a million objects. Both are refused here, in constant memory. What is not
well-formed is left to the decoder, which says so.
"""

from __future__ import annotations

from mlferry_spool.limits import MAX_CONTAINERS, MAX_DEPTH

__all__ = ["check_shape"]

#: Payloads up to this size with few large array headers cannot do harm, and are nearly all there are.
_SMALL_BYTES = 1 << 15
_FEW = 8

#: First byte -> bytes of the whole scalar (header and body), for those of fixed size.
_SCALARS = {
    **dict.fromkeys((*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)), 1),
    **{0xA0 + size: 1 + size for size in range(32)},
    **{0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9},
    **{0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18},
}
#: First byte -> (bytes of the length field, bytes besides) of texts, binaries and exts.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
#: First byte -> (bytes of the length field, items per element) of arrays and maps; those up to 15 carry it themselves.
_NESTING = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def check_shape(payload: bytes) -> None:
    """Raises ValueError: nested deeper than ``MAX_DEPTH``, or more than ``MAX_CONTAINERS`` arrays and maps."""
    if len(payload) > _SMALL_BYTES or payload.count(b"\xdc") + payload.count(b"\xdd") > _FEW:
        _walk(payload)


def _walk(payload: bytes) -> None:
    at, end, containers = 0, len(payload), 0
    open_items = [1]  # of each container around ``at``, how many items are still to come
    while at < end and open_items:
        open_items[-1] -= 1
        step, items = _step(payload, at)
        at += step
        if items:
            containers += 1
            open_items.append(items - 1)
        if len(open_items) > MAX_DEPTH or containers > MAX_CONTAINERS:
            raise ValueError("nested too deeply, or too many arrays and maps")
        while open_items and not open_items[-1]:
            open_items.pop()


def _step(payload: bytes, at: int) -> tuple[int, int]:
    """Bytes to the next item, and for a container 1 + how many items it holds."""
    first = payload[at]
    if first in _SCALARS:
        return _SCALARS[first], 0
    if first in _SIZED:
        width, besides = _SIZED[first]
        return 1 + width + besides + int.from_bytes(payload[at + 1 : at + 1 + width], "big"), 0
    if first in _NESTING:
        width, per_element = _NESTING[first]
        return 1 + width, 1 + per_element * int.from_bytes(payload[at + 1 : at + 1 + width], "big")
    return 1, 1 + (first & 0x0F) * (2 if first < 0x90 else 1)  # fixmap, fixarray (0xC1 is for the decoder to refuse)
