"""Parts: what was finished before an export was broken off is kept, verified, and whatever differs is written again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import minisign
import pyrage
import pytest
from tests.unit.carrying.test_signing import a_key

from mlferry_agent.bundles import Entry, Manifest
from mlferry_agent.carrying import local, parts
from mlferry_agent.carrying.addresses import place_of
from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.carrying.parts import Seal
from mlferry_agent.carrying.places import Place
from mlferry_agent.carrying.reading import Trust, find_parts, read_small
from mlferry_agent.carrying.unfinished import Unfinished, unfinished
from mlferry_agent.discovery import discover
from mlferry_agent.errors import BadBundle, Locked, PlaceTrouble
from mlferry_agent.ferrying import Exported, export_bundle, import_bundle, plan_export
from mlferry_spool import records
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import new_run_directory
from mlferry_spool.writer import Writer

IDENTITY = pyrage.x25519.Identity.generate()
SEALS = {"plain": Seal(), "encrypted": Seal((IDENTITY.to_public(),))}
LIMIT = 10_000
_names = itertools.count()


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A spool whose bundle has about six parts."""
    directory = new_run_directory(tmp_path / "inside", "r1", 1_700_000_000_000)
    writer = Writer(directory, records.Open("w-r1", "r1", "experiment"))
    blob = Blobs(directory).put_bytes(os.urandom(50_000))
    writer.put(records.Artifact(1, "model.pt", blob.sha256, blob.size))
    writer.close(records.RunEnd(2, "FINISHED"))
    return tmp_path / "inside"


