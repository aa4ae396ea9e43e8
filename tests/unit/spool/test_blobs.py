"""Blobs: complete before anything names them, stored once, and swept up after a kill."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from mlferry_spool.blobs import Blob, Blobs, digest_of
from mlferry_spool.liveness import this_machine


def names(blobs: Path) -> list[str]:
    return sorted(path.name for path in blobs.iterdir())


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3_000_000)], ids=len)
def test_bytes_and_files_of_one_content_are_one_blob(data: bytes, tmp_path: Path) -> None:
    blobs, source = Blobs(tmp_path / "run"), tmp_path / "source"
    source.write_bytes(data)
    expected = Blob(hashlib.sha256(data).digest(), len(data))
    assert blobs.put_file(source) == blobs.put_bytes(data) == blobs.put_file(source) == expected
    assert names(tmp_path / "run" / "blobs") == [expected.sha256.hex()]
    assert blobs.path(expected.sha256).read_bytes() == data
    assert stat.S_IMODE(blobs.path(expected.sha256).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run" / "blobs").stat().st_mode) == 0o700


def test_a_blob_of_the_right_name_and_another_size_is_replaced(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blob = blobs.put_bytes(b"whole")
    blobs.path(blob.sha256).write_bytes(b"who")
    assert blobs.put_bytes(b"whole") == blob
    assert blobs.path(blob.sha256).read_bytes() == b"whole"


def test_where_the_file_system_can_share_extents_a_file_is_stored_without_a_copy(tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(120 << 20)
    try:
        subprocess.run(["mkfs.btrfs", "-q", image], capture_output=True, check=True)
        subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this needs root, loop devices and btrfs")
    try:
        blobs, source = Blobs(disk / "run"), disk / "source"
        source.write_bytes(os.urandom(1 << 20))
        blob = blobs.put_file(source)
        assert blob.sha256 == hashlib.sha256(source.read_bytes()).digest()
        extents = subprocess.run(
            ["filefrag", "-v", blobs.path(blob.sha256)], capture_output=True, text=True, check=True
        )
        assert "shared" in extents.stdout
        source.write_bytes(b"changed")
        assert hashlib.sha256(blobs.path(blob.sha256).read_bytes()).digest() == blob.sha256
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_cannot_be_copied_leaves_nothing_behind(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "absent", tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match=r"."):
            blobs.put_file(source)
    assert not (tmp_path / "run" / "blobs").exists()


def test_a_disk_that_fills_during_a_copy_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        blobs, source = Blobs(disk / "run"), tmp_path / "large"
        source.write_bytes(os.urandom(1_000_000))
        for put in (lambda: blobs.put_file(source), lambda: blobs.put_bytes(source.read_bytes())):
            with pytest.raises(OSError, match="No space left"):
                put()
        assert names(disk / "run" / "blobs") == []
        assert blobs.put_bytes(b"small") == Blob(hashlib.sha256(b"small").digest(), 5)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_copies_cut_short_by_a_kill_are_swept_up_a_day_later(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    old, young = blobs / ".tmp-old", blobs / ".tmp-young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, os.stat(old).st_mtime - 90_000))
    blob = Blobs(tmp_path).put_bytes(b"new")
    assert names(blobs) == [".tmp-young", blob.sha256.hex()]


def test_what_a_killed_process_left_is_swept_up_as_soon_as_its_lock_tells(tmp_path: Path) -> None:
    left = tmp_path / "blobs" / f".tmp-{this_machine().boot_id[:8]}-left"
    with Blobs(tmp_path).incoming() as held:
        held.file.write(b"a checkpoint that takes long")
        foreign, young = left.with_name(".tmp-ffffffff-foreign"), left.with_name(f"{left.name}-young")
        for path in (left, foreign, young):
            path.write_bytes(b"half")
        for path in (left, foreign, held.path):
            os.utime(path, (0, os.stat(path).st_mtime - 120))
        blob = Blobs(tmp_path).put_bytes(b"new")
        assert names(tmp_path / "blobs") == sorted([held.path.name, foreign.name, young.name, blob.sha256.hex()])


def test_many_threads_that_put_the_same_bytes_agree(tmp_path: Path) -> None:
    data, found = os.urandom(200_000), []

    def put() -> None:
        found.append(Blobs(tmp_path).put_bytes(data))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert names(tmp_path / "blobs") == [found[0].sha256.hex()]


def test_a_source_that_changes_gives_a_blob_that_is_what_its_name_says(tmp_path: Path) -> None:
    source, stop = tmp_path / "source", threading.Event()
    source.write_bytes(os.urandom(2_000_000))

    def change() -> None:
        with source.open("r+b") as file:
            while not stop.is_set():
                file.seek(0)
                file.write(os.urandom(1_000_000))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            blob = Blobs(tmp_path).put_file(source)
            with Blobs(tmp_path).path(blob.sha256).open("rb") as file:
                assert digest_of(file) == blob
    finally:
        stop.set()
        thread.join()


def test_a_digest_is_of_the_whole_file_wherever_it_stands() -> None:
    file = io.BytesIO(b"abc")
    file.seek(2)
    assert digest_of(file) == Blob(hashlib.sha256(b"abc").digest(), 3)
