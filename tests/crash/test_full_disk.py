"""A disk that is full, really full: the training goes on, the gap is stated, and the end still fits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.disks import Disk, can_mount, disk
from tests.spools import only, read_run, run_ids

from mlferry_spool.records import Dropped, Metrics, RunEnd

SOURCE = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not can_mount(), reason="making a small disk needs root and loop devices")

#: Fills the disk, logs on, has room again (``again``: somebody deletes the filler), logs on, ends. It says how many calls
#: it made in each of the three parts.
TRAINING = """
import os, sys, time
from pathlib import Path
import mlferry
disk, again = Path(sys.argv[1]), sys.argv[2] == "again"
run = mlferry.start_run()
step = 0
def log(count):
    global step
    for _ in range(count):
        mlferry.log_metric("loss", 0.5, step=step)
        step += 1
log(100)
filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
size = 1 << 20
while size:
    try:
        os.write(filler, b"x" * size)
    except OSError:
        size //= 2
while not run.dropped:  # the rest of the segment's last block
    log(1)
log(500)
mlferry.log_text("a text " * 10_000, "text.txt")
if again:
    os.close(filler)
    (disk / "filler").unlink()
    dropped = run.dropped
    while True:
        before = run.recorded
        log(1)
        if run.recorded > before:
            break
        time.sleep(0.01)
    log(100)
    mlferry.log_text("another text", "other.txt")
mlferry.end_run()
print(step, run.recorded, run.dropped)
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path, megabytes=8) as made:
        yield made


def train(small: Disk, word: str) -> tuple[int, int, int]:
    """Run the training to its end: points logged, records kept, things dropped."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(SOURCE / root) for root in ("spool", "sdk")),
        "MLFERRY_DIR": str(small.path / "spool"),
        "HOME": str(small.path),
    }
    command = [sys.executable, "-B", "-c", TRAINING, str(small.path), word]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr
    points, recorded, dropped = map(int, done.stdout.split())
    return points, recorded, dropped


def test_on_a_full_disk_training_goes_on_and_the_end_of_the_run_still_fits(small: Disk) -> None:
    points, _, dropped = train(small, "never")
    [run_id] = run_ids(small.path / "spool")
    records = read_run(small.path / "spool", run_id)
    steps = [record.step for record in only(Metrics, records)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 100
    assert [record.status for record in only(RunEnd, records)] == ["FINISHED"]
    stated = only(Dropped, records)
    assert sum(record.count for record in stated) == dropped
    assert sum(record.kinds.get("metrics", 0) for record in stated) == points - len(steps)


def test_when_there_is_room_again_logging_goes_on_and_the_gap_stands_where_it_was(small: Disk) -> None:
    points, _, dropped = train(small, "again")
    [run_id] = run_ids(small.path / "spool")
    records = read_run(small.path / "spool", run_id)
    steps = [record.step for record in only(Metrics, records)]
    stated = only(Dropped, records)
    assert sum(record.count for record in stated) == dropped
    assert len(steps) + sum(record.kinds.get("metrics", 0) for record in stated) == points
    assert steps[-101:] == list(range(points - 101, points))
    at = [index for index, record in enumerate(records) if isinstance(record, Dropped)]
    assert any(isinstance(record, Metrics) for record in records[at[-1] :])
    assert [record.status for record in only(RunEnd, records)] == ["FINISHED"]
