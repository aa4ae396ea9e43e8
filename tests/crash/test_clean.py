"""SIGKILL at every system call with which `mlferry clean` changes a spool: a run is whole, or it is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.spooling import SpooledRun

from mlferry_agent.cleaning import Fingerprint, cleaner, fingerprint
from mlferry_agent.discovery import discover
from mlferry_spool.layout import new_run_directory

SOURCE = Path(__file__).parents[2]
WORKLOAD = Path(__file__).with_name("clean_workload.py")

#: Each call, and how many of it one clean of the run below makes at least.
CALLS = {"rename": 3, "mkdir": 2, "unlinkat": 6, "fsync": 3, "rmdir": 1}


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_trace(), reason="strace is missing or may not trace here")


def killed_at(call: str, number: int, root: Path) -> bool:
    """Clean, and be killed at the ``number``-th ``call``. False: there were fewer."""
    hit = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *hit, sys.executable, "-B", str(WORKLOAD), str(root)]
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "agent"))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)
    assert not done.stderr, done.stderr.decode()
    return done.returncode != 0


def a_run(root: Path) -> Fingerprint:
    """A run of two writers in two directories."""
    run = SpooledRun(root, "e")
    run.artifact("weights", b"1" * 5_000)
    other = run.beside(directory=new_run_directory(root, run.run_id, 1_700_000_100_000))
    for one in (run, other):
        one.metrics(0, {"loss": 1.0})
        one.end()
    [found] = discover(root)
    return fingerprint(found.directories)


@pytest.mark.parametrize("call", CALLS)
def test_a_killed_clean_leaves_a_run_whole_or_finishes_it_later(call: str, tmp_path: Path) -> None:
    number, endings = 1, set()
    while True:
        root = tmp_path / str(number)
        before = a_run(root)
        killed = killed_at(call, number, root)
        with cleaner(root):
            pass
        found = discover(root)
        assert len(found) <= 1
        if found:
            assert fingerprint(found[0].directories) == before
        assert [path.name for path in root.iterdir() if path.name.startswith(".clean")] == [".clean.lock"]
        endings.add(bool(found))
        if not killed:
            break
        number += 1
    assert number > CALLS[call]
    assert False in endings
    assert True in endings or call in ("unlinkat", "rmdir")
