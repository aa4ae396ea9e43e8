"""Errors of the spool. Each docstring is what the operator reads: what happened, what was kept, what to do."""

from __future__ import annotations

import os


class SpoolError(Exception):
    """Something is wrong with the spool. Nothing was deleted."""

    def __init__(self, detail: str = "", *, path: str | os.PathLike[str] | None = None, at: int | None = None) -> None:
        self.detail = detail
        self.path = None if path is None else os.fspath(path)
        self.at = at
        super().__init__(self._message())

    def _message(self) -> str:
        says = " ".join((type(self).__doc__ or "").split())
        place = "" if self.path is None else f" [{self.path}{'' if self.at is None else f' at byte {self.at}'}]"
        return f"{says}{place}{f' ({self.detail})' if self.detail else ''}"


class CorruptSegment(SpoolError):
    """The file is not a segment, or its preamble is damaged beyond repair. It was kept as it is and everything else
    goes on; restore it from a copy, or look at it with `mlferry dump`."""


class CorruptRecord(SpoolError):
    """A frame is intact but what it holds is not a record of its kind. It was kept and skipped; this is a defect of
    the program that wrote it, look at it with `mlferry dump`."""


class UnsupportedVersion(SpoolError):
    """The segment was written by a newer mlferry. Nothing is wrong with it and nothing was skipped; upgrade mlferry
    on this machine and it will be delivered."""


class UnsupportedKind(SpoolError):
    """The segment holds a kind of record that this mlferry does not know and must not skip. It waits, undamaged;
    upgrade mlferry on this machine and it will be delivered."""


class UntrustedFile(SpoolError):
    """A file in the spool is not a plain file of the spool's own user (a link, a pipe, somebody else's file). It was
    not opened further; look who put it there."""


class RecordTooLarge(SpoolError):
    """One record is larger than a frame may be, or holds more values. It was not written; log it as an artifact instead."""


class Unencodable(SpoolError):
    """A value cannot be stored: it is not a number, a text, or has characters that UTF-8 does not have. It was not
    written; convert it before you log it."""


class BlobMismatch(SpoolError):
    """A blob's bytes do not have the digest in its name: the file has rotted or was changed. It is never uploaded;
    it was kept, restore it from a copy or drop the artifact."""
