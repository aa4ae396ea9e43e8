"""The command: help, JSON, exit codes, and nothing that a run's name could do to a terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.servers import free_port
from tests.spooling import Logged, SpooledRun
from typer.testing import CliRunner

from mlferry_agent import destinations
from mlferry_agent.cli import app
from mlferry_agent.ledger import Ledger, ModelRow, RunRow, VersionRow, ledger_path

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]not red[/] \u202eevil"

Mlferry = Callable[..., tuple[int, str, str]]


def test_help_names_every_verb_and_the_exit_codes() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for verb in ("agent", "sync", "status", "verify", "retry", "drop", "dump", "demo"):
        assert verb in done.output
    assert "Exit codes: 0 everything is acknowledged" in " ".join(done.output.split())


def test_status_of_an_empty_spool_is_success(spool: Path, mlferry: Mlferry) -> None:
    code, out, _ = mlferry("status")
    assert (code, "0 runs" in out) == (0, True)


def test_status_counts_what_waits_and_says_so_by_its_exit_code(spool: Path, mlferry: Mlferry) -> None:
    run = SpooledRun(spool, "e")
    run.params({"p": "1"})
    run.end()
    code, out, _ = mlferry("status", "--json")
    [found] = json.loads(out)
    assert (code, found["pending"], found["acknowledged"], found["run_id"]) == (4, 1, 0, run.run_id)


def test_names_that_hold_escapes_markup_and_bidi_are_shown_as_text(spool: Path, mlferry: Mlferry) -> None:
    run, other = SpooledRun(spool, HOSTILE, run_name=HOSTILE), SpooledRun(spool, HOSTILE)
    for one in (run, other):
        one.end()
    url = "http://there:1"
    ledger = Ledger.open(ledger_path(spool.parent / "state", url), url)
    with ledger.transaction():
        ledger.put_run(RunRow(run.run_id, parked=HOSTILE))
        ledger.put_run(RunRow(other.run_id, status=HOSTILE, server_run_id=HOSTILE))
    ledger.close()
    code, out, err = mlferry("status", "--to", url)
    assert code == 3
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
    assert "[bold red]not red[/]" in out
    assert mlferry("status", "--to", url, "--json")[0] == 3


def test_run_becomes_the_program_with_a_spool_to_log_to(tmp_path: Path) -> None:
    source = "import os, sys; print(*map(os.environ.get, sys.argv[1:])); sys.exit(7)"
    asked = ["MLFLOW_TRACKING_URI", "MLFERRY_CAPTURE", "MLFERRY_DIR"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ML")}

    def run(*options: str, **environ: str) -> tuple[int, str]:
        program = [sys.executable, "-c", source, *asked]
        command = [sys.executable, "-m", "mlferry_agent.main", "run", *options, *program]
        done = subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout.strip()

    assert run() == (7, "spool: None None")
    assert run("--capture", "--dir", "here", "--") == (7, f"spool: 1 {tmp_path / 'here'}")
    assert run("--", MLFLOW_TRACKING_URI="http://there") == (7, "spool: None None")
    assert run("--", MLFLOW_TRACKING_URI="spool:///mine") == (7, "spool:///mine None None")


def test_run_says_that_there_is_no_such_program(mlferry: Mlferry) -> None:
    code, _, err = mlferry("run", "--", "no-such-program", "--its-option")
    assert code == 1 and "no such program" in err and "no-such-program" in err


def test_a_wrong_option_is_wrong_usage(spool: Path, mlferry: Mlferry) -> None:
    assert mlferry("status", "--no-such-option")[0] == 2
    assert mlferry("no-such-verb")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sync",), "Nobody said which server"),
        (("status", "no-such-run"), "fits no run"),
        (("sync", "--to", "ftp://there"), "http://"),
        (("status", "--stale-after"), ""),
        (("retry", "--to", "http://there:1", "--state-dir", "/dev/null/x"), "ledger"),
    ],
)
def test_what_went_wrong_is_one_clear_error(spool: Path, mlferry: Mlferry, words: tuple[str, ...], said: str) -> None:
    code, _, err = mlferry(*words)
    assert code in (1, 2)
    assert said in " ".join(err.split())


def test_a_spool_that_may_not_be_read_is_one_clear_error(spool: Path, mlferry: Mlferry) -> None:
    spool.mkdir()
    (spool / "runs").symlink_to("runs")
    code, _, err = mlferry("status")
    assert code == 1
    assert "The operating system refused" in err


def test_a_server_that_is_away_leaves_everything_pending(spool: Path, mlferry: Mlferry) -> None:
    SpooledRun(spool, "e").end()
    where = f"http://127.0.0.1:{free_port()}"
    code, out, err = mlferry("sync", "--to", where, "--give-up-after", "0.2", "--json")
    assert code == 4
    assert len(json.loads(out)) == 1
    assert "could not be reached" in " ".join(err.split())


def test_a_reader_that_goes_away_is_no_defect(spool: Path) -> None:
    for _ in range(300):
        SpooledRun(spool, "e").end()
    command = f"{sys.executable} -m mlferry_agent.main status --json | head -c 1"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, shell=True, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "["
    assert "Traceback" not in done.stderr


def test_a_typo_is_answered_with_what_was_meant(spool: Path, mlferry: Mlferry) -> None:
    code, _, err = mlferry("stauts")
    assert (code, "Did you mean 'status'?" in " ".join(err.split())) == (2, True)
    code, _, err = mlferry("status", "--jsn")
    assert (code, "--json" in err) == (2, True)


def test_a_defect_of_ours_is_one_sentence_and_a_stack_trace_only_for_who_asks(
    spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(destinations, "statuses", fail)
    code, out, err = mlferry("status")
    assert (code, out) == (1, "")
    assert "KeyError: 'what nobody thought of' (test_cli.py:" in err and "a defect of mlferry" in " ".join(err.split())
    monkeypatch.setenv("MLFERRY_DEBUG", "1")
    with pytest.raises(KeyError):
        mlferry("status")


def test_a_sync_that_is_interrupted_says_130_and_no_stack_trace(spool: Path) -> None:
    SpooledRun(spool, "e").end()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "*"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = [sys.executable, "-m", "mlferry_agent.main", "sync", "--to", where]
        sync = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with sync, silent.accept()[0] as asking:
            asking.recv(1)
            sync.send_signal(signal.SIGINT)
            out, err = sync.communicate(timeout=20)
    assert (sync.returncode, b"Traceback" in out + err) == (130, False)


COMMAND = Path(sys.executable).with_name("mlferry")


@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed beside this interpreter")
@pytest.mark.parametrize(
    ("typed", "offered", "others"),
    [("sta", "status", "sync"), ("sync --give", "--give-up-after", "--json"), ("show abc", "abcdef", "abd")],
)
def test_the_shell_completes_verbs_options_and_runs(spool: Path, typed: str, offered: str, others: str) -> None:
    for run_id in ("abcdef", "abd"):
        SpooledRun(spool, "e", logged=Logged(run_id)).end()
    words = f"mlferry {typed}"
    told = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_MLFERRY_COMPLETE": "complete_bash"}
    done = subprocess.run([COMMAND], env={**os.environ, **told}, capture_output=True, text=True, check=False)
    assert offered in done.stdout.split() and others not in done.stdout.split()


@pytest.mark.parametrize(("told", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_and_not_for_who_does_not_want_them(
    spool: Path, told: dict[str, str], coloured: bool
) -> None:
    run = SpooledRun(spool, "e")
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    environ = {**clean, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color", **told}
    words = [sys.executable, "-m", "mlferry_agent.main", "status"]
    primary, secondary = pty.openpty()
    subprocess.run(words, env=environ, stdout=secondary, stderr=secondary, check=False)
    os.close(secondary)
    seen = os.read(primary, 1 << 16)
    os.close(primary)
    assert (b"\x1b[32m" in seen, b"live" in seen) == (coloured, True)
    assert b"\x1b" not in subprocess.run(words, env=environ, capture_output=True, check=False).stdout
    run.end()


def test_help_comes_at_once_since_nothing_heavy_is_imported_for_it() -> None:
    asked = (
        "import sys; sys.argv = ['mlferry', '--help']; from mlferry_agent import cli; cli.run(); print(*sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("\n")[0].split())
    assert "typer" in loaded
    assert not loaded & {"aiohttp", "sqlite3", "plotext", "watchdog", "zstandard", "msgpack", "mlflow", "numpy"}


@pytest.fixture
def delivered(spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that knows a run, a model, an experiment and a version."""
    url = "http://127.0.0.1:1"
    monkeypatch.setenv("MLFERRY_TO", url)
    ledger = Ledger.open(ledger_path(tmp_path / "state", url), url)
    with ledger.transaction():
        ledger.put_run(RunRow("a" * 32, run_name="trained", server_run_id="b" * 32))
        ledger.put_run(RunRow("c" * 32))
        ledger.put_model(ModelRow("m-" + "1" * 32, "m-" + "2" * 32))
        ledger.put_offline_experiment("123456789012345678", "7")
        ledger.put_version(VersionRow("d" * 32, "classifier", "3"))
    ledger.close()


