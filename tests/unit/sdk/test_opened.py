"""open_artifact: what is written to it is the artifact, without a copy, and whatever becomes of it the training goes on."""

from __future__ import annotations

import gzip
import io
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.spools import only, read_run, told

import mlferry
from mlferry import errors, opened
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.layout import find_run
from mlferry_spool.records import Artifact

STATE = {"weights": torch.arange(5_000_000, dtype=torch.float32), "steps": 7}


def files(spool: Path, run: mlferry.Run) -> list[Path]:
    """What lies in the run's blobs, whatever it is called."""
    directory = find_run(spool, run.info.run_id)
    assert directory is not None
    return sorted((directory / "blobs").iterdir())


def test_what_torch_saves_is_the_artifact(spool: Path) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("checkpoints/1.pt") as file:
        torch.save(STATE, file)
    loaded = torch.load(io.BytesIO(told(spool, run.info.run_id).artifacts["checkpoints/1.pt"]))
    assert loaded["steps"] == 7
    assert torch.equal(loaded["weights"], STATE["weights"])


def save_zip(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"a" * 100_000)
        with archive.open("b", "w") as member:
            member.write(b"b" * 3_000_000)


def save_gzip(file: IO[bytes]) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(os.urandom(10) * 1000)


def save_text(file: IO[bytes]) -> None:
    with io.TextIOWrapper(file, encoding="utf-8") as text:
        text.write("größe\n")


@pytest.mark.parametrize(
    ("save", "load"),
    [
        (lambda file: np.savez(file, a=np.arange(3_000_000)), lambda file: np.load(file)["a"][-1] == 2_999_999),
        (lambda file: np.save(file, np.arange(3_000_000)), lambda file: np.load(file)[-1] == 2_999_999),
        (save_zip, lambda file: zipfile.ZipFile(file).testzip() is None),
        (save_gzip, lambda file: len(gzip.GzipFile(fileobj=file).read()) == 10_000),
        (save_text, lambda file: file.read().decode() == "größe\n"),
        (lambda file: None, lambda file: file.read() == b""),
    ],
    ids=["numpy archive", "numpy array", "zip", "gzip", "text", "nothing"],
)
def test_whoever_writes_to_a_file_may_write_to_an_artifact(
    spool: Path, save: Callable[[IO[bytes]], None], load: Callable[[IO[bytes]], Any]
) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("a") as file:
        save(file)
    assert load(io.BytesIO(told(spool, run.info.run_id).artifacts["a"]))


STEPS = st.one_of(
    st.tuples(st.just("write"), st.binary(max_size=300)),
    st.tuples(st.just("seek"), st.integers(0, 2000)),
    st.tuples(st.just("seek back"), st.integers(0, 50)),
    st.tuples(st.just("seek end"), st.just(0)),
    st.tuples(st.just("truncate"), st.integers(0, 2000)),
)


def do(file: IO[bytes], step: str, argument: Any) -> tuple[int, int]:
    if step == "seek back":
        return file.seek(max(file.tell() - argument, 0)), file.tell()
    if step == "seek end":
        return file.seek(argument, os.SEEK_END), file.tell()
    return getattr(file, step)(argument), file.tell()


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Blobs:
    return Blobs(tmp_path_factory.mktemp("run"), durable=False)


@given(steps=st.lists(STEPS, max_size=30), buffer=st.sampled_from([64, opened._BUFFER_BYTES]))
def test_an_artifact_ends_as_a_plain_file_would(blobs: Blobs, steps: list[tuple[str, Any]], buffer: int) -> None:
    found: list[Blob] = []
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryFile() as plain:
        patched.setattr(opened, "_BUFFER_BYTES", buffer)
        with opened.written(blobs, "a", lambda _, blob: found.append(blob), pytest.fail) as file:
            for step, argument in steps:
                assert do(file, step, argument) == do(plain, step, argument)
        plain.seek(0)
        assert blobs.path(found[0].sha256).read_bytes() == plain.read()


