"""Four writers in one run, each killed at a moment of its own: each loses at most the record that it was writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlferry_spool.codec import decode
from mlferry_spool.layout import writer_directories
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Artifact, Open, Params
from mlferry_spool.tailer import Lost

SOURCE = Path(__file__).parents[2]
WRITER = """
import os, sys
from pathlib import Path
from mlferry_spool.blobs import Blobs
from mlferry_spool.records import Artifact, Open
from mlferry_spool.settings import Settings
from mlferry_spool.writer import Writer
run, rank = Path(sys.argv[1]), int(sys.argv[2])
writer, blobs = Writer(run, Open(f"w{rank}", rank=rank), Settings(segment_bytes=20_000, fsync_interval_s=0.01)), Blobs(run)
n = 0
while True:
    if n % 50 == 49:  # the same bytes for all ranks: they race to put them
        blob = blobs.put_bytes(bytes(str(n), "ascii") * 1000)
        writer.put(Artifact(n, f"file{n}", blob.sha256, blob.size))
    assert writer.append(6, [n, {"k": "x" * (n % 300)}])
    os.write(1, n.to_bytes(4, "big"))  # only after append has returned
    n += 1
"""


def test_four_writers_killed_at_any_moment_keep_all_that_they_were_told(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(SOURCE / "spool"), "PATH": os.environ["PATH"]}
    for round_ in range(4):
        run = tmp_path / str(round_)
        told = [tmp_path / f"{round_}-{rank}" for rank in range(4)]
        writers = []
        for rank, path in enumerate(told):
            with path.open("wb") as out:
                command = [sys.executable, "-c", WRITER, str(run), str(rank)]
                writers.append(subprocess.Popen(command, env=environment, stdout=out))
        for rank, writer in enumerate(writers):
            while told[rank].stat().st_size < 4 * (200 + 50 * rank + 13 * round_):
                assert writer.poll() is None
                time.sleep(0.001)
            assert probe(run / f"w{rank}") is Lock.HELD
            os.kill(writer.pid, signal.SIGKILL)
        for rank, writer in enumerate(writers):
            assert writer.wait() == -signal.SIGKILL
            assert probe(run / f"w{rank}") is Lock.FREE
            check(run, rank, told[rank].stat().st_size // 4)
        assert len(list(writer_directories(run))) == 4


def check(run: Path, rank: int, told: int) -> None:
    reader, events = LogReader(run / f"w{rank}"), []
    while found := reader.read():
        events += found
    assert not [event for event in events if isinstance(event, Lost)]
    assert all(isinstance(event, Lost) and event.frames is None for event in reader.finish())
    records = [decode(event.kind, event.payload) for event in events if not isinstance(event, Lost)]
    assert isinstance(records[0], Open)
    assert records[0].rank == rank
    numbers = [record.timestamp for record in records if isinstance(record, Params)]
    assert numbers == list(range(len(numbers)))
    assert told <= len(numbers) <= told + 1
    for artifact in (record for record in records if isinstance(record, Artifact)):
        data = (run / "blobs" / artifact.sha256.hex()).read_bytes()
        assert data == str(artifact.timestamp).encode() * 1000
