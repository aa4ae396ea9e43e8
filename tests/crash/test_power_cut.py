"""The power goes: what was promised to be durable is there after the next start, and nothing that is there is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.disks import Disk, can_mount, disk

from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.codec import decode
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Artifact, Metrics, Record
from mlferry_spool.tailer import Lost

SOURCE = Path(__file__).parents[2]

#: Logs points for ever and says of each when its call has returned; every 50th is a file.
WORKLOAD = """
import sys
from pathlib import Path
from mlferry_spool.blobs import Blobs
from mlferry_spool.records import Artifact, Open
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer
run, fsync = Path(sys.argv[1]), Fsync(sys.argv[2])
writer = Writer(run, Open("w", "r"), Settings(fsync=fsync, fsync_interval_s=0.05, segment_bytes=20_000))
blobs, step, kept = Blobs(run, durable=fsync is not Fsync.NEVER), 0, True
while kept:
    kept = writer.append(4, (1, step, {"loss": 0.5}))
    if kept:
        print(step, flush=True)
    if step % 50 == 49:
        try:
            blob = blobs.put_bytes(str(step).encode() * 5000)
        except OSError:
            break
        writer.put(Artifact(1, f"{step}.bin", blob.sha256, blob.size))
    step += 1
"""

WAIT_UNTIL_DURABLE = """
import time
while writer._log.segment.synced[1] < writer._sequence:
    time.sleep(0.01)
print("durable", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(
    not can_mount(), reason="making a disk that loses its power needs root and loop devices"
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path) as made:
        yield made


def run_until_the_power_goes(machine: Disk, fsync: str, steps: int) -> int:
    """Have the workload log at least so many points, cut the power, start again. Returns how many calls had returned."""
    command = [sys.executable, "-B", "-c", WORKLOAD, str(machine.path / "run"), fsync]
    environment = {"PYTHONPATH": str(SOURCE / "spool"), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writing:
        assert writing.stdout is not None
        for line in writing.stdout:
            if int(line) >= steps:
                break
        machine.cut_power()
        returned = [int(line) for line in writing.stdout]
    machine.come_back()
    return max(returned, default=steps) + 1


def found_in(run: Path) -> tuple[list[int], list[Artifact]]:
    """Steps and artifacts that a reader finds; anything lost but a torn tail fails."""
    reader, events = LogReader(run / "w"), []
    while new := reader.read():
        events += new
    events += reader.finish()
    assert not [event for event in events if isinstance(event, Lost) and event.frames], events
    records: list[Record | None] = [
        decode(event.kind, event.payload) for event in events if not isinstance(event, Lost)
    ]
    steps = [record.step for record in records if isinstance(record, Metrics)]
    return steps, [record for record in records if isinstance(record, Artifact)]


@pytest.mark.parametrize("steps", [7, 60, 333])
def test_with_fsync_always_no_call_that_returned_is_lost(machine: Disk, steps: int) -> None:
    before = run_until_the_power_goes(machine, "always", steps)
    kept, _ = found_in(machine.path / "run")
    assert kept == list(range(len(kept)))
    # One more than was said: the call that returned while the power went may not have been told any more.
    assert before <= len(kept) + 1 and steps + 1 <= len(kept)


@pytest.mark.parametrize("steps", [60, 2000, 9000])
def test_with_fsync_at_intervals_what_is_left_is_a_beginning_without_damage(machine: Disk, steps: int) -> None:
    before = run_until_the_power_goes(machine, "interval", steps)
    kept, files = found_in(machine.path / "run")
    assert kept == list(range(len(kept)))
    assert len(kept) <= before
    # A file is durable before its record is written, and makes nothing of the log durable.
    for file in files:
        with Blobs(machine.path / "run").path(file.sha256).open("rb") as stored:
            assert digest_of(stored) == Blob(file.sha256, file.size)


def test_with_fsync_at_intervals_nothing_is_lost_once_an_interval_has_passed(machine: Disk) -> None:
    """The writer logs and waits, as a training between two steps does; the caretaker alone makes it durable."""
    waiting = WORKLOAD.replace("while kept:", "while step < 50:") + WAIT_UNTIL_DURABLE
    command = [sys.executable, "-B", "-c", waiting, str(machine.path / "run"), "interval"]
    environment = {"PYTHONPATH": str(SOURCE / "spool"), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writing:
        assert writing.stdout is not None
        assert "durable\n" in iter(writing.stdout.readline, "")
        machine.cut_power()
        writing.kill()
    machine.come_back()
    kept, files = found_in(machine.path / "run")
    assert kept == list(range(50))
    assert [file.path for file in files] == ["49.bin"]
