"""watch: what moves is looked at, what does not is not; it ends by itself or by Ctrl-C, and cleanly either way."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench
from tests.spooling import SpooledRun, live_writer, wait_until

from mlferry_agent import watching
from mlferry_agent.config import Config
from mlferry_agent.discovery import discover
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.watching import Rate, RunWatch, SpoolWatch

Mlferry = Callable[..., tuple[int, str, str]]


def config(spool: Path) -> Config:
    return Config(dir=spool, state_dir=spool.parent / "state")


def test_a_rate_is_that_of_the_last_half_minute() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.note(1_000) == 0.0
    for second in range(1, 100):
        now[0] = float(second)
        grown = rate.note(1_000 + (10 * second if second < 60 else 600))
        assert grown == (10.0 if second < 60 else pytest.approx(max(0, 10 * (89 - second) / 30), abs=0.4))
    assert grown == 0.0


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    run = SpooledRun(tmp_path / "spool", "e")
    [found] = discover(tmp_path / "spool")
    watched = RunWatch(config(tmp_path / "spool"), found)
    assert (watched.status.live, watched.is_over) == (True, False)
    run.metrics(1, {"loss": 0.5})
    assert watched.look().pending == 1
    run.end()
    watched.look()
    assert watched.is_over and watched.contents.curves["loss"].count == 1


async def test_runs_that_are_at_rest_are_not_counted_again_and_new_ones_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        SpooledRun(bench.spool, "e").end()
    await bench.deliver()
    counted: list[str] = []
    count = watching.run_status
    monkeypatch.setattr(watching, "run_status", lambda run, ledger: counted.append(run.run_id) or count(run, ledger))
    now = [0.0]
    watched = SpoolWatch(Config(dir=bench.spool, state_dir=bench.ledger_path.parent), lambda: now[0])
    assert (len(watched.look()), len(counted)) == (5, 5)
    new = SpooledRun(bench.spool, "e")
    for second in range(1, 4):
        counted.clear()
        now[0] = float(second)
        new.metrics(second, {"loss": 1.0})
        found = {status.run_id: status for status in watched.look()}
        assert counted == [new.run_id]
        assert (len(found), found[new.run_id].pending) == (6, second)
    counted.clear()
    now[0] = 20.0
    watched.look()
    assert len(counted) == 6
    new.end()


def test_on_a_pipe_there_is_a_line_whenever_something_changed_and_an_end(spool: Path, mlferry: Mlferry) -> None:
    run = SpooledRun(spool, "e")
    run.metrics(7, {"loss": 0.25})
    run.end()
    code, out, _ = mlferry("watch", run.run_id)
    assert (code, out) == (0, "step 7: loss=0.25; 0 records acknowledged, 1 pending\n")


def test_a_terminal_shows_the_curve_grow_until_ctrl_c(spool: Path) -> None:
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30", "PYTHONPATH": os.pathsep.join(sys.path)}
    with live_writer(spool, "e") as training:
        training.await_steps(20)
        primary, secondary = pty.openpty()
        words = ["watch", training.logged.run_id, "--plot", "loss", "--interval", "0.1"]
        watch = subprocess.Popen(
            [sys.executable, "-m", "mlferry_agent.main", *words], env=environ, stdout=secondary, stderr=secondary
        )
        os.close(secondary)
        os.set_blocking(primary, False)
        seen = b""

        def read() -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(primary, 1 << 16)
            return len(re.findall(rb"METRIC", seen)) >= 3

        wait_until(read, "it is drawn again and again")
        watch.send_signal(signal.SIGINT)
        ended = time.monotonic()
        assert watch.wait(10) == 0
        assert time.monotonic() - ended < 5
        try:
            while piece := os.read(primary, 1 << 16):
                seen += piece
        except OSError:  # nobody holds the other end any more
            pass
        os.close(primary)
    text = seen.decode()
    assert "live" in text and "┌" in text and "Traceback" not in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
    points = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) +[▁-█]+", text)]
    assert points[-1] > points[0]


def test_the_whole_spool_is_watched_until_ctrl_c(spool: Path) -> None:
    SpooledRun(spool, "e").end()
    ledger = Ledger.open(ledger_path(spool.parent / "state", "http://there:1"), "http://there:1")
    ledger.close()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    watch = subprocess.Popen(
        [sys.executable, "-m", "mlferry_agent.main", "watch"],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None and watch.stderr is not None
    line = watch.stdout.readline()
    assert line == "1 run: 0 records acknowledged at http://there:1, 0 pending, 0 quarantined\n"
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=10)
    assert (watch.returncode, said) == (0, "")
