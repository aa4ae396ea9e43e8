"""``mlferry.sync`` and ``mlferry.status``: the command's verdict, in Python."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.servers import free_port

import mlferry
from mlferry_agent.ledger import Ledger, RunRow, ledger_path


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFERRY_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFERRY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLFERRY_QUIET", "true")
    return tmp_path / "spool"


def logged(**metrics: float) -> str:
    with mlferry.start_run(run_name="a run") as run:
        mlferry.log_metrics(metrics)
    return run.info.run_id


def test_what_waits_is_told_of_each_run(spool: Path) -> None:
    first, second = logged(a=1.0), logged(b=2.0)
    found = mlferry.status()
    assert {run.run_id for run in found.runs} == {first, second}
    assert (found.complete, found.needs_you, found.acknowledged) == (False, False, 0)
    [run] = mlferry.status(first[:9], dir=spool).runs
    assert (run.run_name, run.pending, run.quarantined, run.live) == ("a run", run.pending, [], False)
    assert run.pending > 0 and found.pending == 2 * run.pending


def test_an_empty_spool_is_complete() -> None:
    assert mlferry.status() == mlferry.Verdict([], complete=True, needs_you=False, said="")


def test_a_server_that_is_away_is_a_verdict_and_keeps_everything() -> None:
    logged(a=1.0)
    found = mlferry.sync(to=f"http://127.0.0.1:{free_port()}", give_up_after=0.1)
    assert (found.complete, found.needs_you, found.pending > 0) == (False, False, True)
    assert "127.0.0.1" in found.said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({}, "--to"), ({"to": "ftp://there"}, "ftp"), ({"to": "http://there", "runs": ("nobody",)}, "nobody")],
)
def test_what_cannot_be_tried_raises_with_what_to_do(
    arguments: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFERRY_TO", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    logged(a=1.0)
    with pytest.raises(mlferry.NotDelivered, match=words):
        mlferry.sync(*arguments.pop("runs", ()), **arguments)


def test_a_run_cannot_be_taken_for_an_option() -> None:
    with pytest.raises(mlferry.NotDelivered, match="--version"):
        mlferry.status("--version")


async def test_the_event_loop_goes_on_meanwhile() -> None:
    logged(a=1.0)
    assert (await mlferry.status_async()).pending == mlferry.status().pending
    found = await mlferry.sync_async(to=f"http://127.0.0.1:{free_port()}", give_up_after=0.1)
    assert found.pending > 0


async def test_a_delivery_that_is_cancelled_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    logged(a=1.0)
    begun: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    real = asyncio.create_subprocess_exec

    async def noting(*words: str, **options: Any) -> asyncio.subprocess.Process:
        process = await real(*words, **options)
        begun.put_nowait(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noting)
    waiting = asyncio.create_task(mlferry.sync_async(to=f"http://127.0.0.1:{free_port()}", give_up_after=600))
    process = await begun.get()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.returncode == -signal.SIGTERM


def test_a_run_that_is_parked_needs_you_also_while_the_server_is_away(tmp_path: Path) -> None:
    run_id, url = logged(a=1.0), f"http://127.0.0.1:{free_port()}"
    ledger = Ledger.open(ledger_path(tmp_path / "state", url), url)
    with ledger.transaction():
        ledger.put_run(RunRow(run_id, parked="deleted there"))
    ledger.close()
    logged(b=1.0)
    found = mlferry.sync(to=url, give_up_after=0.1)
    assert (found.complete, found.needs_you, "127.0.0.1" in found.said) == (False, True, True)


def test_nothing_of_the_agent_is_loaded_by_it(spool: Path) -> None:
    code = "import mlferry, sys; mlferry.status(); print({'mlferry_agent', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
