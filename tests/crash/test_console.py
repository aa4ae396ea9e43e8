"""A console that is captured while somebody is killed: the training, the process that captures, or both of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.consoles import captures, together
from tests.disks import can_mount, disk, fill
from tests.spooling import wait_until
from tests.spools import read_writers, run_ids

from mlferry_spool.records import Dropped, RunEnd

SOURCE = Path(__file__).parents[2]

#: Prints numbered lines, by Python and by a forked child in turns, until it is told that there are enough.
TRAINING = """
import os, sys, time, mlferry
with mlferry.start_run(capture=True):
    number = 0
    while not os.path.exists(sys.argv[1]):
        print("line", number)
        number += 1
        time.sleep(0.0005)
    print("trained")
"""

#: C code that holds the GIL and prints far more than a pipe takes.
HOLDING = """
import ctypes, os, sys, time, mlferry
libc = ctypes.PyDLL(None)  # as CDLL, but the GIL is held
with mlferry.start_run(capture=True):
    print("begun")
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    data = b"x" * 99 + b"\\n"
    block = data * 50_000
    done = 0
    while done < len(block):
        done += libc.write(1, block[done:], len(block) - done)
"""


class Training:
    """A training whose console is captured; what is shown of it goes to a file."""

    def __init__(self, folder: Path, source: str = TRAINING, root: Path | None = None) -> None:
        self.folder, self.root, self.shown = folder, root or folder / "spool", folder / "shown"
        (folder / "train.py").write_text(source)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ML", "PYTHON"))}
        paths = os.pathsep.join(str(SOURCE / root) for root in ("spool", "sdk"))
        environ = {**clean, "PYTHONPATH": paths, "MLFERRY_DIR": str(self.root)}
        with self.shown.open("wb") as sink:
            command = [sys.executable, str(folder / "train.py"), str(folder / "enough")]
            self.process = subprocess.Popen(command, env=environ, stdout=sink, stderr=sink, start_new_session=True)
        wait_until(lambda: self.lines() > 20 or (source != TRAINING and self.lines()), "it prints")
        self.captures = wait_until(lambda: self._both(), "two processes capture")

    def _both(self) -> list[int]:
        found = captures(self.folder)
        return found if len(found) == 2 else []

    def lines(self) -> int:
        return self.shown.read_bytes().count(b"\n")

    def end(self) -> int:
        (self.folder / "enough").touch()
        return self.process.wait(timeout=60)

    def is_left_alone(self) -> None:
        wait_until(lambda: not captures(self.folder), "nobody captures any more")

    def numbers(self, text: str) -> list[int]:
        return [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]


def test_what_was_printed_before_a_sigkill_is_shown_and_kept(tmp_path: Path) -> None:
    train = Training(tmp_path)
    wait_until(lambda: train.lines() > 300, "it has printed")
    train.process.kill()
    train.process.wait()
    train.is_left_alone()
    shown = train.shown.read_text()
    assert together(train.root) == shown
    assert train.numbers(shown) == list(range(len(train.numbers(shown)))) and train.lines() > 300
    [run_id] = run_ids(train.root)
    assert not [end for records in read_writers(train.root, run_id).values() for end in records if type(end) is RunEnd]


@pytest.mark.parametrize("which", [0, 1], ids=["who waits", "who works"])
def test_one_of_the_two_that_capture_is_killed_and_the_training_prints_on(tmp_path: Path, which: int) -> None:
    train = Training(tmp_path)
    os.kill(train.captures[which], signal.SIGKILL)
    before = train.lines()
    wait_until(lambda: train.lines() > before + 300, "it prints on")
    assert train.end() == 0
    train.is_left_alone()
    shown = train.shown.read_text()
    numbers = train.numbers(shown)
    # Only what the killed one had read and not yet written can be missing: less than it reads at once.
    assert numbers == sorted(set(numbers)) and len(range(numbers[-1] + 1)) - len(numbers) < 200
    assert "trained" in shown
    if which == 0:
        assert train.numbers(together(train.root)) == numbers
    else:
        assert_said_once(train)


def test_both_that_capture_are_killed_and_the_training_prints_on(tmp_path: Path) -> None:
    train = Training(tmp_path)
    for pid in train.captures:
        os.kill(pid, signal.SIGSTOP)
    for pid in train.captures:
        os.kill(pid, signal.SIGKILL)
    before = train.lines()
    wait_until(lambda: train.lines() > before + 300, "it prints on")
    assert train.end() == 0
    assert "trained" in train.shown.read_text()
    assert_said_once(train)


def assert_said_once(train: Training) -> None:
    assert train.shown.read_text().count("The console of this process is not, or not any more, kept") == 1
    [run_id] = run_ids(train.root)
    records = [record for written in read_writers(train.root, run_id).values() for record in written]
    assert [record for record in records if isinstance(record, Dropped)]
    assert [record.status for record in records if isinstance(record, RunEnd)] == ["FINISHED"]


@pytest.mark.skipif(not can_mount(), reason="making a small disk needs root and loop devices")
@pytest.mark.parametrize("trouble", ["full", "failing"])
def test_a_disk_in_trouble_costs_the_console_and_not_the_training(tmp_path: Path, trouble: str) -> None:
    with disk(tmp_path, megabytes=16) as small:
        train = Training(tmp_path, root=small.path / "spool")
        if trouble == "full":
            fill(small.path, leave=0)
        else:
            small.fail()
        before = train.lines()
        wait_until(lambda: train.lines() > before + 3000, "it prints on")
        assert train.end() == 0
        train.is_left_alone()
        shown = train.shown.read_text()
    assert "trained" in shown and shown.count("mlferry: console capture: ") == 1
    numbers = train.numbers(shown)
    assert numbers == list(range(len(numbers)))


def test_c_code_that_holds_the_gil_never_waits_for_a_reader_that_was_killed(tmp_path: Path) -> None:
    train = Training(tmp_path, HOLDING)
    os.kill(train.captures[1], signal.SIGSTOP)  # it reads nothing, and is killed while the pipe is full
    (tmp_path / "enough").touch()
    time.sleep(1.0)
    assert train.process.poll() is None
    os.kill(train.captures[1], signal.SIGKILL)
    assert train.process.wait(timeout=60) == 0
    train.is_left_alone()
    assert train.shown.read_text().count("x" * 99 + "\n") == 50_000
