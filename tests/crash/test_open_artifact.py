"""A checkpoint on its way into the spool: the process is killed, the disk fills up or turns read-only under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.disks import can_mount, disk, fill
from tests.spooling import wait_until
from tests.spools import only, read_run, run_ids, told

import mlferry
from mlferry import errors
from mlferry_spool.layout import find_run
from mlferry_spool.records import Artifact, Metrics

SOURCE = Path(__file__).parents[2]

#: Saves one small checkpoint whole, then one that has no end.
TRAINING = """
import mlferry, torch
run = mlferry.start_run()
mlferry.log_metric("before", 1.0)
with mlferry.open_artifact("whole.pt") as file:
    torch.save({"weights": torch.ones(1000)}, file)
with mlferry.open_artifact("half.pt") as file:
    while True:
        torch.save({"weights": torch.ones(1_000_000)}, file)
"""

MODEL = {"weights": torch.ones(4_000_000)}

needs_disks = pytest.mark.skipif(not can_mount(), reason="making a small disk needs root and loop devices")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFERRY_QUIET", "1")
    yield
    mlferry.end_run()


def blobs_of(spool: Path) -> list[Path]:
    """What lies in the blobs of the one run, whatever it is called."""
    for run_id in run_ids(spool) if (spool / "runs").exists() else []:
        directory = find_run(spool, run_id)
        if directory is not None and (directory / "blobs").exists():
            return sorted((directory / "blobs").iterdir())
    return []


def test_a_kill_in_the_middle_leaves_a_temporary_file_that_the_next_process_takes_away(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    environment = {
        "PYTHONPATH": os.pathsep.join(str(SOURCE / root) for root in ("spool", "sdk")),
        "HOME": str(tmp_path),
    }
    environment |= {"PATH": os.environ["PATH"], "MLFERRY_DIR": str(spool), "MLFERRY_RUN_ID": "a1", "MLFERRY_QUIET": "1"}
    with subprocess.Popen([sys.executable, "-c", TRAINING], env=environment) as process:
        wait_until(
            lambda: process.poll() is not None or any(path.stat().st_size > 50_000_000 for path in blobs_of(spool)),
            "a checkpoint that grows",
        )
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    records = read_run(spool, "a1")
    assert [record.path for record in only(Artifact, records)] == ["whole.pt"]
    assert len(only(Metrics, records)) == 1
    left, blob = blobs_of(spool)
    assert (left.name.startswith(".tmp-"), blob.stat().st_size < 10_000) == (True, True)

    os.utime(left, (0, left.stat().st_mtime - 120))
    again = "import mlferry; mlferry.start_run(); mlferry.log_text('requeued', 'a.txt')"
    subprocess.run([sys.executable, "-c", again], env=environment, check=True, timeout=120)
    assert left not in blobs_of(spool)
    assert sorted(told(spool, "a1").artifacts) == ["a.txt", "whole.pt"]


@needs_disks
@pytest.mark.usefixtures("quiet")
def test_a_disk_that_fills_up_costs_the_checkpoint_alone_and_gets_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with disk(tmp_path, megabytes=32) as small:
        monkeypatch.setenv("MLFERRY_DIR", str(small.path / "spool"))
        run = mlferry.start_run()
        filler = fill(small.path, leave=6 << 20)
        with mlferry.open_artifact("large.pt") as file:
            torch.save(MODEL, file)
            position = file.tell()
            mlferry.log_metric("meanwhile", 1.0)
        assert position > 16_000_000
        assert "No space left on device" in caplog.text
        assert list((run.directory / "blobs").iterdir()) == []
        filler.unlink()
        with mlferry.open_artifact("again.pt") as file:
            torch.save(MODEL, file)
        mlferry.end_run()
        found = told(small.path / "spool", run.info.run_id)
        assert (list(found.artifacts), found.dropped) == (["again.pt"], 1)
        assert found.values("meanwhile") == [1.0]


@needs_disks
@pytest.mark.usefixtures("quiet")
def test_a_disk_that_fills_up_is_an_exception_at_the_end_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk(tmp_path, megabytes=16) as small:
        monkeypatch.setenv("MLFERRY_DIR", str(small.path / "spool"))
        monkeypatch.setenv("MLFERRY_ON_ERROR", "raise")
        run, reached = mlferry.start_run(), False
        with (
            pytest.raises(errors.NotStored, match="No space left on device"),
            mlferry.open_artifact("large.pt") as file,
        ):
            torch.save(MODEL, file)
            reached = True
        assert reached
        assert list((run.directory / "blobs").iterdir()) == []
        mlferry.end_run()


@needs_disks
@pytest.mark.usefixtures("quiet")
def test_a_disk_that_turns_read_only_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with disk(tmp_path, megabytes=64) as small:
        monkeypatch.setenv("MLFERRY_DIR", str(small.path / "spool"))
        run = mlferry.start_run()
        with mlferry.open_artifact("cut.pt") as file:
            file.write(bytes(2_000_000))
            small.turn_read_only()
            torch.save(MODEL, file)
        with mlferry.open_artifact("never.pt") as file:
            torch.save(MODEL, file)
        assert run.dropped >= 2
        assert "Read-only file system" in caplog.text
        mlferry.end_run()
