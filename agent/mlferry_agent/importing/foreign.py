"""Files that somebody else made: opened without following a link, listed without leaving their folder.

A folder of artifacts may hold links to anything that its importer can read (a private key, ``/proc/self/environ``), and what
is imported is sent to a server. So every step below the folder that the user named is taken by its own descriptor and no
link is followed; what is no plain file or folder is counted and left where it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["LINKS", "File", "Folder", "copy_file"]

LINKS = "links, pipes and devices, which are not followed"
_NAMES = "files with names that are no text"
_DEEP = "folders nested too deep"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: Seconds without a write after which the program that wrote a file is taken for ended: TensorBoard's and wandb's libraries
#: write every half minute at least.
_QUIET_S = 900.0

#: How deep folders of artifacts may lie in each other.
#: Beyond: left out and counted.
#: Test: tests/unit/importing/test_mlflow.py::test_folders_nested_deeper_than_anybody_nests_them_are_left_out
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source: ``path`` is what it is called in the artifacts, ``parts`` lead to it from ``folder``."""

    path: str
    folder: Folder
    parts: tuple[str, ...]

    def open(self) -> BinaryIO:
        """Raises OSError: it cannot be read, or a link stands there by now."""
        return self.folder.open(*self.parts)

    def is_growing(self) -> bool:
        """Whether it was written to lately, so that its program may still run."""
        with contextlib.suppress(OSError), self.open() as file:
            return time.time() - os.fstat(file.fileno()).st_mtime < _QUIET_S
        return False


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the user named, directly or by what it holds. Nothing above it is looked at."""

    root: Path

    def open(self, *parts: str) -> BinaryIO:
        """Open a plain file below. Raises OSError: it is none, or a link stands at some step."""
        with self._at(parts[:-1]) as above:
            fd = os.open(parts[-1], _FILE, dir_fd=above)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", str(self.root.joinpath(*parts)))
        return os.fdopen(fd, "rb")

    def holds(self, *parts: str) -> bool:
        """Whether a folder is there, and no link on the way to it."""
        try:
            with self._at(parts):
                return True
        except OSError:
            return False

    def files(
        self,
        parts: tuple[str, ...],
        left_out: Counter[str],
        *,
        prefix: str = "",
        enters: Callable[[tuple[str, ...]], bool] = lambda parts: True,
    ) -> Iterator[File]:
        """Every plain file in the folder at ``parts`` and below, in the order of their names; none if it is not there.

        Args:
            left_out: where it is counted what is no plain file.
            prefix: what the folder itself is called in the artifacts.
            enters: whether a folder below is looked into.
        """
        try:
            with self._at(parts) as here:
                names = sorted(_list(here, left_out))
        except OSError:
            return
        for name, is_folder in names:
            if not is_folder:
                yield File(f"{prefix}{name}", self, (*parts, name))
            elif len(parts) >= _MAX_DEPTH:
                left_out[_DEEP] += 1
            else:
                below = (*parts, name)
                if enters(below):
                    yield from self.files(below, left_out, prefix=f"{prefix}{name}/", enters=enters)

    @contextlib.contextmanager
    def _at(self, parts: tuple[str, ...]) -> Iterator[int]:
        """A folder below, by descriptors. Raises OSError."""
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if part in ("", ".", "..") or "/" in part:
                    raise OSError(errno.EINVAL, "not the name of a folder", str(self.root.joinpath(*parts)))
                below = os.open(part, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)


def _list(folder: int, left_out: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Name and whether it is a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                left_out[_NAMES] += 1
                continue
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                yield entry.name, entry.is_dir(follow_symlinks=False)
            else:
                left_out[LINKS] += 1


def copy_file(source: BinaryIO, to: Path) -> None:
    """Raises OSError: the disk."""
    with to.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
