"""Real MLflow servers for tests: start, stop, kill, start again, and read back what they hold.

Owns the server process, its folder and the ways to look into it. Never fakes an answer: what a test reads here is what
MLflow stored.

An `mlflow server` of 3.17 takes 10 s to come up on two cores. Half of that is avoided: the database is copied from a
template that is migrated once a machine, and the background job runner (seven more Python processes) stays off.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import math
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

START_DEADLINE_S = 180.0


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One stored metric point. NaN is given as the string "nan" so that points can be compared."""

    key: str
    step: int
    timestamp: int
    value: float | str


@dataclass(frozen=True, slots=True)
class StoredRun:
    """Everything the server's database holds of one run."""

    status: str
    name: str
    start_time: int | None
    end_time: int | None
    lifecycle_stage: str
    experiment_id: str
    metrics: list[Point]
    params: dict[str, str]
    tags: dict[str, str]


class MlflowServer:
    """One `mlflow server` on a loopback port, with its database and artifacts below `root`."""

    def __init__(
        self,
        root: Path,
        *,
        extra_args: Sequence[str] = (),
        extra_env: Mapping[str, str] | None = None,
        certificate: Path | None = None,
        backend: str | None = None,
        workers: int = 1,
    ) -> None:
        """``certificate``: with it the server speaks TLS, and only to those who show it themselves. ``backend``: the address
        of another database than SQLite, one that MLflow has set up; what reads the database here does not read that."""
        self.root = root
        self.port = free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.tls = None if certificate is None else client_context(certificate)
        self.database = root / "mlflow.sqlite"
        self.pid = 0
        self._backend = backend
        self._workers = workers
        self.artifact_root = root / "artifacts"
        self.log = root / "server.log"
        self._extra_args = (*extra_args, *_over_tls(certificate))
        self._extra_env = dict(extra_env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start on the existing data, or on an empty database, and wait until `/health` answers."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self._backend is None and not self.database.exists():
            shutil.copyfile(template_database(), self.database)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), env=self._environ(), stdout=log, stderr=log, cwd=self.root, start_new_session=True
            )
        self.pid = self._process.pid
        self._wait_until_healthy(self._process)

    def stop(self) -> None:
        """Ask it to end; SIGKILL whatever of its process group is left."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the whole process group, as an OOM killer or a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it if it runs, and start again on the same port and data."""
        self.stop()
        self.start()

    def await_health(self) -> None:
        """Until it answers; one that was killed is started again."""
        if self._process is None or self._process.poll() is not None:
            self._process = None
            self.start()
        self._wait_until_healthy(self._process)

    def client(self) -> MlflowClient:
        """MLflow's own client, talking to this server directly."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.url)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the server's database, read behind its back."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(sql, values).fetchall()

    def run_ids(self) -> list[str]:
        """All runs, deleted ones included, oldest first."""
        return [row[0] for row in self.query("SELECT run_uuid FROM runs ORDER BY rowid")]

    def stored(self, run_id: str) -> StoredRun:
        """All of one run from the database; metrics sorted."""
        columns = "status, name, start_time, end_time, lifecycle_stage, experiment_id"
        [row] = self.query(f"SELECT {columns} FROM runs WHERE run_uuid = ?", run_id)
        status, name, start_time, end_time, lifecycle_stage, experiment_id = row
        return StoredRun(
            status=status,
            name=name,
            start_time=start_time,
            end_time=end_time,
            lifecycle_stage=lifecycle_stage,
            experiment_id=str(experiment_id),
            metrics=self.metric_points(run_id),
            params=dict(self.query("SELECT key, value FROM params WHERE run_uuid = ?", run_id)),
            tags=dict(self.query("SELECT key, value FROM tags WHERE run_uuid = ?", run_id)),
        )

    def metric_points(self, run_id: str) -> list[Point]:
        """Every metric row of one run from the database, sorted; a duplicate would show as two equal points."""
        sql = "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ?"
        return sorted(
            (
                point(key, math.nan if is_nan else value, timestamp, step)
                for key, step, timestamp, value, is_nan in self.query(sql, run_id)
            ),
            key=repr,
        )

    def metric_points_by_api(self, run_id: str) -> list[Point]:
        """The same through the REST API."""
        client = self.client()
        history = (m for key in client.get_run(run_id).data.metrics for m in client.get_metric_history(run_id, key))
        return sorted((point(m.key, m.value, m.timestamp, m.step) for m in history), key=repr)

    def inputs(self, run_id: str) -> list[dict[str, Any]]:
        """Dataset inputs with their tags, by the API."""
        inputs = self.client().get_run(run_id).inputs
        found = inputs.dataset_inputs if inputs else []
        return [{**i.dataset.to_dictionary(), "tags": {t.key: t.value for t in i.tags}} for i in found]

    def artifacts(self, run_id: str) -> dict[str, bytes]:
        """Every artifact file of one run with its bytes, from the server's disk."""
        [(uri,)] = self.query("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
        root = self.artifact_root / uri.removeprefix("mlflow-artifacts:").strip("/")
        files = [f for f in sorted(root.rglob("*")) if f.is_file() and not _is_left_over(f.name)]
        return {str(f.relative_to(root)): f.read_bytes() for f in files}

    def artifacts_by_api(self, run_id: str) -> dict[str, bytes]:
        """The same, listed and downloaded by MLflow's own client."""
        client, found, folders = self.client(), {}, [""]
        with tempfile.TemporaryDirectory(dir=self.root) as target:
            while folders:
                for entry in client.list_artifacts(run_id, folders.pop()):
                    if entry.is_dir:
                        folders.append(entry.path)
                    elif not _is_left_over(entry.path.rpartition("/")[2]):
                        found[entry.path] = Path(client.download_artifacts(run_id, entry.path, target)).read_bytes()
        return found

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", str(self._workers), "--backend-store-uri", self._backend or f"sqlite:///{self.database}"),
            *("--artifacts-destination", str(self.artifact_root), "--serve-artifacts"),
            *self._extra_args,
        ]

    def _environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return {**clean, **quiet, **self._extra_env}

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while process.poll() is None and time.monotonic() < deadline:
            asked = urllib.request.Request(f"{self.url}/health")
            with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5, context=self.tls) as answer:
                if answer.read() == b"OK":
                    return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"mlflow server did not come up:\n{self.log.read_text(errors='replace')[-4000:]}")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Undertaker:
    """Kills the server, and starts it again on the same port and data beside whatever goes on meanwhile."""

    def __init__(self, server: MlflowServer) -> None:
        self._server = server
        self._starting: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)
        self.kills = 0

    def __enter__(self) -> Undertaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def strike(self) -> None:
        self.wait()
        self._server.kill()
        self.kills += 1
        self._starting = self._pool.submit(self._server.start)

    def wait(self) -> None:
        """Until the server is up again."""
        if self._starting is not None:
            self._starting.result()


