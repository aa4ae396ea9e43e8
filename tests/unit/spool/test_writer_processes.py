"""A writer whose process forks, is forked, or is killed; and one whose file system knows no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.spool.spools import FINISHED, entries, number, read_back, records, untended

from mlferry_spool.codec import decode
from mlferry_spool.layout import writer_directories
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.records import Kind, Open
from mlferry_spool.settings import Settings
from mlferry_spool.writer import Writer

# From Python 3.12 on a fork of a process with threads warns; that it works all the same is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

QUIET = Settings(heartbeat_s=1e9, segment_age_s=1e9)
SOURCE = Path(__file__).parents[3]


def in_child(work: Callable[[], None]) -> None:
    """Run ``work`` in a forked child; it must succeed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_logs_into_a_log_of_its_own(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    writer.append(Kind.PARAMS, number(1))

    def work() -> None:
        assert (writer.appended, writer.dropped) == (0, 0)
        assert writer.append(Kind.PARAMS, number(2))
        assert writer.close(FINISHED)

    in_child(work)
    assert writer.append(Kind.PARAMS, number(3))
    writer.close(FINISHED)
    parent, child = writer_directories(tmp_path)
    assert {parent.name, child.name} > {"w"}
    own = child if parent.name == "w" else parent
    opening = records(own)[0]
    assert isinstance(opening, Open)
    assert (opening.writer_id, opening.run_id, opening.role) == (own.name, "r", "helper")
    assert opening.pid != os.getpid()
    assert [decode(e.kind, e.payload).timestamp for e in entries(writer.directory) if e.kind == Kind.PARAMS] == [1, 3]  # type: ignore[union-attr]
    assert sorted(read_back(tmp_path).numbers) == [1, 2, 3]


def test_a_child_that_logs_nothing_leaves_nothing(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    in_child(lambda: None)
    in_child(lambda: None if writer.close(FINISHED) else os._exit(3))
    assert [path.name for path in writer_directories(tmp_path)] == ["w"]
    assert probe(writer.directory) is Lock.HELD
    assert writer.append(Kind.PARAMS, number(1))
    writer.close()
    assert read_back(tmp_path).ends == []


def test_children_of_children_each_have_their_own(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)

    def grandchild() -> None:
        assert writer.append(Kind.PARAMS, number(3))
        writer.close()

    def child() -> None:
        assert writer.append(Kind.PARAMS, number(2))
        in_child(grandchild)
        writer.close()

    assert writer.append(Kind.PARAMS, number(1))
    in_child(child)
    writer.close()
    assert len(list(writer_directories(tmp_path))) == 3
    assert sorted(read_back(tmp_path).numbers) == [1, 2, 3]


def test_a_fork_while_other_threads_log_and_sync_neither_hangs_nor_harms(tmp_path: Path) -> None:
    writer = Writer(tmp_path, Open("w"), Settings(segment_bytes=3000, fsync_interval_s=0.0005, heartbeat_s=0.0005))
    stop, logged = threading.Event(), []

    def log() -> None:
        n = 0
        while not stop.is_set():
            assert writer.append(Kind.PARAMS, number(n))
            logged.append(n)
            n += 1
            if n % 100 == 0:
                time.sleep(0.002)  # else a slow machine has hundreds of thousands of records to read back

    def work() -> None:
        assert writer.append(Kind.PARAMS, number(10**9))
        writer.close()

    thread = threading.Thread(target=log)
    thread.start()
    for _ in range(25):
        in_child(work)
    stop.set()
    thread.join()
    writer.close(FINISHED)
    found = read_back(tmp_path)
    assert [n for n in found.numbers if n < 10**9] == logged
    assert found.numbers.count(10**9) == 25
    assert not found.lost


_PARENT = """
import os, signal, sys
from pathlib import Path
from tests.unit.spool.spools import number, untended
writer = untended(Path(sys.argv[1]))
writer.append(6, number(1))
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.write(writing, b"!")
    while True:
        signal.pause()
os.read(reading, 1)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_outlives_its_parent_does_not_hold_its_lock(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}/spool:{SOURCE}"}
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert parent.wait(30) == -signal.SIGKILL
            assert probe(tmp_path / "w") is Lock.FREE
        finally:
            os.kill(child, signal.SIGKILL)
    assert read_back(tmp_path).numbers == [1]


def test_a_program_that_is_started_inherits_no_descriptor(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    done = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False)
    assert str(tmp_path) not in done.stdout
    writer.close()


def test_where_the_file_system_knows_no_locks_everything_is_logged_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    writer = untended(tmp_path, QUIET)
    assert writer.append(Kind.PARAMS, number(1))
    assert probe(writer.directory) is Lock.UNKNOWN
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
    opening, *_ = records(writer.directory)
    assert isinstance(opening, Open)
    assert not opening.locked
    assert read_back(tmp_path).numbers == [1]
