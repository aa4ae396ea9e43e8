"""A program's console, captured: by real programs that print in every way there is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.consoles import captured, captures, together
from tests.spooling import wait_until
from tests.spools import read_writers, run_ids, told
from tests.unit.sdk.conftest import Program

from mlferry_spool.records import Dropped, Open, RunEnd

PRINTS = """
import ctypes, faulthandler, os, subprocess, sys, mlferry
with mlferry.start_run(capture=True):
    print("by python")
    os.write(1, b"by os\\n")
    subprocess.run(["echo", "by a subprocess"])
    ctypes.CDLL(None).puts(b"by C")
    print("to stderr", file=sys.stderr)
    faulthandler.dump_traceback()
print("after the run")
"""
SHOWN = ["by python", "by os", "by a subprocess", "by C"]


def test_what_is_printed_in_any_way_is_shown_and_is_an_artifact(program: Program, tmp_path: Path) -> None:
    ended = program(PRINTS, MLFERRY_QUIET="1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [*SHOWN, "after the run"]
    assert ended.stderr.startswith("to stderr\nCurrent thread") or "most recent call first" in ended.stderr
    [(path, content)] = captured(tmp_path / "spool").items()
    assert path.startswith("console/rank-0-") and path.endswith(".0001.log")
    lines = content.decode().splitlines()
    assert [line for line in lines if line in SHOWN] == SHOWN
    assert "to stderr" in lines and any("most recent call first" in line for line in lines)
    assert "after the run" not in lines


def test_nothing_is_captured_unless_it_is_asked_for(program: Program, tmp_path: Path) -> None:
    ended = program(PRINTS.replace("capture=True", ""), MLFERRY_QUIET="1")
    assert (ended.returncode, captured(tmp_path / "spool")) == (0, {})
    ended = program(PRINTS.replace("capture=True", "capture=False"), MLFERRY_QUIET="1", MLFERRY_CAPTURE="1")
    assert ended.returncode == 0
    assert not [path for run_id in run_ids(tmp_path / "spool") for path in captured(tmp_path / "spool", run_id)]


def test_the_variable_asks_for_it_and_the_outermost_run_gets_it(program: Program, tmp_path: Path) -> None:
    source = """
import mlferry
with mlferry.start_run(run_name="outer"):
    print("one")
    with mlferry.start_run(run_name="inner", nested=True):
        print("two")
    print("three")
"""
    assert program(source, MLFERRY_CAPTURE="1").returncode == 0
    root = tmp_path / "spool"
    by_name = {told(root, run_id).tags["mlflow.runName"]: captured(root, run_id) for run_id in run_ids(root)}
    assert by_name["inner"] == {}
    [content] = by_name["outer"].values()
    assert content == b"one\ntwo\nthree\n"


def test_everything_is_in_the_run_before_its_end_is_told(program: Program, tmp_path: Path) -> None:
    source = """
import mlferry
with mlferry.start_run(capture=True):
    for number in range(40_000):
        print("line", number)
"""
    assert program(source, MLFERRY_QUIET="1").returncode == 0
    assert together(tmp_path / "spool") == "".join(f"line {number}\n" for number in range(40_000))
    [run_id] = run_ids(tmp_path / "spool")
    writers = list(read_writers(tmp_path / "spool", run_id).values())
    roles = {records[0].role: records for records in writers if isinstance(records[0], Open)}
    assert set(roles) == {"primary", "guest"}
    [end] = [record for record in roles["primary"] if isinstance(record, RunEnd)]
    assert end.status == "FINISHED"
    assert not [record for record in roles["guest"] if isinstance(record, RunEnd)]
    assert end.end_time >= max(getattr(record, "timestamp", 0) for record in roles["guest"])


def test_the_error_that_ends_a_run_is_in_its_console(program: Program, tmp_path: Path) -> None:
    ended = program("import mlferry\nwith mlferry.start_run(capture=True):\n    raise RuntimeError('too hot')\n")
    assert ended.returncode == 1
    assert ended.stderr.count("RuntimeError: too hot") == 1
    assert together(tmp_path / "spool").count("RuntimeError: too hot") == 1


def test_a_second_run_is_captured_like_the_first_and_nothing_stays_open(program: Program, tmp_path: Path) -> None:
    source = """
import mlferry, os, threading, time
def open_now(): return len(os.listdir("/proc/self/fd"))
with mlferry.start_run(capture=True): print("warm")
before = open_now()
for number in range(3):
    with mlferry.start_run(capture=True): print("run", number)
until = time.monotonic() + 10
while open_now() > before and time.monotonic() < until: time.sleep(0.05)
print(open_now() - before)
"""
    ended = program(source, MLFERRY_QUIET="1")
    assert ended.stdout.splitlines()[-1] == "0", ended.stdout + ended.stderr
    root = tmp_path / "spool"
    consoles = [b"".join(captured(root, run_id).values()) for run_id in run_ids(root)]
    assert sorted(consoles) == [b"run 0\n", b"run 1\n", b"run 2\n", b"warm\n"]


def test_children_inherit_no_descriptor_of_the_capture_but_what_they_print_to(program: Program, tmp_path: Path) -> None:
    source = """
import mlferry, subprocess, os
with mlferry.start_run(capture=True):
    subprocess.run(["ls", "/proc/self/fd"], close_fds=False)
    if not os.fork():
        leads = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
        print(sum("pipe:" in lead or "socket:" in lead for lead in leads), flush=True)
        os._exit(0)
    os.wait()
