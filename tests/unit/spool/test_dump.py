"""What ``mlferry dump`` reads is opened like everything else in a spool: carefully."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.spool.spools import number, untended

from mlferry_spool.dump import dump_segment
from mlferry_spool.errors import UntrustedFile


def test_a_segment_is_told_frame_by_frame(tmp_path: Path) -> None:
    writer = untended(tmp_path)
    writer.append(6, number(1))
    writer.close()
    (segment,) = tmp_path.glob("w/*.seg")
    told = list(dump_segment(segment))
    assert told[0]["version"] == "1.0"
    assert [line["kind"] for line in told[1:]] == ["open", "params", "segment_end"]


def test_a_pipe_in_the_place_of_a_segment_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / f"{0:020d}.seg"
    os.mkfifo(pipe)
    with pytest.raises(UntrustedFile):
        list(dump_segment(pipe))
