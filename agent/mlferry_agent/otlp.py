"""Attributes of spans in an OTLP export request, changed in place. Pure; knows of protobuf no more than it needs for that.

MLflow writes two names of the spool into the spans themselves: the experiment's id and the numbers of the prompts that were
used. All else is sent as it was logged, to the byte, and so is a request that is no protobuf: the server says what is wrong.

A message is a row of fields, each a tag (number and wire type) and a value; only values of wire type 2 (bytes of a given
length) hold other messages. The way to an attribute's text, by field numbers of opentelemetry-proto 1.x::

    ExportTraceServiceRequest.resource_spans 1 .scope_spans 2 .spans 2 .attributes 9 -> KeyValue
    KeyValue.key 1, .value 2 -> AnyValue.string_value 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Change", "change_attributes"]

#: (name, text) of an attribute -> its new text, or None to leave it as it is.
Change = Callable[[str, str], str | None]

_TO_ATTRIBUTES = (1, 2, 2, 9)
_KEY, _VALUE, _STRING = 1, 2, 1
_BYTES = 2
_LONGEST_VARINT = 10


def change_attributes(request: bytes, change: Change) -> bytes:
    """The request with the texts of its spans' attributes as ``change`` wants them."""
    try:
        return _descend(request, _TO_ATTRIBUTES, change)
    except ValueError:
        return request


def _descend(message: bytes, way: tuple[int, ...], change: Change) -> bytes:
    if not way:
        return _changed(message, change)
    parts = []
    for number, field, value in _fields(message):
        if value is not None and number == way[0]:
            below = _descend(value, way[1:], change)
            field = field if below is value else _field(number, below)
        parts.append(field)
    whole = b"".join(parts)
    return message if whole == message else whole


def _changed(attribute: bytes, change: Change) -> bytes:
    """A KeyValue whose value is a text."""
    found = {number: value for number, _, value in _fields(attribute) if value is not None}
    texts = [value for number, _, value in _fields(found.get(_VALUE, b"")) if number == _STRING and value is not None]
    if _KEY not in found or not texts:
        return attribute
    new = change(found[_KEY].decode(), texts[-1].decode())
    if new is None:
        return attribute
    return _field(_KEY, found[_KEY]) + _field(_VALUE, _field(_STRING, new.encode()))


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Number, whole bytes and, of wire type 2, value of each field. Raises ValueError: it is no message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        value = None
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(message, at)
                value, at = message[at : at + size], at + size
            case _:
                raise ValueError("a wire type that OTLP does not use")
        if at > len(message):
            raise ValueError("a field that ends after its message")
        yield tag >> 3, message[start:at], value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    raise ValueError("a number without an end")


def _field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