def test_the_bytes_stay_where_they_were_written(spool: Path) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("a") as file:
        file.write(b"x" * 3_000_000)
        [temporary] = files(spool, run)
        inode = temporary.stat().st_ino
        assert not only(Artifact, read_run(spool, run.info.run_id))
    [blob] = files(spool, run)
    assert (blob.stat().st_ino, blob.name[0] != ".") == (inode, True)
    [record] = only(Artifact, read_run(spool, run.info.run_id))
    assert (record.path, record.sha256.hex(), record.size) == ("a", blob.name, 3_000_000)


def test_what_has_not_changed_is_stored_once(spool: Path) -> None:
    with mlferry.start_run() as run:
        for epoch in range(3):
            with mlferry.open_artifact(f"{epoch}.pt") as file:
                torch.save(STATE, file)
        assert len(files(spool, run)) == 1
        mlferry.log_text("as a text", "a.txt")
        with mlferry.open_artifact("b.txt") as file:
            file.write(b"as a text")
    assert len(files(spool, run)) == 2
    assert sorted(told(spool, run.info.run_id).artifacts) == ["0.pt", "1.pt", "2.pt", "a.txt", "b.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=repr)
def test_an_exception_leaves_nothing_behind_and_goes_on(spool: Path, error: BaseException) -> None:
    with mlferry.start_run() as run:
        with pytest.raises(type(error)) as caught, mlferry.open_artifact("a") as file:
            file.write(b"x" * 40_000_000)
            raise error
        assert caught.value is error
        assert files(spool, run) == []
    found = told(spool, run.info.run_id)
    assert (found.artifacts, found.dropped) == ({}, 0)


def test_after_its_block_an_artifact_is_closed(spool: Path) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("a") as file:
        assert (file.writable(), file.seekable(), file.readable()) == (True, True, False)
        with pytest.raises(OSError, match="fileno"):
            file.fileno()
        file.write(b"in time")
    with pytest.raises(ValueError, match="closed"):
        file.write(b"too late")
    assert told(spool, run.info.run_id).artifacts == {"a": b"in time"}


def test_a_file_closed_by_who_wrote_it_is_an_artifact_all_the_same(spool: Path) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("a") as file:
        file.write(b"all of it")
        file.close()
    assert told(spool, run.info.run_id).artifacts == {"a": b"all of it"}


@pytest.mark.parametrize("mode", ["w", "wt", "rb", "ab", "w+b", "xb", ""])
def test_a_mode_that_is_not_for_new_bytes_is_a_mistake(spool: Path, mode: str) -> None:
    with mlferry.start_run(), pytest.raises(errors.BadMode, match="TextIOWrapper"):
        mlferry.open_artifact("a", mode)


def test_a_name_that_is_none_costs_the_artifact_and_not_the_training(spool: Path) -> None:
    with mlferry.start_run() as run, mlferry.open_artifact("../a") as file:
        torch.save(STATE, file)
        position = file.tell()
    assert position > 20_000_000
    found = told(spool, run.info.run_id)
    assert (found.artifacts, found.dropped) == ({}, 1)


def test_a_name_that_is_none_is_raised_before_anything_is_written(raising: Path) -> None:
    with mlferry.start_run() as run, pytest.raises(errors.BadArtifactPath), mlferry.open_artifact("../a"):
        pytest.fail("the block is not entered")
    assert told(raising, run.info.run_id).dropped == 1


def test_a_directory_that_cannot_be_made_costs_the_artifact_and_not_the_training(
    spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mlferry.start_run() as run, caplog.at_level(logging.WARNING, "mlferry"):
        (run.directory / "blobs").write_text("a file stands here")
        with mlferry.open_artifact("a") as file:
            torch.save(STATE, file)
        mlferry.log_metric("still", 1.0)
    found = told(spool, run.info.run_id)
    assert (found.artifacts, found.dropped, len(found.points)) == ({}, 1, 1)
    assert "The artifact could not be made" in caplog.text
