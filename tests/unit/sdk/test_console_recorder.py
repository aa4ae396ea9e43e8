"""The recorder: from what is printed to artifacts in a spool, whatever the disk does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.spools import only, read_run, read_writers

from mlferry.console import recorder as module
from mlferry.console.recorder import Recorder
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.layout import new_run_directory
from mlferry_spool.records import Artifact, Dropped, Open, RunEnd
from mlferry_spool.settings import Fsync

RUN = "r" * 32


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return new_run_directory(tmp_path, RUN, 1_700_000_000_000)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(directory: Path, said: list[str]) -> Iterator[Recorder]:
    yield Recorder(directory, Open("w1", run_id=RUN), "console/1", Fsync.NEVER, said.append)


def kept(root: Path) -> dict[str, bytes]:
    """The artifacts as they are in the end."""
    files = only(Artifact, read_run(root, RUN))
    directory = next((root / "runs").iterdir())
    return {file.path: Blobs(directory).path(file.sha256).read_bytes() for file in files}


def test_what_is_printed_is_an_artifact_that_grows(recorder: Recorder, tmp_path: Path) -> None:
    recorder.feed("1", b"epoch 1\n")
    while kept(tmp_path) != {"console/1/0001.log": b"epoch 1\n"}:
        time.sleep(0.01)
    recorder.feed("1", b"epoch 2\n10%")
    recorder.close()
    assert kept(tmp_path) == {"console/1/0001.log": b"epoch 1\nepoch 2\n10%\n"}


def test_its_log_is_a_helpers_and_names_no_end(recorder: Recorder, tmp_path: Path) -> None:
    recorder.close()
    [records] = read_writers(tmp_path, RUN).values()
    assert only(Open, records)[0].role == "helper"
    assert only(RunEnd, records) == []


def test_a_disk_that_takes_nothing_is_said_once_and_tried_again(
    recorder: Recorder, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Blobs, data: bytes) -> Blob:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Blobs, "put_bytes", full)
        recorder.feed("1", b"lost for now\n")
        while not said:
            time.sleep(0.01)
    recorder.feed("1", b"there again\n")
    recorder.close()
    assert kept(tmp_path) == {"console/1/0001.log": b"lost for now\nthere again\n"}
    assert "No space left" in said[0]
    assert "No space left" in only(Dropped, read_run(tmp_path, RUN))[0].reason


def test_what_comes_faster_than_the_disk_takes_it_is_counted(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 100)
    stuck, goes_on, put = threading.Event(), threading.Event(), Blobs.put_bytes

    def slow(self: Blobs, data: bytes) -> Blob:
        stuck.set()
        assert goes_on.wait(60)
        return put(self, data)

    monkeypatch.setattr(Blobs, "put_bytes", slow)
    recorder.feed("1", b"first\n")
    assert stuck.wait(60)
    for _ in range(3):
        recorder.feed("1", b"x" * 49 + b"\n")
    goes_on.set()
    recorder.close()
    [content] = kept(tmp_path).values()
    assert content.count(b"x") == 98
    assert b"[mlferry: 50 bytes were not kept" in content
