"""What a name could do to a terminal: nothing, whichever verb of the command shows it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import typer.main
from tests.servers import free_port
from tests.spooling import T0, Ferry, SpooledRun, wait_until

from mlferry_agent.cli import app
from mlferry_agent.discovery import discover
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, VersionRow, ledger_path
from mlferry_spool.records import Artifact

#: A title, a cleared screen, a hyperlink, C1 controls, markup of ours, bidi, a second line.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b]8;;http://evil\x1b\\\x9b2J\x00[bold red]not red[/] \u202e\u2066evil\r\nlevel=error"
)

#: The same as far as a command line can hold it.
ARGUMENT = HOSTILE.replace("\0", "")

VERBS = {
    "status": ("status",),
    "ls": ("ls", "--column", f"params.{ARGUMENT}"),
    "show": ("show", "RUN", "--all", "--plot", "*"),
    "watch": ("watch", "RUN", "--plot", ARGUMENT),
    "sync": ("sync",),
    "verify": ("verify",),
    "retry": ("retry",),
    "drop": ("drop", "--all", "--yes"),
    "config": ("config", "--dir", ARGUMENT),
    "doctor": ("doctor", "--dir", f"HOME/{ARGUMENT}"),
    "prepare": ("prepare", "--experiment", ARGUMENT),
    "clean": ("clean", "--trust-ledger", "--older-than", "0", "--yes", "--dropped"),
    "id": ("id", "v" * 32),
    "dump": ("dump", "SPOOL"),
    "export": ("export", "HOME/bundle \x1b[2J"),
    "import": ("import", "--dir", "HOME/other", "HOME/bundle \x1b[2J"),
    "agent": (),
}


def unprintable(text: str) -> set[str]:
    return {char for char in text if char not in "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs")}


def filled(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def hostile(home: Path) -> Ferry:
    """A spool and a ledger in which every text that can be hostile is."""
    to = f"http://127.0.0.1:{free_port()}"
    made = Ferry(home / "spool", home / "state", to, {"MLFERRY_GIVE_UP_AFTER_S": "0.2"})
    run = SpooledRun(made.spool, HOSTILE, run_name=HOSTILE, user=HOSTILE)
    run.metrics(1, {HOSTILE: 1.0})
    run.params({HOSTILE: HOSTILE})
    run.tags({HOSTILE: HOSTILE})
    assert run.writer.put(Artifact(T0, HOSTILE, b"d" * 32, 3))
    run.end(HOSTILE)
    ledger = Ledger.open(ledger_path(made.state, to), to)
    with ledger.transaction():
        ledger.put_run(RunRow(run.run_id, status=HOSTILE, server_run_id="r", parked=HOSTILE, run_name=HOSTILE))
        ledger.put_version(VersionRow("v" * 32, HOSTILE, "3"))
        ledger.quarantine(Quarantined(run.run_id, "w", 1, "param", HOSTILE, HOSTILE))
    ledger.close()
    return made


@pytest.fixture(scope="module")
def ferry(tmp_path_factory: pytest.TempPathFactory) -> Ferry:
    return hostile(tmp_path_factory.mktemp("hostile"))


def test_every_verb_is_among_them() -> None:
    group = typer.main.get_command(app)
    assert {*VERBS, "demo", "ui", "run"} == set(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_lets_a_name_write_to_the_terminal(ferry: Ferry, verb: str, tmp_path: Path) -> None:
    home = ferry.spool.parent
    [run] = discover(ferry.spool)
    places = {"HOME": str(home), "SPOOL": str(ferry.spool), "RUN": run.run_id}
    words = [filled(word, places) for word in VERBS[verb]]
    if verb == "agent":
        log = tmp_path / "log"
        with ferry.agent(log=log):
            wait_until(
                lambda: log.exists() and "waiting, everything is kept" in log.read_text(errors="replace"), "it waits"
            )
        told = log.read_bytes().decode()
    else:
        done = ferry(*words)
        assert done.returncode != 2, done.stderr
        told = done.stdout + done.stderr
    assert told
    assert "Traceback" not in told
    assert unprintable(told) == set()


def test_the_spool_of_these_tests_is_hostile(tmp_path: Path) -> None:
    """They must not pass because nothing was there to be shown."""
    ferry = hostile(tmp_path)
    [status] = ferry.statuses().values()
    assert status["run_name"] == status["parked"] == HOSTILE
    assert [entry["name"] for entry in status["quarantined"]] == [HOSTILE]
    assert json.dumps(HOSTILE) in ferry("dump", str(ferry.spool)).stdout
