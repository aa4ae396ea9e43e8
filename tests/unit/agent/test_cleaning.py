"""clean: what may go and what may not, whichever way it was proven; and a run is whole or gone, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench
from tests.spooling import SpooledRun, a_bit_of_everything

from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.cleaning import Candidate, Kept, Limits, choose, cleaner, fingerprint, remove, spare
from mlferry_agent.commands.tidying import _kept, _seconds
from mlferry_agent.config import Config
from mlferry_agent.discovery import discover
from mlferry_agent.errors import CleanBusy, FileTrouble
from mlferry_agent.ferrying import plan_export, read_receipt, write_receipt
from mlferry_agent.ledger import Ledger, Quarantined
from mlferry_agent.proofs import by_receipts
from mlferry_agent.views.words import bytes_said
from mlferry_spool.errors import UntrustedFile
from mlferry_spool.layout import new_run_directory

Mlferry = Callable[..., tuple[int, str, str]]
NOW = Limits(older_than_s=0.0)


def chosen(bench: Workbench, limits: Limits = NOW, *, by_ledger: bool = True) -> tuple[list[Candidate], dict[str, str]]:
    with bench.ledger() as ledger:
        config = Config(dir=bench.spool, state_dir=bench.ledger_path.parent)
        going, kept = choose(config, discover(bench.spool), [ledger] if by_ledger else [], limits, by_ledger=by_ledger)
    return going, {item.run_id: item.reason for item in kept}


def ids(candidates: list[Candidate]) -> list[str]:
    return [candidate.run.run_id for candidate in candidates]


def age(directory: Path, seconds: float) -> None:
    """Make a run look as if nobody had written to it for so long."""
    for place, _, names in os.walk(directory):
        for path in [place, *(os.path.join(place, name) for name in names)]:
            os.utime(path, (time.time() - seconds, time.time() - seconds))


# -- which runs ----------------------------------------------------------------------------------------------------------


async def test_only_what_was_delivered_to_its_end_may_go(bench: Workbench) -> None:
    whole = a_bit_of_everything(bench.spool, "e")
    live = SpooledRun(bench.spool, "e")
    await bench.deliver()
    late = SpooledRun(bench.spool, "e")
    late.params({"p": "1"})
    late.end()
    going, kept = chosen(bench)
    assert ids(going) == [whole.run_id]
    assert kept == {live.run_id: "live", late.run_id: "not all delivered to http://server"}
    live.end()
    assert chosen(bench)[1][live.run_id] == "not all delivered to http://server", "its end was not told yet"
    await bench.deliver()
    assert set(ids(chosen(bench)[0])) == {whole.run_id, live.run_id, late.run_id}


async def test_what_a_killed_process_left_among_the_blobs_goes_with_its_run(bench: Workbench) -> None:
    whole = a_bit_of_everything(bench.spool, "e")
    half = whole.directory / "blobs" / ".tmp-00000000-half"
    half.write_bytes(b"half a checkpoint")
    await bench.deliver()
    [candidate], _ = chosen(bench)
    with cleaner(bench.spool):
        assert remove(bench.spool, candidate) is None
    assert not half.exists()
    assert not whole.directory.exists()


#: Logs one point, and waits to be killed.
DIES = """
import sys
from pathlib import Path
from mlferry_spool import records
from mlferry_spool.writer import Writer
writer = Writer(Path(sys.argv[1]), records.Open(writer_id="w", run_id=sys.argv[2], experiment_name="e", start_time=1))
writer.append(4, (1, 0, {"loss": 1.0}))
print("logged", flush=True)
sys.stdin.read()
"""


def started(spool: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", DIES, str(new_run_directory(spool, "r", 1)), "r"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_a_run_that_died_stays_until_the_server_was_told(bench: Workbench) -> None:
    with started(bench.spool) as training:
        assert training.stdout is not None and training.stdout.readline() == b"logged\n"
        await bench.deliver()
        assert chosen(bench)[1] == {"r": "live"}
        training.kill()
    assert chosen(bench)[1] == {"r": "not all delivered to http://server"}
    await bench.deliver()
    assert ids(chosen(bench)[0]) == ["r"]


async def test_what_needs_a_person_stays_and_what_was_dropped_goes_only_when_named(bench: Workbench) -> None:
    run = a_bit_of_everything(bench.spool, "e")
    await bench.deliver()
    entry = Quarantined(run.run_id, "w", 1, "param", "p", "refused", 7)
    with bench.ledger() as ledger, ledger.transaction():
        ledger.quarantine(entry)
    assert chosen(bench)[1] == {run.run_id: "needs you"}
    with bench.ledger() as ledger, ledger.transaction():
        ledger.drop([entry])
    await bench.deliver()  # the server is told how much is missing
    assert chosen(bench)[1] == {run.run_id: "dropped"}
    assert ids(chosen(bench, Limits(older_than_s=0.0, dropped=True))[0]) == [run.run_id]


async def test_nothing_goes_that_another_server_still_waits_for(bench: Workbench, tmp_path: Path) -> None:
    run = a_bit_of_everything(bench.spool, "e")
    await bench.deliver()
    other = Ledger.open(tmp_path / "other.sqlite", "http://other")
    config = Config(dir=bench.spool, state_dir=tmp_path)
    with bench.ledger() as ledger:
        going, kept = choose(config, discover(bench.spool), [ledger, other], NOW, by_ledger=True)
    other.close()
    assert (going, kept) == ([], [Kept(run.run_id, "not all delivered to http://other")])


async def test_by_default_a_run_rests_for_a_day_first(bench: Workbench) -> None:
    run = a_bit_of_everything(bench.spool, "e")
    await bench.deliver()
    age(run.directory, 23 * 3600)
    assert chosen(bench, Limits())[1] == {run.run_id: "too young"}
    age(run.directory, 25 * 3600)
    assert ids(chosen(bench, Limits())[0]) == [run.run_id]


async def test_the_newest_are_kept_by_number_or_by_size(bench: Workbench) -> None:
    made = [SpooledRun(bench.spool, "e", directory=None) for _ in range(4)]
    for number, run in enumerate(made):
        run.artifact("a", os.urandom(10_000 * (number + 1)))
        run.end()
    await bench.deliver()
    going, _ = chosen(bench)
    runs = discover(bench.spool)
    by_number, kept = spare(going, runs, Limits(keep_runs=3))
    assert ids(by_number) == ids(going)[:1]
    assert {item.run_id for item in kept} == set(ids(going)[1:])
    total = sum(candidate.size for candidate in going)
    for room, count in ((total, 0), (total - 1, 1), (total - going[0].size, 1), (total - going[0].size - 1, 2), (1, 4)):
        assert ids(spare(going, runs, Limits(keep_bytes=room))[0]) == ids(going)[:count]


async def test_a_receipt_proves_what_it_lists_as_it_is_now(bench: Workbench, tmp_path: Path) -> None:
    run, other = a_bit_of_everything(bench.spool, "e"), a_bit_of_everything(bench.spool, "e")
    mine = [item for item in discover(bench.spool) if item.run_id == run.run_id]
    receipt = tmp_path / "receipt.json"
    write_receipt(plan_export(bench.spool, mine), LocalPlace(receipt))
    going, kept = chosen(bench, by_ledger=False)
    assert (len(going), kept) == (2, {})
    arrived = read_receipt(LocalPlace(receipt))
    proven, unproven = by_receipts(bench.spool, arrived, going)
    assert (ids(proven), unproven) == ([run.run_id], [Kept(other.run_id, "not all in the receipts")])
    again = run.beside()
    again.metrics(1_000, {"loss": 0.0})
    again.end()
    assert by_receipts(bench.spool, arrived, chosen(bench, by_ledger=False)[0])[0] == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("90m", 5400.0), ("12h", 43_200.0), ("1.5d", 129_600.0), ("2w", 1_209_600.0)]
)
def test_an_age_is_read(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize(("text", "kept"), [("10", (10, 0)), ("500GB", (0, 500 * 10**9)), ("1.5 MB", (0, 1_500_000))])
def test_what_to_keep_is_read(text: str, kept: tuple[int, int]) -> None:
    assert _kept(text) == kept


@pytest.mark.parametrize(
    "words", [("--older-than", "7"), ("--older-than", "soon"), ("--keep", "1.5"), ("--keep", "-1")]
)
def test_what_cannot_be_read_is_wrong_usage(spool: Path, mlferry: Mlferry, words: tuple[str, ...]) -> None:
    assert mlferry("clean", *words)[0] == 2


# -- how they go ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def going(bench: Workbench) -> Candidate:
    """A delivered run in two directories, as two nodes with a disk each make it."""
    run = a_bit_of_everything(bench.spool, "e")
    other = run.beside(directory=new_run_directory(bench.spool, run.run_id, 1_700_000_100_000))
    other.end()
    await bench.deliver()
    [candidate] = chosen(bench)[0]
    assert len(candidate.run.directories) == 2
    return candidate


async def test_a_run_goes_with_all_its_directories_and_blobs(bench: Workbench, going: Candidate) -> None:
    with cleaner(bench.spool):
        assert remove(bench.spool, going) is None
    assert discover(bench.spool) == []
    assert [path.name for path in bench.spool.rglob("*") if path.is_file()] == [".clean.lock"]
    with bench.ledger() as ledger:
        assert ledger.server_run_id(going.run.run_id), "what it is called on the server is still known"


async def test_a_run_that_somebody_resumed_meanwhile_is_put_back_whole(bench: Workbench, going: Candidate) -> None:
    before = fingerprint(going.run.directories)
    resumed = SpooledRun(bench.spool, "e", directory=going.run.directories[0], writer_id="again", resumed=True)
    with cleaner(bench.spool):
        assert remove(bench.spool, going) == "somebody writes to it"
    assert before < fingerprint(going.run.directories)
    resumed.metrics(9_999, {"loss": 0.0})
    resumed.end()
    with cleaner(bench.spool):
        assert remove(bench.spool, going) == "somebody writes to it", "it wrote, and has ended since"
    assert before < fingerprint(going.run.directories)


async def test_what_a_writer_began_anew_meanwhile_is_kept_beside(bench: Workbench, going: Candidate) -> None:
    """A clean was killed after the move, and the run's job made the directory again."""
    before, place = fingerprint(going.run.directories), bench.spool / ".clean" / going.run.run_id
    place.mkdir(parents=True)
    for directory in going.run.directories:
        directory.rename(place / directory.name)
    blob = next(name for name, _ in sorted(before) if "/blobs/" in name)
    anew = bench.spool / "runs" / blob
    anew.parent.mkdir(parents=True)
    anew.write_bytes((place / blob).read_bytes())
    (anew.parent.parent / "w-new").mkdir()
    with cleaner(bench.spool):
        pass
    after = fingerprint(going.run.directories)
    assert after - before == {(f"{going.run.directories[0].name}/w-new", 0)}
    assert before <= after
    assert not (bench.spool / ".clean").exists()


