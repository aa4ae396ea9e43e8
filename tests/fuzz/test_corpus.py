"""Inputs that are kept because each reaches code of its own, or broke a promise once; and what lies near them."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.fuzz.targets import TARGETS, kept

NAMES = sorted(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_worth_keeping_keeps_its_promise_in_a_few_megabytes(name: str) -> None:
    inputs = kept(name)
    assert inputs
    for data in inputs:
        tracemalloc.start()
        try:
            TARGETS[name](data)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000, data
        finally:
            tracemalloc.stop()


edits = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 30), st.binary(max_size=12)), max_size=4)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=examples(80), deadline=None)
@given(data=st.data(), changes=edits)
def test_what_lies_near_it_does_too(name: str, data: st.DataObject, changes: list[tuple[int, int, bytes]]) -> None:
    found = data.draw(st.sampled_from(kept(name)))
    for at, gone, new in changes:
        at %= len(found) + 1
        found = found[:at] + new + found[at + gone :]
    TARGETS[name](found)
