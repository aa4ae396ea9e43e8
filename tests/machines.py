"""A machine with a real systemd as PID 1, for tests that run as root: booted in two seconds, thrown away afterwards.

Owns its namespaces, its cgroup and its end; ``machines.sh`` is what happens inside. Never writes to this machine but for
a cgroup, which it removes. Python, the virtual environment and the sources of this machine stand below ``/opt`` there,
since homes are closed to the units that are tested.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_suffix(".sh")

_NAMESPACES = ("--pid", "--mount", "--cgroup", "--uts", "--ipc")
_NEEDED = ("unshare", "nsenter", "systemctl", "systemd-sysusers", "systemd-tmpfiles", "mount")

_BOOT_S = 30.0

#: Where what stands here is seen there.
_BASE, _PACKAGES, _SOURCES = "/opt/python", "/opt/packages", "/opt/mlferry"

_COMMAND = f"""#!/bin/sh
export LD_LIBRARY_PATH={_BASE}/lib PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH={_SOURCES}/spool:{_SOURCES}/sdk:{_SOURCES}/agent:{_PACKAGES}
exec {_BASE}/bin/python{sys.version_info.major}.{sys.version_info.minor} -m mlferry_agent.main "$@"
"""


class Machine:
    """A booted machine. ``root`` is its file system, seen from here."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def __call__(self, *command: str, deadline_s: float = 60.0) -> str:
        """Run a command there as root and return what it prints; fail with what it complains of."""
        enter = ["nsenter", f"--target={self._pid}", *_NAMESPACES, "--"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=deadline_s, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of root's, at an absolute path."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode)
        place.chmod(mode)
        place.write_text(text)

    def read(self, path: str) -> str:
        """A file's text; empty if there is none."""
        try:
            return (self.root / path.lstrip("/")).read_text()
        except FileNotFoundError:
            return ""

    def install_command(self, path: str = "/usr/bin/mlferry") -> None:
        """`mlferry`, as of this source tree."""
        self.write(path, _COMMAND, 0o755)

    def journal(self, unit: str) -> str:
        """What a unit and its manager had to say, the time left out."""
        return self("journalctl", "--unit", unit, "--output=cat", "--no-pager", "--quiet")

    def says(self, unit: str, what: str) -> str:
        """A property of a unit, such as ActiveState."""
        return self("systemctl", "show", "--value", f"--property={what}", unit).strip()


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Boot; ``directory`` is an empty one. Raises RuntimeError with systemd's words where it does not come up."""
    cgroup = _cgroup_root() / f"mlferry-tests-{os.getpid()}-{time.monotonic_ns()}"
    log = directory.with_suffix(".log")
    directory.mkdir(parents=True)
    cgroup.mkdir()
    with log.open("wb") as sink:
        process = subprocess.Popen(_boot(directory, cgroup), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        yield _booted(process, log)
    finally:
        process.kill()  # and with it, as unshare was asked, the machine's first process and so all others
        process.wait()
        _remove(cgroup)


@cache
def why_not() -> str | None:
    """What is missing here to boot a machine; None where nothing is."""
    if os.geteuid() != 0:
        return "only root boots machines"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing or not Path("/lib/systemd/systemd").exists():
        return f"not installed: {', '.join(missing) or 'systemd'}"
    if _cgroup_root(must=False) is None:
        return "there is no cgroup2 file system"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False)
    return "this root may not mount file systems" if tried.returncode else None


def _boot(directory: Path, cgroup: Path) -> list[str]:
    inside = 'echo 0 >"$1/cgroup.procs"; shift; exec "$@"'
    binds = {sys.base_prefix: _BASE, sysconfig.get_path("purelib"): _PACKAGES, str(SOURCE): _SOURCES}
    unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--propagation=private"]
    pairs = [part for pair in binds.items() for part in pair]
    return ["sh", "-c", inside, "sh", str(cgroup), *unshare, "bash", str(SCRIPT), str(directory), *pairs]


def _booted(process: subprocess.Popen[bytes], log: Path) -> Machine:
    end = time.monotonic() + _BOOT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            [first] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            made = Machine(int(first))
            if (made.root / "run/systemd/private").exists():
                made("systemctl", "start", "systemd-journald.service")  # what is said before it runs is said to nobody
                return made
        time.sleep(0.02)
    raise RuntimeError(f"the machine did not boot:\n{log.read_text(errors='replace')[-4000:]}")


def _cgroup_root(must: bool = True) -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") and os.access(place.split()[4], os.W_OK):
            return Path(place.split()[4])
    return None


def _remove(cgroup: Path) -> None:
    """Its processes are gone a moment after their machine."""
    end = time.monotonic() + 10
    while True:
        try:
            for directory, _, _ in os.walk(cgroup, topdown=False):
                Path(directory).rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
