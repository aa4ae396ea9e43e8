"""A spool that is this test's alone, and a process that remembers no journal of it afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlferry.plugin import journal
from mlferry.plugin.journal import Journal


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [name for name in os.environ if name.startswith(("MLF", "SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    made = tmp_path / "spool"
    yield made
    held = journal._journals.pop(made, None)
    if held is not None:
        held.close()


@pytest.fixture
def diary(root: Path) -> Journal:
    return journal.journal_for(root)