async def test_nothing_in_place_is_ever_replaced(bench: Workbench, going: Candidate) -> None:
    place = bench.spool / ".clean" / going.run.run_id
    place.mkdir(parents=True)
    directory = going.run.directories[0]
    directory.rename(place / directory.name)
    [segment] = list((place / directory.name).rglob("*.seg"))[:1]
    other = directory / segment.relative_to(place / directory.name)
    other.parent.mkdir(parents=True)
    other.write_bytes(b"something else")
    with pytest.raises(FileExistsError), cleaner(bench.spool):
        pass
    assert other.read_bytes() == b"something else" and segment.exists()


async def test_two_cleans_do_not_meet(bench: Workbench) -> None:
    bench.spool.mkdir()
    with cleaner(bench.spool), pytest.raises(CleanBusy), cleaner(bench.spool):
        pass
    with cleaner(bench.spool):
        pass


async def test_a_spool_that_cannot_be_written_is_said_to_be_one(bench: Workbench) -> None:
    (bench.spool / ".clean.lock").mkdir(parents=True)
    with pytest.raises(FileTrouble, match="spool: Is a directory"), cleaner(bench.spool):
        pass


async def test_a_link_in_the_place_of_its_folder_is_not_followed(bench: Workbench, tmp_path: Path) -> None:
    bench.spool.mkdir()
    (tmp_path / "elsewhere" / ".gone-1").mkdir(parents=True)
    (bench.spool / ".clean").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedFile), cleaner(bench.spool):
        pass
    assert (tmp_path / "elsewhere" / ".gone-1").exists()


