"""What happens beyond limits that no other test comes to; docs/limits.md names a test for each."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path

import pytest
from tests.unit.spool.fake_files import FakeFiles, Fault
from tests.unit.spool.spools import number, read_back, records, untended

from mlferry_spool import catalogue as module
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.introductions import introduced
from mlferry_spool.records import Kind, Open, Params
from mlferry_spool.settings import Settings


class Disk(FakeFiles):
    """Counts the writes that a disk would see; a suspended log writes to no file."""

    tries = 0

    def write(self, fd: int, data: bytes, /) -> int:
        self.tries += fd >= 0
        return super().write(fd, data)


def test_a_disk_that_failed_is_left_alone_for_a_while(tmp_path: Path) -> None:
    files = Disk()
    writer = untended(tmp_path, Settings(retry_s=0.3, segment_age_s=1e9, heartbeat_s=1e9), files=files)
    assert writer.append(Kind.PARAMS, number(1))
    files.faults = (Fault("write", errno.ENOSPC, times=10**6),)
    assert not writer.append(Kind.PARAMS, number(2))
    before = files.tries
    assert not any(writer.append(Kind.PARAMS, number(3)) for _ in range(100))
    assert files.tries == before
    files.heal()
    time.sleep(0.3)
    assert writer.append(Kind.PARAMS, number(4))
    writer.close()
    found = read_back(tmp_path)
    assert found.numbers == [1, 4]
    assert sum(gap.count for gap in found.dropped) == 101


def test_of_what_no_file_took_so_much_is_read_back_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_IMAGINED", 3)
    catalogue = Catalogue(tmp_path)
    for index in range(5):
        catalogue.imagine("r", Params(index, {f"p{index}": "x"}))
    run = catalogue.run("r")
    assert run is not None
    assert set(run.params.values()) == {"p0", "p1", "p2"}


def test_of_a_programs_name_so_much_is_kept_as_fits_an_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/" + "x" * 5000])
    assert introduced(Open("w", run_id="r"), opened=0, locked=True, heartbeat_s=1.0).program == "x" * 200
    writer = untended(tmp_path)
    writer.close()
    opening = records(writer.directory)[0]
    assert isinstance(opening, Open) and opening.program == "x" * 200
