"""Bundles: what goes in comes out, and nothing else is ever taken for one."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from mlferry_agent import bundles
from mlferry_agent.bundles import Entry, Manifest, is_spool_path, read_bundle, write_bundle
from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.discovery import discover
from mlferry_agent.errors import BadBundle
from mlferry_agent.ferrying import Imported, export_bundle, import_bundle, plan_export, read_receipt, write_receipt
from mlferry_spool import records
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import new_run_directory
from mlferry_spool.writer import Writer

RUN = "runs/20260101T000000-r1"
SEGMENT = f"{RUN}/w1/{0:020d}.seg"


def entry(path: str, data: bytes) -> Entry:
    return Entry(path, len(data), hashlib.sha256(data).hexdigest())


def a_spool(root: Path, *, steps: int = 3, run_id: str = "r1") -> Writer:
    """A run with points and a file; its writer is still open."""
    directory = new_run_directory(root, run_id, 1_700_000_000_000)
    writer = Writer(directory, records.Open(f"w-{run_id}", run_id, "experiment"))
    blob = Blobs(directory).put_bytes(b"weights" * 100)
    writer.put(records.Artifact(1, "model.pt", blob.sha256, blob.size))
    more(writer, range(steps))
    return writer


def more(writer: Writer, steps: range) -> None:
    for step in steps:
        assert writer.append(4, (1, step, {"loss": 0.5}))


def files_of(root: Path) -> dict[str, bytes]:
    """What a bundle carries of a spool, by path."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if is_spool_path(path)}


def bundled(root: Path, manifest: Manifest) -> bytes:
    out = io.BytesIO()
    for _ in write_bundle(root, manifest, out):
        pass
    return out.getvalue()


def planned(root: Path, *receipts: Path) -> Manifest:
    return plan_export(root, discover(root), [entry for path in receipts for entry in read_receipt(LocalPlace(path))])


def exported(root: Path, bundle: Path, *receipts: Path, **more: Any) -> list[Path]:
    return made(root, planned(root, *receipts), bundle, **more)


def made(root: Path, manifest: Manifest, bundle: Path, **more: Any) -> list[Path]:
    return [Path(str(place)) for place in export_bundle(root, manifest, LocalPlace(bundle), **more).places]


def imported(root: Path, parts: list[Path]) -> Imported:
    return import_bundle(root, [LocalPlace(part) for part in parts])


