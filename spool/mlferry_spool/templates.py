"""Metric records packed beforehand: the payload of one point with three numbers left open.

A training loop logs the same few names again and again. All of such a payload but the timestamp, the step and the value is
the same each time, so it is made once a name and ``struct`` fills in the numbers, in a third of the time that msgpack takes
for the tuple and the dictionary. The result is what any msgpack library reads as ``[timestamp, step, {name: value}]``; the
timestamp and the step have their eight-byte forms whatever they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mlferry_spool.codec import packer

__all__ = ["START", "STEP", "Template", "template"]

#: An array of three values, the first a uint 64; and what announces an int 64. See FORMAT.md on METRICS.
START, STEP = b"\x93\xcf", b"\xd3"

#: ``pack`` and ``name`` of ``pack(START, timestamp, STEP, step, name, value)``, which is the payload. ``pack`` raises
#: ``struct.error`` or OverflowError where a number does not fit, and whatever the number's own class raises.
Template = tuple[Callable[[bytes, int, bytes, int, bytes, float], bytes], bytes]


def template(key: str) -> Template:
    """The template of a metric's name. Raises UnicodeEncodeError."""
    name = bytes(packer().pack({key: 0.0}))[: -struct.calcsize("d")]
    return struct.Struct(f">2sQ1sq{len(name)}sd").pack, name
