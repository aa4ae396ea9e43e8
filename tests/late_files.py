"""A file system that shows late what another host writes, as NFS and Lustre do: ``python -m tests.late_files FROM AT
SECONDS``.

A FUSE pass-through, to read only. Names appear after the delay. A file's size is the true one at once, but bytes younger
than the delay read as zeros, and in every other page those of twice that age: pages arrive after attributes and out of
order, and a hole is what a reader sees meanwhile. Runs in a process of its own, since FUSE serves until it is unmounted.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["can_be_late", "late_files"]

_START_S, _PAGE = 20.0, 4096


@contextmanager
def late_files(source: Path, mount: Path, delay_s: float) -> Iterator[None]:
    """``source`` seen late at ``mount``, which is made."""
    mount.mkdir()
    words = [sys.executable, "-m", "tests.late_files", str(source), str(mount), str(delay_s)]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[1], start_new_session=True)
    try:
        end = time.monotonic() + _START_S
        while not mount.is_mount():
            assert process.poll() is None and time.monotonic() < end, "the file system does not come up"
            time.sleep(0.05)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=False)
        process.kill()
        process.wait()


@cache
def can_be_late() -> str:
    """Why it cannot be done here; empty if it can."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "a FUSE mount takes root and /dev/fuse"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed"
    tried = subprocess.run([sys.executable, "-c", "import mfusepy"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "libfuse is not installed: apt-get install libfuse3-3"


class LateFiles:
    """Answers to FUSE's calls."""

    use_ns = True

    def __init__(self, source: str, delay_s: float) -> None:
        self._source, self._delay_s = source, delay_s
        self._seen: dict[str, float] = {}
        self._sizes: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        if path != "/" and not self._has_appeared(path):
            raise OSError(errno.ENOENT, path)
        found = os.lstat(self._source + path)
        self._visible(path, found, self._delay_s)
        names = ("mode", "nlink", "uid", "gid", "size")
        times = {f"st_{name}time": getattr(found, f"st_{name}time_ns") for name in "amc"}
        return {**{f"st_{name}": getattr(found, f"st_{name}") for name in names}, **times}

    def readdir(self, path: str, fh: Any) -> list[str]:
        names = os.listdir(self._source + path)
        return [".", "..", *(name for name in names if self._has_appeared(f"{path.rstrip('/')}/{name}"))]

    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, path)
        return os.open(self._source + path, os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        data, status = bytearray(os.pread(fh, size, offset)), os.fstat(fh)
        for page in range(offset // _PAGE, (offset + len(data)) // _PAGE + 1):
            known = self._visible(path, status, self._delay_s * (1 + page % 2))
            start, end = max(page * _PAGE, known, offset) - offset, min((page + 1) * _PAGE - offset, len(data))
            if start < end:
                data[start:end] = bytes(end - start)
        return bytes(data)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def _has_appeared(self, path: str) -> bool:
        if not os.path.lexists(self._source + path):
            self._seen.pop(path, None)
            return False
        return time.monotonic() - self._seen.setdefault(path, time.monotonic()) >= self._delay_s

    def _visible(self, path: str, status: os.stat_result, age_s: float) -> int:
        """How many of a file's bytes are that old."""
        now, size, sizes = time.monotonic(), status.st_size, self._sizes[path]
        if time.time() - status.st_mtime >= age_s:
            return size
        if not sizes or sizes[-1][1] != size:
            sizes.append((now, size))
        return max((known for at, known in sizes if now - at >= age_s), default=0)


def serve(source: str, mount: str, delay_s: float) -> None:
    """Until it is unmounted."""
    import mfusepy

    class Mounted(LateFiles, mfusepy.Operations):  # type: ignore[misc]
        """With answers to what nobody asks here."""

    options = {"foreground": True, "nothreads": True, "direct_io": True, "attr_timeout": 0, "entry_timeout": 0}
    mfusepy.FUSE(Mounted(source, delay_s), mount, fsname="late", **options)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
