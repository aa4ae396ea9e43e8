"""The commands of docs/air-gap.md, executed as they stand there: only medium, server and one run have other names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers import MlflowServer
from tests.spooling import SOURCE, SpooledRun, a_bit_of_everything, differences, unique

from mlferry_spool.layout import find_run

PAGE = SOURCE / "docs/air-gap.md"
BLOCKS = re.findall(r"(?s)```console\n(.*?)```", PAGE.read_text(encoding="utf-8"))


class Gap:
    """Two sides with a home each, and a medium that both reach."""

    def __init__(self, root: Path, server: MlflowServer) -> None:
        self.root, self.server = root, server
        self.medium, self.commands = root / "medium", root / "bin"
        self.medium.mkdir()
        self.commands.mkdir()
        (self.commands / "mlferry").write_text(f'#!/bin/sh\nexec {sys.executable} -m mlferry_agent.main "$@"\n')
        (self.commands / "mlferry").chmod(0o755)
        self.names = {"/media/stick": str(self.medium), "https://mlflow.example.org": server.url}

    def spool(self, side: str) -> Path:
        return self.root / side / ".local/share/mlferry"

    def log(self) -> SpooledRun:
        """A run inside."""
        return a_bit_of_everything(self.spool("inside"), unique("air gap"))

    def execute(self, block: str) -> str:
        """Every line of a block of the page, on its side; what they printed."""
        said = ""
        for side, line in re.findall(r"(?m)^(inside|outside)\$ +(.+)$", block):
            (self.root / side / ".local/share/mlferry").mkdir(parents=True, exist_ok=True)
            for theirs, ours in self.names.items():
                line = line.replace(theirs, ours)
            paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk", "agent"))
            told = {"HOME": str(self.root / side), "PATH": f"{self.commands}:/usr/bin:/bin", "PYTHONPATH": paths}
            done = subprocess.run(
                ["bash", "-c", line], env=told, input="y\n", capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == 0, f"{side}$ {line}\n{done.stdout}{done.stderr}"
            said += done.stdout
        return said


@pytest.fixture
def gap(tmp_path: Path, mlflow_server: MlflowServer) -> Gap:
    return Gap(tmp_path, mlflow_server)


def test_bundles_go_out_and_receipts_come_back(gap: Gap) -> None:
    monday, tuesday, clean, listing = BLOCKS[:4]
    first = gap.log()
    gap.execute(monday)
    assert differences(gap.server, first.logged) == []
    second = gap.log()
    gap.execute(tuesday)
    assert differences(gap.server, second.logged) == []
    assert (gap.medium / "tuesday.tar.zst").stat().st_size < 1.5 * (gap.medium / "monday.tar.zst").stat().st_size
    gap.names[" --receipt"] = " --older-than 0 --receipt"  # of today's runs too
    gap.execute(clean)
    assert [find_run(gap.spool("inside"), run.run_id) for run in (first, second)] == [None, None]
    assert "mlferry-bundle.json" in gap.execute(listing)


def test_a_spool_is_copied_with_rsync(gap: Gap) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("not installed: rsync")
    run = gap.log()
    gap.execute(BLOCKS[4])
    assert differences(gap.server, run.logged) == []


def test_a_run_is_copied_with_tar(gap: Gap) -> None:
    run, other = gap.log(), gap.log()
    [named] = re.findall(r"runs/(\S+)", BLOCKS[5].partition("\n")[0])
    gap.names[named] = run.directory.name
    gap.execute(BLOCKS[5])
    assert differences(gap.server, run.logged) == []
    assert find_run(gap.spool("outside"), other.run_id) is None
