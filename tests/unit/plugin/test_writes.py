"""The hot path: a write to a run that this process knows reads nothing back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.tracking import fluent

from mlferry.plugin import runs as writes
from mlferry.plugin import search
from mlferry.plugin.journal import Journal
from mlferry.plugin.tracking import SpoolTrackingStore
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.reader import LogReader

READS = [name for name, value in vars(Catalogue).items() if callable(value) and not name.startswith("__")]


@pytest.fixture
def store(root: Path) -> SpoolTrackingStore:
    return SpoolTrackingStore(f"spool://{root}")


@contextlib.contextmanager
def reading_fails() -> Iterator[None]:
    """Meanwhile whoever looks into the spool's logs fails."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("a write read the spool")

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(Catalogue, name, refuse)
        patch.setattr(LogReader, "read", refuse)
        yield


def write_everything(store: SpoolTrackingStore, run_id: str) -> None:
    store.log_metric(run_id, Metric("m", 2.0, 1, 1))
    store.log_batch(run_id, [Metric("m", 3.0, 2, 2), Metric("new", 1.0, 2, 2)], [Param("q", "2")], [RunTag("b", "2")])
    store.log_param(run_id, Param("p", "1"))
    store.set_tag(run_id, RunTag("a", "1"))
    store.log_batch_async(run_id, [Metric("m", 4.0, 3, 3)], [], []).wait()


def test_no_write_to_a_run_of_this_process_reads_the_spool(store: SpoolTrackingStore) -> None:
    run_id = store.create_run("0", "someone", 1, [], "mine").info.run_id
    with reading_fails():
        write_everything(store, run_id)
    found = store.get_run(run_id).data
    assert (found.metrics, found.params) == ({"m": 4.0, "new": 1.0}, {"p": "1", "q": "2"})


def test_of_a_run_of_another_process_is_read_once_what_a_write_must_know(store: SpoolTrackingStore, root: Path) -> None:
    run_id = store.create_run("0", "someone", 1, [], "theirs").info.run_id
    other = SpoolTrackingStore(f"spool://{root}")
    other.journal = Journal(root)
    other.catalogue = other.journal.catalogue
    with reading_fails(), pytest.raises(AssertionError, match="a write read the spool"):
        other.log_metric(run_id, Metric("m", 1.0, 0, 0))
    other.log_metric(run_id, Metric("m", 1.0, 0, 0))
    with reading_fails():
        write_everything(other, run_id)
    other.journal.close()
    assert store.get_run(run_id).data.metrics == {"m": 4.0, "new": 1.0}


def test_mlflows_own_calls_read_nothing_either(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluent, "_active_experiment_id", None)  # whatever was tried before in this process
    mlflow.set_tracking_uri(f"spool://{root}")
    try:
        with mlflow.start_run() as run, reading_fails():
            for step in range(3):
                mlflow.log_metrics({"loss": 0.5, "accuracy": 0.25}, step=step)
                mlflow.log_metric("one", 1.0, step=step)
            mlflow.log_params({"p": 1, "q": 2})
            mlflow.set_tags({"a": "1"})
        assert mlflow.get_run(run.info.run_id).data.metrics == {"loss": 0.5, "accuracy": 0.25, "one": 1.0}
    finally:
        mlflow.set_tracking_uri(None)


def test_names_without_end_are_not_remembered_without_end(
    store: SpoolTrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "_MAX_NAMES", 10)
    run_id = store.create_run("0", "someone", 1, [], "many").info.run_id
    for index in range(40):
        store.log_metric(run_id, Metric(f"m{index}", 1.0, 0, 0))
        assert len(store._good_names) <= 12
    assert len(store.get_run(run_id).data.metrics) == 40


def test_a_search_over_more_runs_than_are_kept_finds_all_of_them(
    store: SpoolTrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_MOST_SHOWN", 3)
    ids = {store.create_run("0", "someone", 1, [], f"{index}").info.run_id for index in range(8)}
    for _ in range(2):
        assert {run.info.run_id for run in store.search_runs(["0"], "", ViewType.ALL)} == ids
        assert len(store._shown._known) <= 3


def test_however_much_a_run_uses_and_puts_out_it_fits_into_records(store: SpoolTrackingStore) -> None:
    run_id = store.create_run("0", "someone", 1, [], "many").info.run_id
    datasets = [DatasetInput(Dataset(f"{n}", "d", "local", "s", "x" * 50_000)) for n in range(40)]
    store.log_inputs(run_id, datasets, [LoggedModelInput(f"m-{n}") for n in range(2500)])
    store.log_outputs(run_id, [LoggedModelOutput(f"m-{n}", n) for n in range(5000)])
    found = store.get_run(run_id)
    assert len(found.inputs.dataset_inputs) == 40
    assert (len(found.inputs.model_inputs), len(found.outputs.model_outputs)) == (2500, 5000)
