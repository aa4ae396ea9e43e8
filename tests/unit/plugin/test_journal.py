"""Which log a record goes to, who answers for a run, and what is left when a process ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.spools import only, read_writers

from mlferry.errors import NotStored
from mlferry.plugin import journal as module
from mlferry.plugin.journal import Journal, Known
from mlferry_spool.codec import decode
from mlferry_spool.layout import store_directory, writer_directories
from mlferry_spool.liveness import Lock, probe
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Dropped, Metrics, Open, Params, Record, RunEnd, RunUpdate, Tags, Trace
from mlferry_spool.tailer import Entry

RUN = "a" * 32


def begin(diary: Journal, run_id: str = RUN) -> None:
    opening = Open("0-first", run_id, experiment_name="e", offline_experiment_id="1", start_time=1_700_000_000_000)
    diary.create(opening, Known("1"))


def logs(root: Path, run_id: str = RUN) -> list[tuple[str, list[Record]]]:
    """(role, records after OPEN) of each writer of a run, in order of time."""
    found = []
    for records in read_writers(root, run_id).values():
        [opening] = only(Open, records)
        found.append((opening.role, [record for record in records if not isinstance(record, Open)]))
    return found


def ended(root: Path, run_id: str = RUN) -> list[bool]:
    """Whether each log of a run was ended in order."""
    [directory] = [path for path in (root / "runs").iterdir() if path.name.endswith(run_id)]
    answers = []
    for writer in writer_directories(directory):
        reader = LogReader(writer)
        while reader.read():
            pass
        answers.append(reader.ended)
    return answers


def kinds(records: list[Record]) -> list[str]:
    return [type(record).__name__ for record in records if type(record).__name__ != "SegmentEnd"]


def test_who_creates_a_run_answers_for_it_and_its_end_closes_the_log_at_once(diary: Journal, root: Path) -> None:
    begin(diary)
    diary.put(RUN, Params(1, {"a": "1"}))
    assert ended(root) == [False]
    diary.end(RUN, "FINISHED", 5)
    [(role, records)] = logs(root)
    assert (role, kinds(records)) == ("primary", ["Params", "RunEnd"])
    assert ended(root) == [True]


def test_what_is_said_after_the_end_is_a_guests(diary: Journal, root: Path) -> None:
    begin(diary)
    diary.end(RUN, "FINISHED", 5)
    diary.put(RUN, Metrics(6, 0, {"late": 1.0}))
    assert [(role, kinds(records)) for role, records in logs(root)] == [("primary", ["RunEnd"]), ("guest", ["Metrics"])]


def test_who_resumes_a_run_answers_for_it_from_then_on(diary: Journal, root: Path) -> None:
    begin(diary)
    diary.end(RUN, "FAILED", 5)
    diary.put(RUN, Tags(6, {"between": "yes"}))
    diary.resume(RUN)
    diary.end(RUN, "FINISHED", 9)
    told = [(role, kinds(records)) for role, records in logs(root)]
    assert told == [("primary", ["RunEnd"]), ("guest", ["Tags"]), ("primary", ["RunUpdate", "RunEnd"])]
    state = diary.catalogue.run(RUN)
    assert state is not None and state.status.value == "FINISHED"


def test_another_process_that_adds_to_a_run_is_a_guest(diary: Journal, root: Path) -> None:
    begin(diary)
    other = Journal(root)
    other.put(RUN, Tags(1, {"from": "elsewhere"}))
    other.end(RUN, "FINISHED", 5)
    other.close()
    assert sorted((role, kinds(records)) for role, records in logs(root)) == [
        ("guest", ["Tags", "RunEnd"]),
        ("primary", []),
    ]


def test_at_the_end_of_the_process_logs_are_closed_without_an_end_of_any_run(diary: Journal, root: Path) -> None:
    begin(diary)
    diary.put(RUN, Params(1, {"a": "1"}))
    module.close_all()
    [(_, records)] = logs(root)
    assert kinds(records) == ["Params"]
    assert ended(root) == [True]
    [directory] = (root / "runs").iterdir()
    assert all(probe(writer) is not Lock.HELD for writer in writer_directories(directory))


def test_what_belongs_to_no_run_goes_to_the_stores_log(diary: Journal, root: Path) -> None:
    diary.put(None, Trace(1, "tr-1", {}))
    assert list(writer_directories(store_directory(root)))
    assert list(diary.catalogue.store().traces) == ["tr-1"]


def test_no_more_logs_are_open_than_a_process_can_afford(
    diary: Journal, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_OPEN", 3)
    ids = [f"{number:032x}" for number in range(5)]
    for run_id in ids:
        begin(diary, run_id)
    assert len(diary._writers) == 3
    for run_id in ids:
        assert diary.put(run_id, Params(1, {"a": run_id}))
    for run_id in ids:
        state = diary.catalogue.run(run_id)
        assert state is not None and state.params.values() == {"a": run_id}
        assert {role for role, _ in logs(root, run_id)} == {"primary"}


def test_what_no_record_holds_is_counted_and_fails_nobody(diary: Journal, root: Path) -> None:
    for info in ({"values": [1] * 9000}, {"text": "x" * 2_000_000}):
        assert not diary.put(None, Trace(1, "tr-1", info))
    assert diary.put(None, Trace(1, "tr-2", {}))
    diary.close()
    [log] = [LogReader(writer) for writer in writer_directories(store_directory(root))]
    found = [decode(event.kind, event.payload) for event in log.read() if isinstance(event, Entry)]
    assert sum(record.kinds["trace"] for record in found if isinstance(record, Dropped)) == 2
    assert [record.trace_id for record in found if isinstance(record, Trace)] == ["tr-2"]


def test_of_very_many_runs_some_are_read_again(diary: Journal, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 2)
    ids = [f"{number:032x}" for number in range(4)]
    for run_id in ids:
        begin(diary, run_id)
    assert len(diary._known) == 2
    for run_id in ids:
        known = diary.known(run_id)
        assert known is not None and known.experiment_id == "1"
    assert len(diary._known) == 2


def test_what_a_write_must_know_of_a_run_of_others_is_read_once(diary: Journal, root: Path) -> None:
    other = Journal(root)
    begin(other)
    other.put(RUN, Params(1, {"a": "1"}))
    other.put(RUN, RunUpdate(2, lifecycle="deleted"))
    other.close()
    known = diary.known(RUN)
    assert known is not None and (known.params, known.deleted, known.experiment_id) == ({"a": "1"}, True, "1")
    assert diary.known(RUN) is known
    assert diary.known("b" * 32) is None


def test_a_spool_that_cannot_be_written_fails_nobody_unless_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    for on_error in ("warn", "raise"):
        monkeypatch.setenv("MLFERRY_ON_ERROR", on_error)
        diary = Journal(tmp_path / "file" / "spool")
        begin(diary)
        if on_error == "raise":
            with pytest.raises(NotStored):
                diary.put(RUN, Params(1, {"a": "1"}))
        else:
            assert diary.put(RUN, Params(1, {"a": "1"})) is False
        diary.close()
    assert "logging is suspended" in caplog.text


def test_threads_that_write_to_many_runs_lose_nothing(diary: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_OPEN", 2)  # so that logs are closed under the threads' feet
    ids = [f"{number:032x}" for number in range(4)]
    for run_id in ids:
        begin(diary, run_id)
    refused: list[Any] = []

    def work(number: int) -> None:
        for step in range(60):
            if not diary.put(ids[(number + step) % 4], Metrics(1, step, {f"m{number}": 1.0})):
                refused.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = sum(len(diary.catalogue.history(run_id, f"m{number}")) for run_id in ids for number in range(4))
    assert (points, refused) == (240, [])


def test_a_forked_child_writes_to_a_log_of_its_own(diary: Journal, root: Path) -> None:
    begin(diary)
    diary.put(RUN, Metrics(1, 0, {"parent": 1.0}))
    child = os.fork()
    if not child:
        kept = diary.put(RUN, Metrics(2, 0, {"child": 1.0}))
        os._exit(0 if kept else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    diary.put(RUN, Metrics(3, 1, {"parent": 2.0}))
    diary.end(RUN, "FINISHED", 5)
    told = sorted((role, kinds(records)) for role, records in logs(root))
    assert told == [("helper", ["Metrics"]), ("primary", ["Metrics", "Metrics", "RunEnd"])]
    assert only(RunEnd, [record for _, records in logs(root) for record in records])
