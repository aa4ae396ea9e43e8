"""Sentences on a terminal: every word whole, no line wider than it must be, and one line on a pipe."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from mlferry_agent.views.lines import put

WORDS = st.lists(st.text("abcdefg/:.-\u4e2d", min_size=1, max_size=40), min_size=1, max_size=30)


def printed(text: str, *, width: int, hang: int = 0, terminal: bool = True) -> list[str]:
    out = io.StringIO()
    put(
        Console(file=out, width=width, force_terminal=terminal, no_color=True, color_system=None),
        escape(text),
        hang=hang,
    )
    return out.getvalue().splitlines()


@given(WORDS, st.integers(24, 100), st.integers(0, 20))
def test_no_word_is_broken_or_lost_and_only_a_long_word_goes_over_the_edge(
    words: list[str], width: int, hang: int
) -> None:
    lines = printed(" ".join(words), width=width, hang=hang)
    assert " ".join(line.strip() for line in lines) == " ".join(words)
    for line in lines:
        before, _, _ = line.rstrip().rpartition(" ")
        assert cell_len(line) <= max(width, hang + 20) or cell_len(before) <= hang, "more than a long word is too much"
    assert all(line.startswith(" " * hang) for line in lines[1:])


@given(WORDS)
def test_a_pipe_gets_one_line(words: list[str]) -> None:
    assert printed(" ".join(words), width=30, terminal=False) == [" ".join(words)]


def test_columns_at_the_beginning_stay_and_the_rest_hangs_below_them() -> None:
    lines = printed("!  name      says a thing that is too long for so little room", width=33, hang=13)
    assert lines == ["!  name      says a thing that is", "             too long for so", "             little room"]