def _over_tls(certificate: Path | None) -> tuple[str, ...]:
    if certificate is None:
        return ()
    told = {
        "keyfile": certificate,
        "certfile": certificate,
        "ca-certs": certificate,
        "cert-reqs": ssl.CERT_REQUIRED.value,
    }
    return "--uvicorn-opts", " ".join(f"--ssl-{name} {value}" for name, value in told.items())


def client_context(certificate: Path) -> ssl.SSLContext:
    """Trusts the holder of a certificate, and shows the same to it."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.load_cert_chain(certificate)
    return context


def self_signed(path: Path, *, address: str = "127.0.0.1", days: tuple[int, int] = (-1, 2)) -> Path:
    """A certificate that is good for server and client, its key included. ``days``: from when to when, from today."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


def _is_left_over(name: str) -> bool:
    """A half upload that a server killed with SIGKILL left under a name of its own (mlflow ``local_artifact_repo``)."""
    return name.startswith(".artifact.uploading.")


def point(key: str, value: float, timestamp: int, step: int) -> Point:
    """A comparable metric point."""
    return Point(key, step, timestamp, "nan" if math.isnan(value) else value)


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def template_database() -> Path:
    """An empty, migrated MLflow database, made once a machine and MLflow version and then copied (5 s saved a server)."""
    folder = Path(tempfile.gettempdir()) / f"mlferry-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    template = folder / f"mlflow-{metadata.version('mlflow')}.sqlite"
    with _locked(folder / "lock"):
        if not template.exists():
            fresh = folder / "fresh.sqlite"
            fresh.unlink(missing_ok=True)
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{fresh}"]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            fresh.rename(template)
    return template


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
