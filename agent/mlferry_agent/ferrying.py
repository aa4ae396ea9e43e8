"""Export and import: runs of a spool -> a bundle, in one file or in parts; a bundle -> files of another spool.

Nothing is half imported: every file is checked in a folder of its own before the first is put into its place, and blobs go
before the logs that name them. Importing again changes nothing. A log that has grown replaces its beginning; a file that
contradicts what the spool has is refused, and so is a bundle that builds on another one that never came.

The receipt lists what has arrived. Carried back, it lets the next export leave that out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlferry_agent.bundles import Entry, Manifest, read_bundle, select_new, write_bundle
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import BadBundle
from mlferry_agent.importing.waiting import waiting_directory
from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError, UntrustedFile
from mlferry_spool.files import make_directory, sync_directory
from mlferry_spool.layout import BLOBS, segment_name
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.reader import LogReader, segment_offsets
from mlferry_spool.records import Artifact, BlobRef, Inputs, ModelUpdate, Record
from mlferry_spool.tailer import Entry as Frame
from mlferry_spool.trust import open_directory, open_trusted

__all__ = ["Imported", "export_bundle", "import_bundle", "plan_export", "read_receipt", "write_receipt"]

_CHUNK = 1 << 20

OnBytes = Callable[[int], None]


# -- export ---------------------------------------------------------------------------------------------------------------


def plan_export(root: Path, runs: Iterable[RunLog], receipts: Iterable[Path] = ()) -> Manifest:
    """What a bundle of these runs holds. Raises BadBundle: a receipt is none; SpoolError, OSError: a file cannot be read."""
    known = [entry for receipt in receipts for entry in read_receipt(receipt)]
    return select_new((entry for run in runs for entry in _entries(root, run)), known)


def _entries(root: Path, run: RunLog) -> Iterator[Entry]:
    """A run's blobs as far as its logs name them, then its logs, each as far as it reaches now."""
    for directory in run.directories:
        writers = [writer for writer in run.writers() if writer.parent == directory]
        logs = [entry for writer in writers for entry in _segments(root, writer)]
        for digest in sorted({digest for writer in writers for digest in _named(writer)}):
            path = Blobs(directory).path(digest)
            with contextlib.suppress(FileNotFoundError):
                yield Entry(path.relative_to(root).as_posix(), _size_of(path), digest.hex())
        yield from logs


def _size_of(path: Path) -> int:
    fd = open_trusted(path)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _segments(root: Path, writer: Path) -> Iterator[Entry]:
    for offset in segment_offsets(writer):
        path = writer / segment_name(offset)
        with os.fdopen(open_trusted(path), "rb") as file:
            size, sha256 = min(os.fstat(file.fileno()).st_size, MAX_SEGMENT_BYTES), hashlib.sha256()
            left = size
            while left and (chunk := file.read(min(_CHUNK, left))):
                sha256.update(chunk)
                left -= len(chunk)
        yield Entry(path.relative_to(root).as_posix(), size - left, sha256.hexdigest())


def _named(writer: Path) -> Iterator[bytes]:
    reader = LogReader(writer)
    while events := reader.read():
        for event in events:
            if isinstance(event, Frame):
                yield from _digests(event)


def _digests(frame: Frame) -> Iterator[bytes]:
    try:
        record: Record | None = decode(frame.kind, frame.payload)
    except SpoolError:
        return
    if isinstance(record, Artifact):
        yield record.sha256
    elif isinstance(record, ModelUpdate) and record.artifact_sha256 is not None:
        yield record.artifact_sha256
    elif isinstance(record, Inputs):
        for dataset in record.datasets:
            for text in (dataset.source, dataset.schema, dataset.profile):
                if isinstance(text, BlobRef):
                    yield text.sha256


class _Parts(RawIOBase):
    """Files of at most so many bytes: ``name.000``, ``name.001``...; with no limit, one file of the name itself."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.paths: list[Path] = []
        self._path, self._limit, self._room = path, limit, 0
        self._file: BinaryIO | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view, written = memoryview(data), 0
        while written < len(view):
            if self._file is None or (self._limit is not None and not self._room):
                self._next()
            assert self._file is not None
            piece = view[written:] if self._limit is None else view[written : written + self._room]
            self._file.write(piece)
            self._room -= len(piece)
            written += len(piece)
        return written

    def _next(self) -> None:
        self._finish()
        name = self._path if self._limit is None else self._path.with_name(f"{self._path.name}.{len(self.paths):03d}")
        self._file = name.open("xb")
        self.paths.append(name)
        self._room = self._limit or 0

    def _finish(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._finish()
        super().close()


def export_bundle(
    root: Path, manifest: Manifest, to: Path, *, split_bytes: int | None = None, on_bytes: OnBytes = lambda count: None
) -> list[Path]:
    """Write a bundle; returns its file, or its parts. What is incomplete is taken away again.

    Raises:
        BadBundle: a file changed meanwhile. OSError: it cannot be read or written, or the bundle is there already.
    """
    out = _Parts(to, split_bytes)
    try:
        for count in write_bundle(root, manifest, cast(BinaryIO, out)):
            on_bytes(count)
        out.close()
    except BaseException:
        out.close()
        for path in out.paths:
            path.unlink(missing_ok=True)
        raise
    return out.paths


# -- import ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: files put into place, files that were there, and the receipt."""

    new: int
    there: int
    receipt: Manifest


