"""How MLflow's server is started over a spool. It is a program of its own: the agent imports nothing of MLflow."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from mlferry_agent.errors import NoUi

__all__ = ["check_can_serve", "server_command", "server_environ"]


def check_can_serve(host: str, port: int) -> None:
    """Raises NoUi: MLflow is not here, or the address cannot be had."""
    if importlib.util.find_spec("mlflow") is None:
        raise NoUi("MLflow is not installed here")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise NoUi(f"{host}:{port}: {error.strerror or error}") from error


def server_command(root: Path, host: str, port: int) -> list[str]:
    """One worker, since each reads the spool for itself; artifacts come from the spool, and the server keeps none."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"spool://{root.absolute()}"),
        *("--no-serve-artifacts", "--workers", "1", "--host", host, "--port", str(port)),
    ]


def server_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would lead the server elsewhere, and without its jobs, which need a database."""
    led = {"MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_URI"}
    kept = {name: value for name, value in environ.items() if name not in led}
    return {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
