"""How a console looks in a file, and what is sent of it and when."""

from __future__ import annotations

from mlferry.console import text
from mlferry.console.text import Lines, Part, Parts

LINE = b"x" * 99 + b"\n"


def fed(*pieces: bytes) -> bytes:
    lines = Lines()
    return b"".join(lines.feed(piece) for piece in pieces) + lines.open


def test_lines_are_kept_however_they_are_cut() -> None:
    whole = b"one\ntwo\r\n\nfour"
    assert fed(whole) == b"one\ntwo\n\nfour\n"
    assert fed(*(bytes([byte]) for byte in whole)) == b"one\ntwo\n\nfour\n"


def test_of_a_progress_bar_the_last_state_stays() -> None:
    assert fed(b"\r 0%", b"\r50%", b"\r100%\n", b"done\n") == b"100%\ndone\n"
    assert fed(b"\r 0%\r50%\r") == b"50%\n"


def test_bytes_that_are_no_text_and_other_line_ends_pass_as_they_are() -> None:
    assert fed(b"\xff\x00a\x0bb\x0cc\x1cd\x85\n") == b"\xff\x00a\x0bb\x0cc\x1cd\x85\n"


def test_a_line_without_an_end_takes_no_memory_without_end() -> None:
    lines = Lines()
    kept = b"".join(lines.feed(b"y" * 1000) for _ in range(1000))
    assert len(lines.open) <= text.MAX_LINE_BYTES + 1001
    assert (kept + lines.open).replace(b"\n", b"") == b"y" * 1_000_000


def test_the_last_part_is_sent_again_at_growing_intervals_and_only_if_it_has_grown() -> None:
    parts, sent = Parts(1 << 30, 0.0), []
    for now in range(200):
        if now < 100:
            parts.add(LINE)
        sent += [now for _ in parts.due(float(now))]
    assert sent == [2, 6, 14, 30, 62, 122]


def test_a_line_that_is_not_complete_is_shown_and_not_kept_twice() -> None:
    parts = Parts(1 << 30, 0.0)
    parts.add(b"one\n")
    assert parts.due(5.0, b"tw\n") == [Part(1, b"one\ntw\n")]
    parts.end(b"two\n")
    assert parts.due(5.0) == [Part(1, b"one\ntwo\n")]


def test_a_full_part_is_closed_and_is_not_sent_again() -> None:
    parts = Parts(1 << 30, 0.0)
    full = [parts.add(LINE) for _ in range(text.MAX_PART_BYTES // 100 + 2)]
    assert full.count(True) == 1
    first, second = parts.due(5.0)
    assert (first.number, second.number) == (1, 2)
    assert first.content + second.content == LINE * len(full)
    parts.add(LINE)
    assert [part.number for part in parts.due(100.0)] == [2]


def test_no_part_is_sent_more_often_than_sixteen_times() -> None:
    parts, last, numbers = Parts(1 << 30, 0.0), {}, []
    for now in range(0, 100_000, 10):
        parts.add(f"{now}\n".encode())
        for part in parts.due(float(now), b"a line that is not complete\n"):
            numbers.append(part.number)
            last[part.number] = part.content
    parts.end(b"")
    last.update((part.number, part.content) for part in parts.due(100_000.0))
    assert max(numbers.count(number) for number in last) == text.MAX_SENDINGS
    assert b"".join(last.values()) == b"".join(f"{now}\n".encode() for now in range(0, 100_000, 10))


def test_at_its_limit_the_text_says_how_much_came_after() -> None:
    parts = Parts(250, 0.0)
    for _ in range(5):
        parts.add(LINE)
    [part] = parts.due(5.0)
    assert part.content.startswith(LINE * 2 + b"mlferry: the capture ended here, at its limit of 250 bytes; what comes")
    parts.add(LINE)
    parts.end(b"")
    [part] = parts.due(5.0)
    assert part.content == LINE * 2 + (
        b"mlferry: the capture ended here, at its limit of 250 bytes; 400 bytes came after it\n"
    )


def test_while_the_disk_does_not_answer_text_is_lost_and_counted() -> None:
    parts, line = Parts(1 << 30, 0.0), b"z" * 999 + b"\n"
    for _ in range(20_000):
        parts.add(line)
    held = parts.due(1.0)
    kept = sum(len(part.content) for part in held)
    assert kept <= text.MAX_WAITING_BYTES
    parts.add(line)
    parts.end(b"")
    [rest] = parts.due(1.0)
    assert f"{20_000_000 - kept - rest.content.index(b'mlferry')} bytes are missing here" in rest.content.decode()
    assert rest.content.endswith(line)


def test_a_console_that_printed_nothing_leaves_no_artifact() -> None:
    parts = Parts(1 << 30, 0.0)
    parts.end(b"")
    assert parts.due(100.0) == []
