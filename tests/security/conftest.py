"""What the tests of hostile input share: a spool with a secret beside it, and another user to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.frames import encode, preamble
from mlferry_spool.layout import segment_name

REPOSITORY = Path(__file__).parents[2]
RUN = "20260101T000000-r1"

#: A user that owns nothing here.
NOBODY = 65534

Program = Callable[..., "subprocess.CompletedProcess[str]"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@dataclass(frozen=True, slots=True)
class Spool:
    """A spool with one run of one writer, one segment and one blob."""

    root: Path
    content: bytes
    blob: Blob

    @property
    def run(self) -> Path:
        return self.root / "runs" / RUN

    @property
    def writer(self) -> Path:
        return self.run / "w1"

    @property
    def segment(self) -> Path:
        return self.writer / segment_name(0)

    @property
    def blob_path(self) -> Path:
        return Blobs(self.run).path(self.blob.sha256)


def a_spool(root: Path, content: bytes) -> Spool:
    """A spool whose one record, and whose one blob, is ``content``."""
    (root / "runs" / RUN / "w1").mkdir(parents=True)
    made = Spool(root, content, Blobs(root / "runs" / RUN).put_bytes(content))
    made.segment.write_bytes(preamble(7) + encode(6, 0, content, 7))
    return made


@pytest.fixture
def mine(tmp_path: Path) -> Spool:
    """The spool that is read."""
    return a_spool(tmp_path / "mine", b"harmless")


@pytest.fixture
def theirs(tmp_path: Path) -> Spool:
    """Of the same shape and at another place: what nobody who reads ``mine`` may be made to read."""
    return a_spool(tmp_path / "theirs", b"a secret")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter and write to, with the sticky bit: what ``/tmp`` is."""
    path = Path(tempfile.mkdtemp(prefix="mlferry-public-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def program() -> Program:
    """Runs Python source in a process of its own, where mlferry can be imported."""

    def run(source: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(str(REPOSITORY / root) for root in ("spool", "sdk", "agent"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLF", "SLURM"))}
        command = [sys.executable, "-c", source, *words]
        told = {**kept, "PYTHONPATH": paths, **environ}
        return subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, check=False)

    return run
