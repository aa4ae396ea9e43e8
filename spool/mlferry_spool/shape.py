"""How a payload is built, found from its msgpack headers alone: the gate before a decoder that allocates on their word.

A decoder makes room for an array when it reads its header, so a kilobyte of nested headers that claim much each costs tens
of megabytes; and a megabyte of tiny values is a million objects, each of which is checked later on. So the values are
counted, in constant memory, and each array or map is counted for as many as it claims when its header is met: what is
looked at here, made by the decoder and checked after it is bounded alike. What is not well-formed is left to the decoder,
which says so.
"""

from __future__ import annotations

from mlferry_spool.limits import MAX_DEPTH, MAX_VALUES

__all__ = ["SURELY_SMALL_BYTES", "check_shape"]

#: A payload of so many bytes holds no more values than it may, and is nearly all there are.
SURELY_SMALL_BYTES = MAX_VALUES

#: Large arrays that a small payload may claim: each makes the decoder set room aside, as large as the largest array.
_FEW = 8

#: First byte -> bytes of the whole scalar (header and body), for those of fixed size; 0 for all others.
_SCALARS = bytes(
    {
        **dict.fromkeys((*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)), 1),
        **{0xA0 + size: 1 + size for size in range(32)},
        **{0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9},
        **{0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18},
    }.get(first, 0)
    for first in range(0x100)
)
#: First byte -> values in an array or map of up to 15 elements, which carries their number itself; -1 for all others.
_FEW_INSIDE = (*[-1] * 0x80, *range(0, 32, 2), *range(16), *[-1] * 0x60)
#: First byte -> (bytes of the length field, bytes besides) of texts, binaries and exts.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
#: First byte -> (bytes of the length field, values per element) of arrays and maps; those up to 15 carry it themselves.
_NESTING = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def check_shape(payload: bytes) -> None:
    """Raises ValueError: more than ``MAX_VALUES`` values, or nested deeper than ``MAX_DEPTH``.

    A small payload cannot do harm, and how deep it is nested is left to the decoder's own limit.
    """
    if len(payload) > SURELY_SMALL_BYTES or payload.count(b"\xdc") + payload.count(b"\xdd") > _FEW:
        _walk(payload)


def _walk(payload: bytes) -> None:
    at, end, values = 0, len(payload), 1
    left, around = 1, list[int]()  # values still to come: of the array or map around ``at``, and of those around it
    while at < end:
        if not left:
            if not around:
                return
            left = around.pop()
            continue
        left -= 1
        size = _SCALARS[payload[at]]
        if size:
            at += size
            continue
        inside = _FEW_INSIDE[payload[at]]
        size = 1
        if inside < 0:
            size, inside = _step(payload, at)
        at += size
        if inside >= 0:
            values += inside
            around.append(left)
            left = inside
            if values > MAX_VALUES or len(around) > MAX_DEPTH:
                raise ValueError("too many values, or nested too deeply")


def _step(payload: bytes, at: int) -> tuple[int, int]:
    """Bytes to the next value, and how many values an array or map holds; -1 for what is neither."""
    first = payload[at]
    if first in _SIZED:
        width, besides = _SIZED[first]
        return 1 + width + besides + int.from_bytes(payload[at + 1 : at + 1 + width], "big"), -1
    if first in _NESTING:
        width, per_element = _NESTING[first]
        return 1 + width, per_element * int.from_bytes(payload[at + 1 : at + 1 + width], "big")
    return 1, -1  # 0xC1, for the decoder to refuse
