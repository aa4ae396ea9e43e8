"""nginx before an MLflow server, as examples/nginx configures it: only its port and its paths are those of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.servers import free_port, self_signed

CONFIGURATION = Path(__file__).parents[1] / "examples/nginx/mlflow.conf"
USER, PASSWORD = "alice", "correct horse battery staple"

_UP_S = 30.0

#: Around what is tested: everything that nginx would write elsewhere is written below the test's folder.
_AROUND = """
daemon off;
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {root}/access.log;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
{server}
}}
"""


def why_not() -> str | None:
    """What is missing here to start it; None where nothing is."""
    missing = [name for name in ("nginx", "openssl") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Proxy:
    """A running nginx. ``environ``: with it a client is let in."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        self.url = f"https://127.0.0.1:{port}"
        self.environ = {
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(root / "certificate.pem"),
        }

    def said(self) -> str:
        """A line for every request that was answered."""
        return (self.root / "access.log").read_text()


@contextmanager
def proxy(root: Path, to_port: int) -> Iterator[Proxy]:
    """Start it before the server on a port of this machine."""
    root.mkdir()
    made = Proxy(root, free_port())
    certificate = self_signed(root / "certificate.pem")
    hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True).stdout
    (root / "htpasswd").write_text(f"{USER}:{hashed}")
    text = CONFIGURATION.read_text()
    for theirs, ours in {
        "listen 443 ssl;": f"listen 127.0.0.1:{made.port} ssl;",
        "/etc/nginx/mlflow.crt;": f"{certificate};",
        "/etc/nginx/mlflow.key;": f"{certificate};",
        "/etc/nginx/mlflow.htpasswd;": f"{root}/htpasswd;",
        "http://127.0.0.1:5000;": f"http://127.0.0.1:{to_port};",
    }.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    for path in (root, certificate, root / "htpasswd"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "nginx.conf").write_text(
        ("user root;" if os.geteuid() == 0 else "") + _AROUND.format(root=root, server=text)
    )
    words = ["nginx", "-e", str(root / "error.log"), "-c", str(root / "nginx.conf")]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(made, process)
        yield made
    finally:
        process.terminate()
        process.wait()


def _await(made: Proxy, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _UP_S
    while process.poll() is None and time.monotonic() < end:
        with closing(socket.socket()) as trying:
            if trying.connect_ex(("127.0.0.1", made.port)) == 0:
                return
        time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"nginx did not come up:\n{(made.root / 'error.log').read_text()}")
