"""ls, show and status as a person at a terminal of 80 or 120 columns, a pipe and a program see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.spooling import T0, SpooledRun, a_bit_of_everything, live_writer

from mlferry_agent import filters
from mlferry_agent.commands import app as shared
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, ledger_path

Mlferry = Callable[..., tuple[int, str, str]]
URL = "http://there:1"


def runs(spool: Path, count: int, **opening: object) -> list[SpooledRun]:
    made = []
    for number in range(count):
        run = SpooledRun(spool, "sweep", run_name=f"trial {number}", **opening)
        run.params({"lr": str(number)})
        run.metrics(number, {"loss": 1 / (number + 1), "acc": number / 10})
        run.end("FAILED" if number == 1 else "FINISHED")
        made.append(run)
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the command believe that a person looks, at so many columns."""

    def pretend(columns: int) -> None:
        for console in (shared.out, shared.err):
            monkeypatch.setattr(console, "_force_terminal", True)
            monkeypatch.setattr(console, "_width", columns)

    return pretend


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_ls_lists_the_latest_first_and_cuts_only_on_a_terminal(
    spool: Path, mlferry: Mlferry, terminal: Callable[[int], None]
) -> None:
    runs(spool, 25)
    code, out, _ = mlferry("ls")
    lines = out.splitlines()
    assert (code, len(lines), lines[-1]) == (0, 27, "25 runs")
    terminal(80)
    seen = plain(mlferry("ls")[1]).splitlines()
    assert (len(seen), seen[-1]) == (22, "20 runs, 5 more (--all lists them)")
    assert len(plain(mlferry("ls", "--all")[1]).splitlines()) == 27
    assert plain(mlferry("ls", "-n", "3")[1]).splitlines()[-1] == "3 runs, 22 more (--all lists them)"


@pytest.mark.parametrize("columns", [80, 120])
def test_no_row_is_broken_and_the_columns_stay_readable(
    spool: Path, mlferry: Mlferry, terminal: Callable[[int], None], columns: int
) -> None:
    run = SpooledRun(spool, "an experiment with quite a long name", run_name="and a run whose name is long as well")
    run.metrics(3, {"loss": 0.123456789})
    run.end()
    terminal(columns)
    for words in (("ls", "-c", "metrics.loss"), ("ls",), ("status",)):
        lines = plain(mlferry(*words)[1]).splitlines()
        assert len(lines) == 3
        assert max(map(len, lines)) <= columns
        assert "an exp" in lines[1]
    assert "0.123457" in plain(mlferry("ls", "-c", "metrics.loss")[1])
    assert (run.run_id in plain(mlferry("ls")[1])) is (columns == 120)


