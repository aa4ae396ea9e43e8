"""A digest that follows a file while it is written is that of the file as it is in the end."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.spooling import wait_until

from mlferry_spool import following
from mlferry_spool.blobs import Blob
from mlferry_spool.following import FollowingDigest


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow small files, by small steps."""
    monkeypatch.setattr(following, "_LARGE", 1)
    monkeypatch.setattr(following, "_CHUNK", 100)


def write(digest: FollowingDigest, fd: int, start: int, data: bytes) -> None:
    os.pwrite(fd, data, start)
    digest.wrote(start, start + len(data))


def whole(fd: int) -> Blob:
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    return Blob(hashlib.sha256(data).digest(), len(data))


def followed(digest: FollowingDigest) -> int:
    return digest._taken


@pytest.mark.parametrize("sizes", [[], [0], [1], [99, 1], [100, 100], [250, 7, 0, 300]], ids=str)
@pytest.mark.usefixtures("eager")
def test_it_follows_what_is_written_from_start_to_end(file: int, sizes: list[int]) -> None:
    digest, at = FollowingDigest(file), 0
    for size in sizes:
        write(digest, file, at, os.urandom(size))
        at += size
    assert digest.finish() == whole(file)
    assert followed(digest) == sum(sizes)


@pytest.mark.usefixtures("eager")
def test_what_is_written_over_bytes_that_were_taken_is_seen(file: int) -> None:
    digest = FollowingDigest(file)
    write(digest, file, 0, bytes(1_000))
    wait_until(lambda: followed(digest) >= 900, "the digest is behind by less than a step")
    write(digest, file, 5, b"changed")
    assert digest.finish() == whole(file)


@pytest.mark.usefixtures("eager")
def test_what_is_cut_off_after_it_was_taken_is_seen(file: int) -> None:
    digest = FollowingDigest(file)
    write(digest, file, 0, bytes(1_000))
    wait_until(lambda: followed(digest) >= 900, "the digest is behind by less than a step")
    os.ftruncate(file, 500)
    digest.wrote(500, 500)
    assert digest.finish() == whole(file)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.usefixtures("eager")
def test_it_is_right_wherever_the_file_is_written(file: int, seed: int) -> None:
    chance, digest, end = random.Random(seed), FollowingDigest(file), 0
    for _ in range(chance.randrange(40)):
        start = end if chance.random() < 0.8 else chance.randrange(end + 200)
        write(digest, file, start, chance.randbytes(chance.randrange(400)))
        end = os.fstat(file).st_size
    assert digest.finish() == whole(file)


@pytest.mark.usefixtures("eager")
def test_one_that_nobody_wants_any_more_has_no_thread(file: int) -> None:
    digest = FollowingDigest(file)
    write(digest, file, 0, bytes(10_000))
    thread = digest._thread
    assert thread is not None
    digest.abandon()
    assert not thread.is_alive()


def test_a_small_file_has_no_thread(file: int) -> None:
    digest = FollowingDigest(file)
    write(digest, file, 0, b"small")
    assert digest._thread is None
    assert digest.finish() == whole(file)


def test_a_file_that_cannot_be_read_back_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        digest = FollowingDigest(fd)
        write(digest, fd, 0, bytes(20 << 20))
        with pytest.raises(OSError, match="descriptor"):
            digest.finish()
    finally:
        os.close(fd)
