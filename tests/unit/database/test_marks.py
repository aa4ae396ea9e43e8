"""Marks: how far something was imported, and what they are worth when something came in between."""

from __future__ import annotations

import pytest

from mlferry_agent.database.marks import RunMark, mark_of, told_before
from mlferry_spool.records import RegistryOperation
from mlferry_spool.tailer import Cursor

OPERATIONS = [RegistryOperation(number, "create_registered_model", f"model {number}") for number in range(4)]


def test_a_mark_of_a_run_is_read_as_it_was_written() -> None:
    cursors = {"w-1": Cursor(0, 3845, 137), "w-2": Cursor(1 << 40, 1, 2)}
    mark = RunMark.decoded(RunMark(cursors, is_over=True, records=12).encoded())
    assert (mark.is_over, mark.records, mark.cursor("w-1"), mark.cursor("w-2")) == (True, 12, *cursors.values())
    assert mark.cursor("another") == Cursor()


@pytest.mark.parametrize("value", [None, "", "over", "over x", "over 1 a:b", "open 1 a:1.2", "over 1 a:1.2.3.4", "\0"])
def test_what_is_no_mark_is_that_of_a_run_of_which_nothing_was_imported(value: str | None) -> None:
    mark = RunMark.decoded(value)
    assert (mark.is_over, mark.records, mark.cursor("w")) == (False, 0, Cursor())


def test_a_run_of_more_writers_than_a_tag_has_room_for_has_no_mark() -> None:
    assert RunMark({f"w-{number}": Cursor(0, 1 << 20, 1 << 12) for number in range(300)}).encoded() is not None
    assert RunMark({f"w-{number}": Cursor(0, 1 << 20, 1 << 12) for number in range(500)}).encoded() is None


def test_operations_that_were_told_are_told_again_only_if_another_came_in_between() -> None:
    for count in range(1, 5):
        assert told_before(OPERATIONS, mark_of(OPERATIONS[:count])) == count
    late = RegistryOperation(1, "create_registered_model", "came later")
    assert told_before([OPERATIONS[0], late, *OPERATIONS[1:]], mark_of(OPERATIONS[:2])) == 0
    assert [told_before(OPERATIONS, mark) for mark in (None, "", "9:x", "-1:x", "2:", "٣:x")] == [0] * 6
