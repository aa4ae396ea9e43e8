"""A writer whose disk fails: the Nth call of each verb, N = 1, 2, ... until a run meets no fault any more."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.unit.spool.fake_files import FakeFiles, Fault
from tests.unit.spool.spools import FINISHED, Found, number, read_back, untended

from mlferry_spool.records import Kind
from mlferry_spool.settings import Fsync, Settings

APPENDS = 14
SETTINGS = Settings(segment_bytes=420, retry_s=0.0, heartbeat_s=0.0, segment_age_s=1e9)


@dataclass(slots=True)
class Told:
    """What the workload was told."""

    kept: list[int]
    refused: list[int]
    dropped: int


def workload(run: Path, settings: Settings, files: FakeFiles, *, heal_at: int = APPENDS) -> Told:
    """Appends with the caretaker's work between them; the disk heals by itself, or before append ``heal_at``."""
    writer = untended(run, settings, files=files)
    told = Told([], [], 0)
    for n in range(APPENDS):
        if n == heal_at:
            files.heal()
        (told.kept if writer.append(Kind.PARAMS, number(n, "x" * n)) else told.refused).append(n)
        if n % 3 == 2:
            writer.tend(float(n))
    assert writer.close(FINISHED)
    told.dropped = writer.dropped
    return told


def in_order(numbers: list[int]) -> bool:
    """Ascending, where every number counts at its first place."""
    first = list(dict.fromkeys(numbers))
    return first == sorted(first)


def check(found: Found, told: Told, *, twice: bool) -> None:
    assert set(found.numbers) == set(told.kept), "what append kept is read back, and nothing else"
    assert twice or len(found.numbers) == len(told.kept), "once"
    assert in_order(found.numbers)
    assert found.ends and set(found.ends) == {FINISHED}
    assert twice or len(found.ends) == 1
    assert found.frames_lost == 0, "nothing is reported lost that was not"
    stated = sum(gap.count for gap in set_of(found))
    assert stated == told.dropped == len(told.refused), "what was refused is stated in the log"


def set_of(found: Found) -> list:
    """The gaps, each once: a gap written again after a failed fsync is the same one."""
    unique = []
    for gap in found.dropped:
        if gap not in unique:
            unique.append(gap)
    return unique


WRITES = [
    Fault("write", errno.ENOSPC),
    Fault("write", errno.EDQUOT),
    Fault("write", errno.EIO),
    Fault("write", errno.EFBIG),
    Fault("write", errno.ESTALE),
    Fault("write", errno.EROFS),
    *(
        Fault("write", then, short=short)
        for then in (0, errno.ENOSPC, errno.EFBIG, errno.EIO)
        for short in (0, 1, 19, -1)
    ),
]
OTHERS = [
    Fault("create", errno.ENOSPC),
    Fault("create", errno.EMFILE),
    Fault("create", errno.EEXIST),
    Fault("create", errno.EROFS),
    Fault("make_directory", errno.ENOSPC),
    Fault("make_directory", errno.EROFS),
    Fault("reserve", errno.ENOSPC),
    Fault("close", errno.EIO),
]


def each_call(fault: Fault, tmp_path: Path, settings: Settings = SETTINGS, *more: Fault, heal_at: int = APPENDS) -> int:
    """Run the workload with the fault at its 1st, 2nd, ... call, until one run meets none. Returns how many met one."""
    runs = 0
    while True:
        run = tmp_path / str(runs)
        files = FakeFiles(replace(fault, first=runs + 1), *more)
        told = workload(run, settings, files, heal_at=heal_at)
        check(read_back(run), told, twice=fault.verb == "sync")
        if not files.hits:
            return runs
        runs += 1


def test_without_a_fault_the_log_is_ended_in_order(tmp_path: Path) -> None:
    assert workload(tmp_path, SETTINGS, FakeFiles()).kept == list(range(APPENDS))
    found = read_back(tmp_path)
    assert found.ended
    assert not found.lost


@pytest.mark.parametrize("fault", WRITES + OTHERS, ids=repr)
@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.ALWAYS])
def test_no_single_failing_call_loses_a_record_or_raises(fault: Fault, fsync: Fsync, tmp_path: Path) -> None:
    assert each_call(fault, tmp_path, replace(SETTINGS, fsync=fsync)) > 0


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.ALWAYS])
def test_a_failed_fsync_has_the_unsafe_records_written_again(error: int, fsync: Fsync, tmp_path: Path) -> None:
    assert each_call(Fault("sync", error), tmp_path, replace(SETTINGS, fsync=fsync)) > 0


