"""An SSH server for tests: OpenSSH's own, on a free port, for one key and files below one folder of nobody's else."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.servers import free_port

SSHD = Path("/usr/sbin/sshd")

_UP_S = 60.0


@contextmanager
def sftp_server(folder: Path, home: Path) -> Iterator[str]:
    """Start one; its URL. ``home``: of whoever is let in and knows it."""
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("not installed: openssh-server")
    folder.mkdir(parents=True)
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for key in (folder / "host", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    port = free_port()
    settings = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {home / '.ssh' / 'id_ed25519.pub'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PidFile none",
        "Subsystem sftp internal-sftp",
    ]
    (folder / "config").write_text("\n".join(settings) + "\n")
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    Path("/run/sshd").mkdir(exist_ok=True)  # its own place for privilege separation
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stdin=subprocess.DEVNULL, stderr=log)
    try:
        end = time.monotonic() + _UP_S
        while b"Server listening" not in (folder / "log").read_bytes():
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
