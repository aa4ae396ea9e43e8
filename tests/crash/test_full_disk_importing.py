"""A disk that takes no more while something is imported: the import says so, and leaves the spool as it was."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tests.disks import can_mount, disk, fill
from tests.foreign.spools import WANDB, a_database, insert
from tests.spooling import Ferry

from mlferry_agent.errors import FileTrouble
from mlferry_agent.importing import mlflow_copies
from mlferry_agent.importing.recognition import recognise
from mlferry_agent.importing.taking import Options, take

pytestmark = pytest.mark.skipif(not can_mount(), reason="making a small disk needs root and loop devices")


@pytest.mark.parametrize("more", [-800_000, 200_000], ids=["room for a part of the copy", "room for a part of the log"])
def test_an_import_that_fills_the_disk_is_refused_and_leaves_nothing(
    more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_copies, "_run", lambda *words, where: None)
    path = a_database(tmp_path / "store")
    insert(path, "metrics", *((f"m{n % 7}", n / 7, n, f"{1:032x}", n, 0) for n in range(40_000)))
    with disk(tmp_path) as small:
        spool = small.path / "spool"
        take(spool, [recognise(WANDB)], Options())
        before = sorted(spool.rglob("*"))
        fill(small.path, leave=path.stat().st_size + more)
        with pytest.raises((FileTrouble, OSError), match=r"disk|space"):
            take(spool, [recognise(path)], Options())
        assert sorted(spool.rglob("*")) == before
        gc.collect()  # the frames of the exception hold what was reading, and a file that is open holds the disk


def test_the_command_says_that_the_disk_is_full_and_shows_no_trace(tmp_path: Path) -> None:
    with disk(tmp_path) as small:
        fill(small.path)
        done = Ferry(small.path / "spool", tmp_path / "state")("import", str(WANDB))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
