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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from mlferry_agent.bundles import MOST_MANIFEST_BYTES, Entry, Manifest, read_bundle, select_new, write_bundle
from mlferry_agent.carrying.parts import Changed, Parts, Seal, digest_of, part_name
from mlferry_agent.carrying.places import Place
from mlferry_agent.carrying.reading import Joined, Trust, read_small
from mlferry_agent.carrying.signing import SIGNATURE
from mlferry_agent.carrying.unfinished import Unfinished
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

__all__ = ["Exported", "Imported", "export_bundle", "import_bundle", "plan_export", "read_receipt", "write_receipt"]

_CHUNK = 1 << 20

OnBytes = Callable[[int], None]


# -- export ---------------------------------------------------------------------------------------------------------------


def plan_export(root: Path, runs: Iterable[RunLog], known: Iterable[Entry] = ()) -> Manifest:
    """What a bundle of these runs holds, without what receipts say has arrived. Raises SpoolError, OSError."""
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


@dataclass(frozen=True, slots=True)
class Exported:
    """The files of a bundle, and how many of them were there before, from an export that was broken off."""

    places: tuple[Place, ...]
    kept: int = 0


def export_bundle(
    root: Path,
    manifest: Manifest,
    to: Place,
    *,
    split_bytes: int | None = None,
    seal: Seal = Seal(),  # noqa: B008 - it is frozen
    replace: bool = False,
    unfinished: Unfinished | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> Exported:
    """Write a bundle. What is incomplete is taken away again; parts that are complete stay where the medium failed and
    ``unfinished`` knows of them.

    Raises:
        BadBundle: a file changed meanwhile. OSError, PlaceTrouble: something cannot be read or written, or is there already.
    """
    keep = 1 << 30
    while True:
        out = Parts(to, seal, split_bytes, unfinished=unfinished, replace=replace, keep=keep)
        try:
            for count in write_bundle(root, manifest, cast(BinaryIO, out)):
                on_bytes(count)
            out.finish()
        except Changed as changed:
            [keep] = changed.args
            continue
        except BaseException as error:
            out.abort()
            if unfinished is None or _is_of_spool(root, error):
                _take_away(to, out.finished, unfinished)
            raise
        _remove_older(to, out, split=split_bytes is not None, replace=replace)
        return Exported(tuple(out.finished), out.kept)


def _is_of_spool(root: Path, error: BaseException) -> bool:
    """Whether what is to be bundled is not as it was listed; then nothing can go on from here."""
    if isinstance(error, OSError):
        return root in Path(os.fsdecode(error.filename or "")).parents
    return isinstance(error, (BadBundle, SpoolError))


def _take_away(to: Place, finished: Sequence[Place], unfinished: Unfinished | None) -> None:
    ours = list(finished)
    if unfinished is not None:
        ours += [to.beside(made.name) for made in unfinished.parts.values() if digest_of(to.beside(made.name), made)]
        unfinished.end()
    for place in ours:
        place.remove()
        place.beside(place.name + SIGNATURE).remove()


def _remove_older(to: Place, out: Parts, *, split: bool, replace: bool) -> None:
    """What a longer bundle of the same name left behind the parts of this one."""
    number = len(out.finished)
    while split and replace and (place := to.beside(part_name(to.name, number))).exists():
        place.remove()
        place.beside(place.name + SIGNATURE).remove()
        number += 1


# -- import ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: files put into place, files that were there, and the receipt."""

    new: int
    there: int
    receipt: Manifest


def import_bundle(
    root: Path,
    parts: Sequence[Place],
    trust: Trust = Trust(),  # noqa: B008 - it is frozen
    on_bytes: OnBytes = lambda count: None,
) -> Imported:
    """Put what a bundle holds into the spool at ``root``.

    Raises:
        BadBundle: it is damaged or hostile, not signed as it must be, contradicts the spool, or builds on what never came;
            Locked: it is encrypted for others; PlaceTrouble: it cannot be read. Nothing was imported.
        UntrustedFile: a link or somebody else's file stands in this spool where a file of the bundle belongs.
        OSError: the disk.
    """
    with waiting_directory(root) as waiting:
        manifest = _unpack(parts, trust, waiting, on_bytes)
        _check_known(root, manifest)
        wanted = [entry for number, entry in enumerate(manifest.files) if _is_new(root, entry, waiting / str(number))]
        numbers = {entry: number for number, entry in enumerate(manifest.files)}
        for entry in sorted(wanted, key=lambda entry: f"/{BLOBS}/" not in entry.path):
            _place(root, root / entry.path, waiting / str(numbers[entry]))
        return Imported(len(wanted), len(manifest.files) - len(wanted), manifest)


def _unpack(parts: Sequence[Place], trust: Trust, waiting: Path, on_bytes: OnBytes) -> Manifest:
    with contextlib.closing(Joined(parts, trust, on_bytes)) as joined:
        try:
            manifest = _unpacked(cast(BinaryIO, joined), waiting)
        except BadBundle as error:
            if joined.where in error.reason:
                raise
            raise BadBundle(f"{joined.where}: {error.reason}") from error
        joined.finish()
    return manifest


def _unpacked(stream: BinaryIO, waiting: Path) -> Manifest:
    contents = read_bundle(stream)
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


def read_receipt(place: Place, trust: Trust = Trust()) -> list[Entry]:  # noqa: B008 - it is frozen
    """What has arrived, according to a receipt. Raises BadBundle, Locked, OSError, PlaceTrouble."""
    content = read_small(place, MOST_MANIFEST_BYTES, trust)
    try:
        if len(content) > MOST_MANIFEST_BYTES:
            raise BadBundle("it is longer than any")
        manifest = Manifest.decoded(content)
    except BadBundle as error:
        raise BadBundle(f"{place} is no receipt: {error.reason}") from error
    return [*manifest.files, *manifest.known]


def write_receipt(manifest: Manifest, place: Place, seal: Seal = Seal()) -> None:  # noqa: B008 - it is frozen
    """List what has arrived, for the next export; over an older one. Raises OSError, PlaceTrouble."""
    receipt = Manifest((), (*manifest.files, *manifest.known))
    content = json.dumps(json.loads(receipt.encoded()), indent=1) + "\n"
    out = Parts(place, seal, replace=True)
    try:
        out.write(content.encode("ascii"))
        out.finish()
    except BaseException:
        out.abort()
        raise
