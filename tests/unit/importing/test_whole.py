"""An import comes whole or not at all, and only of what is one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.foreign.spools import WANDB, a_database, bring
from tests.spooling import SOURCE, Ferry

from mlferry_agent.discovery import discover
from mlferry_agent.errors import BadSource
from mlferry_agent.importing.recognition import Found, Kind, recognise
from mlferry_agent.importing.taking import Options, take


def test_an_import_that_fails_at_its_second_source_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    found = [recognise(WANDB), Found(Kind.DATABASE, tmp_path / "broken.db")]
    with pytest.raises(BadSource):
        take(tmp_path / "spool", found, Options())
    assert list((tmp_path / "spool").iterdir()) == []


_IMPORT = """
import sys
from pathlib import Path
from mlferry_agent.importing import mlflow_copies
from mlferry_agent.importing.recognition import recognise
from mlferry_agent.importing.taking import Options, take
mlflow_copies._run = lambda *words, where: None
take(Path(sys.argv[1]), [recognise(Path(sys.argv[2]))], Options(), lambda done, total: print(done, flush=True))
"""


@contextlib.contextmanager
def importing(root: Path, path: Path) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "agent"))
    process = subprocess.Popen(
        [sys.executable, "-c", _IMPORT, str(root), str(path)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_an_import_that_is_killed_leaves_no_run_and_the_next_one_clears_up(tmp_path: Path) -> None:
    path, spool = a_database(tmp_path / "store", runs=400), tmp_path / "spool"
    with importing(spool, path) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 200:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    [left] = spool.iterdir()
    assert left.name.startswith(".import-")
    assert discover(spool) == []
    with importing(spool, path) as process:
        assert process.wait() == 0
    assert len(discover(spool)) == 400
    assert sorted(entry.name for entry in spool.iterdir()) == ["runs", "store"]


def test_an_import_does_not_clear_away_one_that_is_alive(tmp_path: Path) -> None:
    path, spool = a_database(tmp_path / "store", runs=400), tmp_path / "spool"
    with importing(spool, path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        assert bring(spool, WANDB).runs == 1
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read()
        process.wait()
        assert process.returncode == 0
    assert len(discover(spool)) == 401


def test_a_folder_with_several_things_in_it_asks_for_one_of_them(tmp_path: Path) -> None:
    a_database(tmp_path)
    (tmp_path / "mlruns" / "1").mkdir(parents=True)
    assert recognise(tmp_path) == Found(Kind.DATABASE, tmp_path / "mlflow.db")  # that folder holds artifacts alone
    (tmp_path / "mlruns" / "1" / "meta.yaml").write_text("name: birds\n")
    with pytest.raises(BadSource, match=r"an MLflow database .* an MLflow file store"):
        recognise(tmp_path)
    assert recognise(tmp_path / "mlruns") == Found(Kind.FILE_STORE, tmp_path / "mlruns")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 200, b"brain.Event"], ids=["nothing", "text", "zeros", "nearly"]
)
def test_what_is_nothing_that_can_be_imported_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BadSource, match="no bundle"):
        recognise(tmp_path / "file")
    with pytest.raises(BadSource, match="nothing that can be imported"):
        recognise(tmp_path)


def test_the_libraries_of_others_are_not_imported_before_they_are_needed() -> None:
    imports = "import sys, mlferry_agent.cli, mlferry_agent.importing.showing"
    code = f"{imports}\nprint({{'mlflow', 'tensorboard', 'wandb'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_says_in_words_and_in_json_what_was_done(tmp_path: Path) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state")
    told = json.loads(ferry("import", str(WANDB), "--json").stdout)
    [run] = discover(tmp_path / "spool")
    assert (told["runs"], told["points"], told["run_ids"]) == (1, 16, [run.run_id])
    said = ferry("import", str(WANDB)).stdout
    assert "wandb runs: 0 new runs, 0 with something new, 1 unchanged" in said
    assert "left out: 6 values of wandb's history that are no numbers" in said
    bundle = tmp_path / "b.tar.zst"
    assert ferry("export", str(bundle)).returncode == 0
    carried = Ferry(tmp_path / "other", tmp_path / "state")("import", str(bundle), "--json")
    assert json.loads(carried.stdout)["new"] > 0
    refused = ferry("import", str(bundle), str(WANDB))
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
