"""How programs end, and what their runs say of it. Every program is a real process, and its exit status is looked at."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.spools import only, read_run, run_ids, told
from tests.unit.sdk.conftest import Program

from mlferry_spool.records import RunEnd, SegmentEnd

STARTED = "import mlferry, os, signal, sys, time\nrun = mlferry.start_run()\nmlferry.log_metric('x', 1.0)\n"
KILL_ME = "os.kill(os.getpid(), signal.SIGTERM)\n"


def status(root: Path) -> str | None:
    (run_id,) = run_ids(root)
    return told(root, run_id).status


@pytest.mark.parametrize(
    ("source", "code", "expected"),
    [
        ("", 0, "FINISHED"),
        ("mlferry.end_run()", 0, "FINISHED"),
        ("raise RuntimeError('broken')", 1, "FAILED"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KILLED"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT, "KILLED"),
        (KILL_ME + "time.sleep(9)", -signal.SIGTERM, "KILLED"),
        ("os._exit(3)", 3, None),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, None),
        ("mlferry.end_run('FAILED')", 0, "FAILED"),
        ("try: raise RuntimeError\nexcept RuntimeError: pass", 0, "FINISHED"),
    ],
)
def test_a_program_ends_as_its_exit_status_says(
    program: Program, tmp_path: Path, source: str, code: int, expected: str | None
) -> None:
    ended = program(STARTED + source)
    assert ended.returncode == code, ended.stderr
    assert status(tmp_path / "spool") == expected
    (run_id,) = run_ids(tmp_path / "spool")
    assert told(tmp_path / "spool", run_id).values("x") == [1.0]
    assert isinstance(read_run(tmp_path / "spool", run_id)[-1], SegmentEnd) == (expected is not None)


def test_nested_runs_all_end_when_the_program_is_terminated(program: Program, tmp_path: Path) -> None:
    ended = program(
        STARTED + "mlferry.start_run(nested=True)\nmlferry.log_metric('y', 1.0)\n" + KILL_ME + "time.sleep(9)"
    )
    assert ended.returncode == -signal.SIGTERM
    assert [told(tmp_path / "spool", run_id).status for run_id in run_ids(tmp_path / "spool")] == ["KILLED", "KILLED"]


def test_an_uncaught_exception_still_reaches_the_hook_of_the_program(program: Program, tmp_path: Path) -> None:
    ended = program(
        "import sys\nsys.excepthook = lambda *found: print('seen', found[0].__name__)\n" + STARTED + "1 / 0"
    )
    assert ended.returncode == 1
    assert "seen ZeroDivisionError" in ended.stdout
    assert status(tmp_path / "spool") == "FAILED"


def test_the_own_handler_of_a_program_runs_after_the_run_was_ended(program: Program, tmp_path: Path) -> None:
    handler = "signal.signal(signal.SIGTERM, lambda *_: (print('handled'), os._exit(7)))\n"
    ended = program("import os, signal\n" + handler + STARTED + KILL_ME + "time.sleep(9)")
    assert ended.returncode == 7
    assert status(tmp_path / "spool") == "KILLED"


@pytest.mark.parametrize(
    ("last", "expected"),
    [("", "KILLED"), ("mlferry.end_run()", "KILLED"), ("mlferry.end_run('FINISHED')", "FINISHED"), ("1 / 0", "KILLED")],
)
def test_a_program_may_go_on_after_sigterm(program: Program, tmp_path: Path, last: str, expected: str) -> None:
    before = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"
    ended = program(before + STARTED + KILL_ME + "time.sleep(0.2)\nmlferry.log_metric('x', 2.0)\n" + last)
    assert ended.returncode == (1 if last == "1 / 0" else 0)
    (run_id,) = run_ids(tmp_path / "spool")
    found = told(tmp_path / "spool", run_id)
    assert found.values("x") == [1.0, 2.0]
    assert found.status == expected


def test_each_sigterm_reaches_the_own_handler_of_a_program(program: Program) -> None:
    before = "import signal\nseen = []\nsignal.signal(signal.SIGTERM, lambda *_: seen.append(1))\n"
    ended = program(before + STARTED + (KILL_ME + "time.sleep(0.2)\n") * 3 + "print(len(seen))")
    assert ended.stdout == "3\n"


def test_a_handler_that_exits_by_an_exception_leaves_the_run_killed(program: Program, tmp_path: Path) -> None:
    before = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\nimport mlferry, os, time\n"
    ended = program(before + "with mlferry.start_run():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(9)\n")
    assert ended.returncode == 9
    assert status(tmp_path / "spool") == "KILLED"


def test_a_program_that_ignores_sigterm_goes_on_ignoring_it(program: Program, tmp_path: Path) -> None:
    before = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    ended = program(before + STARTED + KILL_ME + "print('here')")
    assert (ended.returncode, ended.stdout) == (0, "here\n")
    assert status(tmp_path / "spool") == "FINISHED"


def test_sigterm_in_the_midst_of_logging_ends_the_run_and_never_hangs(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The signal arrives wherever the main thread is: inside the writer, at its lock, between two calls."""
    source = (
        STARTED
        + "print('up', flush=True)\nstep = 0\nwhile True:\n    step += 1\n    mlferry.log_metric('y', 1.0, step)\n"
    )
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == -signal.SIGTERM
        child.stdout.close()
    for run_id in run_ids(tmp_path / "spool"):
        found = told(tmp_path / "spool", run_id)
        assert found.status == "KILLED"
        assert found.dropped == 0 or found.values("y")
        assert len(only(RunEnd, read_run(tmp_path / "spool", run_id))) == 1
    assert len(run_ids(tmp_path / "spool")) == 12


def test_sigterm_while_another_thread_holds_the_writer_does_not_hang(program: Program, tmp_path: Path) -> None:
    ended = program(
        STARTED
        + "import threading\n"
        + "def work():\n    while True: run.log_metric('y', 1.0)\n"
        + "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        + "time.sleep(0.3)\n"
        + KILL_ME
        + "time.sleep(20)"
    )
    assert ended.returncode == -signal.SIGTERM
    assert status(tmp_path / "spool") == "KILLED"


def test_sigterm_ends_a_program_whose_writer_is_stuck(program: Program) -> None:
    """A disk that never answers: the signal is handed on all the same, within a bounded time."""
    stuck = "run._writer._lock.acquire()\nimport threading\n"
    ended = program(STARTED + stuck + KILL_ME + "time.sleep(60)")
    assert ended.returncode == -signal.SIGTERM


def test_a_run_that_is_started_outside_the_main_thread_ends_with_the_program(program: Program, tmp_path: Path) -> None:
    ended = program(
        "import mlferry, threading\n"
        "def work():\n    mlferry.start_run()\n    mlferry.log_metric('x', 1.0)\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\n"
    )
    assert ended.returncode == 0
    assert status(tmp_path / "spool") == "FINISHED"


def test_a_closed_stderr_does_not_disturb_the_end(program: Program, tmp_path: Path) -> None:
    ended = program(STARTED + "sys.stderr.close()\n")
    assert ended.returncode == 0
    assert status(tmp_path / "spool") == "FINISHED"
