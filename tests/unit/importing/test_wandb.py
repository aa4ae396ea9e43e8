"""wandb's offline runs: a file that wandb wrote, whole and damaged, and a new one where wandb is installed."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from tests.foreign.spools import WANDB, bring, points_of, the_run

from mlferry_agent.importing import wandb_files


def test_an_offline_run_of_wandb_becomes_metrics_params_tags_and_files(tmp_path: Path) -> None:
    report = bring(tmp_path, WANDB)
    assert points_of(tmp_path, "loss") == [
        (1 / (n + 3), n, when) for n, (_, _, when) in enumerate(points_of(tmp_path, "loss"))
    ]
    assert [step for _, step, _ in points_of(tmp_path, "valid.loss")] == [7]
    odd = [value for value, _, _ in points_of(tmp_path, "odd")]
    assert odd[0] == sys.float_info.max
    assert all(math.isnan(value) for value in odd[1:])
    run = the_run(tmp_path)
    assert run.opening is not None
    assert run.params.values() == {"lr": "0.1", "name": "größer", "net.width": "[64, 64]", "net.bias": "true"}
    assert (run.opening.experiment_name, run.name.value, run.status.value) == ("birds", "first flight", "FINISHED")
    tags = run.tags.values()
    assert tags["mlflow.note.content"] == "what we tried"
    assert tags["wandb.tag.baseline"] == "true"
    assert tags["wandb.summary.best"] == "3.5"
    assert not [key for key in tags if "spread" in key]
    assert list(run.artifacts.values()) == ["notes.txt"]
    assert sum(report.left_out.values()) == 6  # five texts and a histogram
    assert bring(tmp_path, next(WANDB.rglob("*.wandb"))).unchanged == 1


def test_a_wandb_file_that_is_cut_or_damaged_gives_what_can_be_read(tmp_path: Path) -> None:
    data = next(WANDB.rglob("*.wandb")).read_bytes()
    for length in range(7, len(data), 97):
        folder = tmp_path / f"cut-{length}"
        folder.mkdir()
        (folder / "run.wandb").write_bytes(data[:length])
        report = bring(folder / "spool", folder / "run.wandb")
        assert report.runs + report.left_out["wandb files that name no run"] == 1
        assert report.points <= 16
    damaged = bytearray(data)
    damaged[data.index(b"0.25")] ^= 1
    (tmp_path / "damaged.wandb").write_bytes(damaged)
    report = bring(tmp_path / "spool", tmp_path / "damaged.wandb")
    assert report.left_out["records of wandb files that are damaged"] == 1
    assert report.runs == 1


def test_what_this_wandb_writes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb weighs 60 MB; a file that it wrote stands in for it")
    script = WANDB.with_name("wandb_script.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = bring(tmp_path / "spool", tmp_path / "wandb")
    assert (report.runs, report.points) == (1, 16)


def a_wandb_file(path: Path, *records: bytes) -> Path:
    """As wandb writes it: records of at most a block."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        content += struct.pack("<IHB", zlib.crc32(record, zlib.crc32(b"\x01")), len(record), 1) + record
    path.write_bytes(content)
    return path


def test_a_record_larger_than_any_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(b":W&B\xe1\xbe\x00")
    for number in range(9):
        data = bytes(32768 - 7 - (7 if not number else 0))
        kind = 2 if not number else 3
        content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
    (tmp_path / "run.wandb").write_bytes(content)
    monkeypatch.setattr(wandb_files, "_MOST_RECORD_BYTES", 100_000)
    damaged: list[None] = []
    with (tmp_path / "run.wandb").open("rb") as file:
        assert list(wandb_files.records(file, lambda: damaged.append(None))) == []
    assert len(damaged) == 1


def test_config_nested_deeper_than_that_becomes_json(tmp_path: Path) -> None:
    deep = json.dumps("leaf")
    for _ in range(30):
        deep = f'{{"a": {deep}}}'
    record = wandb_files._record_class()(
        run={"run_id": "r", "config": {"update": [{"key": "net", "value_json": deep}]}}
    )
    bring(tmp_path / "spool", a_wandb_file(tmp_path / "run.wandb", record.SerializeToString()))
    [(key, value)] = the_run(tmp_path / "spool").params.values().items()
    assert key == "net" + ".a" * 20
    assert value == '{"a": ' * 10 + '"leaf"' + "}" * 10


def test_damage_costs_the_rest_of_its_block_and_no_more(tmp_path: Path) -> None:
    run = wandb_files._record_class()(run={"run_id": "r", "project": "birds"}).SerializeToString()
    path = a_wandb_file(tmp_path / "run.wandb", run)
    whole = path.read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(damaged.ljust(32768, b"\xff") + whole[7:])
    report = bring(tmp_path / "spool", path)
    assert report.runs == 1
    assert report.left_out == {"records of wandb files that are damaged": 1}
