"""doctor and config: each thing that may be wrong is made wrong once, and what is said names it and what to do."""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.servers import free_port

from mlferry_agent.config import Config
from mlferry_agent.doctor import agents, local
from mlferry_agent.doctor.agents import Agent, agent_checks, running, twice
from mlferry_agent.doctor.check import Check, Grade
from mlferry_agent.doctor.local import ledgers, places, room
from mlferry_agent.doctor.remote import artifacts, clock, store, version_check
from mlferry_agent.ledger import Ledger, WriterRow

Mlferry = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "state").mkdir(mode=0o700)
    return Config(dir=tmp_path / "spool", state_dir=tmp_path / "state")


def graded(checks: list[Check] | Check) -> dict[str, tuple[str, str]]:
    found = checks if isinstance(checks, list) else [checks]
    return {check.name: (check.grade.value, check.says) for check in found}


def test_where_all_is_well_everything_is_fine(config: Config) -> None:
    found = list(places(config))
    assert {check.name for check in found} == {"spool", "spool on", "locks", "sync", "ledger on"}
    assert {check.grade for check in found} <= {Grade.FINE, Grade.NOTE, Grade.POOR}
    assert graded(found)["spool"][0] == "fine" and graded(found)["locks"] == ("fine", "work")
    assert list(config.dir.iterdir()) == [], "it leaves nothing behind"


def test_a_spool_that_others_may_write_to_is_no_place_to_log(config: Config) -> None:
    config.dir.chmod(0o777)
    found = graded(list(places(config)))["spool"]
    assert found[0] == "failure" and "chmod go-w" in found[1]


def test_a_spool_that_is_not_there_yet_is_no_trouble(config: Config) -> None:
    config.dir.rmdir()
    assert graded(list(places(config)))["spool"][0] == "note"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_this_user_may_not_write_is_said(config: Config) -> None:
    config.dir.chmod(0o500)
    config.state_dir.chmod(0o500)
    found = graded(list(places(config)))
    assert (found["spool"][0], found["ledger on"][0]) == ("note", "failure")


@pytest.mark.parametrize(
    ("kind", "spool", "ledger"),
    [("ext4", "fine", "fine"), ("nfs4", "note", "warning"), ("lustre", "note", "warning"), ("", "note", "fine")],
)
def test_a_shared_file_system_is_good_for_the_spool_and_not_for_the_ledger(
    config: Config, monkeypatch: pytest.MonkeyPatch, kind: str, spool: str, ledger: str
) -> None:
    monkeypatch.setattr(local, "file_system", lambda path: kind)
    monkeypatch.setattr(local, "is_local", lambda path: kind == "ext4")
    found = graded(list(places(config)))
    assert (found["spool on"][0], found["ledger on"][0]) == (spool, ledger)


