"""One log of an import: opened with its first record, and never silent about a disk that takes no more.

A writer that logs a training counts what the disk refuses and goes on; an import stops, and leaves nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

from mlferry_agent.errors import FileTrouble
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.errors import RecordTooLarge, Unencodable
from mlferry_spool.introductions import now_ms
from mlferry_spool.layout import writer_name
from mlferry_spool.records import Open, Record
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer

__all__ = ["ImportLog", "batches"]

_TOO_LARGE = "texts that no record can hold"

#: What is written is made durable once, before it is put into its place.
_SETTINGS = Settings(fsync=Fsync.NEVER)


class ImportLog:
    """Records and files of one run (or of the store) below a waiting directory.

    Args:
        opening: makes the OPEN record, given the writer's id.
        left_out: where it is counted that a record cannot be written.
    """

    def __init__(self, directory: Path, opening: Callable[[str], Open], left_out: Counter[str]) -> None:
        self.blobs = Blobs(directory, durable=False)
        self._directory = directory
        self._opening = opening
        self._left_out = left_out
        self._writer: Writer | None = None

    @property
    def was_written(self) -> bool:
        return self._writer is not None

    def open(self) -> Writer:
        """Raises FileTrouble: the disk takes nothing."""
        if self._writer is None:
            writer_id = writer_name(now_ms(), None, f"import-{os.urandom(6).hex()}")
            self._writer = Writer(self._directory, self._opening(writer_id), _SETTINGS)
        return self._writer

    def put(self, record: Record) -> bool:
        """Write a record; False: no record can hold it, which was counted. Raises FileTrouble: the disk takes no more."""
        try:
            self._keep(record)
        except (RecordTooLarge, Unencodable):
            self._left_out[_TOO_LARGE] += 1
            return False
        return True

    def _keep(self, record: Record) -> None:
        if not self.open().put(record):
            raise FileTrouble(f"{self._directory}: the disk takes no more")

    def put_texts(self, make: Callable[[dict[str, str]], Record], texts: Mapping[str, str]) -> None:
        """Write texts, some a record; one that fits into none stops only itself. Raises as ``put``."""
        for batch in batches(texts.items(), 25):
            try:
                self._keep(make(dict(batch)))
            except (RecordTooLarge, Unencodable):
                for key, value in batch:
                    self.put(make({key: value}))

    def put_text_blob(self, text: str) -> Blob:
        return self.blobs.put_bytes(text.encode())

    def close(self, *last_words: Record) -> None:
        """Raises FileTrouble: something was not stored."""
        if self._writer is None:
            return
        self._writer.close(*last_words)
        if self._writer.dropped:
            raise FileTrouble(f"{self._directory}: the disk takes no more")

    def abandon(self) -> None:
        """Let go of the files: what was written is not wanted."""
        if self._writer is not None:
            self._writer.close()


def batches(items: Iterable[tuple[str, str]], size: int) -> Iterable[list[tuple[str, str]]]:
    """At most ``size`` at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
