"""Where bundles, receipts and signatures lie. What every place can do, whether a file of this machine or a URL.

A place says nothing of what lies there. What is written appears under its name whole or not at all: bytes go into
``NAME.partial`` beside it first, or into an upload that an object store shows when it is complete. Nothing that is there is
replaced unless that is asked for.
"""

from __future__ import annotations

import errno
from typing import BinaryIO, Protocol

__all__ = ["PARTIAL", "Creation", "Place", "in_the_way"]

#: How the name of a file ends that is being written.
PARTIAL = ".partial"


class Creation(Protocol):
    """Something that is being written. It is there once it is committed; aborted, nothing of it stays."""

    def write(self, data: bytes, /) -> int: ...

    def commit(self) -> None:
        """Raises FileExistsError: something else came there meanwhile."""

    def abort(self) -> None: ...


class Place(Protocol):
    """A file that is or may be. As text it is for people: it shows no password.

    Every verb raises OSError, or PlaceTrouble where the place is one of another machine.
    """

    @property
    def name(self) -> str:
        """The last part of it."""

    @property
    def is_local(self) -> bool: ...

    def beside(self, name: str) -> Place:
        """Another one in the same folder."""

    def exists(self) -> bool: ...

    def size(self) -> int:
        """Bytes."""

    def open(self) -> BinaryIO:
        """To be read from its beginning to its end."""

    def create(self, *, replace: bool = False) -> Creation:
        """Raises FileExistsError: something is there, or somebody else is writing it."""

    def remove(self) -> None: ...


def in_the_way(place: Place) -> FileExistsError:
    """What is raised instead of writing over something."""
    return FileExistsError(errno.EEXIST, "is there already: choose another name, or --overwrite", str(place))
