"""A reader beside a writer: growth in pieces, rotation, missing segments, other versions, and files that are none."""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path

import pytest
from tests.unit.spool.spools import drain, number, segment_files, untended

from mlferry_spool.codec import decode, pack
from mlferry_spool.errors import CorruptSegment, UnsupportedKind, UnsupportedVersion, UntrustedFile
from mlferry_spool.frames import PREAMBLE_BYTES, encode, preamble
from mlferry_spool.layout import segment_name
from mlferry_spool.reader import LogReader, segment_offsets
from mlferry_spool.records import Kind, SegmentEnd
from mlferry_spool.settings import Settings
from mlferry_spool.tailer import Cursor, Entry, Lost
from mlferry_spool.trust import open_trusted


def a_segment(base: int, payloads: list[bytes], *, salt: int = 5, following: int | None = None) -> bytes:
    frames = [encode(4, sequence, payload, salt) for sequence, payload in enumerate(payloads)]
    if following is not None:
        frames.append(encode(Kind.SEGMENT_END, len(payloads), pack(SegmentEnd(following)), salt))
    return preamble(salt) + b"".join(frames)


def put(directory: Path, base: int, data: bytes) -> Path:
    path = directory / segment_name(base)
    path.write_bytes(data)
    return path


def payloads(events: object) -> list[bytes]:
    return [event.payload for event in events if isinstance(event, Entry) and event.kind != Kind.SEGMENT_END]  # type: ignore[attr-defined]


def lost(events: object) -> list[Lost]:
    return [event for event in events if isinstance(event, Lost)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [1, 3, 7, 17, 64, 1000])
def test_a_log_that_grows_in_pieces_is_read_once_and_whole(step: int, tmp_path: Path) -> None:
    data = a_segment(0, [b"a", b"", b"c" * 50, b"d"])
    path = put(tmp_path, 0, b"")
    reader, seen = LogReader(tmp_path), []
    for end in range(0, len(data) + step, step):
        path.write_bytes(data[:end])
        seen += reader.read()
    assert payloads(seen) == [b"a", b"", b"c" * 50, b"d"]
    assert not lost(seen)
    assert reader.pending_bytes() == 0


def test_a_torn_frame_that_the_writer_cuts_off_and_writes_anew_is_read_once(tmp_path: Path) -> None:
    start = a_segment(0, [b"a"])
    path = put(tmp_path, 0, start)
    reader = LogReader(tmp_path)
    assert payloads(reader.read()) == [b"a"]
    for torn in range(1, 30):
        path.write_bytes(start + encode(4, 1, b"never finished", 5)[:torn])
        assert reader.read() == []
    path.write_bytes(start + encode(4, 1, b"another", 5))
    assert payloads(reader.read()) == [b"another"]


def test_a_reader_follows_a_writer_through_its_segments_while_it_writes(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(segment_bytes=400))
    reader, seen = LogReader(writer.directory), []
    for n in range(60):
        writer.append(Kind.PARAMS, number(n))
        seen += reader.read()
    writer.close()
    seen += drain(reader)
    assert len(segment_files(writer.directory)) > 5
    assert [record.timestamp for e in seen if (record := decode(e.kind, e.payload)) and e.kind == Kind.PARAMS] == [
        *range(60)
    ]
    offsets = [event.offset for event in seen]
    assert offsets == list(range(len(offsets)))
    assert reader.ended
    assert reader.read() == []


def test_a_segment_without_its_end_is_over_once_the_next_one_stands(tmp_path: Path) -> None:
    put(tmp_path, 0, a_segment(0, [b"a", b"b"]))
    reader = LogReader(tmp_path)
    assert payloads(drain(reader)) == [b"a", b"b"]
    put(tmp_path, 3, a_segment(3, [b"c"]))
    seen = list(drain(reader))
    assert payloads(seen) == [b"c"]
    assert not lost(seen), "the place of SEGMENT_END is no record"


def test_a_missing_segment_is_reported_with_the_frames_it_held(tmp_path: Path) -> None:
    put(tmp_path, 0, a_segment(0, [b"a", b"b"], following=3))
    put(tmp_path, 9, a_segment(9, [b"d"]))
    seen = list(drain(LogReader(tmp_path)))
    assert payloads(seen) == [b"a", b"b", b"d"]
    assert [(event.segment, event.frames) for event in lost(seen)] == [(3, 5)]


def test_a_segment_deleted_after_it_was_read_is_not_missed(tmp_path: Path) -> None:
    first = put(tmp_path, 0, a_segment(0, [b"a", b"b"]))
    reader = LogReader(tmp_path)
    assert payloads(drain(reader)) == [b"a", b"b"]
    put(tmp_path, 3, a_segment(3, [b"c"]))
    first.unlink()
    seen = list(drain(LogReader(tmp_path, reader.cursor)))
    assert payloads(seen) == [b"c"]
    assert not lost(seen)


def test_thousands_of_empty_segments_are_passed_in_one_call(tmp_path: Path) -> None:
    for base in range(3000):
        put(tmp_path, base, b"")
    put(tmp_path, 3000, a_segment(3000, [b"z"]))
    seen = LogReader(tmp_path).read()
    assert payloads(seen) == [b"z"]
    assert not lost(seen)


