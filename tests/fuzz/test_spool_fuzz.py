"""Any bytes at all: the spool's readers answer with records or a named error, in bounded memory, and end."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.compat.golden import RECORDS, SALT, SEGMENT
from tests.examples import examples

from mlferry_spool.codec import KIND_OF, decode, pack
from mlferry_spool.dump import dump_segment
from mlferry_spool.errors import CorruptRecord, CorruptSegment, SpoolError, UnsupportedKind, UnsupportedVersion
from mlferry_spool.frames import PREAMBLE_BYTES, Damage, Frame, encode, next_frame, preamble, read_preamble
from mlferry_spool.layout import segment_name
from mlferry_spool.limits import MAX_PAYLOAD_BYTES, MAX_SEGMENT_BYTES
from mlferry_spool.reader import LogReader
from mlferry_spool.tailer import Cursor, Entry, Lost, scan

GOLDEN = SEGMENT.read_bytes()
kinds = st.one_of(st.sampled_from([kind.value for kind in KIND_OF.values()]), st.integers(-128, 127))
frames = st.builds(
    lambda kind, sequence, payload, salt: encode(kind, sequence, payload, salt),
    st.integers(1, 127), st.integers(0, 2**32 - 1), st.binary(max_size=60), st.sampled_from([SALT, 1]),
)  # fmt: skip
pieces = st.one_of(
    st.binary(max_size=80),
    frames,
    st.integers(0, 200).map(bytes),
    st.tuples(st.integers(0, len(GOLDEN)), st.integers(0, 300)).map(lambda cut: GOLDEN[cut[0] : sum(cut)]),
)
streams = st.lists(pieces, max_size=12).map(b"".join)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=33),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=25,
)
payloads = st.one_of(
    st.binary(max_size=300),
    plain.map(msgpack.packb),
    st.sampled_from([pack(record) for record in RECORDS]).flatmap(
        lambda whole: st.tuples(st.integers(0, len(whole)), st.binary(max_size=6)).map(
            lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
        )
    ),
)


@given(streams)
def test_any_bytes_are_a_preamble_none_yet_or_a_named_error(data: bytes) -> None:
    try:
        found = read_preamble(data)
    except (CorruptSegment, UnsupportedVersion):
        return
    assert found is None or found.major == 1


@given(streams, st.integers(0, 100))
def test_any_bytes_are_a_frame_damage_or_nothing_yet(data: bytes, at: int) -> None:
    found = next_frame(data, at, SALT)
    if isinstance(found, Frame):
        assert found.start == at
        assert data[at : found.end] == encode(found.kind, found.sequence, found.payload, SALT)
    elif isinstance(found, Damage):
        assert at == found.start < found.end <= len(data)


@given(streams, st.integers(0, 5))
def test_scanning_any_bytes_moves_on_and_never_gives_a_frame_twice(data: bytes, sequence: int) -> None:
    cursor = Cursor(7, PREAMBLE_BYTES, sequence)
    events, end = scan(cursor, data, SALT)
    places = [cursor, *(event.after for event in events)]
    assert all((a.byte, a.sequence) < (b.byte, b.sequence) for a, b in pairwise(places))
    assert end == places[-1]
    offsets = [event.offset for event in events if isinstance(event, Entry)]
    assert offsets == sorted(set(offsets))
    for event in events:
        if isinstance(event, Lost):
            assert event.start <= event.end <= PREAMBLE_BYTES + len(data)
            assert (event.frames or 0) >= 0


@settings(max_examples=examples(600))
@given(kinds, payloads)
@example(4, b"\x93\x00\x00\x81\xa1a\xc7\x00\x05")
@example(17, b"\x83\xa9timestamp\x01\xa8trace_id\xa1t\xa4info" + b"\x81\xa1a" * 900 + b"\xc0")
def test_any_payload_is_a_record_or_one_of_two_errors(kind: int, payload: bytes) -> None:
    try:
        record = decode(kind, payload)
    except (CorruptRecord, UnsupportedKind):
        return
    assert record is None or decode(kind, pack(record)) is not None


@given(streams, st.booleans(), st.integers(0, 3000))
def test_any_segment_is_read_dumped_and_finished(data: bytes, framed: bool, first: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / segment_name(0)
        path.write_bytes(data[:first])
        reader, steps = LogReader(directory), 0
        whole = preamble(SALT) + data if framed else data
        for content in (whole[:first], whole):
            path.write_bytes(content)
            try:
                while reader.read():
                    steps += 1
                    assert steps < 1000
            except (CorruptSegment, UnsupportedVersion):
                continue
        reader.finish()
        assert reader.ended
        try:
            told = list(dump_segment(path))
        except SpoolError:
            return
        assert all("at" in line for line in told)


def hostile() -> Iterator[tuple[str, bytes]]:
    limit = MAX_PAYLOAD_BYTES
    for name, header in (
        ("array32 of 128 Ki", b"\xdd\x00\x02\x00\x00"),
        ("array32 of 64 Ki", b"\xdd\x00\x01\x00\x00"),
        ("array32 of 4 Gi", b"\xdd\xff\xff\xff\xff"),
        ("array16", b"\xdc\xff\xff"),
        ("map32", b"\xdf\x00\x01\x00\x00\xa1k"),
        ("map16", b"\xde\xff\xff\xa1k"),
        ("fixarray", b"\x9f"),
    ):
        yield f"nested {name}", header * (limit // len(header))
        yield f"seven nested {name}", header * 7
    yield "str32 of 4 Gi", b"\x93\x00\x00\xdb\xff\xff\xff\xff"
    yield "bin32 of 4 Gi", b"\x93\x00\x00\xc6\xff\xff\xff\xff"
    yield "ext32 of 4 Gi", b"\xc9\xff\xff\xff\xff\x05"
    yield "a million empty arrays", b"\xdd\x00\x01\xff\xf0" + b"\x90" * (limit - 5)
    yield "a million empty maps in arrays", (b"\xdd\x00\x01\xff\xf0" + b"\x80" * 131056) * 7
    yield "a map key twice", b"\x93\x00\x00\xde\xff\xff" + b"\xa1a\xc0" * 65535
    yield "a map with integers for keys", b"\x93\x00\x00\x81\x07\xdb\x00\x00\x4e\x20" + b"x" * 20000


@pytest.mark.parametrize(
    ("name", "payload"), list(hostile()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_headers_that_claim_much_get_little_memory(name: str, payload: bytes) -> None:
    for kind in (4, 8, 17):
        tracemalloc.start()
        try:
            with pytest.raises(CorruptRecord):
                decode(kind, payload)
            assert tracemalloc.get_traced_memory()[1] < 10 << 20
        finally:
            tracemalloc.stop()


def test_rejecting_thousands_of_payloads_leaks_nothing() -> None:
    payload = b"\x93\x00\x00\x81\x07\xda\x4e\x20" + b"x" * 20_000
    tracemalloc.start()
    try:
        for n in range(2000):
            with pytest.raises(CorruptRecord):
                decode(4, payload)
            if n == 200:
                before = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("filling", ["sparse", "markers", "headers", "random"])
def test_the_largest_segment_of_nonsense_is_passed_in_a_few_megabytes(filling: str, tmp_path: Path) -> None:
    path = tmp_path / segment_name(0)
    start = preamble(SALT) + encode(1, 0, b"\x80", SALT)
    path.write_bytes(start)
    size = {"sparse": 1 << 40, "headers": 5 << 19}.get(filling, 6 << 20)
    if filling != "sparse":
        pattern = {
            "markers": b"\xc9",
            "headers": b"\xc9\x00\x01\x00\x00\x05" + bytes(18),
            "random": os.urandom(1 << 20),
        }[filling]
        path.write_bytes(start + (pattern * (size // len(pattern))))
    os.truncate(path, size)
    tracemalloc.start()
    try:
        reader = LogReader(tmp_path)
        assert len(reader.read()) == 1
        assert reader.read() == []
        (lost,) = reader.finish()
        assert isinstance(lost, Lost)
        assert lost.end == min(size, MAX_SEGMENT_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_segment_that_shrinks_and_grows_while_it_is_read_neither_fails_nor_hangs(tmp_path: Path) -> None:
    path = tmp_path / segment_name(0)
    data = preamble(SALT) + b"".join(encode(4, n, b"x" * 50, SALT) for n in range(400))
    path.write_bytes(data)
    stop = threading.Event()

    def shake() -> None:
        chance = random.Random(1)
        with path.open("r+b") as file:
            while not stop.is_set():
                os.truncate(path, chance.randrange(len(data)))
                file.seek(0)
                file.write(data)
                file.flush()

    shaker = threading.Thread(target=shake)
    shaker.start()
    try:
        for _ in range(300):
            reader, numbers = LogReader(tmp_path), []
            for _ in range(3):
                try:
                    events = reader.read()
                except CorruptSegment:
                    continue
                numbers += [event.offset for event in events if isinstance(event, Entry)]
            assert numbers == sorted(set(numbers))
    finally:
        stop.set()
        shaker.join()
