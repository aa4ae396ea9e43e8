"""Artifacts: logged in every way, listed, loaded, downloaded, deleted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tests.plugin.differential import Scenario, Stage

Both = Callable[[Scenario], Any]


def tree(stage: Stage, run: str, path: str | None = None) -> list[Any]:
    """Everything below a path: name, whether a directory, size."""
    found: list[Any] = []
    for item in stage.client.list_artifacts(run, path):
        found.append((item.path, item.is_dir, item.file_size))
        if item.is_dir:
            found += tree(stage, run, item.path)
    return found


def contents(folder: str) -> dict[str, bytes]:
    base = Path(folder)
    return {str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}


def test_files_and_folders(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        one, empty = stage.write("one.txt", "one"), stage.write("empty", b"")
        stage.write("folder/a.bin", bytes(range(256)))
        deep = Path(stage.write("folder/sub/ü ☃.txt", "deep")).parents[1]
        client.log_artifact(run, one)
        client.log_artifact(run, one, "put/here")
        client.log_artifact(run, empty)
        client.log_artifact(run, str(deep), "whole")
        client.log_artifacts(run, str(deep))
        client.log_artifacts(run, str(deep), "as/dir")
        Path(one).write_text("changed")
        client.log_artifact(run, one)
        got = mlflow.artifacts.download_artifacts(run_id=run, dst_path=str(stage.folder))
        return (
            tree(stage, run),
            contents(client.download_artifacts(run, "", str(Path(stage.write("x/y", "")).parent))),
            got,
        )

    both(scenario)


@pytest.mark.parametrize(
    "path", [None, "", "a", "a/b.txt", "none", "a/none", ".", "..", "../x", "/etc", "a/", "a//b.txt", "%2e%2e"]
)
def test_listing_and_downloading_odd_paths(both: Both, path: str | None) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        stage.client.log_text(run, "text", "a/b.txt")
        stage.client.log_text(run, "top", "top.txt")
        listed = stage.attempt(stage.client.list_artifacts, run, path)
        got = stage.attempt(stage.client.download_artifacts, run, path or "")
        told = Path(got).is_dir() if isinstance(got, str) else (got.kind, got.code)
        return listed, told

    both(scenario)


def test_what_is_not_there_cannot_be_logged(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        one = stage.write("one.txt", "one")
        answers = (
            stage.attempt(stage.client.log_artifact, run, "/no/such/file"),
            stage.attempt(stage.client.log_artifacts, run, "/no/such/folder"),
            stage.attempt(stage.client.log_artifact, "f" * 32, one),
            stage.attempt(stage.client.log_artifact, run, one, "../out"),
            stage.attempt(stage.client.log_text, run, "x", "../out.txt"),
            stage.attempt(stage.client.log_text, run, "x", "/abs.txt"),
        )
        return [(answer.kind, answer.code) if answer is not None else None for answer in answers], tree(stage, run)

    both(scenario)


def test_texts_dictionaries_figures_images_and_streams(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r") as run:
            mlflow.log_text("ü☃", "texts/a.txt")
            mlflow.log_dict({"a": [1, None]}, "a.json")
            mlflow.log_dict({"a": "ü"}, "deep/a.yaml")
            mlflow.log_dict({"a": 1}, "a.none")
            figure = Figure()
            figure.subplots().plot([0, 1], [1, 0])
            mlflow.log_figure(figure, "figures/f.png")
            mlflow.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "i.png")
            mlflow.log_image(Image.new("RGB", (3, 3)), "pil.png")
        uri = f"runs:/{run.info.run_id}"
        return (
            [(path, is_dir) for path, is_dir, _ in tree(stage, run.info.run_id)],
            mlflow.artifacts.load_text(f"{uri}/texts/a.txt"),
            mlflow.artifacts.load_dict(f"{uri}/a.json"),
            np.asarray(mlflow.artifacts.load_image(f"{uri}/i.png")).shape,
            stage.attempt(mlflow.artifacts.load_text, f"{uri}/none.txt").kind,
            mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/texts"),
            mlflow.artifacts.list_artifacts(run_id=run.info.run_id),
        )

    both(scenario)


def test_images_with_steps(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r") as run:
            for step in range(3):
                mlflow.log_image(
                    np.full((4, 4, 3), step, dtype=np.uint8), key="dogs/a", step=step, timestamp=7, synchronous=True
                )
        found = tree(stage, run.info.run_id)
        return (
            len(found),
            [re.sub(r"[+%][0-9a-f-]{36}", "", path) for path, _, _ in found],
            mlflow.get_run(run.info.run_id).data.tags.get("mlflow.loggedImages"),
        )

    both(scenario)


def test_tables_grow(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r") as run:
            mlflow.log_table({"q": ["a"], "n": [1]}, "t.json")
            mlflow.log_table(pd.DataFrame({"q": ["b", "ü"], "n": [2, 3]}), "t.json")
            mlflow.log_table({"q": ["c"]}, "deep/u.json")
        return (
            mlflow.load_table("t.json").to_dict("list"),
            mlflow.load_table("t.json", run_ids=[run.info.run_id], extra_columns=["run_id"]).to_dict("list"),
            mlflow.get_run(run.info.run_id).data.tags["mlflow.loggedArtifacts"],
            stage.attempt(mlflow.load_table, "none.json").kind,
        )

    both(scenario)


def test_downloads_go_where_they_are_told(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        stage.client.log_text(run, "1", "a/one.txt")
        stage.client.log_text(run, "2", "a/b/two.txt")
        target = stage.folder / "target"
        target.mkdir()
        got = stage.client.download_artifacts(run, "a", str(target))
        again = stage.client.download_artifacts(run, "a/b/two.txt", str(target))
        own = stage.client.download_artifacts(run, "a/one.txt")
        Path(own).write_text("changed by the reader")
        return (
            contents(str(target)),
            str(Path(got).relative_to(target)),
            str(Path(again).relative_to(target)),
        )

    both(scenario)


@pytest.mark.parametrize("of", ["a run", "a model"])
def test_all_artifacts_by_the_uri_of_their_owner(both: Both, of: str) -> None:
    def scenario(stage: Stage) -> Any:
        client, run = stage.client, stage.run()
        client.log_text(run, "a", "one.txt")
        client.log_text(run, "b", "deep/two.txt")
        model = client.create_logged_model("0", "m", run)
        client.log_model_artifact(model.model_id, stage.write("three.txt", "c"), "deep")
        uri = client.get_run(run).info.artifact_uri if of == "a run" else model.artifact_location
        found = []
        for below in ("", "/", "/deep", "/deep/two.txt", "/absent"):
            folder = stage.attempt(mlflow.artifacts.download_artifacts, uri + below)
            there = Path(folder).rglob("*") if isinstance(folder, str) else ()
            found.append(sorted(path.relative_to(folder).as_posix() for path in there))
            found.append(stage.attempt(mlflow.artifacts.list_artifacts, uri + below))
        return found

    assert both(scenario)[0]


def test_deleted_artifacts_are_gone(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = stage.run()
        for path in ("a/one.txt", "a/two.txt", "b.txt", "ab/three.txt"):
            stage.client.log_text(run, path, path)
        repository = get_artifact_repository(stage.client.get_run(run).info.artifact_uri)
        repository.delete_artifacts("b.txt")
        first = tree(stage, run)
        repository.delete_artifacts("a")
        second = tree(stage, run)
        stage.client.log_text(run, "back", "a/one.txt")
        repository.delete_artifacts("none")
        return first, second, tree(stage, run)

    both(scenario)
