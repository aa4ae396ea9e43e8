"""From lanes to requests: limits, order, and nothing twice."""

from __future__ import annotations

import json
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from mlferry_agent import limits
from mlferry_agent.lanes import Action, Item, Lane, LaneQueue, Piece
from mlferry_agent.planner import Batch, Target, next_batch, next_small, next_transfer, request_for, split
from mlferry_agent.rewriting import Ids
from mlferry_agent.translation import translate
from mlferry_spool.records import Artifact, Kind, Metrics, Params, Record, Tags

TARGET = Target("server-run", "mlflow-artifacts:/1/server-run/artifacts")
NOBODY = Ids(*[lambda _: None] * 5)
_offsets = count()


def add(queue: LaneQueue, record: Record, kind: Kind) -> list[Piece]:
    item = Item("w", next(_offsets), kind)
    pieces = translate(item, record).pieces
    queue.add(item, pieces)
    return pieces


def drain(queue: LaneQueue) -> list[tuple[Piece, ...]]:
    batches = []
    while (batch := next_batch(queue)) is not None:
        batches.append(batch.pieces)
    return batches


def test_a_request_holds_at_most_what_mlflow_takes() -> None:
    metrics, params = LaneQueue(Lane.METRICS), LaneQueue(Lane.PARAMS)
    for step in range(250):
        add(metrics, Metrics(0, step, {f"m{index}": 1.0 for index in range(10)}), Kind.METRICS)
    add(params, Params(0, {f"p{index}": "x" for index in range(250)}), Kind.PARAMS)
    assert [len(pieces) for pieces in drain(metrics)] == [1000, 1000, 500]
    assert [len(pieces) for pieces in drain(params)] == [100, 100, 50]


def test_a_request_stays_below_a_megabyte() -> None:
    queue = LaneQueue(Lane.ATTRIBUTES)
    add(queue, Tags(0, {f"t{index}": "ä" * 20_000 for index in range(100)}), Kind.TAGS)
    bodies = []
    while (batch := next_batch(queue)) is not None:
        bodies.append(request_for(batch, TARGET, NOBODY).body or b"")
    assert max(map(len, bodies)) <= limits.MAX_REQUEST_BYTES
    assert sum(len(json.loads(body)["tags"]) for body in bodies) == 100


def test_a_param_named_twice_goes_in_two_requests() -> None:
    queue = LaneQueue(Lane.PARAMS)
    add(queue, Params(0, {"a": "1", "b": "1"}), Kind.PARAMS)
    add(queue, Params(0, {"a": "2"}), Kind.PARAMS)
    assert [[piece.name for piece in pieces] for pieces in drain(queue)] == [["a", "b"], ["a"]]


def test_points_of_models_go_alone_and_a_hundred_at_a_time() -> None:
    queue = LaneQueue(Lane.METRICS)
    add(queue, Metrics(0, 0, {f"m{index}": 1.0 for index in range(150)}, model_id="m-1"), Kind.METRICS)
    add(queue, Metrics(0, 0, {"plain": 1.0}), Kind.METRICS)
    assert [len(pieces) for pieces in drain(queue)] == [100, 50, 1]


def test_the_smallest_file_goes_first_but_versions_of_one_path_keep_their_order() -> None:
    queue = LaneQueue(Lane.ARTIFACTS)
    for path, size in (("large", 900), ("log", 500), ("small", 5), ("log", 1)):
        add(queue, Artifact(0, path, b"\0" * 32, size), Kind.ARTIFACT)
    order: list[tuple[str, int]] = []
    while (batch := next_transfer(queue, set())) is not None:
        order.append((batch.pieces[0].name, batch.pieces[0].size))
    assert order == [("small", 5), ("log", 500), ("log", 1), ("large", 900)]


def test_a_path_that_is_on_its_way_is_not_sent_beside_itself() -> None:
    queue = LaneQueue(Lane.ARTIFACTS)
    add(queue, Artifact(0, "log", b"\0" * 32, 1), Kind.ARTIFACT)
    assert next_transfer(queue, {"log"}) is None
    assert next_transfer(queue, set()) is not None


def test_choosing_a_file_takes_no_longer_the_more_of_them_wait() -> None:
    queue = LaneQueue(Lane.ARTIFACTS)
    for number in range(3_000):
        add(queue, Artifact(0, f"images/epoch-{number // 100}/{number}.png", b"\0" * 32, 1_000), Kind.ARTIFACT)
    began, chosen = time.process_time(), 0
    while next_transfer(queue, {"images/epoch-0/busy.png"}) is not None:
        chosen += 1
    assert chosen == 3_000
    # 0.03 ms each on a quiet machine; a look at all that wait takes some 5 ms each.
    assert (time.process_time() - began) / chosen < 0.000_5


