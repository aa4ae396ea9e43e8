"""What nodes without pip get, used for real: the one file under each Python, the Debian package on a booted machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.machines import Machine, machine, why_not
from tests.servers import MlflowServer
from tests.spooling import a_bit_of_everything, unique, wait_for_arrival

pytestmark = [pytest.mark.release, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
AGENT = "mlferry-agent.service"
PYTHONS = [*sorted(Path.home().glob(".pyenv/versions/3.1[0-4].*/bin/python3")), Path("/usr/bin/python3")]
TOO_OLD = sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python3"))


def made(target: str, pattern: str) -> Path:
    done = subprocess.run(["make", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = (REPOSITORY / "dist").glob(pattern)
    return file


@pytest.fixture(scope="module")
def zipapp() -> Path:
    return made("zipapp", "mlferry.pyz")


def perform(home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """As on a node: no environment but a home."""
    words = [str(part) for part in command]
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PEX_ROOT": str(home / "pex")}
    return subprocess.run(words, cwd="/", env=environ, capture_output=True, text=True, check=False)


def test_the_one_file_delivers_with_each_python(zipapp: Path, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    for number, python in enumerate(PYTHONS):
        run = a_bit_of_everything(tmp_path / f"spool{number}", unique("zipapp"))
        places = ["--dir", run.root, "--state-dir", tmp_path / f"state{number}", "--to", mlflow_server.url]
        for verb in ("sync", "verify"):
            done = perform(tmp_path, python, "-I", zipapp, verb, *places)
            assert done.returncode == 0, (python, done.stdout, done.stderr)
        done = perform(tmp_path, python, "-I", zipapp, "export", tmp_path / f"{number}.mlferry", "--dir", run.root)
        assert done.returncode == 0, (python, done.stdout, done.stderr)
    assert len(PYTHONS) > 1
    assert perform(tmp_path, zipapp, "--version").stdout.startswith("mlferry ")


@pytest.mark.skipif(not TOO_OLD, reason="no Python before 3.10 here")
def test_the_one_file_says_which_python_it_needs(zipapp: Path, tmp_path: Path) -> None:
    for python in TOO_OLD:
        done = perform(tmp_path, python, "-I", zipapp, "--version")
        assert done.returncode != 0
        assert done.stderr.startswith("mlferry needs Python 3.10 or later"), (python, done.stderr)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "machine") as booted:
        yield booted


@pytest.mark.skipif(why_not() is not None, reason=f"no machine can be booted here: {why_not()}")
def test_the_package_installs_delivers_and_goes(host: Machine, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    shutil.copy(made("deb", "mlferry_*.deb"), host.root / "run/mlferry.deb")
    host("dpkg", "--install", "/run/mlferry.deb", deadline_s=300)
    assert host("mlferry", "--version").startswith("mlferry ")
    assert host("dpkg", "--verify", "mlferry") == ""
    assert host("systemctl", "cat", "mlferry-agent@.service") and host("man", "--where", "mlferry")
    host.write("/etc/mlferry/agent.env", f"MLFLOW_TRACKING_URI={mlflow_server.url}\n")
    host.write("/etc/mlferry/token", "none", 0o600)
    run = a_bit_of_everything(host.root / "var/spool/mlferry", unique("deb"))
    host("chown", "-R", "mlferry:", "/var/spool/mlferry")
    host("systemctl", "enable", "--now", AGENT)
    wait_for_arrival(mlflow_server, run.logged)
    host("dpkg", "--install", "/run/mlferry.deb", deadline_s=300)
    assert host.says(AGENT, "ActiveState") == "active"
    host("dpkg", "--purge", "mlferry", deadline_s=300)
    assert host.says(AGENT, "ActiveState") == "inactive"
    assert not (host.root / "usr/lib/mlferry").exists()
    assert (host.root / "var/spool/mlferry/runs").exists() and (host.root / "var/lib/mlferry").exists()