@pytest.fixture(params=["file", "memory"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a bundle goes: here, or what stands for an object store."""
    return place_of(tmp_path / "b" if request.param == "file" else f"memory://{next(_names)}/b")


class Broken(OSError):
    """The medium is full, or the process killed: what comes after is not done."""


def failing_after(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], None]:
    """From so many parts on, no more of them are finished; returns what mends it."""
    left = itertools.count(count, -1)
    finish = parts._Part.finish

    def broken(self: Any, note: Any) -> bytes:
        if next(left) <= 0:
            raise Broken(28, "No space left on device")
        return finish(self, note)

    monkeypatch.setattr(parts._Part, "finish", broken)
    return lambda: monkeypatch.setattr(parts._Part, "finish", finish)


def read(place: Place) -> bytes:
    return read_small(place, 1 << 30)


def export(inside: Path, to: Place, state: Path, **more: Any) -> Exported:
    with unfinished(state, to, {"asked": 1}) as noted:
        manifest = noted.manifest
        if manifest is None:
            manifest = plan_export(inside, discover(inside))
            noted.begin(manifest)
        done = export_bundle(inside, manifest, to, split_bytes=LIMIT, unfinished=noted, **more)
        noted.end()
    return done


def files_of(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if not path.endswith(".lock")}


def contents(exported: Exported) -> list[bytes]:
    return [read(place) for place in exported.places]


@pytest.mark.parametrize("seal", SEALS)
def test_an_export_that_was_broken_off_keeps_what_was_finished(
    inside: Path, to: Place, seal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = failing_after(monkeypatch, 3)
    with pytest.raises(Broken):
        export(inside, to, tmp_path / "state", seal=SEALS[seal])
    before = [read(to.beside(f"b.{number:03d}")) for number in range(3)]
    assert not to.beside("b.003").exists()
    mend()
    done = export(inside, to, tmp_path / "state", seal=SEALS[seal])
    assert done.kept == 3 and contents(done)[:3] == before
    assert all(len(content) <= LIMIT for content in contents(done))
    import_bundle(tmp_path / "outside", find_parts([to]), Trust((IDENTITY,)))
    assert files_of(tmp_path / "outside") == files_of(inside)
    assert not list((tmp_path / "state" / "exports").iterdir())


def test_a_finished_part_that_was_damaged_meanwhile_is_not_taken_for_finished(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = LocalPlace(tmp_path / "b")
    mend = failing_after(monkeypatch, 3)
    with pytest.raises(Broken):
        export(inside, to, tmp_path / "state")
    mend()
    path = tmp_path / "b.001"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(FileExistsError, match=r"b\.001"):  # it is not ours as it is
        export(inside, to, tmp_path / "state")
    path.unlink()
    assert export(inside, to, tmp_path / "state").kept == 2
    import_bundle(tmp_path / "outside", find_parts([to]))
    assert files_of(tmp_path / "outside") == files_of(inside)


def test_where_the_bytes_would_come_out_otherwise_now_the_rest_is_written_anew(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the library that compresses."""
    to = LocalPlace(tmp_path / "b")
    mend = failing_after(monkeypatch, 3)
    with pytest.raises(Broken):
        export(inside, to, tmp_path / "state")
    mend()
    from mlferry_agent import bundles

    compressor = bundles.zstandard.ZstdCompressor
    monkeypatch.setattr(bundles.zstandard, "ZstdCompressor", lambda level, **more: compressor(level=19, **more))
    export(inside, to, tmp_path / "state")
    import_bundle(tmp_path / "outside", find_parts([to]))
    assert files_of(tmp_path / "outside") == files_of(inside)


def test_a_plan_that_no_longer_holds_is_given_up_with_its_parts(
    inside: Path, to: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = failing_after(monkeypatch, 3)
    with pytest.raises(Broken):
        export(inside, to, tmp_path / "state")
    mend()
    for path in inside.rglob("*.seg"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadBundle, match="changed while it was bundled"):
        export(inside, to, tmp_path / "state")
    assert not any(to.beside(f"b.{number:03d}").exists() for number in range(9))
    assert export(inside, to, tmp_path / "state").kept == 0


def test_two_exports_to_one_place_are_refused(tmp_path: Path) -> None:
    to = LocalPlace(tmp_path / "b")
    second = unfinished(tmp_path, to, {})
    with unfinished(tmp_path, to, {}), pytest.raises(FileExistsError, match="another mlferry exports there now"):
        second.__enter__()


def test_a_shorter_bundle_that_replaces_a_longer_one_leaves_no_parts_of_it(
    inside: Path, to: Place, tmp_path: Path
) -> None:
    assert len(export(inside, to, tmp_path / "state").places) > 4
    small = plan_export(inside, discover(inside))
    small = Manifest(tuple(entry for entry in small.files if entry.path.endswith(".seg")))
    [only] = export_bundle(inside, small, to, split_bytes=LIMIT, replace=True).places
    assert find_parts([to]) == [only]


@pytest.mark.parametrize("seal", SEALS)
def test_nothing_is_replaced_unless_asked_and_a_failed_replacement_leaves_the_old(
    inside: Path, to: Place, seal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = plan_export(inside, discover(inside))
    export_bundle(inside, manifest, to, seal=SEALS[seal])
    old = read(to)
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_bundle(inside, manifest, to, seal=SEALS[seal])
    failing_after(monkeypatch, 0)
    with pytest.raises(Broken):
        export_bundle(inside, manifest, to, seal=SEALS[seal], replace=True)
    assert read(to) == old


def test_an_upload_is_tried_again_and_a_refusal_is_not(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_PAUSES_S", (0.0, 0.0))
    memory = fsspec.filesystem("memory")
    opened, errors = memory.open, [ConnectionResetError("gone"), TimeoutError("slow")]

    def flaky(*words: Any, **more: Any) -> Any:
        if errors and "w" in words[1]:
            raise errors.pop()
        return opened(*words, **more)

    monkeypatch.setattr(type(memory), "open", lambda self, *words, **more: flaky(*words, **more))
    to = place_of("memory://flaky/b")
    export(inside, to, tmp_path / "state")
    import_bundle(tmp_path / "outside", find_parts([to]))
    errors += [PermissionError("no")]
    with pytest.raises(PlaceTrouble, match=r"memory://flaky/c\.000\.partial: no"):
        export(inside, to.beside("c"), tmp_path / "state")


# -- reading --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parted(inside: Path, tmp_path: Path) -> list[Place]:
    made = export(inside, LocalPlace(tmp_path / "b"), tmp_path / "state", seal=SEALS["encrypted"])
    return list(made.places)


def test_parts_are_found_by_any_way_of_naming_them(parted: list[Place], tmp_path: Path) -> None:
    (tmp_path / "b.receipt.json").touch()
    assert find_parts([LocalPlace(tmp_path / "b")]) == parted
    assert find_parts(parted[:1]) == parted
    assert find_parts([LocalPlace(path) for path in sorted(tmp_path.glob("b.*"), reverse=True)]) == parted
    assert find_parts([LocalPlace(tmp_path / "else")]) == [LocalPlace(tmp_path / "else")]


def test_parts_that_are_missing_or_of_two_bundles_are_named(parted: list[Place], tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=r"b\.002 is missing"):
        find_parts([*parted[:2], *parted[3:]])
    with pytest.raises(BadBundle, match=r"b\.001 is named twice"):
        find_parts([*parted, parted[1]])
    with pytest.raises(BadBundle, match="two bundles"):
        find_parts([*parted, LocalPlace(tmp_path / "c.000")])


def spoiled(parted: list[Place], how: str, tmp_path: Path) -> list[Place]:
    first, second, *rest = parted
    other = pyrage.encrypt(b"something else", [IDENTITY.to_public()])
    extra = LocalPlace(tmp_path / "b.099")
    extra.path.write_bytes(other)
    match how:
        case "swapped":
            return [second, first, *rest]
        case "a part is missing":
            return [first, *rest]
        case "the last is missing":
            return parted[:-1]
        case "twice":
            return [first, first, second, *rest]
        case "another's behind":
            return [*parted, extra]
        case "another's between":
            return [first, extra, *rest]
        case "not encrypted":
            extra.path.write_bytes(pyrage.decrypt(read(second), [IDENTITY]))
            return [first, extra, *rest]
    extra.path.write_bytes(read(parted[-1])[:-1])  # cut
    return [*parted[:-1], extra]


WAYS = "swapped|a part is missing|the last is missing|twice|another's behind|another's between|not encrypted|cut"


@pytest.mark.parametrize("how", WAYS.split("|"))
def test_parts_that_are_no_bundle_are_refused_and_nothing_is_half_imported(
    parted: list[Place], how: str, tmp_path: Path
) -> None:
    with pytest.raises(BadBundle, match=r"b\.\d\d\d"):
        import_bundle(tmp_path / "outside", spoiled(parted, how, tmp_path), Trust((IDENTITY,)))
    assert list((tmp_path / "outside").iterdir()) == []


def test_without_an_identity_or_with_anothers_nothing_is_imported(parted: list[Place], tmp_path: Path) -> None:
    for identities in ((), (pyrage.x25519.Identity.generate(),)):
        with pytest.raises(Locked, match=r"b\.000"):
            import_bundle(tmp_path / "outside", parted, Trust(identities))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_bundle_must_be_signed_where_that_is_asked_in_every_part(inside: Path, tmp_path: Path) -> None:
    sign, keys = a_key(tmp_path)
    to = LocalPlace(tmp_path / "b")
    made = export(inside, to, tmp_path / "state", seal=Seal(signer=sign)).places
    import_bundle(tmp_path / "outside", made, Trust(signers=keys))
    with pytest.raises(BadBundle, match=r"b\.000 is not as any of the keys"):
        import_bundle(tmp_path / "other", made, Trust(signers=(minisign.KeyPair.generate().public_key,)))
    (tmp_path / "b.002.minisig").unlink()
    with pytest.raises(BadBundle, match=r"b\.002 is not signed"):
        import_bundle(tmp_path / "other", made, Trust(signers=keys))
    assert list((tmp_path / "other").iterdir()) == []


# -- places ---------------------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "b")
    (tmp_path / "b.partial").write_bytes(b"half")
    creation = place.create()
    with pytest.raises(FileExistsError, match="another process"):
        place.create()
    creation.write(b"whole")
    creation.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"whole"}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_not_written_over(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(1, "no links here")

    if not links:
        monkeypatch.setattr(local.os, "link", refuse)
    creation = LocalPlace(tmp_path / "b").create()
    creation.write(b"ours")
    (tmp_path / "b").write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match="there already"):
        creation.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"theirs"}


def test_a_url_shows_no_password() -> None:
    from mlferry_agent.carrying.remote import RemotePlace

    assert str(RemotePlace("memory://me:word@host/x?token=1")) == "memory://me@host/x"


def test_notes_that_are_damaged_are_no_notes(tmp_path: Path) -> None:
    entry = Entry("store/w1/00000000000000000000.seg", 1, "0" * 64)
    (tmp_path / "request").write_text("r")
    for content in (b"", b"{}", b"\xff", Manifest((entry,)).encoded()[:-5]):
        (tmp_path / "manifest").write_bytes(content)
        assert Unfinished(tmp_path, "r").manifest is None
    (tmp_path / "manifest").write_bytes(Manifest((entry,)).encoded())
    (tmp_path / "parts").write_text('{"name": "b.000", "size": 1, "sha256": "x", "plain_sha256": "y"}\n{"name": "b.0')
    noted = Unfinished(tmp_path, "r")
    assert noted.manifest == Manifest((entry,)) and list(noted.parts) == ["b.000"]
