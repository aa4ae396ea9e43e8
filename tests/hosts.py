"""Other machines on this one: a command that runs under another host name, installation or boot.

Linux namespaces make the host name (UTS) the command's own and put other files over ``/etc/machine-id`` and the boot id
(mount). What another kernel would bring besides, locks that are not seen, follows by itself: an agent looks at no lock of
another boot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from functools import cache
from pathlib import Path

__all__ = ["can_be_elsewhere", "elsewhere", "rebooted"]

_BOOT_ID, _MACHINE_ID = Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id")

_ENTER = 'hostname "$1" && mount --bind "$2" /etc/machine-id && mount --bind "$3" "$4" && shift 4 && exec "$@"'


def elsewhere(directory: Path, host: str) -> list[str]:
    """What to put before a command to run it on another machine."""
    return _as(directory, host, uuid.uuid4().hex)


def rebooted(directory: Path) -> list[str]:
    """What to put before a command to run it on this machine, before it was started the last time."""
    return _as(directory, os.uname().nodename, _MACHINE_ID.read_text().strip())


def _as(directory: Path, host: str, machine_id: str) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    machine, boot = directory / f"machine-id of {host}", directory / f"boot id of {host}"
    machine.write_text(f"{machine_id}\n")
    boot.write_text(f"{uuid.uuid4()}\n")
    return ["unshare", "--uts", "--mount", "sh", "-c", _ENTER, "sh", host, str(machine), str(boot), str(_BOOT_ID)]


@cache
def can_be_elsewhere() -> str:
    """Why it cannot be done here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or not _MACHINE_ID.exists():
        return "another host takes root, unshare and a machine id"
    tried = subprocess.run(
        ["unshare", "--uts", "--mount", "sh", "-c", f"hostname tried && mount --bind /dev/null {_BOOT_ID}"],
        capture_output=True,
        check=False,
    )
    return "" if tried.returncode == 0 else "namespaces cannot be made here"