@pytest.mark.usefixtures("delivered")
@pytest.mark.parametrize(
    ("given", "kind", "offline", "server"),
    [
        ("a" * 32, "run", "a" * 32, "b" * 32),
        ("b" * 32, "run", "a" * 32, "b" * 32),
        ("bbbb", "run", "a" * 32, "b" * 32),
        ("c" * 32, "run", "c" * 32, None),
        ("m-" + "1" * 32, "model", "m-" + "1" * 32, "m-" + "2" * 32),
        ("m-22", "model", "m-" + "1" * 32, "m-" + "2" * 32),
        ("7", "experiment", "123456789012345678", "7"),
        ("123456789012345678", "experiment", "123456789012345678", "7"),
        ("d" * 32, "model version", "d" * 32, "3"),
    ],
)
def test_an_id_is_looked_up_from_either_side(
    mlferry: Mlferry, given: str, kind: str, offline: str, server: str | None
) -> None:
    code, out, _ = mlferry("id", given, "--json")
    [found] = json.loads(out)[given]
    assert (code, found["kind"], found["offline_id"], found["server_id"]) == (0, kind, offline, server)
    assert offline in mlferry("id", given)[1]


@pytest.mark.usefixtures("delivered")
def test_an_id_that_nobody_has_is_said_and_the_others_are_shown(mlferry: Mlferry) -> None:
    code, out, err = mlferry("id", "a" * 32, "e" * 32, "123")
    assert code == 1
    assert "b" * 32 in out
    assert "e" * 32 in err and "123" in err


def test_before_anything_was_delivered_no_id_is_known(mlferry: Mlferry, spool: Path) -> None:
    code, _, err = mlferry("id", "a" * 32)
    assert code == 1
    assert "Nothing that was delivered" in err


def test_the_ui_says_what_it_lacks(spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = mlferry("ui", "--port", str(taken.getsockname()[1]))
    assert (code, "in use" in err, "--port" in err) == (1, True, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = mlferry("ui")
    assert (code, "MLflow is not installed here" in err) == (1, True)
