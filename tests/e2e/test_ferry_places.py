"""Bundles that cross by somebody else's machine: an object store and an SSH server, encrypted, signed, broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import minisign
import pyrage
import pytest
from tests.s3 import ObjectStore, object_store
from tests.sftp import sftp_server
from tests.spooling import Ferry, SpooledRun, unique

from mlferry_agent.bundles import is_spool_path


def a_large_run(root: Path, megabytes: int) -> SpooledRun:
    run = SpooledRun(root, unique("large"))
    for number in range(megabytes):
        run.artifact(f"{number}.bin", os.urandom(1_000_000))
    run.end()
    return run


def files_of(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if is_spool_path(path)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3") / "log") as found:
        yield found


class Sides:
    """Both sides of a gap, and how each reaches what is between."""

    def __init__(self, root: Path, environ: dict[str, str]) -> None:
        self.run = a_large_run(root / "inside", 3)
        self.inside = Ferry(root / "inside", root / "here", environ=environ)
        self.outside = Ferry(root / "outside", root / "there", environ=environ)

    def arrived(self) -> bool:
        return files_of(self.outside.spool) == files_of(self.inside.spool)


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def of_s3(store: ObjectStore) -> dict[str, str]:
    return {**store.environ, "AWS_ENDPOINT_URL": store.url}


def crosses(sides: Sides, place: str, keys: Path) -> None:
    """All that a bundle can do, by a place; then the room inside is made."""
    identity, pair = pyrage.x25519.Identity.generate(), minisign.KeyPair.generate()
    (keys / "identity").write_text(str(identity))
    (keys / "secret").write_bytes(bytes(pair.secret_key) + b"\n")
    (keys / "public").write_bytes(bytes(pair.public_key) + b"\n")
    seal = ["--recipient", str(identity.to_public()), "--sign", str(keys / "secret")]
    trust = ["--identity", str(keys / "identity"), "--signed-by", str(keys / "public")]
    inside, outside = sides.inside, sides.outside
    made = json.loads(done(inside("export", f"{place}/m.age", "--split", "1", *seal, "--json")))
    assert len(made["made"]) == 4
    assert "encrypted" in outside("import", f"{place}/m.age").stderr
    assert "3 were" not in done(outside("import", f"{place}/m.age", *trust, *seal))
    assert sides.arrived()
    assert "0 files imported" in done(outside("import", f"{place}/m.age.000", *trust, *seal))
    receipt = f"{place}/m.age.receipt.json"
    later = done(inside("export", f"{place}/later.tar.zst", "--since", receipt, *trust))
    assert "0 files" in later and "4 left out" in later
    again = inside("export", f"{place}/later.tar.zst")
    assert again.returncode == 1 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    cleaned = inside("clean", "--yes", "--older-than", "0", "--receipt", receipt, *trust)
    assert "1 run deleted" in done(cleaned)


def test_all_of_it_crosses_by_an_object_store(store: ObjectStore, tmp_path: Path) -> None:
    crosses(Sides(tmp_path, of_s3(store)), f"s3://{store.bucket}/ferry", tmp_path)
    assert not [name for name in store.objects() if name.endswith(".partial")]


def test_all_of_it_crosses_by_ssh(tmp_path: Path) -> None:
    with sftp_server(tmp_path / "server", tmp_path / "home") as url:
        (tmp_path / "between").mkdir()
        place = f"{url}{tmp_path}/between"
        crosses(Sides(tmp_path, {"HOME": str(tmp_path / "home")}), place, tmp_path)
        assert not list((tmp_path / "between").glob("*.partial"))
        (tmp_path / "home" / ".ssh" / "known_hosts").unlink()
        stranger = Ferry(tmp_path / "x", tmp_path / "y", environ={"HOME": str(tmp_path / "home")})
        refused = stranger("import", f"{place}/later.tar.zst")
        assert refused.returncode == 1 and "Host key is not trusted" in refused.stderr


def killed(ferry: Ferry, words: list[str], seen: Callable[[], bool]) -> bool:
    """Start a command and kill it once something is to be seen. False: it was done before that."""
    process = ferry.start(*words)
    end = time.monotonic() + 100
    while not seen() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_an_export_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    a_large_run(tmp_path / "inside", 40)
    inside, outside = Ferry(tmp_path / "inside", tmp_path / "here"), Ferry(tmp_path / "outside", tmp_path / "there")
    for attempt in range(10):
        bundle = tmp_path / f"b{attempt}"
        words = ["export", str(bundle), "--split", "1"]
        if killed(inside, words, Path(f"{bundle}.004").exists):
            break
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob(f"{bundle.name}.0[0-9][0-9]")}
    told = inside("export", str(bundle), "--split", "2")
    assert told.returncode == 1 and "is there already" in told.stderr  # something else was asked for
    made = json.loads(done(inside(*words, "--json")))
    assert 5 <= made["kept"] == len(kept) < len(made["made"])
    assert {name: (tmp_path / name).stat().st_ino for name in kept} == kept
    done(outside("import", str(bundle)))
    assert files_of(tmp_path / "outside") == files_of(tmp_path / "inside")
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_that_fails_says_that_it_goes_on(tmp_path: Path) -> None:
    a_large_run(tmp_path / "inside", 4)
    inside, bundle = Ferry(tmp_path / "inside", tmp_path / "here"), tmp_path / "b"
    (tmp_path / "b.003").touch()
    failed = inside("export", str(bundle), "--split", "1")
    assert failed.returncode == 1 and "3 parts made; the same command" in failed.stderr
    (tmp_path / "b.003").unlink()
    assert "3 of them from before" in done(inside("export", str(bundle), "--split", "1"))


def half_unpacked(spool: Path) -> bool:
    return any(spool.glob(".import-*/5"))


@pytest.mark.long
def test_an_import_that_was_killed_leaves_nothing_and_is_repeated(tmp_path: Path) -> None:
    a_large_run(tmp_path / "inside", 40)
    inside, outside = Ferry(tmp_path / "inside", tmp_path / "here"), Ferry(tmp_path / "outside", tmp_path / "there")
    done(inside("export", str(tmp_path / "b")))
    for attempt in range(10):
        outside = replace(outside, spool=tmp_path / f"outside{attempt}")
        if killed(outside, ["import", str(tmp_path / "b")], partial(half_unpacked, outside.spool)):
            break
    assert not files_of(outside.spool)
    done(outside("import", str(tmp_path / "b")))
    assert files_of(outside.spool) == files_of(inside.spool)
    assert not list(outside.spool.glob(".import-*"))


def test_what_reaches_a_place_and_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    for name in ("fsspec", "pyrage", "minisign"):
        (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('not here', name=__name__)\n")
    plain = Ferry(tmp_path / "spool", tmp_path / "state")
    ferry = replace(plain, environ={"PYTHONPATH": f"{tmp_path / 'without'}:{plain.env()['PYTHONPATH']}"})
    (tmp_path / "key").write_text("x")
    wanted = {
        "mlferry[places]": ["export", "s3://bucket/b"],
        "mlferry[age]": ["export", str(tmp_path / "b"), "--recipient", "age1x"],
        "mlferry[minisign]": ["export", str(tmp_path / "b"), "--sign", str(tmp_path / "key")],
    }
    for extra, words in wanted.items():
        refused = ferry(*words)
        assert refused.returncode == 1 and f"pip install '{extra}'" in refused.stderr
