"""MLflow stores: what is read of them, and what no hostile one can have."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.foreign.sources import run_script
from tests.foreign.spools import T0, a_database, bring, insert, points_of, runs_in, the_run

from mlferry_agent.discovery import discover
from mlferry_agent.errors import BadSource
from mlferry_agent.importing import mlflow_copies
from mlferry_agent.importing.artifact_places import ArtifactPlaces
from mlferry_agent.importing.foreign import LINKS, Folder
from mlferry_agent.importing.mlflow_database import MlflowDatabase


def test_artifacts_are_looked_for_beside_the_store_wherever_it_was_made(tmp_path: Path) -> None:
    path = a_database(tmp_path / "here", artifacts="/home/ann/project/mlruns/1/{run}/artifacts")
    folder = tmp_path / "here" / "mlruns" / "1" / f"{1:032x}" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    [run] = runs_in(path)
    assert [file.path for file in run.files] == ["weights"]


@pytest.mark.parametrize(
    "uri", ["{}/secret", "file://{}/secret", "../secret", "file:../secret", "mlflow-artifacts:/../secret"]
)
def test_no_store_can_name_a_folder_elsewhere_on_this_machine(uri: str, tmp_path: Path) -> None:
    for folder in ("store", "secret"):
        (tmp_path / folder / "b" / "c").mkdir(parents=True)
        (tmp_path / folder / "b" / "key").write_text("private")
    places = ArtifactPlaces((Folder(tmp_path / "store"),), Counter())
    for end in ("", "/b", "/b/c/.."):
        assert list(places.files(uri.format(tmp_path) + end, 2)) == []


def test_artifacts_that_lie_in_an_object_store_are_counted(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    [run] = runs_in(a_database(tmp_path, artifacts="s3://bucket/1/{run}/artifacts"), left_out)
    assert list(run.files) == []
    assert left_out["artifacts of runs and models that lie at s3://"] == 1


def test_links_among_artifacts_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    path = a_database(tmp_path / "store")
    folder = path.parent / "mlruns" / "1" / f"{1:032x}" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "plain").write_text("plain")
    (folder / "link").symlink_to(secret / "key")
    (folder / "folder").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    left_out: Counter[str] = Counter()
    [run] = runs_in(path, left_out)
    files = list(run.files)
    assert [file.path for file in files] == ["plain"]
    assert left_out[LINKS] == 3
    (folder / "plain").unlink()
    (folder / "plain").symlink_to(secret / "key")
    with pytest.raises(OSError, match="symbolic"):
        files[0].open()


def test_a_link_above_the_artifacts_is_not_followed_either(tmp_path: Path) -> None:
    path = a_database(tmp_path / "store")
    (tmp_path / "secret" / f"{1:032x}" / "artifacts").mkdir(parents=True)
    (tmp_path / "secret" / f"{1:032x}" / "artifacts" / "key").write_text("private")
    (path.parent / "mlruns").mkdir()
    (path.parent / "mlruns" / "1").symlink_to(tmp_path / "secret")
    [run] = runs_in(path)
    assert list(run.files) == []


def test_a_param_of_a_file_store_that_is_a_link_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, secret = tmp_path / "mlruns", tmp_path / "key"
    secret.write_text("private")
    params = store / "1" / ("a" * 32) / "params"
    params.mkdir(parents=True)
    (params / "lr").write_text("0.1")
    (params / "stolen").symlink_to(secret)
    monkeypatch.setattr(mlflow_copies, "_run", lambda *words, where: None)
    left_out: Counter[str] = Counter()
    (tmp_path / "scratch").mkdir()
    mlflow_copies.copy_file_store(Folder(store), tmp_path / "scratch", left_out)
    copied = [path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert copied == ["lr"]
    assert left_out[LINKS] == 1


def test_a_point_that_a_file_store_holds_twice_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tmp_path / "mlruns" / "1" / ("a" * 32) / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "loss").write_text("1 0.5 0\n1 0.50 0\n1 nan 0\n1 nan 0\n2 -0.0 1\n2 0.0 1\nno point\n3 0.1\n")
    monkeypatch.setattr(mlflow_copies, "_run", lambda *words, where: None)
    left_out: Counter[str] = Counter()
    (tmp_path / "scratch").mkdir()
    mlflow_copies.copy_file_store(Folder(tmp_path / "mlruns"), tmp_path / "scratch", left_out)
    [copy] = (path for path in (tmp_path / "scratch").rglob("loss"))
    assert copy.read_text() == "1 0.5 0\n1 nan 0\n2 0.0 1\n3 0.1\n"
    assert left_out == {"lines of a file store that are no points": 1}


def test_a_nan_that_belongs_to_a_model_is_told_once(tmp_path: Path) -> None:
    path, run = a_database(tmp_path), f"{1:032x}"
    model = f"m-{1:032x}"
    insert(path, "metrics", ("loss", 0.0, T0, run, 3, 1), ("loss", 0.5, T0, run, 4, 0))
    insert(path, "logged_models", (model, 1, "m", "", T0, T0, 2, "active", "", run, None))
    insert(path, "logged_model_metrics", (model, "loss", T0, 3, 0.0, 1, run, None, None, None))
    with contextlib.closing(MlflowDatabase(path, (), Counter(), "")) as source:
        points = [found for run in source.runs() for found in run.points if found.values]
    told = [(found.model_id, struct.unpack("<d", found.values[:8])[0]) for found in points]
    assert [links for links, _ in told] == [model, None]
    assert math.isnan(told[0][1])
    assert told[1][1] == 0.5


def test_tags_by_which_mlferry_finds_its_runs_again_are_left_behind(
    tmp_path: Path, taken_as_it_is: Callable[[Path], Path]
) -> None:
    path = a_database(tmp_path / "store")
    insert(path, "tags", ("mlferry.run_id", "abc", f"{1:032x}"), ("kept", "1", f"{1:032x}"))
    report = bring(tmp_path / "spool", taken_as_it_is(path))
    assert the_run(tmp_path / "spool").tags.values() == {"kept": "1"}
    assert report.left_out == {"tags by which an earlier delivery by mlferry is found again": 1}


def test_what_has_changed_in_a_source_is_added_and_nothing_else(
    tmp_path: Path, taken_as_it_is: Callable[[Path], Path]
) -> None:
    path, spool, run = taken_as_it_is(a_database(tmp_path / "store")), tmp_path / "spool", f"{1:032x}"
    insert(path, "metrics", *(("loss", 1 / (step + 3), T0 + step, run, step, 0) for step in range(50_000)))
    insert(path, "tags", ("stage", "draft", run))
    first = bring(spool, path)
    assert (first.runs, first.points) == (1, 50_000)
    again = bring(spool, path)
    assert (again.runs, again.grown, again.unchanged, again.points) == (0, 0, 1, 0)
    [before] = [sorted(directory.iterdir()) for directory in discover(spool)[0].directories]
    insert(path, "metrics", ("loss", 0.25, T0, run, 50_000, 0), ("loss", math.inf, T0, run, 50_001, 0))
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE tags SET value = 'final'")
        database.execute("UPDATE runs SET status = 'FAILED', name = 'renamed'")
    grown = bring(spool, path)
    assert (grown.runs, grown.grown, grown.points) == (0, 1, 2)
    state = the_run(spool)
    assert (state.tags.values(), state.name.value, state.status.value) == ({"stage": "final"}, "renamed", "FAILED")
    assert len(points_of(spool, "loss")) == 50_002
    assert bring(spool, path).unchanged == 1
    assert set(before) < set(discover(spool)[0].directories[0].iterdir())


def test_the_original_database_is_neither_written_nor_given_company(tmp_path: Path) -> None:
    path = a_database(tmp_path / "store")
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    assert bring(tmp_path / "spool", path).runs == 1
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_in_a_journal_is_rolled_back_in_the_copy(
    tmp_path: Path, taken_as_it_is: Callable[[Path], Path]
) -> None:
    path = taken_as_it_is(a_database(tmp_path / "store"))
    die = (
        "import os, signal, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA cache_size = 1')\n"
        "database.execute('BEGIN')\n"
        "database.execute(\"UPDATE params SET value = 'half done'\")\n"
        "database.execute('CREATE TABLE filler AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999)"
        " SELECT i, hex(randomblob(500)) FROM n')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", die, str(path)], check=False)
    assert path.with_name("mlflow.db-journal").stat().st_size > 0
    before = path.read_bytes()
    bring(tmp_path / "spool", path)
    assert the_run(tmp_path / "spool").params.values() == {"lr": "0.1"}
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["cut", "garbled", "empty tables"])
def test_a_database_that_is_damaged_or_not_mlflows_is_refused_and_nothing_is_there(what: str, tmp_path: Path) -> None:
    path = a_database(tmp_path / "store")
    data = path.read_bytes()
    if what == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif what == "garbled":
        path.write_bytes(data[:100] + bytes(len(data) - 100))
    else:
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE birds (name TEXT)")
            database.commit()
    with pytest.raises(BadSource):
        bring(tmp_path / "spool", path)
    assert list((tmp_path / "spool").iterdir()) == []


def test_folders_nested_deeper_than_anybody_nests_them_are_left_out(tmp_path: Path) -> None:
    path = a_database(tmp_path)
    top = path.parent / "mlruns" / "1" / f"{1:032x}" / "artifacts"
    deep = top.joinpath(*["d"] * 80)
    deep.mkdir(parents=True)
    (top / "d" / "file").touch()
    (deep / "file").touch()
    left_out: Counter[str] = Counter()
    [run] = runs_in(path, left_out)
    assert [file.path for file in run.files] == ["d/file"]
    assert left_out["folders nested too deep"] == 1


def test_a_database_of_an_old_schema_is_brought_up_to_date_in_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    run_script("old_database.py", str(path), where=tmp_path)
    before = path.read_bytes()
    assert bring(tmp_path / "spool", path).points == 2
    assert points_of(tmp_path / "spool", "loss") == [(0.5, 0, T0), (0.25, 1, T0 + 1)]
    state = the_run(tmp_path / "spool")
    assert state.opening is not None
    assert (state.opening.experiment_name, state.status.value) == ("birds", "FINISHED")
    assert path.read_bytes() == before