def test_a_corrupt_segment_is_passed_over_with_its_loss_once_a_later_one_stands(tmp_path: Path) -> None:
    put(tmp_path, 0, os.urandom(300))
    reader = LogReader(tmp_path)
    with pytest.raises(CorruptSegment):
        reader.read()
    assert reader.cursor == Cursor()
    put(tmp_path, 8, a_segment(8, [b"c"]))
    seen = list(drain(reader))
    assert payloads(seen) == [b"c"]
    assert [(event.start, event.end, event.frames) for event in lost(seen)] == [(0, 300, 7)]


def test_a_newer_major_version_is_not_supported_rather_than_corrupt(tmp_path: Path) -> None:
    body = bytearray(preamble(5)[:-4])
    body[10] = 2
    put(tmp_path, 0, bytes(body) + zlib.crc32(body).to_bytes(4, "big") + b"whatever")
    put(tmp_path, 50, a_segment(50, [b"later"]))
    reader = LogReader(tmp_path)
    for _ in range(3):
        with pytest.raises(UnsupportedVersion, match=r"2\.0"):
            reader.read()
    assert reader.cursor == Cursor(), "nothing was skipped"


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    body = bytearray(preamble(5)[:-4])
    body[11] = 9
    put(tmp_path, 0, bytes(body) + zlib.crc32(body).to_bytes(4, "big") + encode(4, 0, b"a", 5))
    assert payloads(LogReader(tmp_path).read()) == [b"a"]


def test_unknown_kinds_below_64_stop_a_reader_and_those_above_do_not() -> None:
    for kind in (22, 30, 63):
        with pytest.raises(UnsupportedKind, match=str(kind)):
            decode(kind, b"\x90")
    for kind in (65, 100, 127):
        assert decode(kind, b"anything") is None


def test_a_zero_filled_preamble_is_waited_for(tmp_path: Path) -> None:
    whole = a_segment(0, [b"a"])
    for cut in range(PREAMBLE_BYTES):
        put(tmp_path, 0, whole[:cut] + bytes(100))
        reader = LogReader(tmp_path)
        assert reader.read() == []
        put(tmp_path, 0, whole)
        assert payloads(reader.read()) == [b"a"]


def test_damage_is_given_time_to_heal_where_pages_arrive_out_of_order(tmp_path: Path) -> None:
    whole = a_segment(0, [b"a", b"b" * 40, b"c"])
    start = whole.index(b"b" * 40)
    put(tmp_path, 0, whole[:start] + bytes(40) + whole[start + 40 :])
    reader = LogReader(tmp_path, patience_s=5.0)
    assert payloads(reader.read(100.0)) == [b"a"]
    assert reader.read(104.9) == []
    put(tmp_path, 0, whole)
    assert payloads(reader.read(104.95)) == [b"b" * 40, b"c"]


def test_damage_that_does_not_heal_is_reported_after_the_patience(tmp_path: Path) -> None:
    whole = bytearray(a_segment(0, [b"a", b"b" * 40, b"c"]))
    whole[whole.index(b"b" * 40)] ^= 1
    put(tmp_path, 0, bytes(whole))
    reader = LogReader(tmp_path, patience_s=5.0)
    assert payloads(reader.read(100.0)) == [b"a"]
    seen = list(reader.read(105.0))
    assert payloads(seen) == [b"c"]
    assert [event.frames for event in lost(seen)] == [1]


def test_a_segment_cut_short_below_the_cursor_is_waited_for(tmp_path: Path) -> None:
    path = put(tmp_path, 0, a_segment(0, [b"a", b"b"]))
    reader = LogReader(tmp_path)
    reader.read()
    os.truncate(path, 30)
    assert reader.read() == []
    assert reader.finish() == []


def test_nothing_is_read_past_the_limit_of_a_sparse_file(tmp_path: Path) -> None:
    path = put(tmp_path, 0, a_segment(0, [b"a"]))
    os.truncate(path, 1 << 40)
    reader = LogReader(tmp_path)
    assert payloads(drain(reader)) == [b"a"]
    assert reader.pending_bytes() < 64 << 20


def make_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def make_hard_link(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def make_pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path, target: Path) -> None:
    path.mkdir()


def make_socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [make_link, make_hard_link, make_pipe, make_directory, make_socket])
def test_what_is_no_plain_file_of_its_own_is_refused_without_blocking(make, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(a_segment(0, [b"secret"]))
    directory = tmp_path / "w"
    directory.mkdir()
    make(directory / segment_name(0), target)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UntrustedFile):
        LogReader(directory).read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    put(tmp_path / "real", 0, a_segment(0, [b"secret"]))
    (tmp_path / "w").symlink_to(tmp_path / "real")
    with pytest.raises(UntrustedFile):
        LogReader(tmp_path / "w").read()


def test_a_file_of_another_owner_than_its_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = put(tmp_path, 0, a_segment(0, [b"a"]))
    os.chown(path, 12345, -1)
    with pytest.raises(UntrustedFile, match="owner"):
        open_trusted(path)


def test_names_that_are_no_offsets_are_no_segments(tmp_path: Path) -> None:
    for name in (
        "1.seg",
        f"{0:020d}.seg.tmp",
        f"{0:020d}.SEG",
        f"{1 << 63:020d}.seg",
        "9" * 20 + ".seg",
        f"{5:020d}.seg",
    ):
        (tmp_path / name).touch()
    assert segment_offsets(tmp_path) == [5]


def test_a_directory_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "absent")
    assert reader.read() == []
    assert reader.pending_bytes() == 0
    assert reader.finish() == []
