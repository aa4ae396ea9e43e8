"""Lines out of what is printed: whatever pieces it comes in, and of a progress bar its last state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlferry.console.lines import Lines

pieces = st.lists(st.sampled_from([b"a", b"loss 0.5", b"\n", b"\r", b"\r\n", "ü".encode(), b"\x1b[0m"]), max_size=30)


def test_a_line_comes_when_it_has_ended() -> None:
    lines = Lines()
    assert lines.feed("1", b"epoch") == b""
    assert lines.begun == b"epoch\n"
    assert lines.feed("1", b" 1\nepoch") == b"epoch 1\n"
    assert lines.begun == b"epoch\n"


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    lines = Lines()
    for percent in range(0, 101, 10):
        assert lines.feed("2", f"\r{percent}%".encode()) == b""
        assert lines.begun == f"{percent}%\n".encode()
    assert lines.feed("2", b"\n") == b"100%\n"


def test_lines_that_end_as_on_windows_are_whole() -> None:
    lines = Lines()
    assert lines.feed("1", b"one\r") + lines.feed("1", b"\ntwo\r\n") == b"one\ntwo\n"


def test_streams_do_not_mix_within_a_line() -> None:
    lines = Lines()
    assert lines.feed("1", b"out") + lines.feed("2", b"err\n") + lines.feed("1", b"put\n") == b"err\noutput\n"


def test_a_line_without_end_is_cut_into_pieces() -> None:
    lines = Lines()
    kept = b"".join(lines.feed("1", b"x" * 1000) for _ in range(200)) + lines.begun
    assert kept.count(b"x") == 200_000
    assert max(map(len, kept.split(b"\n"))) <= 66_536


@given(pieces)
def test_the_pieces_that_it_comes_in_make_no_difference(parts: list[bytes]) -> None:
    one, many = Lines(), Lines()
    whole = one.feed("1", b"".join(parts))
    assert b"".join(many.feed("1", part) for part in parts) == whole
    assert many.begun == one.begun
    assert b"\r" not in whole
