"""Lanes: what is acknowledged, and when nothing more is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.lanes import Action, Item, Lane, LaneQueue, Piece
from mlferry_spool.records import Kind


def queued(queue: LaneQueue, offset: int, writer: str = "w", pieces: int = 1, size: int = 1) -> list[Piece]:
    item = Item(writer, offset, Kind.METRICS)
    made = [Piece(item, Action.METRIC, f"m{number}", None, size) for number in range(pieces)]
    queue.add(item, made)
    return made


def test_a_record_counts_when_all_its_pieces_and_all_records_before_it_are_settled() -> None:
    queue = LaneQueue(Lane.METRICS)
    [early], [late_one, late_two] = queued(queue, 5), queued(queue, 6, pieces=2)
    assert queue.settle(late_one, delivered=True) == 0
    assert queue.settle(late_two, delivered=True) == 0
    assert queue.acknowledged("w", 7) == 5
    assert queue.settle(early, delivered=True) == 2
    assert (queue.acknowledged("w", 7), queue.outstanding) == (7, 0)


def test_a_record_of_which_nothing_was_delivered_is_passed_but_not_counted() -> None:
    queue = LaneQueue(Lane.METRICS)
    [lost], [half, other] = queued(queue, 0), queued(queue, 1, pieces=2)
    assert queue.settle(lost, delivered=False) == 0
    assert queue.settle(half, delivered=False) == 0
    assert queue.settle(other, delivered=True) == 1
    assert queue.acknowledged("w", 2) == 2


def test_a_record_that_comes_in_parts_counts_once_and_after_its_last_part() -> None:
    queue, item = LaneQueue(Lane.METRICS), Item("w", 0, Kind.SERIES)
    made = [Piece(item, Action.METRIC, "m", None, 1) for _ in range(2)]
    assert queue.add(item, made[:1], more=True) == 0
    assert queue.settle(made[0], delivered=True) == 0
    assert queue.acknowledged("w", 1) == 0
    assert queue.add(item, made[1:], more=True) == 0
    assert queue.settle(made[1], delivered=True) == 0
    assert queue.outstanding == 1
    assert queue.add(item, []) == 1  # nothing of the last part can be delivered
    assert (queue.outstanding, queue.acknowledged("w", 1)) == (0, 1)


@given(st.permutations([(writer, offset) for writer in "ab" for offset in range(6)]))
def test_one_writer_never_waits_for_another_and_nothing_unsettled_is_passed(order: list[tuple[str, int]]) -> None:
    queue = LaneQueue(Lane.METRICS)
    pieces = {(writer, offset): queued(queue, offset, writer)[0] for writer in "ab" for offset in range(6)}
    counts = {"a": 0, "b": 0}
    left = {"a": set(range(6)), "b": set(range(6))}
    for writer, offset in order:
        counts[writer] += queue.settle(pieces[writer, offset], delivered=True)
        left[writer].discard(offset)
        for name in "ab":
            first = min(left[name], default=6)
            assert (queue.acknowledged(name, 6), counts[name]) == (first, first)
    assert queue.outstanding == 0


def test_many_records_or_points_or_bytes_fill_a_lane_until_they_are_settled() -> None:
    for pieces, size, records in ((1, 1, 3_000), (20_000, 1, 1), (1, 40 << 20, 1)):
        queue = LaneQueue(Lane.METRICS)
        made = [piece for offset in range(records) for piece in queued(queue, offset, pieces=pieces, size=size)]
        assert queue.is_full
        queue.ready.clear()
        for piece in made:
            queue.settle(piece, delivered=True)
        assert not queue.is_full


def test_the_bytes_of_files_stay_on_disk_and_fill_no_lane() -> None:
    queue = LaneQueue(Lane.ARTIFACTS)
    queued(queue, 0, size=1 << 40)
    assert not queue.is_full
