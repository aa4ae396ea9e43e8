"""verify as a person sees it: few runs one by one, many summed up, and every difference whatever their number."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlferry_agent.verification import Verification
from mlferry_agent.views.verifications import show_verifications


def shown(found: list[Verification], *, every: bool = False) -> list[str]:
    out = io.StringIO()
    show_verifications(Console(file=out, width=500), found, every=every)
    return out.getvalue().splitlines()


def test_a_few_are_listed_with_what_was_compared_and_summed_up() -> None:
    found = [Verification("a", points=2_000, params=1), Verification("b"), Verification("c", given_up="deleted")]
    assert shown(found) == [
        "verified a: 2,000 metric points, 1 param",
        "verified b: nothing was logged in it",
        "dropped c: not compared, for it was given up: deleted",
        "3 runs: 2 verified, 0 differ, 1 dropped and not compared; 2,000 metric points read back",
    ]


@pytest.mark.parametrize(("every", "lines"), [(False, 3), (True, 1_002)])
def test_of_a_thousand_those_that_differ_are_shown(every: bool, lines: int) -> None:
    found = [Verification(f"run {number}", points=1) for number in range(1_000)]
    found[500].differences.append("param 'lr': '1' instead of '2'")
    told = shown(found, every=every)
    assert len(told) == lines
    assert "differs run 500: 1 metric point" in told and "  ! param 'lr': '1' instead of '2'" in told
    assert told[-1] == "1,000 runs: 999 verified, 1 differs; 1,000 metric points read back"
