"""What happens beyond limits that no other test comes to; docs/limits.md names a test for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.spools import only, read_run, told

import mlferry
from mlferry import datasets, ending, errors, limits, runs, validation, values
from mlferry_spool.blobs import Blob
from mlferry_spool.records import BlobRef, Inputs, Metrics, Params, Tags


def test_an_experiment_may_have_a_name_of_so_many_characters_and_no_more(spool: Path) -> None:
    mlferry.set_experiment("é" * 500)
    with pytest.raises(errors.BadExperiment):
        mlferry.set_experiment("é" * 501)


PARTS = {
    "name": limits.MAX_DATASET_NAME_CHARS,
    "digest": limits.MAX_DATASET_DIGEST_CHARS,
    "source": limits.MAX_DATASET_SOURCE_CHARS,
    "schema": limits.MAX_DATASET_SCHEMA_CHARS,
    "profile": limits.MAX_DATASET_PROFILE_CHARS,
}


@pytest.mark.parametrize("part", [*PARTS, "tag key", "tag value"])
def test_each_part_of_a_dataset_may_fill_its_limit_and_no_more(raising: Path, part: str) -> None:
    tag = {"tag key": limits.MAX_INPUT_TAG_KEY_CHARS, "tag value": limits.MAX_INPUT_TAG_CHARS}
    limit = {**PARTS, **tag}[part]

    def given(length: int) -> tuple[mlferry.Dataset, dict[str, str]]:
        text = "é" * length
        if part == "tag key":
            return mlferry.Dataset("n", "d"), {text: "v"}
        if part == "tag value":
            return mlferry.Dataset("n", "d"), {"k": text}
        return mlferry.Dataset(**{"name": "n", "digest": "d", part: text}), {}

    with mlferry.start_run() as run:
        dataset, tags = given(limit)
        mlferry.log_input(dataset, tags=tags)
        dataset, tags = given(limit + 1)
        with pytest.raises(errors.BadDataset):
            mlferry.log_input(dataset, tags=tags)
    assert len(only(Inputs, read_run(raising, run.info.run_id))) == 1


def test_a_text_too_long_for_a_record_becomes_a_blob() -> None:
    kept: list[str] = []

    def keep(text: str) -> BlobRef:
        kept.append(text)
        blob = Blob(b"x" * 32, len(text))
        return BlobRef(blob.sha256, blob.size)

    for length in (limits.MAX_INLINE_CHARS, limits.MAX_INLINE_CHARS + 1):
        dataset = mlferry.Dataset("n", "d", schema="s" * length)
        record = datasets.dataset_record(dataset, None, None, keep)
        assert isinstance(record.schema, str) is (length == limits.MAX_INLINE_CHARS)
    assert [len(text) for text in kept] == [limits.MAX_INLINE_CHARS + 1]


def test_names_without_end_are_not_remembered_without_end(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN_KEYS", 10)
    validation.KNOWN_KEYS.clear()
    validation.TEMPLATES.clear()
    with mlferry.start_run() as run:
        for index in range(35):
            mlferry.log_metric(f"m{index}", 1.0)
            assert len(validation.TEMPLATES) <= len(validation.KNOWN_KEYS) <= 10
    assert len(told(spool, run.info.run_id).points) == 35


def test_however_much_one_call_logs_it_fits_into_records(raising: Path) -> None:
    """Names and texts of characters that take four bytes each, as long as MLflow keeps them."""
    names = [f"{index:04}{'𐌰' * 246}" for index in range(1200)]
    with mlferry.start_run() as run:
        mlferry.log_metrics(dict.fromkeys(names, 1.0))
        mlferry.log_params(dict.fromkeys(names[:60], "😀" * 6000))
        mlferry.set_tags(dict.fromkeys(names[:60], "😀" * 8000))
    found = read_run(raising, run.info.run_id)
    assert [len(record.values) for record in only(Metrics, found)] == [500, 500, 200]
    assert [len(record.values) for record in only(Params, found)] == [25, 25, 10]
    assert sum(len(record.values) for record in only(Tags, found) if names[0] in record.values) == 25
    assert set(names[:60]) <= told(raising, run.info.run_id).tags.keys()


class Never:
    """Takes every text for a number that is still being computed."""

    def takes(self, value: Any) -> bool:
        return bool(value == "later")

    def take(self, values: Mapping[str, Any], call: values.Call) -> list[errors.MlferryError]:
        self.call = call
        return []

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        self.waited, self.owner = timeout_s, owner
        return False


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[Never]:
    never = Never()
    monkeypatch.setattr(values, "_laters", [never])
    yield never


def test_a_value_that_never_comes_does_not_keep_a_run_from_its_end(spool: Path, never: Never) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("x", "later")  # type: ignore[arg-type]
    assert (never.waited, never.owner) == (runs._SETTLE_S, run)
    never.call.deliver({"x": 1.0})
    found = told(spool, run.info.run_id)
    assert (found.points, found.status) == ([], "FINISHED")


def test_a_run_that_is_told_to_die_waits_less_for_what_never_comes(spool: Path, never: Never) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("x", "later")  # type: ignore[arg-type]
        run.imply("KILLED")
    assert never.waited == runs._SETTLE_KILLED_S < ending._AT_MOST_S


def test_a_flush_that_does_not_get_everything_says_so(
    spool: Path, never: Never, caplog: pytest.LogCaptureFixture
) -> None:
    with mlferry.start_run():
        mlferry.flush()
    assert "a device has not computed all values yet" in caplog.text