def test_a_tag_that_names_a_run_names_it_as_the_server_does() -> None:
    queue = LaneQueue(Lane.ATTRIBUTES)
    add(queue, Tags(0, {"mlflow.parentRunId": "offline", "note": "offline"}), Kind.TAGS)
    batch = next_batch(queue)
    assert batch is not None
    body = json.loads(request_for(batch, TARGET, Ids({"offline": "online"}.get, *[{}.get] * 4)).body or b"")
    assert {tag["key"]: tag["value"] for tag in body["tags"]} == {"mlflow.parentRunId": "online", "note": "offline"}


def test_one_bad_point_of_ten_is_refused_alone() -> None:
    done = translate(Item("w", 0, Kind.METRICS), Metrics(0, 0, {"": 1.0, **{f"m{i}": 1.0 for i in range(9)}}))
    assert len(done.pieces) == 9
    assert [(refusal.action, refusal.name) for refusal in done.refusals] == [(Action.METRIC.value, "")]


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.integers(1, 400), max_size=12))
def test_every_piece_is_planned_once_and_in_order(sizes: list[int]) -> None:
    queue = LaneQueue(Lane.METRICS)
    expected: list[Piece] = []
    for size in sizes:
        expected += add(queue, Metrics(0, 0, {f"m{index}": 1.0 for index in range(size)}), Kind.METRICS)
    assert [piece for pieces in drain(queue) for piece in pieces] == expected


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(2, 300))
def test_halving_a_batch_loses_nothing_and_keeps_the_order(size: int) -> None:
    queue = LaneQueue(Lane.METRICS)
    pieces = add(queue, Metrics(0, 0, {f"m{index}": 1.0 for index in range(size)}), Kind.METRICS)
    batch = next_batch(queue)
    assert batch is not None
    first, second = split(batch)
    assert [*first.pieces, *second.pieces] == pieces


@settings(deadline=None, max_examples=examples(60))
@given(st.permutations(range(8)))
def test_what_may_be_stored_never_passes_a_record_that_is_not_settled(order: list[int]) -> None:
    queue = LaneQueue(Lane.METRICS)
    pieces: list[Piece] = []
    for offset in range(8):
        item = Item("w", offset, Kind.METRICS)
        made = translate(item, Metrics(0, offset, {"loss": 1.0})).pieces
        queue.add(item, made)
        pieces += made
    settled: set[int] = set()
    acknowledged = 0
    for index in order:
        acknowledged += queue.settle(pieces[index], delivered=True)
        settled.add(index)
        covered = queue.acknowledged("w", 8)
        assert covered == acknowledged == next((n for n in range(8) if n not in settled), 8)


# -- requests side by side -----------------------------------------------------------------------------------------------

ORDER = (Lane.PARAMS, Lane.ATTRIBUTES, Lane.METRICS)


def queues_with(points: int, *, value: float = 1.0, model_id: str | None = None) -> dict[Lane, LaneQueue]:
    queues = {lane: LaneQueue(lane) for lane in ORDER}
    for step in range(points):
        add(queues[Lane.METRICS], Metrics(0, step, {"m": value}, model_id=model_id), Kind.METRICS)
    return queues


def test_full_requests_of_points_go_side_by_side_and_what_is_not_full_waits() -> None:
    queues = queues_with(2_500)
    beside: list[Batch] = []
    while (batch := next_small(queues, ORDER, beside)) is not None:
        beside.append(batch)
    assert [len(batch.pieces) for batch in beside] == [1000, 1000]
    last = next_small(queues, ORDER, [])
    assert last is not None
    assert len(last.pieces) == 500


@pytest.mark.parametrize("points", [{"value": float("nan")}, {"model_id": "m-1"}], ids=["NaN", "of a model"])
def test_points_of_which_the_order_counts_go_alone(points: dict[str, Any]) -> None:
    first = next_small(queues_with(1_000), ORDER, [])
    odd = next_small(queues_with(1_000, **points), ORDER, [])
    assert first is not None
    assert odd is not None
    assert next_small(queues_with(1_000, **points), ORDER, [first]) is None
    assert next_small(queues_with(1_000), ORDER, [odd]) is None


def test_nothing_goes_beside_a_param_or_a_tag_nor_they_beside_anything() -> None:
    queues = queues_with(1_000)
    points = next_small(queues, ORDER, [])
    assert points is not None
    add(queues[Lane.ATTRIBUTES], Tags(0, {"t": "1"}), Kind.TAGS)
    for step in range(1_000):
        add(queues[Lane.METRICS], Metrics(1, step, {"m": 1.0}), Kind.METRICS)
    assert next_small(queues, ORDER, [points]) is None  # else a tag would wait for as long as there are points
    tags = next_small(queues, ORDER, [])
    assert tags is not None
    assert tags.lane is Lane.ATTRIBUTES
    assert next_small(queues, ORDER, [tags]) is None
