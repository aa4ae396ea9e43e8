"""Which file system a path is on, and what that means: do events and locks reach this kernel, or is it shared?

Linux only: read from ``/proc/self/mountinfo`` (proc(5)). What is not known to be local counts as shared, which costs a
little polling and patience, never correctness.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["file_system", "is_local"]

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs"}
)


def is_local(path: Path, mountinfo: str | None = None) -> bool:
    """Whether only this kernel writes to the file system that holds ``path``."""
    return file_system(path, mountinfo) in _LOCAL


def file_system(path: Path, mountinfo: str | None = None) -> str:
    """The type of the file system that holds ``path``, or that would if it does not exist yet; empty if unknown."""
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    mounts = [mount for line in mountinfo.splitlines() if (mount := _mount(line)) is not None]
    resolved = path.resolve()
    holding = [(len(point.parts), index, kind) for index, (point, kind) in enumerate(mounts) if _holds(point, resolved)]
    return max(holding, default=(0, 0, ""))[2]


def _mount(line: str) -> tuple[Path, str] | None:
    before, separator, after = line.partition(" - ")
    fields = before.split()
    if not separator or len(fields) < 5 or not after:
        return None
    return Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])), after.split()[0]


def _holds(point: Path, path: Path) -> bool:
    return path == point or point in path.parents