def test_a_file_system_without_locks_and_one_that_gives_them_twice(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert graded(list(places(config)))["locks"] == ("note", "the file system has none: No locks available")
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    assert graded(list(places(config)))["locks"] == ("warning", "are given twice at once")


@pytest.mark.parametrize(
    ("free", "inodes", "grade"),
    [(10**12, 10**6, "fine"), (10**9, 10**6, "warning"), (10**12, 100, "warning"), (10**12, None, "fine")],
)
def test_little_room_is_said_of_bytes_and_of_inodes(
    monkeypatch: pytest.MonkeyPatch, free: int, inodes: int | None, grade: str
) -> None:
    found = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_files=inodes and 10**7, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert graded(list(room("disk", Path("/"))))["disk"][0] == grade


def test_a_ledger_that_is_damaged_is_found_and_what_to_do_with_it_said(tmp_path: Path) -> None:
    path = tmp_path / "there-1.sqlite"
    ledger = Ledger.open(path, "http://there:1")
    with ledger.transaction():
        for number in range(2_000):
            ledger.put_writer(WriterRow(f"run {number}", "w"))
    ledger.close()
    assert [check.grade for check in ledgers(tmp_path)] == [Grade.FINE]
    with contextlib_closing(path) as database:
        [(pages,), (size,)] = [database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")]
    data = bytearray(path.read_bytes())
    for page in range(pages // 2, pages):
        data[page * size : page * size + 200] = b"\xff" * 200
    path.write_bytes(data)
    [found] = ledgers(tmp_path)
    assert found.grade is Grade.BAD and f"mv {path}" in found.advice
    path.write_bytes(b"this is no database at all, however long it may be" * 100)
    [found] = ledgers(tmp_path)
    assert found.grade is Grade.BAD


def contextlib_closing(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(path))


# -- agents --------------------------------------------------------------------------------------------------------------


def process(proc: Path, pid: int, words: list[str], environ: dict[str, str] | None) -> None:
    place = proc / str(pid)
    place.mkdir(parents=True)
    (place / "cmdline").write_bytes("\0".join([*words, ""]).encode())
    if environ is not None:
        (place / "environ").write_bytes("\0".join(f"{name}={value}" for name, value in environ.items()).encode())


def test_agents_are_found_with_what_they_deliver_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    told = {"HOME": "/nowhere", "MLFERRY_DIR": "/spool", "MLFERRY_TO": "http://a:1"}
    process(tmp_path, 10, ["/usr/bin/python3", "/usr/bin/mlferry", "agent"], told)
    process(
        tmp_path,
        9,
        ["python", "-m", "mlferry_agent.main", "agent", "--to", "http://a:1/", "--dir=/spool"],
        {"HOME": "/"},
    )
    process(tmp_path, 11, ["mlferry", "agent", "--to", "http://b:1"], told)
    process(tmp_path, 12, ["mlferry", "agent"], None)
    process(tmp_path, 13, ["mlferry", "sync", "agent"], told)
    process(tmp_path, 14, ["vi", "mlferry-agent.service"], told)
    found = list(running(tmp_path))
    one = (Path("/spool"), "http://a:1")
    assert found == [Agent(9, one), Agent(10, one), Agent(11, (Path("/spool"), "http://b:1")), Agent(12, None)]
    assert twice(found) == [[9, 10]]


def test_two_agents_of_one_spool_and_server_are_a_failure(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    job = (Path("/spool"), "http://a:1")
    monkeypatch.setattr(agents, "running", lambda: iter([Agent(1, job), Agent(2, job)]))
    monkeypatch.setattr(agents, "_unit", lambda scope: {})
    found = graded(list(agent_checks(config)))
    assert found["agents"][0] == "failure" and "pid 1, 2" in found["agents"][1]
    assert found["agent"][0] == "note"


def test_an_agent_that_holds_a_ledger_here_delivers(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "running", lambda: iter(()))
    monkeypatch.setattr(agents, "_unit", lambda scope: {})
    assert graded(list(agent_checks(config)))["agent"] == ("note", "none runs here")
    ledger = Ledger.open(config.state_dir / "a-1.sqlite", "http://a:1")
    assert graded(list(agent_checks(config)))["agent"] == ("fine", "delivering by a-1")
    ledger.close()


@pytest.mark.parametrize(
    ("state", "grade"),
    [
        ({"LoadState": "loaded", "ActiveState": "active", "NRestarts": "0"}, "fine"),
        ({"LoadState": "loaded", "ActiveState": "active", "NRestarts": "7"}, "note"),
        ({"LoadState": "loaded", "ActiveState": "failed"}, "warning"),
        ({"LoadState": "not-found"}, None),
        ({}, None),
    ],
)
def test_a_unit_that_is_installed_should_run(
    config: Config, monkeypatch: pytest.MonkeyPatch, state: dict[str, str], grade: str | None
) -> None:
    monkeypatch.setattr(agents, "running", lambda: iter(()))
    monkeypatch.setattr(agents, "_unit", lambda scope: state if scope == "--system" else {})
    monkeypatch.setattr(agents.shutil, "which", lambda name: "/bin/systemctl")
    monkeypatch.setattr(agents.Path, "is_dir", lambda path: True)
    assert graded(list(agent_checks(config))).get("unit (system)", (None,))[0] == grade


# -- the server ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "grade"), [(0.0, "fine"), (4.0, "fine"), (-30.0, "warning"), (30.0, "warning"), (3600.0, "failure")]
)
def test_a_clock_that_is_wrong_is_said_by_how_much(ahead: float, grade: str) -> None:
    found = clock(email.utils.formatdate(1_700_000_000, usegmt=True), 1_700_000_000.5 + ahead)
    assert found.grade.value == grade
    if grade != "fine":
        assert f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}" in found.says


def test_a_server_that_names_no_time_is_no_trouble() -> None:
    assert clock("", 0.0).grade is clock("noon", 0.0).grade is Grade.NOTE


@pytest.mark.parametrize(
    ("text", "grade"), [("3.17.2", "fine"), ("4.0.0", "fine"), ("2.22.1", "warning"), ("", "warning")]
)
def test_a_version_that_was_not_tried_is_said(text: str, grade: str) -> None:
    assert version_check(text).grade.value == grade


def test_a_store_of_files_is_no_place_to_deliver_to() -> None:
    assert store({"store_type": "FileStore"}).grade is Grade.BAD
    assert store({"store_type": "SqlStore"}).grade is Grade.FINE
    assert store(None).grade is Grade.NOTE


@pytest.mark.parametrize(
    ("place", "stores", "grade", "says"),
    [
        ("mlflow-artifacts:/0", (), "fine", "through the server"),
        ("s3://bucket/0", ("s3://bucket",), "fine", "past the server"),
        ("s3://bucket/0", (), "warning", "MLFERRY_STORES"),
        ("abfss://x@y/0", ("abfss://x@y",), "fine", "past the server"),
        ("/srv/mlflow/0", (), "warning", "--serve-artifacts"),
    ],
)
def test_artifacts_past_the_server_need_a_place_that_is_allowed(
    place: str, stores: tuple[str, ...], grade: str, says: str
) -> None:
    check = artifacts({"experiment": {"artifact_location": place}}, stores)
    assert check.grade.value == grade
    assert says in f"{check}"


def test_artifacts_past_the_server_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check = artifacts({"experiment": {"artifact_location": "s3://bucket/0"}}, ("s3://bucket",))
    assert "boto3 is missing" in check.says


def test_a_server_that_is_away_is_a_failure_and_the_exit_code_says_so(spool: Path, mlferry: Mlferry) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    code, out, _ = mlferry("doctor", "--to", where)
    assert code == 3
    assert f"curl {where}/health" in out and "1 failure" in out
    found = json.loads(mlferry("doctor", "--to", where, "--json")[1])
    assert [check["name"] for check in found if check["grade"] == "failure"] == ["server"]


def test_nobody_has_to_name_a_server_to_look_at_the_machine(spool: Path, mlferry: Mlferry) -> None:
    code, out, _ = mlferry("doctor")
    assert (code, "0 failures" in out, "nobody said which" in out) == (0, True, True)


# -- config --------------------------------------------------------------------------------------------------------------


def test_each_setting_says_where_it_came_from(spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = spool.parent / "mlferry" / "agent.toml"
    file.parent.mkdir()
    file.write_text("uploads = 9\nconnections = 2\n")
    monkeypatch.setenv("MLFERRY_CONNECTIONS", "3")
    found = json.loads(mlferry("config", "--to", "http://there:1", "--json")[1])
    assert found["uploads"] == {"value": "9", "from": str(file)}
    assert found["connections"] == {"value": "3", "from": "MLFERRY_CONNECTIONS"}
    assert found["to"] == {"value": "http://there:1", "from": "--to"}
    assert found["poll_s"] == {"value": "0.5", "from": "default"}
    assert str(file) in mlferry("config")[1]


def test_no_password_is_shown(spool: Path, mlferry: Mlferry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFERRY_TO", "https://me:hunter2@there:1")
    for words in (("config",), ("config", "--json"), ("doctor",), ()):
        _, out, err = mlferry(*words)
        assert "hunter2" not in out + err
    assert "https://there:1" in mlferry("config")[1]
    monkeypatch.setenv("MLFERRY_TO", "http://me:hunter2@there:1")
    assert "hunter2" not in mlferry("config")[1]