def test_on_a_pipe_nothing_is_cut(spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "a name that goes on and on " * 8
    run = SpooledRun(spool, name, run_name=name)
    run.end()
    for words in (("ls",), ("status",), ("show", run.run_id)):
        out = mlferry(*words)[1]
        assert run.run_id in out and f"{name.strip()}" in out


def test_no_name_is_taken_for_that_of_an_emoji(spool: Path, mlferry: Mlferry, terminal: Callable[[int], None]) -> None:
    run = SpooledRun(spool, ":rocket:", run_name=":smile:")
    run.params({":bug:": ":heart:"})
    terminal(120)
    for words in (("ls",), ("status",), ("show", run.run_id)):
        assert ":rocket:" in mlferry(*words)[1]
    assert ":bug:" in mlferry("show", run.run_id)[1] and ":heart:" in mlferry("show", run.run_id)[1]
    run.end()


def test_a_list_tells_how_each_run_stands(spool: Path, mlferry: Mlferry) -> None:
    finished, failed = runs(spool, 2)
    live = SpooledRun(spool, "sweep", run_name="goes on")
    with live_writer(spool, "sweep") as killed:
        killed.await_steps(1)
    found = {run["run_id"]: run for run in json.loads(mlferry("ls", "--json")[1])}
    words = {run_id: (run["status"], run["live"]) for run_id, run in found.items()}
    assert words == {
        finished.run_id: ("FINISHED", False),
        failed.run_id: ("FAILED", False),
        live.run_id: ("RUNNING", True),
        killed.logged.run_id: ("NO END", False),
    }
    assert found[failed.run_id]["metrics"] == {"loss": 0.5, "acc": 0.1}
    assert (found[failed.run_id]["params"], found[failed.run_id]["pending"]) == ({"lr": "1"}, 2)
    live.end()


def test_what_the_server_was_told_counts_more_than_what_a_rank_said(spool: Path, mlferry: Mlferry) -> None:
    [run] = runs(spool, 1)
    ledger = Ledger.open(ledger_path(spool.parent / "state", URL), URL)
    with ledger.transaction():
        ledger.put_run(RunRow(run.run_id, status="KILLED", end_time=T0, server_run_id="s", experiment_id="7"))
    ledger.close()
    assert json.loads(mlferry("ls", "--json")[1])[0]["status"] == "KILLED"
    assert f"{URL}/#/experiments/7/runs/s" in mlferry("show", run.run_id)[1]


def test_a_filter_and_an_order_are_those_of_mlflow(spool: Path, mlferry: Mlferry) -> None:
    made = runs(spool, 4)
    words = ("--filter", "metrics.loss < 0.6 and params.lr != '3'", "--order-by", "metrics.loss ASC")
    code, out, _ = mlferry("ls", "--json", *words)
    assert code == 0
    assert [run["run_id"] for run in json.loads(out)] == [made[2].run_id, made[1].run_id]


def test_a_filter_that_mlflow_does_not_understand_is_one_clear_error(spool: Path, mlferry: Mlferry) -> None:
    runs(spool, 1)
    code, _, err = mlferry("ls", "--filter", "metrics.loss <<")
    assert code == 1
    assert "Invalid clause" in err and "MLflow does not understand the filter" in err


def test_without_mlflow_a_filter_says_what_to_install(
    spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(spool, 1)
    monkeypatch.setattr(filters.importlib.util, "find_spec", lambda name: None)
    code, _, err = mlferry("ls", "--filter", "metrics.loss < 1")
    assert code == 1
    assert "pip install 'mlferry[mlflow]'" in err
    assert mlferry("ls")[0] == 0


def test_only_one_experiment(spool: Path, mlferry: Mlferry) -> None:
    runs(spool, 3)
    SpooledRun(spool, "other").end()
    assert len(json.loads(mlferry("ls", "-e", "sweep", "--json")[1])) == 3
    assert len(json.loads(mlferry("ls", "-e", "sweep", "-n", "2", "--json")[1])) == 2


def test_a_column_that_is_none_is_wrong_usage(spool: Path, mlferry: Mlferry) -> None:
    code, _, err = mlferry("ls", "--column", "loss")
    assert code == 2
    assert "metrics.KEY" in err


def test_show_tells_all_of_a_run(spool: Path, mlferry: Mlferry) -> None:
    run = a_bit_of_everything(spool, "e", run_name="whole")
    code, out, _ = mlferry("show", run.run_id[:8], "--plot", "lo*")
    assert code == 0
    for said in (
        "whole",
        "param 3",
        "first",
        "changed",
        "folder/1.bin",
        "2.0 kB",
        "rows (d1)",
        "FINISHED",
        "▁",
        "step",
    ):
        assert said in out
    assert "308 pending" in out  # params, 300 points, tags thrice, 3 files, a dataset
    found = json.loads(mlferry("show", run.run_id, "--json")[1])
    assert found["metrics"]["loss"] == {
        "last": 1 / 300, "step": 299, "timestamp": T0 + 299, "min": 1 / 300, "max": 1.0, "points": 300,
    }  # fmt: skip
    assert found["artifacts"]["folder/0.bin"]["size"] == 2000
    assert found["params"] == run.logged.params


def test_numbers_that_json_does_not_have_are_words(spool: Path, mlferry: Mlferry) -> None:
    run = SpooledRun(spool, "e")
    run.metrics(0, {"nan": float("nan")})
    run.end()
    found = json.loads(mlferry("show", run.run_id, "--json")[1], parse_constant=lambda word: pytest.fail(word))
    assert found["metrics"]["nan"]["last"] == "nan"
    assert "nan" in mlferry("show", run.run_id)[1]


def test_show_leaves_out_what_nobody_reads_and_says_so(spool: Path, mlferry: Mlferry) -> None:
    run = SpooledRun(spool, "e")
    run.params({f"p{number:03d}": "v" for number in range(90)})
    run.tags({"mine": "1", "mlflow.source.name": "train.py"})
    run.end()
    out = mlferry("show", run.run_id)[1]
    assert "p039" in out and "p040" not in out and "and 50 more (--all lists them)" in out
    assert "mine" in out and "train.py" not in out and "1 of MLflow's own" in out
    every = mlferry("show", run.run_id, "--all")[1]
    assert "p089" in every and "train.py" in every and "--all" not in every


def test_a_metric_to_plot_that_is_not_there_is_said(spool: Path, mlferry: Mlferry) -> None:
    [run] = runs(spool, 1)
    assert "there is no metric 'los'" in mlferry("show", run.run_id, "--plot", "los")[1]


def test_where_the_terminal_has_no_unicode_nothing_else_is_written(spool: Path) -> None:
    run = SpooledRun(spool, "e")
    for step in range(9):
        run.metrics(step, {"m": float(step)})
    run.end()
    command = [sys.executable, "-m", "mlferry_agent.main", "show", run.run_id, "--plot", "m"]
    environ = {"PYTHONIOENCODING": "ascii", "MLFERRY_DIR": str(spool), "MLFERRY_STATE_DIR": str(spool), "PATH": "/bin"}
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"*" in done.stdout


@pytest.mark.parametrize("words", [("ls",), ("status",), ("show", "RUN")])
def test_a_terminal_that_lacks_a_character_is_shown_a_question_mark(spool: Path, words: tuple[str, ...]) -> None:
    run = SpooledRun(spool, "Prüfung", run_name="日本語 " + "long " * 60)
    run.end()
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mlferry_agent.main", *(run.run_id if word == "RUN" else word for word in words)]
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert done.returncode in (0, 4), done.stderr
    assert b"Pr?fung" in done.stdout and done.stdout.isascii()


# -- status of a large spool ---------------------------------------------------------------------------------------------


def test_a_large_spool_is_summed_up_and_listed_only_when_asked_for(spool: Path, mlferry: Mlferry) -> None:
    made = runs(spool, 60)
    ledger = Ledger.open(ledger_path(spool.parent / "state", URL), URL)
    with ledger.transaction():
        for run in made[:3]:
            ledger.quarantine(Quarantined(run.run_id, "w", 1, "param", "p", "refused"))
    ledger.close()
    live = SpooledRun(spool, "sweep", run_name="goes on")
    code, out, _ = mlferry("status")
    lines = out.splitlines()
    assert code == 3
    assert len(lines) == 1 + 3 + 1 + 20 + 1 + 3 + 1  # head, set aside, live, waiting, what is left out, why, totals
    assert "37 more waiting (--all lists them)" in out
    assert lines[-1].startswith("61 runs: ") and lines[-1].endswith("3 quarantined")
    assert live.run_id[:12] in out
    assert len(mlferry("status", "--all")[1].splitlines()) == 1 + 61 + 3 + 1
    assert len(json.loads(mlferry("status", "--json")[1])) == 61
    live.end()


def test_very_much_that_is_set_aside_is_counted_not_listed(spool: Path, mlferry: Mlferry) -> None:
    [run] = runs(spool, 1)
    ledger = Ledger.open(ledger_path(spool.parent / "state", URL), URL)
    with ledger.transaction():
        for offset in range(100):
            ledger.quarantine(Quarantined(run.run_id, "w", offset, "param", "p", "refused"))
    ledger.close()
    out = mlferry("status")[1]
    assert out.count("refused") == 20 and "and 80 more (--all lists them)" in out
    assert mlferry("status", "--all")[1].count("refused") == 100
