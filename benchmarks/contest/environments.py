"""A virtual environment for each set of pinned packages, below a cache directory, kept or deleted afterwards."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.contest import table

LIMIT_S = 900.0


class NotInstalled(Exception):
    """The packages of a system could not be installed; the last line that pip printed says why."""


def cache() -> Path:
    """Where the environments lie: $XDG_CACHE_HOME/mlferry-peers."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlferry-peers"


def interpreter(requirements: tuple[str, ...]) -> Path:
    """The Python of an environment with these packages, made if it is not there. Raises NotInstalled."""
    name = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    directory = cache() / f"{requirements[0].partition('==')[0] if requirements else 'bare'}-{name}"
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.exists():
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=False, symlinks=True)
        if requirements:
            _install(python, requirements)
        done.touch()
    return python


@functools.cache
def mlferry() -> Path:
    """A folder with this working tree installed, for the path of those that need it. Raises NotInstalled."""
    directory = cache() / "mlferry"
    shutil.rmtree(directory, ignore_errors=True)
    _install(Path(sys.executable), ("--no-deps", "--target", str(directory), str(table.ROOT)))
    return directory


def _install(python: Path, words: tuple[str, ...]) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    try:
        ended = subprocess.run([*pip, *words], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip took longer than {LIMIT_S:.0f} s") from None
    if ended.returncode:
        raise NotInstalled((ended.stderr.strip().splitlines() or ["pip failed"])[-1][:200])


def remove() -> None:
    """All of them."""
    shutil.rmtree(cache(), ignore_errors=True)
