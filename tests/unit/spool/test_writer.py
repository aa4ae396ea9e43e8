"""A writer on a disk that works, or that is really full, read-only or limited."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.spool.fake_files import FakeFiles, Fault
from tests.unit.spool.spools import FINISHED, drain, entries, kinds, number, read_back, records, segment_files, untended

from mlferry_spool import limits
from mlferry_spool.caretaker import Caretaker
from mlferry_spool.codec import decode
from mlferry_spool.errors import RecordTooLarge, Unencodable
from mlferry_spool.frames import encode
from mlferry_spool.layout import BALLAST, LOCK
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Heartbeat, Kind, Metrics, Open, Params, RunEnd, SegmentEnd
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.tailer import Lost
from mlferry_spool.writer import Writer

QUIET = Settings(heartbeat_s=1e9, segment_age_s=1e9, retry_s=0.0)


def test_what_is_appended_is_read_back_between_open_and_end(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    metrics = Metrics(5, 1, {"loss": float("inf"), "nan": 0.1})
    assert writer.put(metrics)
    assert writer.append(Kind.PARAMS, [7, {"k": "v"}])
    assert writer.close(FINISHED)
    opening, first, second, end, over = records(writer.directory)
    assert isinstance(opening, Open)
    assert (opening.writer_id, opening.run_id, opening.pid, opening.locked) == ("w", "r", os.getpid(), True)
    assert (first, second, end, over) == (metrics, Params(7, {"k": "v"}), FINISHED, SegmentEnd(None))
    assert (writer.appended, writer.dropped) == (3, 0)


def test_the_hot_path_writes_exactly_what_encode_makes(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    for payload_fields in ([1, {}], [2, {"k": "x" * 300}], [3, {"k": "y" * 70_000}]):
        before = segment_files(writer.directory)[0].stat().st_size
        writer.append(Kind.PARAMS, payload_fields)
        data = segment_files(writer.directory)[0].read_bytes()
        salt = int.from_bytes(data[12:16], "big")
        entry = entries(writer.directory)[-1]
        assert data[before:] == encode(entry.kind, entry.offset, entry.payload, salt)
    writer.close()


def test_a_segment_ends_where_it_is_full_and_names_the_next(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(segment_bytes=500))
    for n in range(60):
        writer.append(Kind.PARAMS, number(n))
    writer.close()
    found = entries(writer.directory)
    assert [entry.offset for entry in found] == list(range(len(found)))
    bases = [int(path.stem) for path in segment_files(writer.directory)]
    ends = [decode(entry.kind, entry.payload) for entry in found if entry.kind == Kind.SEGMENT_END]
    assert ends == [*(SegmentEnd(base) for base in bases[1:]), SegmentEnd(None)]
    opens = [decode(entry.kind, entry.payload) for entry in found if entry.kind == Kind.OPEN]
    assert len(opens) == len(bases) > 3
    assert len(set(opens)) == 1, "losing a segment loses no identity"


def test_a_value_that_cannot_be_stored_is_refused_and_leaves_no_mark(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    for fields in ([1, {"k": object()}], [1, {"k": "\ud800"}], [2**70, {}]):
        with pytest.raises(Unencodable):
            writer.append(Kind.PARAMS, fields)
    with pytest.raises(RecordTooLarge):
        writer.append(Kind.PARAMS, number(1, "x" * limits.MAX_PAYLOAD_BYTES))
    many = dict.fromkeys(map(str, range(limits.MAX_VALUES // 2)), "x")
    with pytest.raises(RecordTooLarge, match="too many values"):
        writer.append(Kind.PARAMS, [1, many])
    with pytest.raises(Unencodable):
        writer.close(RunEnd(1, "\ud800"))
    with pytest.raises(RecordTooLarge):
        writer.close(RunEnd(1, "x" * limits.MAX_PAYLOAD_BYTES))
    assert writer.append(Kind.PARAMS, number(3))
    assert writer.close()
    assert (writer.appended, writer.dropped) == (1, 0)
    assert kinds(writer.directory) == [Kind.OPEN, Kind.PARAMS, Kind.SEGMENT_END]


def test_the_largest_record_fits_and_a_segment_of_the_largest_setting_is_read_whole(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(segment_bytes=1 << 40, fsync=Fsync.NEVER))
    filler = "x" * (limits.MAX_PAYLOAD_BYTES - 20)
    for n in range(130):
        assert writer.append(Kind.PARAMS, number(n, filler))
    writer.close()
    files = segment_files(writer.directory)
    assert len(files) > 1
    assert read_back(tmp_path).numbers == list(range(130))


def test_what_is_logged_after_the_end_is_counted_and_not_written(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    writer.close(FINISHED)
    size = segment_files(writer.directory)[0].stat().st_size
    assert not writer.append(Kind.PARAMS, number(1))
    assert writer.close(FINISHED)
    writer.tend(0.0)
    assert writer.dropped == 1
    assert segment_files(writer.directory)[0].stat().st_size == size


def test_drops_counted_from_outside_are_stated_with_kind_and_reason(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    writer.count_dropped(Kind.METRICS, "the queue is full \ud800", 3)
    writer.count_dropped(Kind.SPANS, "too large")
    writer.count_dropped(99, "unknown")
    writer.tend(1.0)
    writer.close()
    (gap,) = read_back(tmp_path).dropped
    assert (gap.count, gap.kinds, gap.reason) == (5, {"metrics": 3, "spans": 1, "99": 1}, "unknown")
    assert gap.first <= gap.last
    assert writer.dropped == 5


def test_directories_are_for_their_owner_alone_at_every_level(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        writer = untended(tmp_path / "root" / "runs" / "run", QUIET)
        writer.append(Kind.PARAMS, number(1))
    finally:
        os.umask(old)
    for path in [tmp_path / "root", *(tmp_path / "root").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    writer.close()


def test_the_lock_is_held_until_the_end(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    assert probe(writer.directory) is Lock.HELD
    writer.close()
    assert probe(writer.directory) is Lock.FREE
    assert probe(tmp_path) is Lock.UNKNOWN


def test_a_directory_whose_lock_is_held_is_never_shared(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with (tmp_path / "w" / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = untended(tmp_path, QUIET)
        assert writer.directory != tmp_path / "w"
        assert writer.append(Kind.PARAMS, number(1))
        writer.close()
        assert not segment_files(tmp_path / "w")
    assert isinstance(opening := records(writer.directory)[0], Open)
    assert opening.writer_id == writer.writer_id == writer.directory.name


def test_a_directory_that_a_dead_writer_left_is_never_written_to(tmp_path: Path) -> None:
    first = untended(tmp_path, QUIET)
    first.append(Kind.PARAMS, number(1))
    first.close()
    before = segment_files(first.directory)[0].read_bytes()
    second = untended(tmp_path, QUIET)
    second.append(Kind.PARAMS, number(2))
    second.close()
    assert [path.read_bytes() for path in segment_files(first.directory)] == [before]
    assert sorted(read_back(tmp_path).numbers) == [1, 2]


def test_a_reader_that_probes_at_that_moment_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    fd = os.open(tmp_path / "w" / LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    release = threading.Timer(0.03, os.close, (fd,))
    release.start()
    writer = untended(tmp_path, QUIET)
    assert writer.writer_id == "w"
    writer.close()
    release.join()


def test_four_writers_share_a_run_and_nothing_else(tmp_path: Path) -> None:
    writers = [untended(tmp_path, QUIET, f"w{rank}") for rank in range(4)]
    for n in range(400):
        writers[n % 4].append(Kind.PARAMS, number(n))
    for writer in writers:
        writer.close(FINISHED)
    found = read_back(tmp_path)
    assert sorted(found.numbers) == list(range(400))
    assert len(found.ends) == 4


def test_descriptors_closed_behind_the_writers_back_are_replaced(tmp_path: Path) -> None:
    writer = untended(tmp_path, QUIET)
    writer.append(Kind.PARAMS, number(0))
    for fd in os.listdir("/proc/self/fd"):
        if str(tmp_path) in _target(fd):
            os.close(int(fd))
    for n in range(1, 5):
        # The new segment takes the lowest number, the old segment's: it must not be closed in that one's name.
        assert writer.append(Kind.PARAMS, number(n))
        writer.tend(float(n))
    assert probe(writer.directory) is Lock.HELD
    writer.close()
    found = read_back(tmp_path)
    assert set(found.numbers) == set(range(5))
    assert not found.dropped
    assert len(segment_files(writer.directory)) == 2


def _target(fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""


def test_a_quiet_writer_says_that_it_lives(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(heartbeat_s=30.0, segment_age_s=1e9))
    for now in range(100):
        writer.tend(1000.0 + now)
    writer.close()
    beats = [record for record in records(writer.directory) if isinstance(record, Heartbeat)]
    assert len(beats) == 3
    assert writer.appended == 0


def test_a_writer_that_logs_needs_no_heartbeat(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(heartbeat_s=30.0, segment_age_s=1e9))
    for now in range(100):
        writer.append(Kind.PARAMS, number(now))
        writer.tend(1000.0 + now)
    writer.close()
    assert Kind.HEARTBEAT not in kinds(writer.directory)


def test_an_old_segment_is_ended_so_that_it_can_be_retired(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(segment_age_s=600.0, heartbeat_s=1e9))
    writer.tend(1e12)
    assert len(segment_files(writer.directory)) == 1, "there is nothing in it yet"
    writer.append(Kind.PARAMS, number(1))
    writer.tend(1e12)
    writer.append(Kind.PARAMS, number(2))
    writer.close()
    assert len(segment_files(writer.directory)) == 2
    assert read_back(tmp_path).numbers == [1, 2]


def test_the_default_syncs_once_an_interval_what_is_new_and_not_while_logging(tmp_path: Path) -> None:
    files = FakeFiles()
    writer = untended(tmp_path, QUIET, files=files)
    for n in range(50):
        writer.append(Kind.PARAMS, number(n))
    assert files.calls["sync"] == 0
    writer.tend(1.0)
    writer.tend(2.0)
    assert files.calls["sync"] == 1
    writer.append(Kind.PARAMS, number(50))
    writer.tend(3.0)
    assert files.calls["sync"] == 2
    writer.close()


def test_always_syncs_each_record_even_where_no_new_segment_can_be_made(tmp_path: Path) -> None:
    files = FakeFiles(Fault("create", errno.ENOSPC, first=2, times=1000))
    writer = untended(tmp_path, Settings(fsync=Fsync.ALWAYS, segment_bytes=500), files=files)
    for n in range(30):
        assert writer.append(Kind.PARAMS, number(n))
        assert files.calls["sync"] == n + 1
    writer.close()


def test_never_syncs_nothing(tmp_path: Path) -> None:
    files = FakeFiles()
    writer = untended(tmp_path, Settings(fsync=Fsync.NEVER, segment_bytes=400), files=files)
    for n in range(30):
        writer.append(Kind.PARAMS, number(n))
        writer.tend(float(n))
    writer.close(FINISHED)
    assert files.calls["sync"] == 0
    assert read_back(tmp_path).numbers == list(range(30))


def test_retired_segments_are_closed_after_their_sync(tmp_path: Path) -> None:
    files = FakeFiles()
    writer = untended(tmp_path, Settings(segment_bytes=400), files=files)
    for n in range(60):
        writer.append(Kind.PARAMS, number(n))
    retired = len(segment_files(writer.directory)) - 1
    assert files.calls["close"] == 0
    writer.tend(1.0)
    assert files.calls["close"] == retired > 5
    assert files.calls["sync"] == retired + 1
    writer.close()


def test_a_caretaker_tends_by_itself_and_its_thread_ends_with_the_last_writer(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []

    def new_thread(**more: object) -> threading.Thread:
        threads.append(threading.Thread(**more))  # type: ignore[arg-type]
        return threads[-1]

    tended, asked = Caretaker(new_thread), threading.Event()

    class Asked(FakeFiles):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            asked.set()

    writer = Writer(tmp_path, Open("w"), QUIET, files=Asked(), tended_by=tended)
    writer.append(Kind.PARAMS, number(1))
    writer.sync_soon()
    assert asked.wait(30)
    writer.close()
    threads[0].join(30)
    assert not threads[0].is_alive()
    again = Writer(tmp_path, Open("w2"), QUIET, tended_by=tended)
    assert len(threads) == 2
    again.close()


def test_logging_goes_on_where_no_thread_can_be_had(tmp_path: Path) -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    writer = Writer(tmp_path, Open("w"), QUIET, tended_by=Caretaker(Refused))
    assert writer.append(Kind.PARAMS, number(1))
    writer.close(FINISHED)
    assert read_back(tmp_path).numbers == [1]


def test_eight_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path, Open("w"), Settings(segment_bytes=20_000, fsync_interval_s=0.001))
    each = 1500

    def log(thread: int) -> None:
        for n in range(each):
            assert writer.append(Kind.PARAMS, number(thread * each + n))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(FINISHED)
    found = read_back(tmp_path)
    assert sorted(found.numbers) == list(range(8 * each))
    for thread in range(8):
        own = [n for n in found.numbers if n // each == thread]
        assert own == sorted(own), "each thread's order is kept"
    assert not found.lost
    offsets = [entry.offset for entry in entries(writer.directory)]
    assert offsets == list(range(len(offsets)))


@contextlib.contextmanager
def mounted(where: Path, options: str) -> Iterator[Path]:
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_on_a_full_disk_the_ballast_keeps_room_for_the_last_words(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=512k") as disk:
        writer = untended(disk / "run", QUIET)
        kept = 0
        while writer.append(Kind.PARAMS, number(kept, "x" * 500)):
            kept += 1
        refused = 1
        while os.statvfs(disk).f_bavail or refused < 50:
            assert not writer.append(Kind.PARAMS, number(10**6, "x" * 500))
            refused += 1
        assert writer.close(FINISHED)
        found = read_back(disk / "run")
        assert found.numbers == list(range(kept))
        assert kept > 400
        assert found.ends == [FINISHED]
        assert found.ended
        assert sum(gap.count for gap in found.dropped) == writer.dropped == refused
        assert "No space" in found.dropped[0].reason
        assert not (writer.directory / BALLAST).exists()


def test_a_full_disk_that_has_room_again_is_used_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=256k") as disk:
        hog = disk / "hog"
        writer = untended(disk / "run", QUIET)
        hog.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        told = [writer.append(Kind.PARAMS, number(n, "x" * 900)) for n in range(40)]
        hog.unlink()
        told += [writer.append(Kind.PARAMS, number(n, "x" * 900)) for n in range(40, 60)]
        writer.close(FINISHED)
        found = read_back(disk / "run")
        assert found.numbers == [n for n, kept in enumerate(told) if kept]
        assert 0 < told.count(False) == sum(gap.count for gap in found.dropped)
        assert told[40:] == [True] * 20


def test_a_disk_full_from_the_start_is_counted_and_used_once_it_has_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k") as disk:
        hog = disk / "hog"
        with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        writer = untended(disk / "run", QUIET)
        assert not writer.append(Kind.PARAMS, number(0))
        hog.unlink()
        assert writer.append(Kind.PARAMS, number(1))
        writer.close(FINISHED)
        found = read_back(disk / "run")
        assert found.numbers == [1]
        assert [gap.count for gap in found.dropped] == [1]
        assert found.ends == [FINISHED]


def test_a_read_only_mount_is_counted_and_used_once_it_can_be_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        sentences: list[str] = []
        writer = untended(disk / "run", QUIET, on_trouble=sentences.append)
        assert not writer.append(Kind.PARAMS, number(0))
        assert len(sentences) == 1
        assert "Read-only" in sentences[0]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert writer.append(Kind.PARAMS, number(1))
        writer.close(FINISHED)
        assert read_back(disk / "run").numbers == [1]


def test_a_spool_on_a_read_only_mount_is_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "size=1m") as disk:
        writer = untended(disk / "run", QUIET)
        writer.append(Kind.PARAMS, number(1))
        writer.close(FINISHED)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert read_back(disk / "run").numbers == [1]
        assert probe(writer.directory) is Lock.FREE


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.unit.spool.spools import FINISHED, number, untended
from mlferry_spool.settings import Settings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
writer = untended(Path(sys.argv[1]), Settings(retry_s=0.0))
kept = [writer.append(6, number(n, "x" * 100)) for n in range(200)]
writer.close(FINISHED)
print(sum(kept), writer.dropped)
"""


def test_a_limit_on_the_size_of_files_begins_new_ones(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}/spool:{root}"}
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["200", "0"]
    found = read_back(tmp_path / "run")
    assert found.numbers == list(range(200))
    assert found.ends == [FINISHED]
    assert found.frames_lost == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_pending_bytes_fall_to_nothing_as_a_log_is_read(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings(segment_bytes=500))
    for n in range(50):
        writer.append(Kind.PARAMS, number(n))
    writer.close()
    reader, before = LogReader(writer.directory), 1 << 60
    while events := reader.read():
        assert not any(isinstance(event, Lost) for event in events)
        assert reader.pending_bytes() < before
        before = reader.pending_bytes()
    assert before == 0
    assert list(drain(reader)) == []
