"""TensorBoard event files, written by PyTorch's SummaryWriter: what becomes of them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tests.foreign.spools import T0, bring, points_of, the_run

from mlferry_spool.catalogue import Catalogue


@pytest.fixture(scope="module")
def writer_class() -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def aged(folder: Path) -> Path:
    """As if nobody had written there for a day."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 86_400,) * 2)
    return folder


def a_training(writer_class: Any, folder: Path, first: int = 0, steps: int = 5) -> Path:
    with contextlib.closing(writer_class(folder)) as writer:
        for step in range(first, first + steps):
            writer.add_scalar("loss", 1 / (step + 3), step, walltime=1.7e9 + step + 0.25)
    return aged(folder)


def test_scalars_of_tensorboard_are_metrics_with_the_value_step_and_time_of_the_file(
    writer_class: Any, tmp_path: Path
) -> None:
    logs = a_training(writer_class, tmp_path / "logs" / "train")
    report = bring(tmp_path / "spool", tmp_path / "logs", experiment="birds")
    assert (report.runs, report.points, report.files) == (1, 5, 1)
    float32 = [struct.unpack("<f", struct.pack("<f", 1 / (step + 3)))[0] for step in range(5)]
    assert points_of(tmp_path / "spool", "loss") == [(value, n, T0 + 1000 * n + 250) for n, value in enumerate(float32)]
    run = the_run(tmp_path / "spool")
    assert run.opening is not None
    assert (run.opening.experiment_name, run.name.value, run.status.value) == ("birds", "train", "FINISHED")
    [(path, file)] = run.artifacts.values().items()
    [events] = logs.iterdir()
    assert (path, file.sha256) == (f"tensorboard/{events.name}", hashlib.sha256(events.read_bytes()).digest())


def test_hyperparameters_are_params_and_what_mlflow_has_no_place_for_is_counted(
    writer_class: Any, tmp_path: Path
) -> None:
    with contextlib.closing(writer_class(tmp_path / "logs")) as writer:
        writer.add_text("note", "hello")
        writer.add_scalar("odd", math.nan, 1)
        writer.add_hparams({"lr": 0.1, "batch": 32, "opt": "adam"}, {"acc": 0.5}, run_name="trial")
    report = bring(tmp_path / "spool", tmp_path / "logs")
    params = {state.name.value: state.params.values() for state in Catalogue(tmp_path / "spool").runs()}
    assert params == {"logs": {}, "trial": {"lr": "0.1", "batch": "32", "opt": "adam"}}
    assert report.left_out == {"values of TensorBoard's text plugin, which are in the event files": 1}


def test_a_run_is_the_same_from_wherever_it_is_imported_and_when_it_has_gone_on(
    writer_class: Any, tmp_path: Path
) -> None:
    spool, folder = tmp_path / "spool", tmp_path / "logs" / "a" / "b"
    a_training(writer_class, folder)
    assert bring(spool, tmp_path / "logs").runs == 1
    assert bring(spool, folder).unchanged == 1
    time.sleep(1.1)  # a writer names its file after the second
    a_training(writer_class, folder, first=5)
    moved = (tmp_path / "logs").rename(tmp_path / "moved")
    grown = bring(spool, moved)
    assert (grown.runs, grown.grown, grown.points, grown.files) == (0, 1, 5, 1)
    assert [step for _, step, _ in points_of(spool, "loss")] == list(range(10))
    assert bring(spool, moved).unchanged == 1


def test_a_run_that_is_still_written_to_is_not_ended(writer_class: Any, tmp_path: Path) -> None:
    folder = a_training(writer_class, tmp_path / "logs")
    os.utime(next(folder.iterdir()))
    bring(tmp_path / "spool", folder)
    assert the_run(tmp_path / "spool").status.value == "RUNNING"
    bring(tmp_path / "spool", aged(folder))
    assert the_run(tmp_path / "spool").status.value == "FINISHED"


def test_of_a_damaged_event_file_everything_before_the_damage_is_taken(writer_class: Any, tmp_path: Path) -> None:
    folder = a_training(writer_class, tmp_path / "logs")
    [events] = folder.iterdir()
    data = bytearray(events.read_bytes())
    data[-20] ^= 0xFF
    events.write_bytes(data)
    report = bring(tmp_path / "spool", folder)
    assert (report.runs, report.points) == (1, 4)
    assert the_run(tmp_path / "spool").artifacts.values()
