"""Places that fsspec reaches: object stores, SSH, and what else somebody has installed for it.

Who may enter is fsspec's own business: its configuration, the environment, the files of the cloud's or SSH's own tools. A
server that is reached by SSH must be known (``~/.ssh/known_hosts``): the library that asks is told so, whatever its default.

An object store shows an upload when it is complete; everywhere else a file gets its name by a rename. Whatever a library
raises becomes one error that names the place, without passwords.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from io import RawIOBase
from typing import Any, BinaryIO, TypeVar, cast

from mlferry_agent.carrying.places import PARTIAL, Creation, in_the_way
from mlferry_agent.errors import AgentError, NeedsExtra, PlaceTrouble

__all__ = ["RemotePlace"]

#: Stores whose files appear when they are complete, and whose libraries can break a file off.
_WHOLE = {"s3", "s3a", "gs", "gcs"}
_SSH = {"sftp", "ssh"}

_READ_AHEAD_BYTES = 8 << 20

_Result = TypeVar("_Result")


class RemotePlace:
    """A URL. Raises NeedsExtra where it is made: nothing that is installed reaches it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._protocol = url.partition("://")[0].lower()
        self._do(lambda: self._found)

    def __str__(self) -> str:
        return re.sub(r"//([^/@:]*):[^/]*@", r"//\1@", self._url.partition("?")[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePlace) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    @property
    def name(self) -> str:
        return self._url.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return False

    def beside(self, name: str) -> RemotePlace:
        return RemotePlace(f"{self._url.rstrip('/').rpartition('/')[0]}/{name}")

    def exists(self) -> bool:
        return self._do(lambda: bool(self._fs.exists(self._path)))

    def size(self) -> int:
        return self._do(lambda: int(self._fs.info(self._path)["size"]))

    def open(self) -> BinaryIO:
        return cast(BinaryIO, _Reading(self, self._do(lambda: self._opened("rb"))))

    def create(self, *, replace: bool = False) -> Creation:
        if not replace and self.exists():
            raise in_the_way(self)
        if self._protocol in _WHOLE:
            return _Upload(self, replace)
        return _Renamed(self, replace)

    def remove(self) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path)

        self._do(remove)

    @property
    def _found(self) -> tuple[Any, str]:
        """fsspec keeps what it has connected to."""
        from fsspec import config
        from fsspec.core import url_to_fs

        told = config.conf.get(self._protocol, {})
        asked = {"known_hosts": ()} if self._protocol in _SSH and "known_hosts" not in told else {}
        found: tuple[Any, str] = url_to_fs(self._url, **asked)
        if self._protocol in _SSH and not type(found[0]).__module__.startswith("sshfs"):
            raise ImportError("sshfs")  # fsspec's own takes any server for the right one
        return found

    @property
    def _fs(self) -> Any:
        return self._found[0]

    @property
    def _path(self) -> str:
        return self._found[1]

    def _opened(self, mode: str, **more: Any) -> Any:
        if mode == "rb" and self._protocol not in _SSH:
            more["block_size"] = _READ_AHEAD_BYTES
        return self._fs.open(self._path, mode, **more)

    def _do(self, verb: Callable[[], _Result]) -> _Result:
        """Raises PlaceTrouble instead of what the many libraries raise; NeedsExtra."""
        try:
            return verb()
        except AgentError:
            raise
        except ImportError as error:
            raise NeedsExtra(_what_is_missing(self._protocol, error)) from error
        except Exception as error:
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> PlaceTrouble:
        """After trouble, the next one who asks connects anew."""
        with contextlib.suppress(Exception):
            from fsspec import get_filesystem_class

            get_filesystem_class(self._protocol).clear_instance_cache()
        final = isinstance(
            error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
        )
        told = "there is no such file or place" if isinstance(error, FileNotFoundError) else str(error)
        secret = re.search(r"//[^/@:]*:([^/]*)@", self._url)
        if secret and secret[1]:
            told = told.replace(secret[1], "***")
        told = told.replace(self._url, str(self))
        return PlaceTrouble(f"{self}: {told or type(error).__name__}", again=not final)


def _what_is_missing(protocol: str, error: ImportError) -> str:
    if protocol in ("s3", "s3a", *_SSH) or "fsspec" in str(error):
        return f"{protocol}:// is reached by libraries that are not installed: pip install 'mlferry[places]'"
    return f"{protocol}:// is reached by a library of fsspec's that is not installed: {error}"


class _Reading(RawIOBase):
    """A file that is read; its errors name its place."""

    def __init__(self, place: RemotePlace, file: Any) -> None:
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._place._do(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(Exception):  # everything that was read is there
                self._file.close()
        super().close()


class _Upload:
    """An object that appears when it is committed."""

    def __init__(self, place: RemotePlace, replace: bool) -> None:
        self._place, self._replace = place, replace
        self._file = place._do(lambda: place._opened("wb", autocommit=False))

    def write(self, data: bytes, /) -> int:
        self._place._do(lambda: self._file.write(data))
        return len(data)

    def commit(self) -> None:
        try:
            self._place._do(self._file.close)
            if not self._replace and self._place.exists():
                raise in_the_way(self._place)
            self._place._do(self._file.commit)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Never through ``close``, which would finish what is there."""
        with contextlib.suppress(Exception):
            self._file.discard()
        with contextlib.suppress(Exception):
            self._file.closed = True


class _Renamed:
    """A file beside the place, which takes its name when it is committed."""

    def __init__(self, place: RemotePlace, replace: bool) -> None:
        self._place, self._replace = place, replace
        self._partial = place.beside(place.name + PARTIAL)
        self._file = self._partial._do(lambda: self._partial._opened("wb"))

    def write(self, data: bytes, /) -> int:
        self._partial._do(lambda: self._file.write(data))
        return len(data)

    def commit(self) -> None:
        try:
            if hasattr(self._file, "fsync"):
                with contextlib.suppress(Exception):  # not every server can
                    self._file.fsync()
            self._partial._do(self._file.close)
            if not self._replace and self._place.exists():
                raise in_the_way(self._place)
            self._place._do(lambda: self._place._fs.mv(self._partial._path, self._place._path))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()
        with contextlib.suppress(Exception):
            self._partial.remove()
