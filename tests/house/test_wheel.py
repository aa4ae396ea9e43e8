"""The distribution as a user gets it: built, installed into environments of its own, and used from another directory.

One sdist and, from it, one wheel are built for all tests here. Nothing of the checkout is on the path of the
interpreters that run it: they are started with ``-I`` in the root directory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
VERSION = re.search(r'(?m)^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text())
OTHER_PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

SDIST = {
    *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "spool/FORMAT.md"),
    *("systemd/mlferry-agent.service", "tests/conftest.py", "tests/house/test_wheel.py", "docs/commands.md"),
    *("packages/build.py", "packages/requirements.txt"),
}

#: What a first program does; prints the third-party modules that are loaded then, and where the run is.
FIRST_PROGRAM = """
import json, sys
import mlferry
with mlferry.start_run(run_name="first") as run:
    mlferry.log_param("lr", 0.1)
    for step in range(3):
        mlferry.log_metric("loss", 1 / (step + 1), step=step)
    mlferry.log_text("hello", "notes.txt")
foreign = {
    name.partition(".")[0]
    for name, module in list(sys.modules.items())
    if "-packages" in (getattr(module, "__file__", None) or "")
}
print("RESULT" + json.dumps(sorted(foreign)))
"""

#: Reads back what FIRST_PROGRAM left, with the spool's own reader, in the same environment.
SECOND_PROGRAM = """
import json, sys
from pathlib import Path
from mlferry_spool.dump import dump_segment
kinds = [line["kind"] for path in sorted(Path(sys.argv[1]).rglob("*.seg")) for line in dump_segment(path) if "kind" in line]
print("RESULT" + json.dumps(kinds))
"""

#: Whether the hot path is the one in C.
COMPILED_PROGRAM = """
import json
from mlferry_spool.appender import IS_COMPILED
print("RESULT" + json.dumps(["compiled"] if IS_COMPILED else []))
"""

#: Names that are directories of the repository and must never become importable.
ROOTS_PROGRAM = """
import importlib.util, json
names = ["sdk", "agent", "spool", "tests", "systemd", "benchmarks", "examples", "docs"]
print("RESULT" + json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""


@dataclass(frozen=True, slots=True)
class Built:
    """The two files that a release consists of."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that holds the wheel and what it requires, without extras."""

    bin: Path

    def run(self, program: str, *arguments: str | Path, **environ: str) -> list[str]:
        """Run a program away from the checkout; returns what it printed as its result."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLF", "PYTHON", "XDG_"))}
        command = [str(self.bin / "python"), "-I", "-W", "error", "-c", program, *map(str, arguments)]
        done = subprocess.run(command, cwd="/", env={**clean, **environ}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        result: list[str] = json.loads(done.stdout.rpartition("RESULT")[2])
        return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel is built from the sdist, which proves that the sdist is complete."""
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    _succeed(sys.executable, "-m", "build", *isolation, "--outdir", out, REPOSITORY)
    return Built(next(out.glob("*.tar.gz")), next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def environment_of(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Makes an environment with the wheel for an interpreter, once for each."""
    made: dict[str, Environment] = {}

    def make(python: str) -> Environment:
        if python not in made:
            folder = tmp_path_factory.mktemp("venv")
            _succeed(python, "-m", "venv", "--without-pip", folder)
            target = folder / "bin" / "python"
            _succeed(sys.executable, "-m", "pip", "--python", target, "install", "--quiet", built.wheel)
            made[python] = Environment(folder / "bin")
        return made[python]

    return make


@pytest.fixture
def environment(environment_of: Callable[[str], Environment]) -> Environment:
    return environment_of(sys.executable)


def _succeed(*command: str | Path, **environ: str) -> None:
    """Run a command away from the checkout, whose build/ or .venv must not be what makes it work."""
    words, env = [str(part) for part in command], {**os.environ, **environ}
    done = subprocess.run(words, cwd="/", env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def _metadata(built: Built) -> dict[str, list[str]]:
    """What an index reads of the wheel: every field with its values, the README as Description."""
    with zipfile.ZipFile(built.wheel) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        message = message_from_bytes(wheel.read(name))
    found = {key: [str(value) for value in message.get_all(key, [])] for key in message}
    return {**found, "Description": [str(message.get_payload())]}


def _is_here(address: str) -> bool:
    """Whether the repository has what an address of it names."""
    path = re.split(r"/(?:blob|raw)/main/", address)[1].partition("#")[0]
    return (REPOSITORY / path).exists()


def _interpreter(version: str) -> str | None:
    """A Python of this version: one that pyenv or uv keeps, or the one on the PATH."""
    kept = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    kept += Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python{version}")
    on_path = shutil.which(f"python{version}")
    for candidate in [*map(str, sorted(kept)), *([on_path] if on_path else [])]:
        asked = [candidate, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip() == version:
            return candidate
    return None


def test_the_wheel_installs_three_packages_and_nothing_called_sdk_or_agent(built: Built) -> None:
    assert VERSION
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
    information = f"mlferry-{VERSION[1]}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"mlferry", "mlferry_spool", "mlferry_agent", information}
    assert {f"{package}/py.typed" for package in ("mlferry", "mlferry_spool", "mlferry_agent")} <= set(names)
    assert f"{information}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_holds_the_status_page(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        found = {name.rpartition("/")[2] for name in wheel.namelist() if name.startswith("mlferry_agent/web/page/")}
    assert found == {"index.html", "page.css", "page.js", "icon.svg"}


def test_the_sdist_holds_the_sources_and_no_environment(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = ["/".join(name.split("/")[1:]) for name in sdist.getnames()]
    assert set(names) >= SDIST
    assert not [name for name in names if "-packages/" in name or "__pycache__" in name or name.startswith(".venv")]


def test_an_index_takes_both_and_shows_the_readme(built: Built) -> None:
    pytest.importorskip("twine")
    _succeed(sys.executable, "-m", "twine", "--no-color", "check", "--strict", built.sdist, built.wheel)
    metadata = _metadata(built)
    assert {f"Programming Language :: Python :: {version}" for version in OTHER_PYTHONS} <= set(metadata["Classifier"])
    assert "Typing :: Typed" in metadata["Classifier"]
    addresses = dict(url.split(", ") for url in metadata["Project-URL"])
    assert set(addresses) == {"Homepage", "Documentation", "Changelog", "Source", "Issues"}
    targets = re.findall(r"\]\(([^)#][^)]*)\)", "\n".join(metadata["Description"]))
    assert len(targets) > 30
    assert not [target for target in targets if not target.startswith("https://")]
    ours = [target for target in targets if "/blob/main/" in target or "/raw/main/" in target]
    assert len(ours) > 30 and not [target for target in ours if not target.startswith(addresses["Homepage"] + "/")]
    assert not [target for target in ours if not _is_here(target)]


def test_a_wheel_of_the_checkout_is_the_wheel_of_the_sdist(built: Built, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    _succeed(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, REPOSITORY)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == built.wheel.read_bytes()


@pytest.mark.parametrize(
    "environ", [{"CC": "no-compiler-here"}, {"MLFERRY_PURE_PYTHON": "1"}], ids=lambda one: next(iter(one))
)
def test_without_a_compiler_or_when_it_is_not_wanted_the_wheel_is_python_alone(
    built: Built, tmp_path: Path, environ: dict[str, str]
) -> None:
    pytest.importorskip("hatchling")
    words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, REPOSITORY]
    _succeed(*words, **environ)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as python, zipfile.ZipFile(built.wheel) as compiled:
        more = set(compiled.namelist()) - set(python.namelist())
        assert set(python.namelist()) <= set(compiled.namelist())
    assert more == ({"mlferry_spool/_appender.abi3.so"} if _has_compiler() else set())


def _has_compiler() -> bool:
    return shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def test_no_directory_of_the_repository_becomes_importable(environment: Environment) -> None:
    assert environment.run(ROOTS_PROGRAM) == []


def test_the_sdk_logs_a_run_with_msgpack_as_its_only_foreign_import(environment: Environment, tmp_path: Path) -> None:
    foreign = environment.run(FIRST_PROGRAM, MLFERRY_DIR=str(tmp_path / "spool"))
    assert set(foreign) == {"mlferry", "mlferry_spool", "msgpack"}


def test_the_command_without_the_agent_extra_says_what_to_install(environment: Environment, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment.bin / "mlferry", "status"],
        cwd="/",
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "mlferry[agent]" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_a_first_program_leaves_its_run_in_the_spool(
    version: str, environment_of: Callable[[str], Environment], tmp_path: Path
) -> None:
    python = _interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    environment = environment_of(python)
    assert environment.run(COMPILED_PROGRAM) == (["compiled"] if _has_compiler() else [])
    environment.run(FIRST_PROGRAM, MLFERRY_DIR=str(tmp_path / "spool"))
    kinds = environment.run(SECOND_PROGRAM, tmp_path / "spool")
    assert [kinds.count(kind) for kind in ("open", "params", "metrics", "artifact", "run_end")] == [1, 1, 3, 1, 1]
