"""A whole spool, read bit by bit: what any process has written is seen, and only what is new is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.spool.spools import untended

from mlferry_spool import catalogue as module
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.fold_store import candidate_ids
from mlferry_spool.layout import new_run_directory, store_directory
from mlferry_spool.reader import LogReader
from mlferry_spool.records import (
    ExperimentOperation,
    Metrics,
    ModelStart,
    Open,
    Params,
    RegistryOperation,
    RunEnd,
    Trace,
)
from mlferry_spool.writer import Writer


def a_run(root: Path, run_id: str, **opening: object) -> Writer:
    directory = new_run_directory(root, run_id, 1_700_000_000_000)
    return Writer(directory, Open(f"w-{run_id}", run_id, **{"experiment_name": "e", **opening}))  # type: ignore[arg-type]


def test_what_is_written_between_two_looks_is_seen_at_the_second(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    assert catalogue.run("r1") is None
    writer = a_run(tmp_path, "r1")
    state = catalogue.run("r1")
    assert state is not None and state.metrics == {}
    for step in range(3):
        writer.put(Metrics(1, step, {"m": float(step)}))
        state = catalogue.run("r1")
        assert state is not None and state.metrics["m"].step == step
    writer.close(RunEnd(2, "FINISHED"))
    assert catalogue.runs()[0].status.value == "FINISHED"


def test_a_run_whose_logs_have_ended_is_not_read_again_until_somebody_adds_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(tmp_path, "r1").close(RunEnd(2, "FINISHED"))
    [directory] = (tmp_path / "runs").iterdir()
    os.utime(directory, (1, 1))  # long ago
    catalogue, reads = Catalogue(tmp_path), []
    catalogue.runs()
    read = LogReader.read
    monkeypatch.setattr(LogReader, "read", lambda self, now=0.0: reads.append(self.directory) or read(self, now))
    catalogue.runs()
    catalogue.runs()
    assert reads == []
    guest = Writer(directory, Open("w-guest", "r1", resumed=True, role="guest"))
    guest.put(Params(1, {"late": "yes"}))
    assert catalogue.runs()[0].params.values() == {"late": "yes"}
    guest.close()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each record's payload that any catalogue has decoded."""
    sizes: list[int] = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda kind, payload: sizes.append(len(payload)) or decode(kind, payload))
    return sizes


def test_the_next_look_decodes_what_was_added_and_no_more_however_much_there_is(
    tmp_path: Path, decoded: list[int]
) -> None:
    writers = [a_run(tmp_path, f"r{number}") for number in range(20)]
    for writer in writers:
        for step in range(50):
            writer.put(Metrics(1, step, {"m": 1.0}))
    for writer in writers[1:]:
        writer.close(RunEnd(2, "FINISHED"))
    catalogue = Catalogue(tmp_path)
    assert len(catalogue.runs()) == 20
    assert len(decoded) >= 20 * 51
    for look in (catalogue.runs, lambda: catalogue.run("r0"), catalogue.experiments, lambda: list(catalogue.models())):
        decoded.clear()
        look()
        assert decoded == []
        writers[0].put(Metrics(1, 50, {"m": 1.0}))
        look()
        look()
        assert len(decoded) == 1 and decoded[0] < 30
    writers[0].close()


def test_a_history_is_read_once_and_then_only_what_was_added(tmp_path: Path, decoded: list[int]) -> None:
    writer, catalogue = a_run(tmp_path, "r1"), Catalogue(tmp_path)
    for step in range(50):
        writer.put(Metrics(1, step, {"m": 1.0, "n": 2.0}))
    assert len(catalogue.history("r1", "m")) == 50
    decoded.clear()
    writer.put(Metrics(1, 50, {"m": 1.0}))
    assert [len(catalogue.history("r1", key)) for key in ("m", "n", "m")] == [51, 50, 51]
    assert len(decoded) == 1
    writer.close()


def test_one_run_is_found_without_the_logs_of_the_others(tmp_path: Path, decoded: list[int]) -> None:
    for number in range(20):
        writer = a_run(tmp_path, f"r{number}")
        for step in range(50):
            writer.put(Metrics(1, step, {"m": 1.0}))
        writer.close()
    catalogue = Catalogue(tmp_path)
    assert catalogue.run("r7") is not None and len(decoded) < 60
    decoded.clear()
    assert {state.name for state in catalogue.experiments().values()} == {"Default", "e"}
    assert decoded == []  # an opening is looked at alone


def test_what_was_measured_of_a_model_is_looked_for_where_it_may_be(tmp_path: Path, decoded: list[int]) -> None:
    for number in range(5):
        a_run(tmp_path, f"old-{number}").close()
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (1, 1))  # long ago
    writer = a_run(tmp_path, "r1")
    writer.put(ModelStart(1_700_000_000_000, "m-1", "model", source_run_id="r1"))
    writer.put(Metrics(1, 3, {"loss": 0.5}, "m-1"))
    catalogue = Catalogue(tmp_path)
    found = catalogue.model("m-1")
    assert found is not None
    decoded.clear()
    [(run_id, key, point)] = catalogue.measured(found[0])
    assert (run_id, key, point.step, point.value) == ("r1", "loss", 3, 0.5)
    assert decoded == []
    assert catalogue.measured_by_model() == {"m-1": [("r1", "loss", point)]}
    writer.close()