class _Joined(RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: list[Path], on_bytes: OnBytes) -> None:
        self._files = iter(paths)
        self._on_bytes = on_bytes
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                path = next(self._files, None)
                if path is None:
                    return 0
                self._file = path.open("rb")
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                self._on_bytes(len(data))
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def import_bundle(root: Path, parts: list[Path], on_bytes: OnBytes = lambda count: None) -> Imported:
    """Put what a bundle holds into the spool at ``root``.

    Raises:
        BadBundle: it is damaged or hostile, contradicts the spool, or builds on what never came; nothing was imported.
        UntrustedFile: a link or somebody else's file stands in this spool where a file of the bundle belongs.
        OSError: the disk.
    """
    with waiting_directory(root) as waiting:
        manifest = _unpack(parts, waiting, on_bytes)
        _check_known(root, manifest)
        wanted = [entry for number, entry in enumerate(manifest.files) if _is_new(root, entry, waiting / str(number))]
        numbers = {entry: number for number, entry in enumerate(manifest.files)}
        for entry in sorted(wanted, key=lambda entry: f"/{BLOBS}/" not in entry.path):
            _place(root, root / entry.path, waiting / str(numbers[entry]))
        return Imported(len(wanted), len(manifest.files) - len(wanted), manifest)


def _unpack(parts: list[Path], waiting: Path, on_bytes: OnBytes) -> Manifest:
    with contextlib.closing(_Joined(parts, on_bytes)) as joined:
        contents = read_bundle(cast(BinaryIO, joined))
        manifest = next(contents)
        assert isinstance(manifest, Manifest)
        for number in range(len(manifest.files)):
            with (waiting / str(number)).open("xb") as file:
                for _, chunk in _until_checked(contents):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        for _ in contents:  # the end of the bundle is checked too
            pass
    return manifest


def _until_checked(contents: Iterator[Manifest | tuple[Entry, bytes]]) -> Iterator[tuple[Entry, bytes]]:
    """The pieces of one file; an empty one says that it is whole."""
    for piece in contents:
        assert isinstance(piece, tuple)
        if not piece[1]:
            return
        yield piece


def _check_known(root: Path, manifest: Manifest) -> None:
    for entry in manifest.known:
        path = root / entry.path
        if not path.is_file() or path.stat().st_size < entry.size:
            raise BadBundle(
                f"it builds on {entry.path}, which this spool does not have; import the bundle before it first"
            )


def _is_new(root: Path, entry: Entry, arrived: Path) -> bool:
    """Whether a file must be put into place. Raises BadBundle: the spool has another one there."""
    path = root / entry.path
    if not path.exists():
        return True
    with os.fdopen(open_trusted(path), "rb") as mine, arrived.open("rb") as theirs:
        left = min(os.fstat(mine.fileno()).st_size, entry.size)
        while left:
            chunk = mine.read(min(_CHUNK, left))
            if chunk != theirs.read(len(chunk)) or not chunk:
                raise BadBundle(f"{entry.path} is there with other contents; one of the two is not what was logged")
            left -= len(chunk)
    return path.stat().st_size < entry.size


def _place(root: Path, path: Path, arrived: Path) -> None:
    """Raises UntrustedFile: a link stands where the file's directory must be."""
    _refuse_links(root, path.parent)
    make_directory(path.parent)
    directory = open_directory(path.parent)
    try:
        os.rename(arrived, path.name, dst_dir_fd=directory)
    finally:
        os.close(directory)
    sync_directory(path.parent)


def _refuse_links(root: Path, directory: Path) -> None:
    """Nothing is made behind a link."""
    below = [parent for parent in (directory, *directory.parents) if root in parent.parents]
    for path in below:
        if path.is_symlink():
            raise UntrustedFile("a link where a directory must be", path=path)


# -- receipts -------------------------------------------------------------------------------------------------------------


def read_receipt(path: Path) -> list[Entry]:
    """What has arrived, according to a receipt. Raises BadBundle, OSError."""
    try:
        manifest = Manifest.decoded(path.read_bytes())
    except BadBundle as error:
        raise BadBundle(f"{path} is no receipt: {error.reason}") from error
    return [*manifest.files, *manifest.known]


def write_receipt(manifest: Manifest, path: Path) -> None:
    """List what has arrived, for the next export. Raises OSError."""
    receipt = Manifest((), (*manifest.files, *manifest.known))
    content = json.dumps(json.loads(receipt.encoded()), indent=1)
    path.write_text(content + "\n", encoding="ascii")
