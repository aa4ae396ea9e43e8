"""Files on their way: read once, checked as they go, given out to their end only if they are what they are called."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent.uploads import open_blob
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.errors import BlobMismatch

LARGE = os.urandom(1 << 20)


def stored(tmp_path: Path, data: bytes) -> tuple[Path, Blob]:
    blobs = Blobs(tmp_path / "runs" / "20260101T000000-r", durable=False)
    blob = blobs.put_bytes(data)
    return blobs.path(blob.sha256), blob


def rot(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("data", [b"", b"x", LARGE])
def test_a_blob_is_read_to_its_end_and_from_its_beginning_again(tmp_path: Path, data: bytes) -> None:
    path, blob = stored(tmp_path, data)
    with open_blob(path, blob) as file:
        half = len(data) // 2
        assert file.read(half) + file.read(len(data) - half) == data
        file.seek(0)
        assert file.read() == data
        file.seek(0)
        assert file.read(half) == data[:half]
        file.seek(0)
        assert file.read(len(data)) == data


def test_the_end_of_a_blob_that_has_rotted_is_not_given_out(tmp_path: Path) -> None:
    path, blob = stored(tmp_path, LARGE)
    rot(path)
    with open_blob(path, blob) as file:
        for _ in range(2):
            file.seek(0)
            assert len(file.read(len(LARGE) - 1)) == len(LARGE) - 1
            with pytest.raises(BlobMismatch):
                file.read(1)
        file.seek(0)
        with pytest.raises(BlobMismatch):
            file.read()


def test_an_empty_file_under_the_name_of_another_is_a_mismatch(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, b"")
    with open_blob(path, Blob(hashlib.sha256(b"x").digest(), 0)) as file, pytest.raises(BlobMismatch):
        file.read(0)


def test_a_blob_is_read_in_one_direction(tmp_path: Path) -> None:
    path, blob = stored(tmp_path, b"abc")
    with open_blob(path, blob) as file:
        for place in ((1, os.SEEK_SET), (0, os.SEEK_END)):
            with pytest.raises(io.UnsupportedOperation):
                file.seek(*place)


async def test_of_a_small_file_that_has_rotted_nothing_is_sent(bench: Workbench) -> None:
    begun: list[str] = []
    upload = bench.server.upload
    bench.server.upload = (  # type: ignore[method-assign]
        lambda request, file, size: (begun.append(request.path.rpartition("/")[2]), upload(request, file, size))[1]
    )
    await _delivers_all_but_the_rotten(bench, bytes(range(250)) * 4)
    assert begun == ["good"]


async def test_a_large_file_that_has_rotted_is_set_aside_and_not_stored(bench: Workbench) -> None:
    await _delivers_all_but_the_rotten(bench, LARGE)


async def _delivers_all_but_the_rotten(bench: Workbench, data: bytes) -> None:
    run = SpooledRun(bench.spool, "e")
    run.artifact("good", data[::-1])
    run.artifact("rotten", data)
    rot(Blobs(run.directory).path(hashlib.sha256(data).digest()))
    run.end()
    await bench.deliver()
    del run.logged.artifacts["rotten"]
    assert [entry for entry in apart(bench.server, run.logged) if not entry.startswith("tags")] == []
    with bench.ledger() as ledger:
        [entry] = ledger.quarantined(run.run_id)
    assert (entry.name, "digest" in entry.reason) == ("rotten", True)
