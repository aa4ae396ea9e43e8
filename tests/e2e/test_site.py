"""Servers as sites run them: nginx with TLS and passwords before MLflow, on PostgreSQL, with files in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests import nginx, postgres
from tests.nginx import Proxy, proxy
from tests.s3 import ObjectStore, object_store
from tests.servers import MlflowServer
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, differences, unique

needs_nginx = pytest.mark.skipif(nginx.why_not() is not None, reason=f"no nginx here: {nginx.why_not()}")


def a_large_run(ferry: Ferry) -> SpooledRun:
    """One with a file that nginx's own limit refuses."""
    run = a_bit_of_everything(ferry.spool, unique("site"), files=2)
    beside = run.beside()
    beside.artifact("checkpoints/large.bin", os.urandom(3 << 20))
    beside.end()
    return run


@needs_nginx
def test_a_run_with_a_large_file_arrives_through_nginx_with_tls_and_a_password(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    with proxy(tmp_path / "nginx", mlflow_server.port) as before:
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", before.url, environ=before.environ)
        run = a_large_run(ferry)
        nobody = {**before.environ, "MLFLOW_TRACKING_PASSWORD": "wrong"}
        refused = replace(ferry, environ=nobody)("sync")
        assert refused.returncode == 1
        assert "HTTP 401" in refused.stderr
        delivered = ferry("sync")
        assert delivered.returncode == 0, delivered.stdout + delivered.stderr
        assert differences(mlflow_server, run.logged) == []
        assert ferry("verify").returncode == 0
        assert nginx.PASSWORD not in refused.stderr + delivered.stderr + delivered.stdout + before.said()


@contextmanager
def site(root: Path, *arguments: str) -> Iterator[tuple[Proxy, ObjectStore]]:
    """PostgreSQL, MLflow, moto and nginx. ``arguments``: of `mlflow server`, besides its database."""
    with object_store(root / "s3.log") as store, postgres.cluster() as cluster:
        told = ("--backend-store-uri", cluster.create("mlflow"), "--allowed-hosts", "127.0.0.1:*", *arguments)
        server = MlflowServer(root / "mlflow", extra_args=told, extra_env=store.environ)
        with server, proxy(root / "nginx", server.port) as before:
            yield before, store


@needs_nginx
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(postgres.binaries() is None, reason="not installed: postgresql")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--serve-artifacts", "--artifacts-destination", "s3://artifacts/proxied"),
        ("--no-serve-artifacts", "--default-artifact-root", "s3://artifacts/direct"),
    ],
    ids=["through the server", "past the server"],
)
def test_a_whole_site_holds_what_was_logged(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with site(tmp_path, *arguments) as (before, store):
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", before.url, environ={**before.environ, **store.environ})
        run = a_large_run(ferry)
        delivered = ferry("sync", deadline_s=300)
        assert delivered.returncode == 0, delivered.stdout + delivered.stderr
        verified = ferry("verify", deadline_s=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        objects = {key.partition("/artifacts/")[2]: content for key, content in store.objects().items()}
        assert objects == run.logged.artifacts
        assert ("mlflow-artifacts/artifacts" in before.said()) == (arguments[0] == "--serve-artifacts")
        # Once more, by an agent that remembers nothing: recognised, by PostgreSQL as by SQLite.
        forgetful = replace(ferry, state=tmp_path / "another state")
        assert forgetful("sync", deadline_s=300).returncode == 0
        assert forgetful("verify", deadline_s=300).returncode == 0
