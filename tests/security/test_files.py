"""Files that somebody else has put into a spool: none is read, none is waited for, none is read to its claimed end."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.security.conftest import NOBODY, Spool, needs_root

from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.discovery import discover
from mlferry_agent.errors import BadBundle, UnreadableFile
from mlferry_agent.feeds import read_blob
from mlferry_agent.ferrying import export_bundle, import_bundle, plan_export
from mlferry_agent.requests import put_artifact
from mlferry_agent.transport import Transport
from mlferry_agent.uploads import open_blob
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.codec import pack
from mlferry_spool.dump import dump_segment
from mlferry_spool.errors import BlobMismatch, UntrustedFile
from mlferry_spool.frames import encode, preamble
from mlferry_spool.layout import run_directories, writer_directories
from mlferry_spool.limits import MAX_SEGMENT_BYTES
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Artifact, Kind
from mlferry_spool.tailer import Entry
from mlferry_spool.trust import open_trusted

LINKED = ["runs", "run", "writer", "segment"]


def place(spool: Spool, what: str) -> Path:
    return spool.root / "runs" if what == "runs" else getattr(spool, what)


def swap(mine: Path, theirs: Path) -> None:
    mine.rename(mine.with_name(f"{mine.name}.old"))
    mine.symlink_to(theirs)


def read(spool: Spool) -> list[bytes]:
    return [event.payload for event in LogReader(spool.writer).read() if isinstance(event, Entry)]


# -- links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", LINKED)
def test_a_link_at_any_step_to_a_log_is_refused(mine: Spool, theirs: Spool, what: str) -> None:
    assert read(mine) == [b"harmless"]
    swap(place(mine, what), place(theirs, what))
    with pytest.raises(UntrustedFile):
        LogReader(mine.writer).read()
    with pytest.raises(UntrustedFile):
        list(dump_segment(mine.segment))


@pytest.mark.parametrize("what", ["runs", "run", "blobs", "blob"])
def test_a_link_at_any_step_to_a_blob_is_refused(mine: Spool, theirs: Spool, what: str) -> None:
    places = {"runs": mine.root / "runs", "run": mine.run, "blobs": mine.run / "blobs", "blob": mine.blob_path}
    path = mine.run / "blobs" / theirs.blob.sha256.hex()
    if what == "blob":
        path.symlink_to(theirs.blob_path)
    else:
        swap(places[what], theirs.root / places[what].relative_to(mine.root))
    with pytest.raises(UntrustedFile):
        open_blob(path, theirs.blob)
    with pytest.raises(UntrustedFile):
        read_blob(Blobs(mine.run), theirs.blob.sha256, 100)


def test_links_are_not_listed_as_runs_or_writers(mine: Spool, theirs: Spool) -> None:
    (mine.root / "runs" / "20260101T000000-r2").symlink_to(theirs.run)
    (mine.run / "w2").symlink_to(theirs.writer)
    assert [path.name for path in run_directories(mine.root)] == [mine.run.name]
    assert [path.name for path in writer_directories(mine.run)] == ["w1"]


def test_the_root_itself_may_be_a_link_since_its_user_named_it(mine: Spool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(mine.root)
    assert [
        event.payload for event in LogReader(tmp_path / "elsewhere" / mine.writer.relative_to(mine.root)).read()
    ] == [b"harmless"]  # type: ignore[union-attr]


class SwappedBefore:
    """``os.open`` that exchanges a name for a link just before the given call, as a fast attacker would."""

    def __init__(self, number: int, swap: Callable[[], None]) -> None:
        self.left, self.swap, self.real = number, swap, os.open

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        if not self.left:
            self.swap()
        self.left -= 1
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("what", LINKED)
def test_a_link_that_is_put_there_between_any_two_steps_is_never_followed(
    mine: Spool, theirs: Spool, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    opens = SwappedBefore(number, lambda: swap(place(mine, what), place(theirs, what)))
    monkeypatch.setattr(os, "open", opens)
    try:
        fd = open_trusted(mine.segment)
    except UntrustedFile:
        return
    finally:
        monkeypatch.undo()
    with os.fdopen(fd, "rb") as file:
        assert b"harmless" in file.read()
    assert opens.left < 0 or number == 5, "the attack came too late to be one"


def test_names_that_change_all_the_time_never_lead_to_another_spool(mine: Spool, theirs: Spool) -> None:
    stop = threading.Event()

    def juggle() -> None:
        real, aside = mine.run, mine.run.with_name("aside")
        while not stop.is_set():
            real.rename(aside)
            real.symlink_to(theirs.run)
            real.unlink()
            aside.rename(real)

    juggler = threading.Thread(target=juggle)
    juggler.start()
    seen: list[bytes] = []
    try:
        began = time.monotonic()
        # On a busy machine the reader may find nothing in its place for a while.
        while (waited := time.monotonic() - began) < 0.5 or (not seen and waited < 60):
            try:
                seen += read(mine)
            except (UntrustedFile, FileNotFoundError):
                continue
    finally:
        stop.set()
        juggler.join()
    assert set(seen) == {b"harmless"}


async def test_what_was_checked_is_what_is_sent(mine: Spool, theirs: Spool) -> None:
    """What is digested and sent is an open file, not a name."""
    with open_blob(mine.blob_path, mine.blob) as file:
        swap(mine.blob_path, theirs.blob_path)
        assert file.read() == b"harmless"
    mine.blob_path.unlink()
    mine.blob_path.write_bytes(b"harmless")
    with open_blob(mine.blob_path, mine.blob) as file:
        mine.blob_path.write_bytes(b"harmful!")
        assert file.read(7) == b"harmful"
        with pytest.raises(BlobMismatch):
            file.read(1)


# -- what is no plain file ------------------------------------------------------------------------------------------------


def hard_link(path: Path, theirs: Path) -> None:
    path.hardlink_to(theirs)


def pipe(path: Path, theirs: Path) -> None:
    os.mkfifo(path)


def directory(path: Path, theirs: Path) -> None:
    path.mkdir()


def device(path: Path, theirs: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero has no end


MAKERS = [hard_link, pipe, directory, pytest.param(device, marks=needs_root)]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_plain_file_of_its_own_is_refused_at_once(
    mine: Spool, theirs: Spool, make: Callable[[Path, Path], None]
) -> None:
    mine.segment.unlink()
    make(mine.segment, theirs.segment)
    path = mine.run / "blobs" / theirs.blob.sha256.hex()
    make(path, theirs.blob_path)
    before, began = len(os.listdir("/proc/self/fd")), time.monotonic()
    with pytest.raises(UntrustedFile):
        LogReader(mine.writer).read()
    with pytest.raises(UntrustedFile):
        list(dump_segment(mine.segment))
    with pytest.raises(UntrustedFile):
        open_blob(path, theirs.blob)
    with pytest.raises(UntrustedFile):
        plan_export(mine.root, discover(mine.root))
    assert time.monotonic() - began < 5
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_pipe_given_to_upload_does_not_stop_the_agent(tmp_path: Path) -> None:
    from mlferry_agent.credentials import Destination

    os.mkfifo(tmp_path / "pipe")
    async with Transport(Destination("http://127.0.0.1:1")) as transport:
        with pytest.raises(UnreadableFile, match="not a regular file"):
            await transport.upload(put_artifact("mlflow-artifacts:/0/r/artifacts", "f"), tmp_path / "pipe", 5)


# -- sizes that are not true ----------------------------------------------------------------------------------------------


def test_a_sparse_terabyte_is_neither_read_nor_bundled_nor_dumped_to_its_end(mine: Spool, tmp_path: Path) -> None:
    os.truncate(mine.segment, 1 << 40)
    reader = LogReader(mine.writer)
    assert [event.payload for event in reader.read()] == [b"harmless"]  # type: ignore[union-attr]
    assert reader.read() == []
    assert reader.pending_bytes() < MAX_SEGMENT_BYTES
    assert list(dump_segment(mine.segment))[-1]["torn"] < MAX_SEGMENT_BYTES
    manifest = plan_export(mine.root, discover(mine.root))
    assert [entry.size for entry in manifest.files] == [MAX_SEGMENT_BYTES]
    [made] = export_bundle(mine.root, manifest, LocalPlace(tmp_path / "bundle")).places
    import_bundle(tmp_path / "outside", [made])


def test_a_blob_that_claims_a_terabyte_is_not_hashed(mine: Spool) -> None:
    os.truncate(mine.blob_path, 1 << 40)
    began = time.monotonic()
    with pytest.raises(BlobMismatch):
        open_blob(mine.blob_path, mine.blob)
    with pytest.raises(BlobMismatch):
        read_blob(Blobs(mine.run), mine.blob.sha256, 1 << 20)
    assert time.monotonic() - began < 5


def test_a_blob_that_shrinks_while_it_is_sent_is_broken_off_not_padded(mine: Spool) -> None:
    with open_blob(mine.blob_path, mine.blob) as file:
        os.truncate(mine.blob_path, 3)
        from mlferry_agent.transport import _FileBody

        body = _FileBody(file, mine.blob.size)
        assert body._read_at(0) == b"har"
        assert body._read_at(3) == b""


# -- other users ----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("what", ["run", "writer", "segment"])
def test_what_another_user_has_put_into_a_spool_is_refused(mine: Spool, what: str) -> None:
    os.chown(place(mine, what), NOBODY, -1)
    with pytest.raises(UntrustedFile, match="another owner"):
        LogReader(mine.writer).read()


@needs_root
def test_a_run_that_another_user_has_put_beside_ours_stops_only_itself(mine: Spool, theirs: Spool) -> None:
    run = mine.root / "runs" / "20260101T000001-r2"
    shutil.copytree(theirs.run, run)
    for path in (run, *run.rglob("*")):
        os.chown(path, NOBODY, -1)
    assert read(mine) == [b"harmless"]
    with pytest.raises(UntrustedFile, match="another owner"):
        LogReader(run / "w1").read()


@needs_root
def test_a_whole_spool_of_one_other_user_is_read_where_it_was_asked_for(mine: Spool) -> None:
    for path in (mine.root, *mine.root.rglob("*")):
        os.chown(path, NOBODY, -1)
    assert read(mine) == [b"harmless"]


# -- bundles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["runs", "run", "writer"])
def test_a_bundle_is_not_imported_through_a_link(mine: Spool, tmp_path: Path, what: str) -> None:
    [bundle] = export_bundle(
        mine.root, plan_export(mine.root, discover(mine.root)), LocalPlace(tmp_path / "bundle")
    ).places
    outside, victim = Spool(tmp_path / "outside", b"", mine.blob), tmp_path / "victim"
    victim.mkdir()
    place(outside, what).parent.mkdir(parents=True, exist_ok=True)
    place(outside, what).symlink_to(victim)
    with pytest.raises(UntrustedFile):
        import_bundle(outside.root, [bundle])
    assert list(victim.iterdir()) == []
    assert not list(outside.root.glob(".import-*"))


def test_a_blob_that_is_not_what_its_name_says_does_not_leave_in_a_bundle(mine: Spool, tmp_path: Path) -> None:
    record = Artifact(1, "model.pt", mine.blob.sha256, mine.blob.size)
    mine.segment.write_bytes(preamble(7) + encode(Kind.ARTIFACT, 0, pack(record), 7))
    manifest = plan_export(mine.root, discover(mine.root))
    mine.blob_path.write_bytes(b"a secret")  # of the same size
    with pytest.raises(BadBundle, match="changed while it was bundled"):
        export_bundle(mine.root, manifest, LocalPlace(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    mine.blob_path.unlink()
    mine.blob_path.symlink_to(tmp_path)
    with pytest.raises(UntrustedFile):
        export_bundle(mine.root, manifest, LocalPlace(tmp_path / "bundle"))


def test_a_segment_in_a_bundle_is_no_larger_than_a_segment(tmp_path: Path) -> None:
    from mlferry_agent.bundles import Entry as Listed
    from mlferry_agent.bundles import Manifest

    path = f"runs/20260101T000000-r1/w1/{0:020d}.seg"
    for size, is_good in ((MAX_SEGMENT_BYTES, True), (MAX_SEGMENT_BYTES + 1, False)):
        content = Manifest((Listed(path, size, "0" * 64),)).encoded()
        if is_good:
            assert Manifest.decoded(content).files[0].size == size
        else:
            with pytest.raises(BadBundle, match="claims"):
                Manifest.decoded(content)


def test_a_blob_by_the_name_of_another_size_is_not_taken(mine: Spool) -> None:
    with pytest.raises(BlobMismatch):
        open_blob(mine.blob_path, Blob(mine.blob.sha256, mine.blob.size + 1))
