"""Completion in the shells themselves: what `mlferry --install-completion` writes offers verbs, options and runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.completion import get_completion_script

import mlferry

SHELLS = ("bash", "fish")

#: Bash as readline calls it: the words, and which of them is being written.
BASH = """
. {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_mlferry_completion mlferry
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

#: Fish has a command for it.
FISH = "source {script}; complete --do-complete 'mlferry {line}'"


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFERRY_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with mlferry.start_run() as run:
        return str(run.info.run_id)


def offered(shell: str, line: str, tmp_path: Path) -> set[str]:
    """What the shell offers for the last word of a line."""
    script = tmp_path / f"completion.{shell}"
    script.write_text(get_completion_script(prog_name="mlferry", complete_var="_MLFERRY_COMPLETE", shell=shell))
    words = f"mlferry {line}" if line[-1] != " " else f"mlferry {line} ''"
    program = (BASH if shell == "bash" else FISH).format(script=script, words=words, line=line)
    done = subprocess.run([shell, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return {answer.partition("\t")[0] for answer in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_verbs_options_values_and_runs(shell: str, run_id: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert offered(shell, "s", tmp_path) == {"status", "show", "sync"}
    assert offered(shell, "sync --sta", tmp_path) == {"--state-dir", "--stale-after"}
    assert offered(shell, "sync --deleted re", tmp_path) == {"recreate"}
    assert offered(shell, f"show {run_id[:4]}", tmp_path) == {run_id}
