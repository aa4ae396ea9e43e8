"""Where a training process logs to: a directory that somebody else has prepared for it is refused, and training goes on."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.conftest import NOBODY, Program, needs_root
from tests.spools import told

from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import place_in_spool
from mlferry_spool.trust import check_root

VICTIM = 65533

#: Logs, as another user if one is given. That user may not be able to read this Python, so that a first run elsewhere
#: imports everything there is to import.
LOGS = """
import grp, json, logging, os, pwd, sys, tempfile, traceback
import mlferry

def log():
    run = mlferry.start_run()
    mlferry.log_metric("loss", 0.5)
    mlferry.log_text("words", "a.txt")
    mlferry.end_run()
    return run

if sys.argv[1:]:
    given = os.environ["MLFERRY_DIR"]
    with tempfile.TemporaryDirectory() as os.environ["MLFERRY_DIR"]:
        log()
    os.environ["MLFERRY_DIR"] = given
    os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
run = log()
print(json.dumps({"dropped": run.dropped, "id": run.info.run_id}))
"""


def logged(program: Program, root: Path, *words: str, **environ: str) -> tuple[dict[str, object], str]:
    done = program(LOGS, *words, MLFERRY_DIR=str(root), MLFERRY_QUIET="1", HOME="/nonexistent", **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def refused(program: Program, root: Path, words: str, *uid: str) -> None:
    found, said = logged(program, root, *uid)
    assert found["dropped"], "what was logged is counted"
    assert "not a safe place for a spool" in said and words in said
    assert str(root) in said
    assert said.count("logging is suspended") == 1
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_a_new_spool_is_for_its_owner_alone(program: Program, tmp_path: Path) -> None:
    found, said = logged(program, tmp_path / "a" / "spool")
    assert found["dropped"] == 0, said
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*") if path.is_file()} == {0o600}


@needs_root
def test_a_spool_that_another_user_has_prepared_is_refused(program: Program, public: Path) -> None:
    root = public / "mlferry"
    root.mkdir()
    root.chmod(0o777)
    os.chown(root, NOBODY, NOBODY)
    refused(program, root, f"it belongs to user {NOBODY}", str(VICTIM))


@needs_root
def test_root_too_refuses_it_where_anybody_could_have_made_it(program: Program, public: Path, tmp_path: Path) -> None:
    for root in (public / "mlferry", tmp_path / "mlferry"):
        root.mkdir()
        os.chown(root, NOBODY, NOBODY)
    refused(program, public / "mlferry", f"it belongs to user {NOBODY}")
    found, said = logged(program, tmp_path / "mlferry")
    assert found["dropped"] == 0, f"root in a container logs for the user outside: {said}"


@needs_root
def test_a_link_that_another_user_has_prepared_is_refused(program: Program, public: Path) -> None:
    own = public / "own"
    own.mkdir()
    os.chown(own, VICTIM, VICTIM)
    (public / "mlferry").symlink_to(own)
    os.chown(public / "mlferry", NOBODY, NOBODY, follow_symlinks=False)
    refused(program, public / "mlferry", f"a link that user {NOBODY} has put there", str(VICTIM))


@needs_root
def test_a_link_of_ones_own_is_followed(program: Program, public: Path) -> None:
    own = public / "own"
    own.mkdir(mode=0o700)
    (public / "mlferry").symlink_to(own)
    for path in (own, public / "mlferry"):
        os.chown(path, VICTIM, VICTIM, follow_symlinks=False)
    found, said = logged(program, public / "mlferry", str(VICTIM))
    assert found["dropped"] == 0, said


@pytest.mark.parametrize(("mode", "words"), [(0o777, "every user may write there"), (0o772, "every user may write")])
def test_a_spool_that_everybody_may_write_to_is_refused(
    program: Program, tmp_path: Path, mode: int, words: str
) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    root.chmod(mode)
    refused(program, root, words)


@needs_root
def test_a_spool_that_a_group_may_write_to_is_refused(program: Program, tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    os.chown(root, 0, NOBODY)
    root.chmod(0o770)
    refused(program, root, "its group may write there")


@needs_root
def test_the_runs_of_another_user_in_a_sticky_directory_are_not_added_to(program: Program, public: Path) -> None:
    (public / "runs").mkdir()
    os.chown(public / "runs", NOBODY, NOBODY)
    (public / "runs").chmod(0o777)
    refused(program, public, f"it belongs to user {NOBODY}", str(VICTIM))


def test_it_goes_on_once_the_place_is_safe(program: Program, tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    root.chmod(0o777)
    later = 'os.chmod(os.environ["MLFERRY_DIR"], 0o700); time.sleep(1.1); mlferry.log_metric("loss", 0.25)'
    source = "import time" + LOGS.replace('mlferry.log_text("words", "a.txt")', later)
    done = program(source, MLFERRY_DIR=str(root), MLFERRY_QUIET="1")
    found = json.loads(done.stdout)
    assert found["dropped"] >= 1, done.stderr
    assert told(root, found["id"]).values("loss") == [0.25]


def test_with_raise_it_is_an_exception_for_those_who_asked(program: Program, tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    root.chmod(0o777)
    done = program(LOGS, MLFERRY_DIR=str(root), MLFERRY_ON_ERROR="raise")
    assert done.returncode != 0
    assert "NotStored" in done.stderr


def test_the_plugin_refuses_it_too(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="every user may write"):
        Blobs(root / "runs" / "20260101T000000-r1").put_bytes(b"x")
    with pytest.raises(PermissionError, match="every user may write"):
        check_root(root / "store")


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    yield


@needs_root
@pytest.mark.usefixtures("mounted")
def test_a_volume_that_root_has_mounted_is_taken_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    check_root(tmp_path / "runs" / "20260101T000000-r1")
    os.chown(tmp_path, NOBODY, -1)
    with pytest.raises(PermissionError):
        check_root(tmp_path / "runs" / "20260101T000000-r1")


@pytest.mark.parametrize(
    ("path", "root", "names"),
    [
        ("/s/runs/20260101T000000-r", "/s", ("runs", "20260101T000000-r")),
        ("/s/runs/20260101T000000-r/w", "/s", ("runs", "20260101T000000-r", "w")),
        ("/s/store", "/s", ("store",)),
        ("/s/store/w", "/s", ("store", "w")),
        ("/store/m/runs/20260101T000000-r/w", "/store/m", ("runs", "20260101T000000-r", "w")),
        ("runs/20260101T000000-r", ".", ("runs", "20260101T000000-r")),
        ("/s/runs/elsewhere", "/s/runs/elsewhere", ()),
        ("/s", "/s", ()),
        ("/", "/", ()),
    ],
)
def test_the_root_of_a_spool_is_told_by_the_names_alone(path: str, root: str, names: tuple[str, ...]) -> None:
    assert place_in_spool(Path(path)) == (Path(root), names)
