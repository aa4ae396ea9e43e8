"""Requests that go past the server: what is asked of MLflow's repositories, and what their failures mean."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mlferry_agent import repositories, requests, stores
from mlferry_agent.answers import Verdict, classify
from mlferry_agent.errors import NotProxied, Unreachable
from mlferry_agent.repositories import Repositories
from mlferry_agent.repository_worker import status_of

ROOT = "s3://bucket/0/run/artifacts"

#: Stands for the process: what mlflow's repository would do, on a folder.
WORKER = """
import os, shutil, sys
from mlferry_agent import repository_worker

class Folder:
    def log_artifact(self, local_file, artifact_path=None):
        name = os.path.basename(local_file)
        if name == "die":
            os.kill(os.getpid(), 9)
        if name == "complain":
            raise ValueError("no, " * 100_000)
        to = os.path.join({store!r}, artifact_path or "")
        os.makedirs(to, exist_ok=True)
        print("libraries print")
        shutil.copyfile(local_file, os.path.join(to, name))

    def _download_file(self, path, local):
        shutil.copyfile(os.path.join({store!r}, path), local)

    def delete_artifacts(self, path):
        os.unlink(os.path.join({store!r}, path))

repository_worker._made = lambda root: Folder()
repository_worker.main()
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def python(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is started instead of the worker: its own loop and protocol, over a folder."""
    stand_in = tmp_path / "python"
    (tmp_path / "worker.py").write_text(WORKER.format(store=str(store)))
    stand_in.write_text(f'#!/bin/sh\nshift 2\nexec {repositories.sys.executable} {tmp_path}/worker.py "$@"\n')
    stand_in.chmod(0o755)
    paths = os.pathsep.join(str(Path(__file__).parents[3] / root) for root in ("spool", "agent"))
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setattr(repositories.sys, "executable", str(stand_in))
    yield


@pytest.fixture
async def asked(python: None) -> AsyncIterator[Repositories]:
    made = Repositories(2, (ROOT,))
    yield made
    await made.close()


async def test_a_file_comes_to_its_place_and_back_and_is_deleted(
    asked: Repositories, store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"weights")
    with file.open("rb") as opened:
        answer = await asked.upload(requests.put_artifact(ROOT, "model/a b.bin"), opened, 7)
    assert (answer.status, (store / "model/a b.bin").read_bytes()) == (200, b"weights")
    got = bytearray()
    assert (await asked.download(requests.get_artifact(ROOT, "model/a b.bin"), got.extend)).status == 200
    assert got == b"weights"
    assert (await asked.send(requests.delete_artifact(ROOT, "model/a b.bin"))).status == 200
    assert not (store / "model/a b.bin").exists()


async def test_a_file_that_was_closed_meanwhile_is_not_mistaken_for_another(
    asked: Repositories, tmp_path: Path
) -> None:
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "two").write_bytes(b"two")
    with (tmp_path / "one").open("rb") as one, (tmp_path / "two").open("rb") as two:
        there, other = os.fstat(one.fileno()), f"/proc/{os.getpid()}/fd/{two.fileno()}"
        answer = await asked._ask(requests.put_artifact(ROOT, "x"), other, (there.st_dev, there.st_ino))
    assert answer.status == 503
    assert b"closed meanwhile" in answer.body


async def test_a_process_that_dies_leaves_its_requests_in_doubt_and_is_started_again(
    asked: Repositories, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    with (tmp_path / "blob").open("rb") as opened:
        with pytest.raises(Unreachable):
            await asked.upload(requests.put_artifact(ROOT, "die"), opened, 1)
        assert (await asked.upload(requests.put_artifact(ROOT, "live"), opened, 1)).status == 200
    assert (store / "live").exists()


async def test_a_library_that_says_much_is_cut_short_and_the_next_file_is_sent(
    asked: Repositories, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    with (tmp_path / "blob").open("rb") as opened:
        answer = await asked.upload(requests.put_artifact(ROOT, "complain"), opened, 1)
        assert (answer.status, len(answer.body) < 4_000) == (503, True)
        assert (await asked.upload(requests.put_artifact(ROOT, "x"), opened, 1)).status == 200


async def test_closing_ends_the_process(asked: Repositories, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    with (tmp_path / "blob").open("rb") as opened:
        await asked.upload(requests.put_artifact(ROOT, "x"), opened, 1)
    process = asked._process
    assert process is not None
    await asked.close()
    assert process.returncode == -signal.SIGKILL


async def test_a_place_that_nobody_allowed_is_not_touched(python: None, store: Path, tmp_path: Path) -> None:
    made = Repositories(2, ("s3://bucket/1",))
    (tmp_path / "blob").write_bytes(b"x")
    with (tmp_path / "blob").open("rb") as opened, pytest.raises(NotProxied, match="MLFERRY_STORES"):
        await made.upload(requests.put_artifact(ROOT, "x"), opened, 1)
    assert made._process is None


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://bucket/runs", True),
        ("s3://bucket/runs/1/abc/artifacts", True),
        ("s3://bucket/runs2/1", False),
        ("s3://bucket/runs/../secret", False),
        ("s3://bucket", False),
        ("s3://bucket2/runs/1", False),
        ("gs://bucket/runs/1", False),
        ("s3://bucket/runs/1?x=1", False),
        ("gs://other/deep/1", True),
    ],
)
def test_what_lies_below_an_allowed_place_and_nothing_else_is_allowed(uri: str, allowed: bool) -> None:
    assert stores.allows(stores.parse("s3://bucket/runs/, gs://other"), uri) is allowed


@pytest.mark.parametrize(
    "text", ["bucket", "http://host/x", "s3://", "s3:///x", "file:///tmp", "s3://b/../c", "s3://b?x"]
)
def test_what_is_no_place_is_refused_as_a_setting(text: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        stores.parse(text)


class Refused(Exception):
    """What botocore raises: the answer is an attribute."""

    def __init__(self, code: str, status: int) -> None:
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore calls it."""


class GoogleError(Exception):
    code = 429


def wrapped(inside: Exception) -> Exception:
    error = RuntimeError("MLflow says that it went wrong")
    error.__cause__ = inside
    return error


@pytest.mark.parametrize(
    ("error", "status", "verdict"),
    [
        (Refused("AccessDenied", 403), 403, Verdict.CONFIG),
        (wrapped(Refused("AccessDenied", 403)), 403, Verdict.CONFIG),
        (Refused("ExpiredToken", 400), 401, Verdict.CONFIG),
        (Refused("NoSuchBucket", 404), 403, Verdict.CONFIG),
        (Refused("SlowDown", 503), 503, Verdict.RETRY),
        (Refused("InternalError", 500), 500, Verdict.SUSPECT),
        (Refused("EntityTooLarge", 400), 400, Verdict.SUSPECT),
        (NoCredentialsError(), 401, Verdict.CONFIG),
        (GoogleError(), 429, Verdict.RETRY),
        (ImportError("boto3"), 501, Verdict.UNSUPPORTED),
        (ConnectionResetError(), 503, Verdict.RETRY),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_a_store_refuses_is_judged_as_if_a_server_had(error: Exception, status: int, verdict: Verdict) -> None:
    assert status_of(error) == status
    answer = repositories._answer({"status": status, "detail": str(error)})
    assert classify(requests.put_artifact(ROOT, "x"), answer).verdict is verdict
