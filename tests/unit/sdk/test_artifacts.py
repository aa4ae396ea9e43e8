"""Files, texts, figures, images, tables and datasets: content first, then the record that names it."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from tests.spools import only, read_run, told

import mlferry
from mlferry import errors
from mlferry.tables import Tables
from mlferry.validation import artifact_path
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import find_run
from mlferry_spool.records import Artifact, BlobRef, Inputs


def test_a_source_may_change_once_the_call_has_returned(spool: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"as it was")
    with mlferry.start_run() as run:
        mlferry.log_artifact(source)
        source.write_bytes(b"changed")
        mlferry.log_artifact(source, "later")
        source.unlink()
    assert told(spool, run.info.run_id).artifacts == {"model.bin": b"as it was", "later/model.bin": b"changed"}


def test_a_directory_keeps_its_name_where_mlflow_keeps_it(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/x").write_text("x")
    (tmp_path / "data/y").write_text("y")
    with mlferry.start_run() as run:
        mlferry.log_artifact(tmp_path / "data", "in")
        mlferry.log_artifacts(tmp_path / "data", "all")
    assert sorted(told(spool, run.info.run_id).artifacts) == ["all/deep/x", "all/y", "in/data/deep/x", "in/data/y"]


def test_the_same_content_is_stored_once(spool: Path) -> None:
    with mlferry.start_run() as run:
        for index in range(5):
            mlferry.log_text("the same", f"{index}.txt")
    directory = find_run(spool, run.info.run_id)
    assert directory is not None
    assert len(list((directory / "blobs").iterdir())) == 1
    assert len(told(spool, run.info.run_id).artifacts) == 5


def test_a_file_that_cannot_be_read_stops_only_itself(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c").write_text("c")
    with mlferry.start_run() as run:
        mlferry.log_artifacts(tmp_path)
        mlferry.log_artifact(tmp_path / "missing")
    found = told(spool, run.info.run_id)
    assert {"a", "c"} <= set(found.artifacts)
    assert "b" not in found.artifacts
    assert found.dropped == 2


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a\nb", "a\0b", "a\\b", "a/..", "\ud800", "\x7f"])
def test_a_name_that_leaves_the_artifacts_is_refused(raising: Path, name: str) -> None:
    with mlferry.start_run() as run, pytest.raises(errors.BadArtifactPath):
        mlferry.log_text("x", name)
    assert told(raising, run.info.run_id).artifacts == {}


@pytest.mark.parametrize(("name", "kept"), [("a/b.txt", "a/b.txt"), ("./a//b", "a/b"), ("é/ü x.txt", "é/ü x.txt")])
def test_a_name_is_kept_as_mlflow_resolves_it(name: str, kept: str) -> None:
    assert artifact_path(name) == kept


def test_a_matplotlib_figure_is_written_in_the_format_of_its_name(spool: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2, 3])
    with mlferry.start_run() as run:
        mlferry.log_figure(figure, "plots/a.png", save_kwargs={"dpi": 20})
        mlferry.log_figure(figure, "plots/a.svg")
    found = told(spool, run.info.run_id).artifacts
    assert Image.open(io.BytesIO(found["plots/a.png"])).format == "PNG"
    assert b"<svg" in found["plots/a.svg"]


class PlotlyFigure:
    """What mlferry asks of a plotly figure."""

    def write_html(self, path: str, **options: Any) -> None:
        Path(path).write_text(f"html {sorted(options)}")

    def write_image(self, path: str, **options: Any) -> None:
        Path(path).write_text("image")


def test_a_plotly_figure_is_a_page_or_an_image(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_figure(PlotlyFigure(), "a.html")
        mlferry.log_figure(PlotlyFigure(), "a.webp")
        mlferry.log_figure(PlotlyFigure(), "a.txt")
    found = told(spool, run.info.run_id)
    assert found.artifacts == {"a.html": b"html ['auto_open', 'include_plotlyjs']", "a.webp": b"image"}
    assert found.dropped == 1


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (5, 2), (255, 0, 0)),
        np.full((2, 5, 3), [255, 0, 0]),
        np.full((2, 5, 3), [1.0, 0, 0]),
        np.full((2, 5, 3), [True, False, False]),
        torch.tensor([1.0, 0, 0]).reshape(3, 1, 1).expand(3, 2, 5),
    ],
    ids=["PIL", "integer", "float", "bool", "tensor"],
)
def test_an_image_of_any_kind_is_the_same_image(spool: Path, image: Any) -> None:
    with mlferry.start_run() as run:
        mlferry.log_image(image, "red.png")
    kept = np.asarray(Image.open(io.BytesIO(told(spool, run.info.run_id).artifacts["red.png"])))
    assert kept.shape == (2, 5, 3)
    assert (kept == [255, 0, 0]).all()


@pytest.mark.parametrize("image", [np.full((2, 2), 256), np.zeros((2, 2, 5)), np.zeros(3), np.array([["a"]]), 7, "x"])
def test_what_is_no_image_is_refused(raising: Path, image: Any) -> None:
    with mlferry.start_run(), pytest.raises(errors.BadArtifact):
        mlferry.log_image(image, "x.png")


def test_an_image_of_a_step_has_the_names_that_the_user_interface_looks_for(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_image(Image.new("RGB", (600, 300)), key="val/dog", step=3, timestamp=99)
    found = told(spool, run.info.run_id)
    full, small = sorted(found.artifacts, key=len)
    assert re.fullmatch(r"images/val~dog\+step\+3\+timestamp\+99\+[0-9a-f-]{36}\.png", full)
    assert small == full.replace(".png", "+compressed.webp")
    assert Image.open(io.BytesIO(found.artifacts[full])).size == (600, 300)
    assert Image.open(io.BytesIO(found.artifacts[small])).size == (256, 128)
    assert found.tags["mlflow.loggedImages"] == "True"


@pytest.mark.parametrize(
    "arguments", [{}, {"artifact_file": "a.png", "key": "k"}, {"artifact_file": "a.png", "step": 1}]
)
def test_an_image_has_either_a_file_or_a_key(raising: Path, arguments: dict[str, Any]) -> None:
    with mlferry.start_run(), pytest.raises(errors.BadArtifact):
        mlferry.log_image(Image.new("L", (2, 2)), **arguments)


def test_a_table_grows_with_each_call(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_table({"q": ["a", "b"], "score": [1.5, None]}, "eval/t.json")
        mlferry.log_table(pandas.DataFrame({"q": ["c"], "score": [2.5]}), "eval/t.json")
        mlferry.log_table({"only": "scalars"}, "u.json")
    found = told(spool, run.info.run_id)
    table = json.loads(found.artifacts["eval/t.json"])
    assert table == {"columns": ["q", "score"], "data": [["a", 1.5], ["b", None], ["c", 2.5]]}
    assert json.loads(found.tags["mlflow.loggedArtifacts"]) == [
        {"path": "eval/t.json", "type": "table"},
        {"path": "u.json", "type": "table"},
    ]


def test_images_in_a_table_become_files(spool: Path) -> None:
    image = Image.new("RGB", (8, 8))
    with mlferry.start_run() as run:
        mlferry.log_table({"name": ["a", "b"], "image": [image, image]}, "t.json")
    found = told(spool, run.info.run_id)
    cells = [row[1] for row in json.loads(found.artifacts["t.json"])["data"]]
    assert [cell["type"] for cell in cells] == ["image", "image"]
    assert {cell[name] for cell in cells for name in ("filepath", "compressed_filepath")} <= set(found.artifacts)
    assert all(cell["filepath"].startswith("table_images/t/") for cell in cells)


def test_a_table_needs_no_pandas() -> None:
    tables = Tables()
    tables._without_pandas("t.json", {"a": [1, 2], "b": ["x", "y"]}, dict)
    grown = tables._without_pandas("t.json", {"a": [3], "c": [None]}, dict)
    assert json.loads(grown) == {"columns": ["a", "b", "c"], "data": [[1, "x", None], [2, "y", None], [3, None, None]]}


def test_a_dataset_of_our_own_is_kept_with_its_context(spool: Path) -> None:
    profile = json.dumps({"rows": "x" * 200_000})
    with mlferry.start_run() as run:
        dataset = mlferry.Dataset("iris", "abc123", "iris.csv", schema="{}", profile=profile)
        mlferry.log_input(dataset, context="training", tags={"part": 1})
    (inputs,) = only(Inputs, read_run(spool, run.info.run_id))
    (kept,) = inputs.datasets
    assert (kept.name, kept.digest, kept.source, kept.source_type, kept.schema) == (
        "iris",
        "abc123",
        "iris.csv",
        "local",
        "{}",
    )
    assert kept.tags == {"part": "1", "mlflow.data.context": "training"}
    assert isinstance(kept.profile, BlobRef)
    directory = find_run(spool, run.info.run_id)
    assert directory is not None
    assert Blobs(directory).path(kept.profile.sha256).read_text() == profile
    assert only(Artifact, read_run(spool, run.info.run_id)) == []


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_of_mlflow_is_kept_as_mlflow_describes_it(spool: Path) -> None:
    data = pytest.importorskip("mlflow.data")
    dataset = data.from_numpy(np.arange(6).reshape(2, 3), name="six")
    with mlferry.start_run() as run:
        mlferry.log_input(dataset)
    kept = only(Inputs, read_run(spool, run.info.run_id))[0].datasets[0]
    entity = dataset._to_mlflow_entity()
    for name in ("name", "digest", "source_type", "source", "schema", "profile"):
        assert getattr(kept, name) == getattr(entity, name)


@pytest.mark.parametrize(
    "dataset",
    [None, "iris", mlferry.Dataset("x" * 501, "d"), mlferry.Dataset("n", "d" * 37), mlferry.Dataset("n", 3)],  # type: ignore[arg-type]
    ids=["none", "text", "name", "digest", "number"],
)
def test_what_is_no_dataset_is_refused(raising: Path, dataset: Any) -> None:
    with mlferry.start_run(), pytest.raises(errors.BadDataset):
        mlferry.log_input(dataset)


def test_artifacts_are_for_their_owner_alone(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_text("secret", "a.txt")
    for path in (spool / "runs").rglob("*"):
        assert not os.stat(path).st_mode & 0o077, path
    assert told(spool, run.info.run_id).artifacts
