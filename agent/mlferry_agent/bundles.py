"""A spool in one file that crosses the air gap: written from the spool's files, read back byte by byte against its own list.

The form. A zstd-compressed tar, so that any machine can look inside: first ``mlferry-bundle.json``, the manifest, which
lists each file with its path in the spool, its size and SHA-256; then the files in that order, as ``data/000000`` and so on;
last ``mlferry-bundle.sha256``, the manifest's own digest. Names of the archive mean nothing: a path is taken from the
manifest, and only if it is one that a spool has.

Reading trusts nothing. With the manifest every further byte of the archive is known but for the contents, so a header is not
interpreted but compared with the one that must stand there, and contents are hashed as they pass. A bundle that is cut,
damaged or made by somebody else's hand is refused with the place named.

A log that is still being written is taken as far as it reached when it was listed: logs only grow, so any beginning of one
is a valid log.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from mlferry_agent.errors import BadBundle
from mlferry_spool.layout import BLOBS, is_name, run_id_of, segment_offset
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.trust import open_trusted

__all__ = ["MOST_MANIFEST_BYTES", "Entry", "Manifest", "is_spool_path", "read_bundle", "select_new", "write_bundle"]

_FORMAT = 1
_MANIFEST, _DIGEST = "mlferry-bundle.json", "mlferry-bundle.sha256"
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20

#: A manifest has about 200 bytes a file; this is more than half a million files.
#: Beyond: `BadBundle` before it is read; nothing is imported. Export such a spool in several bundles.
#: Test: tests/unit/agent/test_bundles.py::test_a_manifest_that_claims_more_than_any_has_is_refused_before_it_is_read
MOST_MANIFEST_BYTES = 128 << 20

#: No entry of a manifest is shorter (its digest and the names of its fields alone are longer), and none has more of the
#: characters that make objects of a few bytes: what is denser than this is refused before JSON makes gigabytes of it.
#: Beyond: `BadBundle`; nothing is imported.
#: Test: tests/fuzz/test_agent_fuzz.py::test_a_bundle_that_is_a_bomb_is_refused_before_it_goes_off
_LEAST_ENTRY_BYTES, _COMMAS_AN_ENTRY = 100, 3

#: A petabyte: sizes are added up, and no blob comes near.
#: Beyond: `BadBundle`; nothing is imported.
#: Test: tests/unit/agent/test_limits.py::test_a_manifest_may_claim_a_petabyte_for_a_file_and_no_more
_MOST_FILE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a spool: its path there (``/`` between parts), its size in bytes, and the SHA-256 of them in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle brings (``files``), and what it builds on and leaves out, since a receipt says it has arrived."""

    files: tuple[Entry, ...]
    known: tuple[Entry, ...] = field(default=())

    def encoded(self) -> bytes:
        listed = {name: [asdict(entry) for entry in entries] for name, entries in _lists(self)}
        return json.dumps({"format": _FORMAT, **listed}, indent=0, ensure_ascii=True).encode()

    @classmethod
    def decoded(cls, content: bytes) -> Manifest:
        """Raises BadBundle."""
        entries = 2 + len(content) // _LEAST_ENTRY_BYTES
        if content.count(b",") > _COMMAS_AN_ENTRY * entries or content.count(b"{") + content.count(b"[") > 3 + entries:
            raise BadBundle("its manifest is none: too many values for its size")
        try:
            found = json.loads(content)
            if found["format"] != _FORMAT:
                raise BadBundle(f"its format is {found['format']!r:.20}, this mlferry reads {_FORMAT}")
            manifest = cls(*(tuple(map(_entry, found[name])) for name in ("files", "known")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadBundle(f"its manifest is none: {type(error).__name__}") from error
        if len({entry.path for entry in manifest.files}) != len(manifest.files):
            raise BadBundle("its manifest names a file twice")
        return manifest


def _lists(manifest: Manifest) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    yield "files", manifest.files
    yield "known", manifest.known


def _entry(found: Any) -> Entry:
    path, size, sha256 = found["path"], found["size"], found["sha256"]
    if type(path) is not str or not is_spool_path(path):
        raise BadBundle(f"its manifest names {path!r:.200}, which is no place in a spool")
    most = MAX_SEGMENT_BYTES if path.endswith(".seg") else _MOST_FILE_BYTES
    if type(size) is not int or not 0 <= size <= most:
        raise BadBundle(f"{path}: it claims {size!r:.40} bytes")
    if type(sha256) is not str or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise BadBundle(f"{path}: its digest is none")
    return Entry(path, size, sha256)


def is_spool_path(path: str) -> bool:
    """Whether a path is that of a segment or a blob in a spool; nothing else is ever carried."""
    parts = path.split("/")
    if len(parts) == 4 and parts[0] == "runs" and run_id_of(parts[1]) is not None:
        parts = parts[2:]
    elif len(parts) == 3 and parts[0] == "store":
        parts = parts[1:]
    else:
        return False
    directory, name = parts
    if directory == BLOBS:
        return len(name) == 64 and not set(name) - set("0123456789abcdef")
    return is_name(directory) and segment_offset(name) is not None


# -- writing --------------------------------------------------------------------------------------------------------------


def write_bundle(root: Path, manifest: Manifest, out: BinaryIO) -> Iterator[int]:
    """Write a bundle of files below ``root``; yields bytes as they are read.

    Raises:
        BadBundle: a file is no longer what was listed. UntrustedFile: it is no plain file of the spool's own any more.
        OSError: it cannot be read, or ``out`` not be written.
    """
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with compressor.stream_writer(out, closefd=False) as sink:
        listed = manifest.encoded()
        sink.write(_header(_MANIFEST, len(listed)) + listed + _padding(len(listed)))
        for number, entry in enumerate(manifest.files):
            sink.write(_header(f"data/{number:06d}", entry.size))
            for chunk in _prefix(root / entry.path, entry):
                sink.write(chunk)
                yield len(chunk)
            sink.write(_padding(entry.size))
        sink.write(_header(_DIGEST, 64) + hashlib.sha256(listed).hexdigest().encode() + _padding(64))
        sink.write(bytes(2 * _BLOCK))


def _prefix(path: Path, entry: Entry) -> Iterator[bytes]:
    sha256, left = hashlib.sha256(), entry.size
    with os.fdopen(open_trusted(path), "rb") as file:
        while left and (chunk := file.read(min(_CHUNK, left))):
            sha256.update(chunk)
            left -= len(chunk)
            yield chunk
    if left or sha256.hexdigest() != entry.sha256:
        raise BadBundle(f"{entry.path} changed while it was bundled; export again")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


# -- reading --------------------------------------------------------------------------------------------------------------


class _Source:
    """The bytes of an archive, in order; each read is whole or refused."""

    def __init__(self, stream: BinaryIO) -> None:
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            stream, read_across_frames=True
        )

    def read(self, size: int, where: str) -> bytes:
        parts: list[bytes] = []
        left = size
        try:
            while left and (chunk := self._reader.read(left)):
                parts.append(chunk)
                left -= len(chunk)
        except zstandard.ZstdError as error:
            raise BadBundle(f"{where}: it is damaged, or no bundle ({error})") from error
        if left:
            raise BadBundle(f"{where}: it ends here, {left} bytes too early")
        return b"".join(parts)


def _read_manifest(source: _Source) -> bytes:
    """Raises BadBundle."""
    block = source.read(_BLOCK, "its first block")
    try:
        size = int(block[124:136].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise BadBundle("it does not begin as a bundle does") from None
    if size > MOST_MANIFEST_BYTES or block != _header(_MANIFEST, size):
        raise BadBundle("it does not begin as a bundle does")
    content = source.read(size, "its manifest")
    source.read(len(_padding(size)), "its manifest")
    return content


def read_bundle(stream: BinaryIO) -> Iterator[Manifest | tuple[Entry, bytes]]:
    """The manifest first; then each file's contents, in pieces, and at the end of each an empty one: it was checked.

    Raises:
        BadBundle: with the place in it. What came before the last empty piece of a file is good, the rest is not.
    """
    source = _Source(stream)
    listed = _read_manifest(source)
    manifest = Manifest.decoded(listed)
    yield manifest
    for number, entry in enumerate(manifest.files):
        header = _header(f"data/{number:06d}", entry.size)
        if source.read(len(header), entry.path) != header:
            raise BadBundle(f"{entry.path}: another file stands in its place")
        sha256, left = hashlib.sha256(), entry.size
        while left:
            chunk = source.read(min(_CHUNK, left), entry.path)
            sha256.update(chunk)
            left -= len(chunk)
            yield entry, chunk
        if sha256.hexdigest() != entry.sha256:
            raise BadBundle(f"{entry.path}: its bytes are not those that were bundled")
        if any(source.read(len(_padding(entry.size)), entry.path)):
            raise BadBundle(f"{entry.path}: something stands behind it")
        yield entry, b""
    end = _header(_DIGEST, 64) + hashlib.sha256(listed).hexdigest().encode() + _padding(64) + bytes(2 * _BLOCK)
    if source.read(len(end), "its end") != end:
        raise BadBundle("its end: its manifest is not the one that was bundled")


def select_new(files: Iterable[Entry], known: Iterable[Entry]) -> Manifest:
    """What must be carried, given what receipts say has arrived."""
    arrived = set(known)
    listed = list(files)
    return Manifest(
        tuple(entry for entry in listed if entry not in arrived), tuple(entry for entry in listed if entry in arrived)
    )