@pytest.mark.parametrize("fault", WRITES + OTHERS + [Fault("sync")], ids=repr)
@pytest.mark.parametrize("times", [2, 5, 1000])
def test_no_lasting_failure_loses_a_kept_record_or_an_account_of_a_dropped_one(
    fault: Fault, times: int, tmp_path: Path
) -> None:
    assert each_call(replace(fault, times=times), tmp_path, heal_at=APPENDS - 2) > 0


@pytest.mark.parametrize("short", [1, 19, -1])
@pytest.mark.parametrize("then", [Fault("truncate", times=1000), Fault("create", errno.ENOSPC, 2, 3)], ids=repr)
def test_a_torn_frame_that_cannot_be_cut_off_costs_nothing_after_it(short: int, then: Fault, tmp_path: Path) -> None:
    both = (then, Fault("truncate", times=1000))
    runs = 0
    while True:
        run = tmp_path / str(runs)
        files = FakeFiles(Fault("write", errno.ENOSPC, short=short, first=runs + 1), *both)
        told = workload(run, SETTINGS, files, heal_at=APPENDS - 2)
        check(read_back(run), told, twice=False)
        if runs > 2 * APPENDS:
            return
        runs += 1


def test_a_short_write_after_a_torn_frame_never_cuts_a_kept_record(tmp_path: Path) -> None:
    # The torn frame of write 3 stays (truncate fails) and the next file cannot be made for a while, so the writer has to
    # wait; a second short write later must not be cut off at a position that the torn bytes have made wrong.
    files = FakeFiles(
        Fault("write", errno.ENOSPC, short=7, first=3),
        Fault("truncate", times=1),
        Fault("create", errno.ENOSPC, first=2, times=3),
        Fault("write", errno.ENOSPC, short=5, first=8),
    )
    told = workload(tmp_path / "run", SETTINGS, files)
    assert files.hits >= 5
    check(read_back(tmp_path / "run"), told, twice=False)


def test_trouble_is_told_once_an_episode(tmp_path: Path) -> None:
    sentences: list[str] = []
    files = FakeFiles(Fault("write", errno.ENOSPC, first=3, times=4), Fault("write", errno.ENOSPC, first=9, times=2))
    writer = untended(tmp_path, SETTINGS, files=files, on_trouble=sentences.append)
    for n in range(20):
        writer.append(Kind.PARAMS, number(n))
    writer.close()
    assert len(sentences) == 2
    assert all("No space left on device" in sentence and str(tmp_path) in sentence for sentence in sentences)


def test_a_callback_that_raises_does_not_reach_the_one_who_logs(tmp_path: Path) -> None:
    def raising(sentence: str) -> None:
        raise ValueError(sentence)

    files = FakeFiles(Fault("write", errno.ENOSPC, first=2, times=2))
    writer = untended(tmp_path, SETTINGS, files=files, on_trouble=raising)
    assert not writer.append(Kind.PARAMS, number(0))
    writer.close()


def test_a_disk_that_fails_every_fsync_is_not_filled_with_copies(tmp_path: Path) -> None:
    files = FakeFiles(Fault("sync", times=10**6))
    writer = untended(tmp_path, replace(SETTINGS, segment_bytes=1 << 20), files=files)
    for n in range(200):
        writer.append(Kind.PARAMS, number(n))
        writer.tend(float(n))
    writer.close()
    found = read_back(tmp_path)
    assert set(found.numbers) == set(range(200))
    assert len(found.numbers) < 210


def test_a_file_system_without_fsync_is_not_taken_for_a_broken_one(tmp_path: Path) -> None:
    files = FakeFiles(Fault("sync", errno.EINVAL, times=10**6))
    writer = untended(tmp_path, SETTINGS, files=files)
    for n in range(10):
        writer.append(Kind.PARAMS, number(n))
        writer.tend(float(n))
    writer.close()
    assert read_back(tmp_path).numbers == list(range(10))


class _OldDisk(FakeFiles):
    """Files that are open when ``turn`` is called stay on a disk that answers every write with an error."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self._error = error
        self._open: set[int] = set()
        self._dead: set[int] = set()

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self._open.add(fd)
        return fd

    def turn(self) -> None:
        self._dead = set(self._open)

    def write(self, fd: int, data: bytes) -> int:
        if fd in self._dead:
            raise OSError(self._error, os.strerror(self._error))
        return super().write(fd, data)


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_takes_the_place_of_one_that_is_broken_is_logged_to(error: int, tmp_path: Path) -> None:
    files = _OldDisk(error)
    writer = untended(tmp_path, SETTINGS, files=files)
    assert writer.append(Kind.PARAMS, number(0))
    files.turn()
    assert all(writer.append(Kind.PARAMS, number(n)) for n in range(1, 4))
    assert writer.close(FINISHED)
    assert read_back(tmp_path).numbers == [0, 1, 2, 3]
