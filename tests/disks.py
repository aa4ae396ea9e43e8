"""Disks that fill up, fail and lose their power: small file systems on loop devices, for tests that run as root.

The power is cut by ext4's shutdown ioctl, which drops everything that was not made durable, journal included
(``EXT4_IOC_SHUTDOWN`` with ``EXT4_GOING_FLAGS_NOLOGFLUSH``, linux/fs/ext4/ext4.h); the next mount recovers as after a real
power cut. The same ioctl without that flag makes a disk that fails from one moment to the next and has lost nothing: every
call on it is answered EIO. ext4's mount option ``abort`` makes it read-only under whoever writes to it, as an error of its
journal does. Quotas are those of btrfs, which hold for root, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_SHUTDOWN, _LOSE_NOTHING, _NO_LOG_FLUSH = 0x8004587D, 0, 2


class Disk:
    """An ext4 file system of its own, mounted at ``path``. ``inodes``: how many files it can hold, if not the usual."""

    def __init__(self, directory: Path, megabytes: int, inodes: int | None = None) -> None:
        self.path, self._image = directory / "disk", directory / "disk.img"
        self.path.mkdir(parents=True)
        _empty_file(self._image, megabytes)
        _do("mkfs.ext4", "-q", "-m", "0", *(() if inodes is None else ("-N", str(inodes))), str(self._image))
        self.mount()

    def mount(self) -> None:
        _do("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Nothing may have a file open on it."""
        _do("umount", str(self.path))

    def cut_power(self) -> None:
        """From now on every access fails; what was not durable is gone with the next mount."""
        self._shut_down(_NO_LOG_FLUSH)

    def fail(self) -> None:
        """From now on every access fails with EIO; what was written until now is on the disk."""
        self._shut_down(_LOSE_NOTHING)

    def turn_read_only(self) -> None:
        """From now on everything that writes fails with EROFS, in open files, too."""
        os.sync()
        _do("mount", "-o", "remount,abort", str(self.path))

    def _shut_down(self, how: int) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(fd)

    def come_back(self) -> None:
        """The machine is started again."""
        self.unmount()
        self.mount()

    def replace(self) -> None:
        """Another disk with the same content is mounted in its place; files that are open stay on the old one."""
        copy = self._image.with_name(f"{self._image.stem}+.img")
        _do("umount", "--lazy", str(self.path))
        shutil.copyfile(self._image, copy)
        self._image = copy
        self.mount()


class Quota:
    """A btrfs subvolume at ``path`` that may hold so many bytes: beyond them every write is answered EDQUOT."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._root, image = directory / "disk", directory / "disk.img"
        self.path = self._root / "limited"
        self._root.mkdir(parents=True)
        _empty_file(image, 128)
        _do("mkfs.btrfs", "-q", str(image))
        _do("mount", "-o", "loop", str(image), str(self._root))
        _do("btrfs", "quota", "enable", str(self._root))
        _do("btrfs", "subvolume", "create", str(self.path))
        _do("btrfs", "qgroup", "limit", str(limit_bytes), str(self.path))

    def settle(self) -> None:
        """Have what was deleted counted as free."""
        _do("btrfs", "filesystem", "sync", str(self._root))

    def unmount(self) -> None:
        _do("umount", str(self._root))


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Take all the room of a disk but ``leave`` bytes; returns the file that takes it."""
    filler, size = directory / "filler", 1 << 20
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while size:
            try:
                os.write(fd, b"x" * size)
            except OSError:
                size //= 2
        os.fsync(fd)
        if leave:
            os.ftruncate(fd, max(os.fstat(fd).st_size - leave, 0))
    finally:
        os.close(fd)
    return filler


def use_up_inodes(directory: Path) -> Path:
    """Make files until no more can be made; returns the folder that holds them."""
    folder = directory / "files"
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / str(number)).touch()
    return folder


def _empty_file(path: Path, megabytes: int) -> None:
    with path.open("wb") as image:
        image.truncate(megabytes << 20)


@contextmanager
def disk(directory: Path, megabytes: int = 32, inodes: int | None = None) -> Iterator[Disk]:
    made = Disk(directory, megabytes, inodes)
    try:
        yield made
    finally:
        made.unmount()


@contextmanager
def quota(directory: Path, limit_bytes: int) -> Iterator[Quota]:
    made = Quota(directory, limit_bytes)
    try:
        yield made
    finally:
        made.unmount()


@cache
def can_limit() -> bool:
    """Whether this process may make a file system with quotas."""
    known = Path("/proc/filesystems").read_text()
    return can_mount() and shutil.which("mkfs.btrfs") is not None and "btrfs" in known


@cache
def can_mount() -> bool:
    """Whether this process may make and mount file systems."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
