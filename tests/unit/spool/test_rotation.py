"""Who begins a new segment: the caretaker, so that no thread that logs waits for a file to be made; or whoever must."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.spool.spools import number, read_back, segment_files

from mlferry_spool.caretaker import Caretaker
from mlferry_spool.files import OsFiles
from mlferry_spool.records import Kind, Open
from mlferry_spool.settings import Settings
from mlferry_spool.writer import Writer

FULL = Settings(segment_bytes=2000, fsync_interval_s=1e9, heartbeat_s=1e9, retry_s=1e9, segment_age_s=1e9)


class Told(OsFiles):
    """Remembers which thread made each file."""

    def __init__(self) -> None:
        self.makers: list[int] = []

    def create(self, path: Path) -> int:  # type: ignore[override]
        if path.suffix == ".seg":
            self.makers.append(threading.get_ident())
        return OsFiles.create(path)


def asleep(**_: Any) -> threading.Thread:
    """A thread that runs and does nothing, as one does that waits for a slow disk."""
    return threading.Thread(target=threading.Event().wait, args=(600,), daemon=True)


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_full_segment_is_left_to_the_caretaker(tmp_path: Path) -> None:
    files = Told()
    writer = Writer(tmp_path, Open("w", run_id="r"), FULL, files=files, tended_by=Caretaker())
    count = 0
    for turn in range(1, 4):
        while writer._position < FULL.segment_bytes:
            writer.append(Kind.PARAMS, number(count := count + 1, "x" * 100))
        until(lambda wanted=turn: len(files.makers) > wanted)  # type: ignore[misc]
        until(lambda: writer._position < FULL.segment_bytes)
    writer.close()
    assert files.makers[0] == threading.get_ident()
    assert threading.get_ident() not in files.makers[1:]
    assert read_back(tmp_path).numbers == list(range(1, count + 1))


def test_a_logging_thread_rotates_itself_where_the_caretaker_does_not_come(tmp_path: Path) -> None:
    files = Told()
    writer = Writer(tmp_path, Open("w", run_id="r"), FULL, files=files, tended_by=Caretaker(asleep))
    for count in range(100):
        writer.append(Kind.PARAMS, number(count, "x" * 100))
    writer.close()
    sizes = [path.stat().st_size for path in segment_files(writer.directory)]
    assert len(sizes) > 2
    assert all(FULL.segment_bytes < size < 2 * FULL.segment_bytes + 300 for size in sizes[:-1])
    assert read_back(tmp_path).numbers == list(range(100))