def test_a_history_has_every_point_and_grows(tmp_path: Path) -> None:
    writer, catalogue = a_run(tmp_path, "r1"), Catalogue(tmp_path)
    writer.put(Metrics(1, 0, {"m": 1.0, "n": 2.0}))
    assert [point.value for point in catalogue.history("r1", "m")] == [1.0]
    writer.put(Metrics(2, 1, {"m": 3.0}))
    assert [(point.value, point.step) for point in catalogue.history("r1", "m")] == [(1.0, 0), (3.0, 1)]
    assert catalogue.history("r1", "none") == [] and catalogue.history("none", "m") == []
    writer.close()


def test_histories_of_more_runs_than_are_kept_are_still_right(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    for number in range(module._HISTORIES + 3):
        writer = a_run(tmp_path, f"r{number}")
        writer.put(Metrics(1, number, {"m": float(number)}))
        writer.close()
    for _ in range(2):
        for number in range(module._HISTORIES + 3):
            assert [point.step for point in catalogue.history(f"r{number}", "m")] == [number]


def test_what_cannot_be_read_is_counted_and_the_rest_is_there(tmp_path: Path) -> None:
    writer = a_run(tmp_path, "r1")
    for step in range(5):
        writer.put(Metrics(1, step, {"m": float(step)}))
    writer.close()
    a_run(tmp_path, "r2").close()
    [segment] = (tmp_path / "runs").glob("*-r1/*/*.seg")
    data = bytearray(segment.read_bytes())
    data[-120] ^= 0xFF  # in one of the points
    segment.write_bytes(bytes(data))
    (tmp_path / "runs" / "20260101T000000-r3").write_text("no directory")
    found = {state.run_id: state for state in Catalogue(tmp_path).runs()}
    assert set(found) == {"r1", "r2"}
    assert found["r1"].lost == 1 and found["r1"].metrics["m"].step == 4


def test_a_spool_that_is_not_there_is_empty(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "none")
    assert catalogue.runs() == [] and list(catalogue.experiments()) == ["0"]
    assert catalogue.model("m-1") is None and catalogue.directories("r") == []


def test_experiments_are_those_of_the_store_and_those_that_only_a_run_names(tmp_path: Path) -> None:
    store, made = untended(store_directory(tmp_path)), next(candidate_ids("made"))
    store.put(ExperimentOperation(1, "create", "made", {"tags": {"a": "1"}}, made))
    store.put(ExperimentOperation(2, "rename", "made", {"new_name": "renamed"}, made))
    a_run(tmp_path, "r1", experiment_name="of the sdk").close()
    a_run(tmp_path, "r2", experiment_name="made", offline_experiment_id=made).close()
    catalogue = Catalogue(tmp_path)
    assert {state.name for state in catalogue.experiments().values()} == {"Default", "renamed", "of the sdk"}
    renamed = catalogue.experiment_by_name("renamed")
    assert renamed is not None and (renamed.experiment_id, renamed.tags) == (made, {"a": "1"})
    found = {state.run_id: catalogue.experiment_id_of(state) for state in catalogue.runs()}
    assert found == {"r1": next(candidate_ids("of the sdk")), "r2": made}


def test_offline_ids_follow_from_the_name_and_look_like_mlflows() -> None:
    first, second = candidate_ids("name"), candidate_ids("name")
    assert next(first) == next(second)
    assert next(first) != next(candidate_ids("name"))
    assert all(len(next(candidate_ids(str(number)))) == 18 for number in range(200))


def test_models_registry_and_traces_are_found_where_they_stand(tmp_path: Path) -> None:
    store, run = untended(store_directory(tmp_path)), a_run(tmp_path, "r1")
    store.put(ModelStart(1, "m-free", "free"))
    run.put(ModelStart(1, "m-run", "of a run", source_run_id="r1"))
    store.put(RegistryOperation(2, "second", "n"))
    store.put(RegistryOperation(1, "first", "n"))
    store.put(Trace(1, "tr-1", {"a": 1}))
    catalogue = Catalogue(tmp_path)
    found = {name: catalogue.model(name) for name in ("m-free", "m-run", "m-none")}
    assert found["m-free"] is not None and found["m-free"][1] is None
    assert found["m-run"] is not None and found["m-run"][1] == "r1"
    assert found["m-none"] is None
    assert sorted((model.model_id, home) for model, home in catalogue.models()) == [("m-free", None), ("m-run", "r1")]
    assert [operation.operation for operation in catalogue.store().registry] == ["first", "second"]
    assert catalogue.store().traces["tr-1"].changes[0].info == {"a": 1}
    run.close()
    store.close()


def test_a_forked_child_goes_on_reading(tmp_path: Path) -> None:
    writer, catalogue = a_run(tmp_path, "r1"), Catalogue(tmp_path)
    catalogue.runs()
    with catalogue._lock:  # as another thread may hold it at the moment of the fork
        child = os.fork()
        if not child:
            os._exit(0 if catalogue.run("r1") is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.close()