# -- the command ---------------------------------------------------------------------------------------------------------


def test_without_an_answer_nothing_is_deleted(
    spool: Path, mlferry: Mlferry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_bit_of_everything(spool, "e")
    receipt = tmp_path / "receipt.json"
    write_receipt(plan_export(spool, discover(spool)), LocalPlace(receipt))
    words = ("clean", "--receipt", str(receipt), "--older-than", "0")
    code, out, err = mlferry(*words, "--dry-run")
    assert (code, "1 run would be deleted" in out, "the receipt lists every file" in err) == (0, True, True)
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert mlferry(*words)[0] == 1
    assert run.directory.exists()
    code, out, _ = mlferry(*words, "--yes")
    assert (code, out.startswith("1 run deleted")) == (0, True)
    assert not run.directory.exists()


def test_what_stays_is_counted_by_its_reason(spool: Path, mlferry: Mlferry) -> None:
    for _ in range(3):
        a_bit_of_everything(spool, "e")
    live = SpooledRun(spool, "e")
    code, out, err = mlferry("clean", "--trust-ledger", "--yes")
    assert (code, out) == (0, "0 runs deleted, 0 B freed; 4 kept\n")
    assert err == "kept: 3 never delivered, 1 live\n"
    live.end()
    assert mlferry("clean", "--trust-ledger", "--receipt", str(spool))[0] == 2


def test_the_receipt_that_comes_back_across_an_air_gap_makes_room(
    spool: Path, mlferry: Mlferry, tmp_path: Path
) -> None:
    run, late = a_bit_of_everything(spool, "e"), SpooledRun(spool, "e")
    bundle, outside = tmp_path / "monday.tar.zst", tmp_path / "outside"
    assert mlferry("export", str(bundle))[0] == 0
    assert mlferry("import", "--dir", str(outside), str(bundle))[0] == 0
    late.metrics(1, {"loss": 1.0})
    late.end()
    words = ("clean", "--receipt", f"{bundle}.receipt.json", "--older-than", "0", "--yes")
    code, out, err = mlferry(*words)
    assert (code, out) == (0, f"1 run deleted, {bytes_of(outside, run.run_id)} freed; 1 kept\n")
    assert "kept: 1 not all in the receipts" in err
    assert [item.run_id for item in discover(spool)] == [late.run_id]
    assert {item.run_id for item in discover(outside)} == {run.run_id, late.run_id}


def bytes_of(root: Path, run_id: str) -> str:
    """The size of a run, without the locks that are not carried."""
    [found] = [item for item in discover(root) if item.run_id == run_id]
    return bytes_said(sum(size for _, size in fingerprint(found.directories)))
