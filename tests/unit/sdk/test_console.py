"""Console capture in real processes: what they print goes where it went before, and into the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.spools import only, read_run, run_ids
from tests.unit.sdk.conftest import Program

from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import find_run
from mlferry_spool.records import Artifact, RunEnd

pytestmark = pytest.mark.usefixtures("quiet")

PRINTS = """
import ctypes, faulthandler, os, subprocess, sys
import mlferry

with mlferry.start_run(capture=True):
    print("by print")
    os.write(1, b"by a descriptor\\n")
    subprocess.run(["sh", "-c", "echo by a subprocess; echo its trouble >&2"])
    ctypes.CDLL(None).puts(b"by C")
    sys.stdout.write("a line without end")
print(", printed after the run")
"""


@pytest.fixture
def quiet(environment: dict[str, str]) -> None:
    environment["MLFERRY_QUIET"] = "1"


def captured(root: Path, run_id: str | None = None) -> dict[str, str]:
    """The artifacts of a run's console as they are in the end, by their names without the process's."""
    [run_id] = [run_id] if run_id else run_ids(root)
    directory = find_run(root, run_id)
    assert directory is not None
    files = {file.path: Blobs(directory).path(file.sha256) for file in only(Artifact, read_run(root, run_id))}
    return {path.split("/")[-1]: file.read_text() for path, file in files.items() if path.startswith("console/")}


def wait_for(root: Path, text: str) -> str:
    """Until this was captured; all that was."""
    deadline = time.monotonic() + 60
    while text not in (said := "".join(captured(root).values() if run_ids(root) else ())):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return said


def test_whoever_prints_is_heard_and_the_output_is_what_it_was(program: Program, tmp_path: Path) -> None:
    done = program(PRINTS)
    said = "by print\nby a descriptor\nby a subprocess\nby C\na line without end"
    assert (done.returncode, done.stderr) == (0, "its trouble\n")
    assert done.stdout == f"{said}, printed after the run\n"
    [content] = captured(tmp_path / "spool").values()
    assert sorted(content.splitlines()) == sorted([*said.splitlines(), "its trouble"])


def test_where_both_outputs_are_one_file_they_stay_in_order(tmp_path: Path, environment: dict[str, str]) -> None:
    source = (
        "import mlferry, os; mlferry.start_run(capture=True); [os.write(1 + i % 2, b'%d\\n' % i) for i in range(2000)]"
    )
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-c", source]
        subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=60, check=True)
    [content] = captured(tmp_path / "spool").values()
    assert content == "".join(f"{number}\n" for number in range(2000)) == (tmp_path / "log").read_text()


def test_nothing_is_captured_unless_it_is_asked_for(program: Program, tmp_path: Path) -> None:
    assert program("import mlferry\nmlferry.start_run()\nprint('secret')").stdout == "secret\n"
    assert captured(tmp_path / "spool") == {}


def test_the_environment_asks_for_it_too_and_a_run_can_say_no(program: Program, tmp_path: Path) -> None:
    program("import mlferry\nmlferry.start_run(capture=False)\nprint('no')\nmlferry.end_run()", MLFERRY_CAPTURE="1")
    assert captured(tmp_path / "spool") == {}
    done = program("import mlferry\nmlferry.start_run('again')\nprint('yes')", MLFERRY_CAPTURE="true")
    assert (done.stdout, captured(tmp_path / "spool", "again")) == ("yes\n", {"0001.log": "yes\n"})


def test_the_exception_that_ends_a_run_stands_at_the_end(program: Program, tmp_path: Path) -> None:
    done = program(
        "import mlferry\nwith mlferry.start_run(capture=True):\n    print('so far')\n    raise KeyError('x')"
    )
    [content] = captured(tmp_path / "spool").values()
    assert content.startswith("so far\n")
    assert content.endswith("KeyError: 'x'\n")
    assert done.stderr.count("KeyError: 'x'") == 1


def test_a_nested_run_prints_into_its_parents_and_the_next_run_into_its_own(program: Program, tmp_path: Path) -> None:
    program(
        "import mlferry\n"
        "for name in ('one', 'two'):\n"
        "    with mlferry.start_run(name, capture=True):\n"
        "        with mlferry.start_run(f'{name}-child', nested=True, capture=True):\n"
        "            print('in', name)\n"
    )
    root = tmp_path / "spool"
    assert [captured(root, name) for name in ("one", "two")] == [{"0001.log": "in one\n"}, {"0001.log": "in two\n"}]
    assert [captured(root, f"{name}-child") for name in ("one", "two")] == [{}, {}]


def test_a_forked_child_prints_into_the_run_and_does_not_end_it(program: Program, tmp_path: Path) -> None:
    done = program(
        "import mlferry, os\n"
        "mlferry.start_run(capture=True)\n"
        "if not os.fork():\n"
        "    print('child', flush=True)\n"
        "    mlferry.end_run()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print('parent')\n"
    )
    assert done.stdout == "child\nparent\n"
    assert captured(tmp_path / "spool") == {"0001.log": "child\nparent\n"}


def test_who_waits_for_all_children_does_not_wait_for_the_relay(program: Program) -> None:
    done = program(
        "import mlferry, os\n"
        "mlferry.start_run(capture=True)\n"
        "try:\n"
        "    os.wait()\n"
        "except ChildProcessError:\n"
        "    print('none')\n"
    )
    assert done.stdout == "none\n"


def test_what_a_program_led_elsewhere_itself_stays_there(program: Program, tmp_path: Path) -> None:
    done = program(
        "import mlferry, os\n"
        "mlferry.start_run(capture=True)\n"
        f"os.dup2(os.open({str(tmp_path / 'mine')!r}, os.O_WRONLY | os.O_CREAT), 1)\n"
        "mlferry.end_run()\n"
        "os.write(1, b'mine')\n"
    )
    assert (done.returncode, (tmp_path / "mine").read_text()) == (0, "mine")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_program_without_an_output_keeps_the_other(program: Program, tmp_path: Path, closed: int) -> None:
    done = program(
        f"import mlferry, os\nos.close({closed})\nmlferry.start_run(capture=True)\nos.write({3 - closed}, b'here\\n')"
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "here\n")
    assert [end.status for end in only(RunEnd, read_run(tmp_path / "spool", *run_ids(tmp_path / "spool")))] == [
        "FINISHED"
    ]
    assert captured(tmp_path / "spool") == {"0001.log": "here\n"}


# -- deaths -------------------------------------------------------------------------------------------------------------


def relay_of(pid: int) -> int:
    """The process that this one prints to."""
    [relay] = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and f'"parent": {pid},'.encode() in _command(path)
    ]
    return relay


def _command(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def started(tmp_path: Path, environment: dict[str, str], source: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(source)
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, bufsize=1,
    )  # fmt: skip


COUNTS = """
import mlferry, sys
mlferry.start_run(capture=True)
for line in sys.stdin:
    print("heard", line, end="", flush=True)