def test_a_spool_comes_out_as_it_went_in(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close(records.RunEnd(2, "FINISHED"))
    done = imported(tmp_path / "outside", exported(tmp_path / "inside", tmp_path / "b"))
    assert files_of(tmp_path / "outside") == files_of(tmp_path / "inside")
    assert (done.new, done.there) == (2, 0)


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close()
    parts = exported(tmp_path / "inside", tmp_path / "b")
    imported(tmp_path / "outside", parts)
    before = unchanged(tmp_path / "outside")
    done = imported(tmp_path / "outside", parts)
    assert (done.new, done.there) == (0, 2)
    assert before and unchanged(tmp_path / "outside") == before


def unchanged(root: Path) -> dict[Path, tuple[int, int, int]]:
    """What would differ of a log that was written again."""
    found = {path: path.stat() for path in root.rglob("*.seg")}
    return {path: (status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found.items()}


@pytest.mark.parametrize("split", [100, 1000, None])
def test_a_bundle_in_parts_is_the_same_bundle(tmp_path: Path, split: int | None) -> None:
    a_spool(tmp_path / "inside").close()
    parts = exported(tmp_path / "inside", tmp_path / "b", split_bytes=split)
    assert (len(parts) > 1) == (split is not None and split < 1000)
    assert all(part.stat().st_size <= (split or 1 << 30) for part in parts)
    imported(tmp_path / "outside", parts)
    assert files_of(tmp_path / "outside") == files_of(tmp_path / "inside")


def test_a_run_that_goes_on_arrives_as_far_as_it_was_and_the_rest_with_the_next_bundle(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    writer = a_spool(inside)
    first = planned(inside)
    more(writer, range(3, 50))  # while the bundle is being written
    done = imported(outside, made(inside, first, tmp_path / "first"))
    [segment] = [path for path in files_of(outside) if path.endswith(".seg")]
    assert files_of(inside)[segment].startswith(files_of(outside)[segment])
    write_receipt(done.receipt, LocalPlace(tmp_path / "receipt"))
    second = planned(inside, tmp_path / "receipt")
    assert [item.path for item in second.files] == [segment]  # the blob has arrived
    imported(outside, made(inside, second, tmp_path / "second"))
    assert files_of(outside) == files_of(inside)
    writer.close()


def test_an_older_bundle_does_not_take_a_log_back(tmp_path: Path) -> None:
    writer = a_spool(tmp_path / "inside")
    old = exported(tmp_path / "inside", tmp_path / "old")
    more(writer, range(3, 9))
    writer.close()
    imported(tmp_path / "outside", exported(tmp_path / "inside", tmp_path / "new"))
    imported(tmp_path / "outside", old)
    assert files_of(tmp_path / "outside") == files_of(tmp_path / "inside")


def test_a_bundle_that_builds_on_one_that_never_came_is_refused(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close()
    plan = planned(tmp_path / "inside")
    write_receipt(plan, LocalPlace(tmp_path / "receipt"))
    parts = exported(tmp_path / "inside", tmp_path / "b", tmp_path / "receipt")
    with pytest.raises(BadBundle, match="import the bundle before it first"):
        imported(tmp_path / "outside", parts)
    assert files_of(tmp_path / "outside") == {}


def test_what_contradicts_the_spool_is_refused_and_nothing_of_it_is_imported(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close()
    a_spool(tmp_path / "inside", run_id="r2").close()
    parts = exported(tmp_path / "inside", tmp_path / "b")
    victim = sorted(files_of(tmp_path / "inside"))[-1]
    there = tmp_path / "outside" / victim
    there.parent.mkdir(parents=True)
    there.write_bytes(b"something else")
    with pytest.raises(BadBundle, match="with other contents"):
        imported(tmp_path / "outside", parts)
    assert files_of(tmp_path / "outside") == {victim: b"something else"}
    assert not list((tmp_path / "outside").glob(".import-*"))


def small_bundle(tmp_path: Path) -> bytes:
    (tmp_path / SEGMENT).parent.mkdir(parents=True)
    (tmp_path / SEGMENT).write_bytes(b"the log")
    return bundled(tmp_path, Manifest((entry(SEGMENT, b"the log"),)))


def test_a_bundle_cut_anywhere_is_refused_unless_every_byte_of_it_was_checked(tmp_path: Path) -> None:
    whole = small_bundle(tmp_path)
    right = list(read_bundle(io.BytesIO(whole)))
    for length in range(len(whole)):
        try:
            assert list(read_bundle(io.BytesIO(whole[:length]))) == right
            assert length >= len(whole) - 7  # zstd's own epilogue alone is missing
        except BadBundle:
            continue


def test_a_bundle_with_any_bit_flipped_is_refused_or_is_the_same(tmp_path: Path) -> None:
    whole = small_bundle(tmp_path)
    right = list(read_bundle(io.BytesIO(whole)))
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert list(read_bundle(io.BytesIO(bytes(flipped)))) == right  # bits that zstd does not use
        except BadBundle:
            continue


@settings(max_examples=examples(200))
@given(st.binary(max_size=3000), st.booleans())
def test_bytes_of_any_kind_are_refused_by_name(data: bytes, compressed: bool) -> None:
    with pytest.raises(BadBundle):
        list(read_bundle(io.BytesIO(zstandard.compress(data) if compressed else data)))


BAD_PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    f"{RUN}/../../x/{0:020d}.seg",
    f"{RUN}/w1/writer.lock",
    f"{RUN}/w1/x/{0:020d}.seg",
    f"{RUN}/blobs/{'g' * 64}",
    f"{RUN}/blobs/{'A' * 64}",
    f"{RUN}/.w/{0:020d}.seg",
    f"runs/r1/w1/{0:020d}.seg",
    f"{RUN}/w1/{0:019d}.seg",
    f"{RUN}/w1/{0:020d}.seg\0",
    f"{RUN}//{0:020d}.seg",
    "agent.toml",
    "",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_place_outside_of_runs_and_store_is_refused(path: str, tmp_path: Path) -> None:
    assert not is_spool_path(path)
    listed = {"format": 1, "files": [{"path": path, "size": 1, "sha256": "0" * 64}], "known": []}
    with pytest.raises(BadBundle, match="no place in a spool"):
        Manifest.decoded(json.dumps(listed).encode())


GOOD = {"path": SEGMENT, "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {},
        {"format": 2, "files": [], "known": []},
        {"format": 1, "files": {}, "known": 1},
        {"format": 1, "files": [1], "known": []},
        {"format": 1, "files": [{**GOOD, "size": -1}], "known": []},
        {"format": 1, "files": [{**GOOD, "size": 1 << 60}], "known": []},
        {"format": 1, "files": [{**GOOD, "size": True}], "known": []},
        {"format": 1, "files": [{**GOOD, "sha256": "x" * 64}], "known": []},
        {"format": 1, "files": [GOOD, GOOD], "known": []},
    ],
)
def test_a_manifest_that_is_none_is_refused(listed: object) -> None:
    with pytest.raises(BadBundle):
        Manifest.decoded(json.dumps(listed).encode())


def test_a_manifest_that_claims_more_than_any_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = bundles._header(bundles._MANIFEST, 1 << 40)
    with pytest.raises(BadBundle, match="does not begin"):
        list(read_bundle(io.BytesIO(zstandard.compress(header))))


def test_a_file_that_changed_after_it_was_listed_breaks_the_export_off(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close()
    plan = planned(tmp_path / "inside")
    for path in (tmp_path / "inside").rglob("*.seg"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadBundle, match="changed while it was bundled"):
        made(tmp_path / "inside", plan, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_export_never_writes_over_a_file(tmp_path: Path) -> None:
    a_spool(tmp_path / "inside").close()
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        exported(tmp_path / "inside", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_a_receipt_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "receipt").write_text("{}")
    with pytest.raises(BadBundle, match="is no receipt"):
        read_receipt(LocalPlace(tmp_path / "receipt"))
