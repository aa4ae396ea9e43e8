"""A PostgreSQL cluster of a test's own, on a socket in its folder, run by a user who is not root; gone at the end.

PostgreSQL refuses to be run by root, so as root it is started as ``nobody``. Where Debian's package is not installed (``make
tools`` does that) the tests that ask for it are skipped.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_DEBIAN = Path("/usr/lib/postgresql")
_USER = "mlferry"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running cluster; ``folder`` holds its socket."""

    binaries: Path
    folder: Path

    def uri(self, database: str, driver: str = "postgresql") -> str:
        """The address of a database of it, for SQLAlchemy and MLflow."""
        return f"{driver}://{_USER}@/{database}?host={self.folder}"

    @property
    def pid(self) -> int:
        """The process of which all the cluster's others are children."""
        return int((self.folder / "data/postmaster.pid").read_text().split()[0])

    def create(self, database: str, template: str = "template0") -> str:
        """Make a database, empty or a copy of another; returns its address."""
        self.sql("postgres", f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.uri(database)

    def drop(self, database: str) -> None:
        """Delete a database, whoever has it open."""
        self.sql("postgres", f'DROP DATABASE "{database}" WITH (FORCE)')

    def sql(self, database: str, statement: str) -> list[tuple[str, ...]]:
        """Rows, as texts."""
        command = [
            str(self.binaries / "psql"),
            "-h",
            str(self.folder),
            "-U",
            _USER,
            "-XAtq",
            "-F",
            "\x1f",
            "-d",
            database,
        ]
        done = subprocess.run([*command, "-c", statement], capture_output=True, text=True, check=True)
        return [tuple(line.split("\x1f")) for line in done.stdout.splitlines()]


def binaries() -> Path | None:
    """Where initdb and postgres are, the newest version first."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def cluster() -> Iterator[Postgres]:
    """Start a cluster, or skip the test. It is not safe against a power cut, which no test of it is about."""
    at = binaries()
    if at is None:
        pytest.skip("PostgreSQL is not installed (make tools)")
    # Not below a test's own folder: that is root's alone, and the name of a socket is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="mlferry-pg-", dir="/tmp"))
    try:
        as_user = _as_somebody(folder)
        data = folder / "data"
        _run(as_user, [at / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c synchronous_commit=off -c shared_buffers=256MB"
        log = folder / "log"
        _run(as_user, [at / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "-t", "120", "start"])
        try:
            yield Postgres(at, folder)
        finally:
            _run(as_user, [at / "pg_ctl", "-D", data, "-m", "immediate", "-w", "-t", "60", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_somebody(folder: Path) -> tuple[int, int] | None:
    if os.getuid():
        return None
    somebody = pwd.getpwnam("nobody")
    os.chown(folder, somebody.pw_uid, somebody.pw_gid)
    return somebody.pw_uid, somebody.pw_gid


def _run(ids: tuple[int, int] | None, command: list[object]) -> None:
    told = {} if ids is None else {"user": ids[0], "group": ids[1], "extra_groups": ()}
    with tempfile.TemporaryFile() as said:  # a pipe would be held open by the server that pg_ctl leaves behind
        done = subprocess.run(
            list(map(str, command)), stdout=said, stderr=said, stdin=subprocess.DEVNULL, cwd="/tmp", check=False, **told
        )
        if done.returncode:
            said.seek(0)
            raise RuntimeError(f"{command[0]}: {said.read().decode(errors='replace')[-2000:]}")