"""
    ended = program(source, MLFERRY_QUIET="1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["0", "1", "2", "3", "2"]  # 3: of the directory that is listed
    assert together(tmp_path / "spool").split() == ended.stdout.split()


def test_a_daemon_that_outlives_the_run_goes_on_to_print_and_delays_nobody(program: Program, tmp_path: Path) -> None:
    source = """
import mlferry, subprocess
with mlferry.start_run(capture=True):
    print("training", flush=True)
    daemon = subprocess.Popen(["sh", "-c", "sleep 1.5; echo late"])
"""
    began = time.monotonic()
    ended = program(source, MLFERRY_QUIET="1")  # comes back when the daemon is over, too, whose output it reads
    assert ended.stdout == "training\nlate\n" and time.monotonic() - began < 60
    assert together(tmp_path / "spool") == "training\n"
    wait_until(lambda: not captures(tmp_path), "the processes that captured are gone")


def test_a_stdout_that_is_nothing_of_the_kind_is_no_trouble(program: Program, tmp_path: Path) -> None:
    source = """
import io, os, sys, mlferry
sys.stdout = io.StringIO()  # as in a notebook
with mlferry.start_run() as run:
    os.close(2)
    run.capture_console()
    print("in the notebook")
    os.write(1, b"below it\\n")
    try:
        os.write(2, b"to nobody")
    except OSError as error:
        os.write(1, error.strerror.encode() + b"\\n")
"""
    ended = program(source, MLFERRY_QUIET="1")
    assert (ended.returncode, ended.stdout) == (0, "below it\nBad file descriptor\n")
    assert together(tmp_path / "spool") == ended.stdout


def test_a_reader_that_goes_away_does_not_end_the_training(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import mlferry\nwith mlferry.start_run(capture=True):\n    for n in range(100_000): print('line', n)\n"
    )
    shell = f"{sys.executable} {script} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", shell], env={**environment, "MLFERRY_QUIET": "1"}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("\n") == ["line 0", "0", ""]
    assert together(tmp_path / "spool").endswith("line 99999\n")


def test_on_a_terminal_it_stays_a_terminal_of_the_same_size(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import mlferry, os, sys\nwith mlferry.start_run(capture=True):\n"
        "    print(sys.stdout.isatty(), os.get_terminal_size(1).columns)\n    print('a\\rb')\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "77"], stdin=theirs, check=True)
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**environment, "MLFERRY_QUIET": "1"}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # the last one has closed it
        pass
    os.close(ours)
    assert process.wait() == 0
    assert shown == b"True 77\r\na\rb\r\n"
    assert together(tmp_path / "spool") == "True 77\nb\n"


def test_a_capture_that_cannot_begin_is_counted_and_said_and_the_program_goes_on(
    program: Program, tmp_path: Path
) -> None:
    source = """
import sys, mlferry
sys.executable = "/nowhere/python"
with mlferry.start_run(capture=True):
    print("trained")
"""
    ended = program(source)
    assert (ended.returncode, ended.stdout) == (0, "trained\n")
    assert ended.stderr.count("it could not begin") == 1
    [run_id] = run_ids(tmp_path / "spool")
    [records] = read_writers(tmp_path / "spool", run_id).values()
    assert [record for record in records if isinstance(record, Dropped)]


def test_lines_of_python_are_written_at_once_until_the_run_ends(program: Program, tmp_path: Path) -> None:
    source = """
import os, sys, mlferry
print("before ", end="")
with mlferry.start_run(capture=True):
    print("first")
    os.write(1, b"second\\n")
print("third")
os.write(1, b"not gathered\\n")
"""
    ended = program(source, MLFERRY_QUIET="1", PYTHONUNBUFFERED="")
    assert ended.stdout == "before first\nsecond\nnot gathered\nthird\n"
    assert together(tmp_path / "spool") == "first\nsecond\n"


def test_the_limit_is_a_setting(program: Program, tmp_path: Path) -> None:
    source = "import mlferry\nwith mlferry.start_run(capture=True):\n    for n in range(30_000): print('x' * 99)\n"
    ended = program(source, MLFERRY_QUIET="1", MLFERRY_CAPTURE_MIB="1")
    assert len(ended.stdout) == 3_000_000
    text = together(tmp_path / "spool")
    assert text.startswith("x" * 99 + "\n") and len(text) < (1 << 20) + 200
    kept = text.count("x\n")
    assert text.endswith(f"at its limit of 1048576 bytes; {3_000_000 - 100 * kept} bytes came after it\n")


@pytest.mark.timeout(60)
def test_a_child_that_hangs_delays_the_end_for_no_longer_than_is_said(program: Program, tmp_path: Path) -> None:
    source = f"""
import os, signal, sys, time, mlferry
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from tests.consoles import captures
from mlferry.console import capture
run = mlferry.start_run(capture=True)
print("printed", flush=True)
while len(captures(Path({str(tmp_path)!r}))) < 2: time.sleep(0.05)
time.sleep(0.3)
for pid in captures(Path({str(tmp_path)!r})): os.kill(pid, signal.SIGSTOP)
run._capture.stop(0.5)
mlferry.end_run()
for pid in captures(Path({str(tmp_path)!r})): os.kill(pid, signal.SIGCONT)
"""
    ended = program(source)
    assert ended.returncode == 0, ended.stderr
    assert "not all of it was stored within 0.5 s" in ended.stderr
    [run_id] = run_ids(tmp_path / "spool")
    assert told(tmp_path / "spool", run_id).status == "FINISHED"
    wait_until(lambda: not captures(tmp_path), "the child has stored the rest and is gone")
    assert together(tmp_path / "spool") == "printed\n"