"""


def test_what_was_printed_before_sigkill_is_in_the_run(tmp_path: Path, environment: dict[str, str]) -> None:
    with started(tmp_path, environment, COUNTS.replace("for line", "print('x' * 300_000)\nfor line")) as training:
        assert training.stdin
        assert training.stdout
        training.stdin.write("last words\n")
        while "last words" not in training.stdout.readline():
            pass
        training.kill()
    said = wait_for(tmp_path / "spool", "heard last words\n")
    assert said.count("x") == 300_000


def test_when_the_relay_is_killed_the_training_prints_as_before(tmp_path: Path, environment: dict[str, str]) -> None:
    with started(tmp_path, environment, COUNTS) as training:
        assert training.stdin
        assert training.stdout
        training.stdin.write("one\n")
        assert training.stdout.readline() == "heard one\n"
        os.kill(relay_of(training.pid), signal.SIGKILL)
        for number in range(20_000):  # more than a pipe holds
            training.stdin.write(f"{number}\n")
            assert training.stdout.readline() == f"heard {number}\n"
        training.stdin.close()
        assert training.wait(60) == 0
    root = tmp_path / "spool"
    assert [end.status for end in only(RunEnd, read_run(root, *run_ids(root)))] == ["FINISHED"]


def test_signals_that_end_a_job_leave_the_relay_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    with started(tmp_path, environment, COUNTS) as training:
        assert training.stdin
        assert training.stdout
        training.stdin.write("one\n")
        assert training.stdout.readline() == "heard one\n"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(relay_of(training.pid), number)
        training.stdin.write("two\n")
        training.stdin.close()
        assert training.wait(60) == 0
    assert captured(tmp_path / "spool") == {"0001.log": "heard one\nheard two\n"}


def test_a_subprocess_that_outlives_the_run_goes_on_printing(tmp_path: Path, environment: dict[str, str]) -> None:
    source = (
        "import mlferry, subprocess\n"
        "with mlferry.start_run(capture=True):\n"
        "    subprocess.Popen(['sh', '-c', 'read go; echo $go; echo after the run'])\n"
    )
    with started(tmp_path, environment, source) as training:
        assert training.stdin
        assert training.stdout
        assert training.wait(60) == 0
        training.stdin.write("went\n")
        training.stdin.close()
        assert training.stdout.read() == "went\nafter the run\n"


def test_a_relay_that_does_not_start_is_no_reason_not_to_train(program: Program, tmp_path: Path) -> None:
    done = program(
        "import mlferry, sys\nsys.executable = '/bin/false'\n"
        "with mlferry.start_run(capture=True):\n    print('trained')\n    mlferry.log_metric('loss', 1.0)\n"
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert "could not be led into the run" in done.stderr
    root = tmp_path / "spool"
    assert [end.status for end in only(RunEnd, read_run(root, *run_ids(root)))] == ["FINISHED"]


def test_an_end_waits_for_the_relay_for_a_while_only(tmp_path: Path, environment: dict[str, str]) -> None:
    source = COUNTS.replace("import mlferry", "import mlferry, mlferry.runs\nmlferry.runs._SETTLE_S = 0.2\nimport")
    with started(tmp_path, environment, source.replace("import, sys", "import sys")) as training:
        assert training.stdin
        assert training.stdout
        training.stdin.write("one\n")
        assert training.stdout.readline() == "heard one\n"
        relay = relay_of(training.pid)
        os.kill(relay, signal.SIGSTOP)
        try:
            training.stdin.close()
            assert training.wait(60) == 0
        finally:
            os.kill(relay, signal.SIGCONT)
    wait_for(tmp_path / "spool", "heard one\n")
