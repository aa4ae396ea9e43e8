"""Parts: what is kept under which name, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlferry.console.parts import File, Parts

MIB = 1 << 20
LINE = b"x" * 99 + b"\n"


def test_a_part_that_is_full_is_stored_and_another_one_begins() -> None:
    parts = Parts()
    files = parts.add(LINE * 15_000, 0.0)
    assert [file.name for file in files] == ["0001.log"]
    assert [file.name for file in parts.end()] == ["0002.log"]
    assert len(files[0].content) == MIB // 100 * 100  # whole lines


def test_an_old_part_is_closed_although_it_is_not_full() -> None:
    parts = Parts()
    parts.add(b"one\n", 0.0)
    parts.look(0.0)
    parts.add(b"two\n", 3601.0)
    assert parts.look(3601.0) == [File("0001.log", b"one\ntwo\n")]
    parts.add(b"three\n", 3602.0)
    assert parts.look(3602.0) == [File("0002.log", b"three\n")]


def test_the_pause_until_a_growing_part_is_stored_again_doubles() -> None:
    parts, stored = Parts(), []
    for second in range(3000):
        parts.add(b"line\n", float(second))
        stored += [second for _ in parts.look(float(second))]
    assert stored[:6] == [0, 2, 6, 14, 30, 62]
    assert {later - earlier for earlier, later in zip(stored[9:], stored[10:], strict=False)} == {600}


def test_what_was_stored_is_not_stored_again() -> None:
    parts = Parts()
    parts.add(b"line\n", 0.0)
    assert len(parts.look(0.0)) == 1
    assert [parts.look(float(second)) for second in range(1, 3600)] == [[]] * 3599
    assert parts.end() == []


def test_a_line_that_has_not_ended_is_seen_and_kept_as_it_ends() -> None:
    parts = Parts()
    assert parts.look(0.0, b"10%\n") == [File("0001.log", b"10%\n")]
    assert parts.look(2.0, b"20%\n") == [File("0001.log", b"20%\n")]
    parts.add(b"100%\n", 3.0)
    assert parts.end() == [File("0001.log", b"100%\n")]


def test_of_too_much_the_beginning_and_the_end_are_kept() -> None:
    parts, files = Parts(2 * MIB), []
    for number in range(100_000):
        files += parts.add(f"line {number:094d}\n".encode(), 0.0)
    files += parts.end()
    assert [file.name for file in files] == ["0001.log", "0002.log", "0003.log", "end.log"]
    first = b"".join(file.content for file in files[:-1])
    assert 2 * MIB - 100 < len(first) <= 2 * MIB
    note, end = files[-1].content.split(b"\n", 1)
    assert end.endswith(f"line {99_999:094d}\n".encode())
    skipped = int(note.split()[1].replace(b",", b""))
    assert len(first) + skipped + len(end) == 100_000 * 100


@given(st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=60))
def test_what_fits_is_kept_whole_and_in_order(lines: list[bytes]) -> None:
    parts, kept = Parts(), {}
    for second, line in enumerate(lines):
        for file in [*parts.add(line, second * 100.0), *parts.look(second * 100.0)]:
            kept[file.name] = file.content
    for file in parts.end():
        kept[file.name] = file.content
    assert b"".join(kept[name] for name in sorted(kept)) == b"".join(lines)
