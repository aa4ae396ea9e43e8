"""SIGKILL at every system call on the spool: a call that returned is kept, and what is there is never taken for damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.codec import decode
from mlferry_spool.layout import BALLAST, LOCK
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Artifact, Metrics, Params, Record, RunEnd
from mlferry_spool.tailer import Lost

SOURCE = Path(__file__).parents[2]
WORKLOAD = Path(__file__).with_name("workload.py")

#: Each call, and how many of it at least the workload makes: a filter that hits none would prove nothing.
CALLS = {"write": 20, "fdatasync": 15, "fsync": 4, "rename": 1, "openat": 8, "mkdir": 3}


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_trace(), reason="strace is missing or may not trace here")


def killed_at(call: str, number: int, run: Path, acknowledged: Path) -> bool:
    """Run the workload and kill it at its ``number``-th ``call`` on the spool. False: it made fewer and finished."""
    # The interpreter makes none of the others before the workload begins, and a blob's temporary name is not known here.
    where = [path for name in _places(run) for path in ("-P", str(name))] if call == "openat" else []
    hit = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *where, *hit, sys.executable, "-B", str(WORKLOAD)]
    environ = {"PYTHONPATH": str(SOURCE / "spool"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, str(run), str(acknowledged)], env=environ, capture_output=True, check=False)
    assert not done.stderr, done.stderr.decode()
    return done.returncode != 0


def _places(run: Path) -> list[Path]:
    """The paths of the spool: strace's filter takes names, not prefixes. A segment's name is the offset it begins at."""
    segments = [run / "w" / f"{offset:020d}.seg" for offset in range(40)]
    return [run, run / "w", run / "w" / LOCK, run / "w" / BALLAST, run / "blobs", *segments]


def records_of(run: Path) -> list[Record]:
    """What a reader finds, with the torn tail that a dead writer may leave; anything lost fails."""
    reader, found = LogReader(run / "w"), []
    while events := reader.read():
        found += events
    found += reader.finish()
    assert not [event for event in found if isinstance(event, Lost) and event.frames], found
    decoded = [decode(event.kind, event.payload) for event in found if not isinstance(event, Lost)]
    return [record for record in decoded if record is not None]


def check(run: Path, acknowledged: Path) -> None:
    kept = acknowledged.read_text().split() if acknowledged.exists() else []
    records = records_of(run)
    steps = [record.step for record in records if isinstance(record, Metrics)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= len([word for word in kept if word.isdecimal()])
    assert ("params" not in kept) or any(isinstance(record, Params) for record in records)
    artifacts = [record for record in records if isinstance(record, Artifact)]
    assert ("artifact" not in kept) or artifacts
    assert ("end" not in kept) or any(isinstance(record, RunEnd) for record in records)
    for artifact in artifacts:
        with Blobs(run).path(artifact.sha256).open("rb") as file:
            assert digest_of(file) == Blob(artifact.sha256, artifact.size)
    # Also a blob that no frame names yet: the next to log these bytes relies on it.
    for path in (run / "blobs").glob("[!.]*"):
        with path.open("rb") as file:
            assert digest_of(file).sha256.hex() == path.name


@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_is_the_last_a_call_that_returned_is_kept(tmp_path: Path, call: str) -> None:
    for number in range(1, 200):
        run, acknowledged = tmp_path / str(number) / "run", tmp_path / str(number) / "acknowledged"
        run.parent.mkdir()
        died = killed_at(call, number, run, acknowledged)
        check(run, acknowledged)
        if not died:
            assert acknowledged.read_text().split()[-1] == "end"
            assert number > CALLS[call]
            return
    pytest.fail(f"the workload never came to its end: more than 200 calls of {call}?")
