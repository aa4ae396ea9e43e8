"""Names and places in a spool."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlferry_spool.layout import (
    default_root,
    find_run,
    is_name,
    new_run_directory,
    run_directories,
    run_id_of,
    segment_name,
    segment_offset,
    writer_directories,
    writer_name,
)


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"MLFERRY_DIR": "/data/m", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/data/m"),
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/mlferry"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/h"}, "/h/.local/share/mlferry"),
        ({"XDG_DATA_HOME": "", "MLFERRY_DIR": "", "HOME": "/h"}, "/h/.local/share/mlferry"),
    ],
)
def test_the_root_is_where_the_user_or_the_desktop_says(environment: dict[str, str], root: str) -> None:
    assert default_root(environment) == Path(root)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "a\n", "x" * 129, "ä", "a\0"])
def test_no_name_leads_out_of_its_directory(name: str) -> None:
    assert not is_name(name)
    assert run_id_of(f"20260101T000000-{name}") is None


def test_segments_are_named_by_offset_and_sort_by_it() -> None:
    offsets = [0, 9, 10, 99, 12345, (1 << 63) - 1]
    named = [segment_name(offset) for offset in offsets]
    assert named == sorted(named)
    assert [segment_offset(name) for name in named] == offsets
    assert segment_offset(segment_name(1 << 63)) is None


def test_a_run_is_found_again_by_its_id_and_runs_come_in_order_of_start(tmp_path: Path) -> None:
    assert find_run(tmp_path, "b") is None
    for start, run in ((3_000_000, "a"), (1_000_000, "b"), (2_000_000, "b")):
        new_run_directory(tmp_path, run, start).mkdir(parents=True)
    (tmp_path / "runs" / "something else").mkdir()
    (tmp_path / "runs" / "19700101T000000-c").symlink_to(tmp_path)
    (tmp_path / "runs" / "19700101T000000-d").touch()
    assert [run_id_of(path.name) for path in run_directories(tmp_path)] == ["b", "b", "a"]
    assert find_run(tmp_path, "b") == new_run_directory(tmp_path, "b", 1_000_000)


def test_blobs_and_links_are_no_writers(tmp_path: Path) -> None:
    for name in ("w2", "w1", "blobs"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "w1")
    assert [path.name for path in writer_directories(tmp_path)] == ["w1", "w2"]


def test_writers_sort_by_their_start_and_tell_their_rank() -> None:
    earlier, later = writer_name(1_767_225_600_000, 3, "ff"), writer_name(1_767_225_600_001, None, "00")
    assert earlier < later
    assert "-r3-" in earlier
    assert is_name(earlier)
    assert is_name(later)
