"""Records of a run, in any order, come to one state; and it is the one that MLflow's SQL store would show."""

from __future__ import annotations

import math
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlferry_spool.fold import RunState
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Dataset,
    Inputs,
    Metrics,
    ModelOutput,
    ModelStart,
    ModelUpdate,
    Open,
    Outputs,
    Params,
    Record,
    RunEnd,
    RunUpdate,
    Series,
    Tags,
    TagsDeleted,
)

DIGEST = bytes(32)
times = st.integers(0, 20)
names = st.sampled_from(["a", "b", "c"])
values = st.floats(allow_nan=False)

changes = st.one_of(
    st.builds(Metrics, times, times, st.dictionaries(names, values, min_size=1, max_size=2)),
    st.builds(Params, times, st.dictionaries(names, st.text(max_size=2), min_size=1)),
    st.builds(Tags, times, st.dictionaries(names, st.text(max_size=2), min_size=1)),
    st.builds(TagsDeleted, times, st.tuples(names)),
    st.builds(RunUpdate, times, status=st.sampled_from([None, "RUNNING", "SCHEDULED"]), run_name=st.none() | names),
    st.builds(RunUpdate, times, lifecycle=st.sampled_from(["active", "deleted"])),
    st.builds(RunEnd, times, st.sampled_from(["FINISHED", "FAILED"]), times),
    st.builds(Artifact, times, names, st.just(DIGEST), times),
    st.builds(ArtifactDeleted, times, names),
    st.builds(ModelUpdate, times, names, tags=st.dictionaries(names, st.text(max_size=2))),
    st.builds(Outputs, times, st.tuples(st.builds(ModelOutput, names, st.just(0)))),
)


def folded(records: list[tuple[str, int, Record]]) -> RunState:
    state = RunState("r")
    for writer, offset, record in records:
        state.add(writer, offset, record)
    return state


def shown(state: RunState) -> dict[str, Any]:
    return {
        "metrics": state.metrics,
        "params": state.params.values(),
        "tags": state.tags.values(),
        "status": (state.status.value, state.end_time.value, state.name.value, state.lifecycle.value),
        "artifacts": state.artifacts.values(),
        "models": {key: model.tags.values() for key, model in state.models.items()},
        "outputs": set(state.outputs),
    }


@given(st.lists(changes, max_size=12), st.lists(changes, max_size=12), st.randoms(use_true_random=False))
def test_whatever_log_is_read_first_the_state_is_the_same(first: list[Record], second: list[Record], dice: Any) -> None:
    placed = [("w1", offset, record) for offset, record in enumerate(first)]
    placed += [("w2", offset, record) for offset, record in enumerate(second)]
    mixed = list(placed)
    dice.shuffle(mixed)
    assert shown(folded(mixed)) == shown(folded(placed))


def test_of_a_metric_the_highest_step_then_time_then_value_is_shown() -> None:
    points = [(1, 9, 0.0), (2, 1, 1.0), (2, 2, 5.0), (2, 2, 7.0), (2, 2, 6.0), (-3, 50, 9.0)]
    state = folded([("w", n, Metrics(time, step, {"m": value})) for n, (step, time, value) in enumerate(points)])
    assert (state.metrics["m"].step, state.metrics["m"].timestamp, state.metrics["m"].value) == (2, 2, 7.0)


def test_infinities_are_the_largest_numbers_and_a_nan_counts_as_zero_where_it_is_compared() -> None:
    state = folded([("w", 0, Metrics(1, 1, {"up": math.inf, "down": -math.inf, "n": math.nan}))])
    assert (state.metrics["up"].value, state.metrics["down"].value) == (sys.float_info.max, -sys.float_info.max)
    assert math.isnan(state.metrics["n"].value)
    state.add("w", 1, Metrics(1, 1, {"n": -1.0}))
    assert math.isnan(state.metrics["n"].value)
    state.add("w", 2, Metrics(1, 1, {"n": 1.0}))
    assert state.metrics["n"].value == 1.0


def test_a_series_is_its_points() -> None:
    columns = [b"".join(number.to_bytes(8, "little") for number in (3, 1, 2)), (5, 1)]
    values = b"".join(bytes(6) + part for part in (b"\xf0\x3f", b"\x00\x40", b"\x08\x40"))  # 1.0, 2.0, 3.0
    state = folded([("w", 0, Series("m", values, *columns))])
    assert (state.metrics["m"].value, state.metrics["m"].step, state.metrics["m"].timestamp) == (1.0, 3, 5)


def test_the_first_opening_that_resumes_nothing_is_the_runs() -> None:
    state = folded(
        [
            ("w2", 0, Open("w2", "r", resumed=True, opened=1, run_name="no")),
            ("w1", 0, Open("w1", "r", opened=5, start_time=4, run_name="yes")),
            ("w3", 0, Open("w3", "r", opened=9, run_name="no")),
        ]
    )
    assert state.opening is not None
    assert (state.opening.writer_id, state.name.value) == ("w1", "yes")


def test_a_dataset_is_one_by_name_and_digest_and_the_first_tags_count() -> None:
    first = Dataset("d", "1", "local", "{}", tags={"context": "train"})
    again = Dataset("d", "1", "local", "{}", tags={"context": "test"})
    other = Dataset("d", "2", "local", "{}")
    state = folded([("w2", 0, Inputs(5, (again, other))), ("w1", 0, Inputs(1, (first,), ("m-1",)))])
    assert [(kept.digest, kept.tags) for _, kept in state.datasets.values()] == [("1", {"context": "train"}), ("2", {})]
    assert state.input_models == ["m-1"]


def test_a_folder_that_is_deleted_takes_what_is_in_it_along_and_nothing_else() -> None:
    files = [Artifact(1, path, DIGEST, 1) for path in ("a/b/c", "a/bc", "a/b", "d")]
    state = folded([("w", n, file) for n, file in enumerate(files)] + [("w", 9, ArtifactDeleted(2, "a/b"))])
    assert sorted(state.artifacts.values()) == ["a/bc", "d"]


def test_a_model_is_what_its_records_say() -> None:
    start = ModelStart(1, "m-1", "name", params={"p": "1"}, tags={"t": "1", "u": "1"})
    updates = [
        ModelUpdate(2, "m-1", status="READY"),
        ModelUpdate(3, "m-1", tags={"t": "2"}, tags_deleted=("u",), params={"p": "no", "q": "2"}),
        ModelUpdate(4, "m-1", artifact_path="MLmodel", artifact_sha256=DIGEST, artifact_size=3),
    ]
    state = folded([("w", 0, start), *(("w", n, update) for n, update in enumerate(updates, 1))])
    model = state.models["m-1"]
    assert (model.status.value, model.updated, model.deleted) == ("READY", 2, False)
    assert (model.params.values(), model.tags.values()) == ({"p": "1", "q": "2"}, {"t": "2"})
    assert model.artifacts.values()["MLmodel"].size == 3


def test_an_end_that_was_said_later_counts_whatever_time_it_gives() -> None:
    state = folded([("w", 0, RunEnd(9_000, "FAILED", 10)), ("w", 1, RunEnd(5, "FINISHED", 20))])
    assert (state.status.value, state.end_time.value) == ("FINISHED", 5)
