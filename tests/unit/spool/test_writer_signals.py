"""Signal handlers that log, raise or close, wherever they interrupt a writer."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType

import pytest
from tests.unit.spool.fake_files import FakeFiles, Fault
from tests.unit.spool.spools import FINISHED, entries, number, read_back, untended

from mlferry_spool.files import OsFiles
from mlferry_spool.records import Kind, Open
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer


class Unsynced(OsFiles):
    """The real verbs, ``write`` a C function as in real life (a handler can run inside one in Python), without the syncs."""

    def __init__(self, failing: range = range(0)) -> None:
        self.failing, self.syncs = failing, 0

    def sync(self, fd: int) -> None:  # type: ignore[override]
        self.syncs += 1
        if self.syncs in self.failing:
            raise OSError(5, "Input/output error")

    @staticmethod
    def sync_directory(path: Path) -> None:
        pass


NESTED = 1_000_000  # numbers from here on are logged by the handler

#: A handler may interrupt a handler, but not so often that Python's stack ends: what fails then is not the writer.
MOST_NESTED = 50
Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def bombarded(handler: Handler, every_s: float = 0.00005, *, again: bool = True) -> Iterator[None]:
    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s if again else 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.ALWAYS])
def test_a_handler_that_logs_inside_append_loses_and_doubles_nothing(fsync: Fsync, tmp_path: Path) -> None:
    settings = Settings(segment_bytes=4000, fsync=fsync, fsync_interval_s=0.001)
    writer = Writer(tmp_path, Open("w"), settings, files=Unsynced())
    kept: list[int] = []
    refused: list[int] = []
    numbers = count(NESTED)
    inside: list[None] = []

    def handler(signal_: int, frame: FrameType | None) -> None:
        if len(inside) >= MOST_NESTED:
            return
        inside.append(None)
        mine = next(numbers)
        (kept if writer.append(Kind.PARAMS, number(mine)) else refused).append(mine)
        inside.pop()

    with bombarded(handler):
        for n in range(12_000):
            assert writer.append(Kind.PARAMS, number(n))
    writer.close(FINISHED)
    found = read_back(tmp_path)
    assert len(kept) > 50
    assert [n for n in found.numbers if n < NESTED] == list(range(12_000))
    assert sorted(n for n in found.numbers if n >= NESTED) == sorted(kept)
    assert not found.lost
    assert sum(gap.count for gap in found.dropped) == len(refused)
    offsets = [entry.offset for entry in entries(writer.directory)]
    assert offsets == list(range(len(offsets)))


class Everywhere:
    """Runs an action at the Nth place inside the spool's code where the interpreter looks for signals: on entry to and
    return from a function, and after a call of a C function (``ceval.c``; the profiler's events are just these)."""

    PLACES = ("call", "return", "c_return")
    FILES = tuple(f"mlferry_spool/{name}.py" for name in ("writer", "log", "gaps", "segments", "homes", "durability"))

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        self.at, self.action, self.seen = at, action, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event in self.PLACES and frame.f_code.co_filename.endswith(self.FILES):
            self.seen += 1
            if self.seen == self.at:
                sys.setprofile(None)
                self.action()


def at_every_place(tmp_path: Path, run: Callable[[Path, Callable[[Callable[[], None]], None]], None]) -> int:
    """Call ``run`` with a way to arm the Nth place, N = 1, 2, ... until the place is never reached."""
    at = 0
    while True:
        at += 1
        armed: list[Everywhere] = []

        def arm(action: Callable[[], None], at: int = at, armed: list[Everywhere] = armed) -> None:
            armed.append(Everywhere(at, action))
            sys.setprofile(armed[0])

        try:
            run(tmp_path / str(at), arm)
        finally:
            sys.setprofile(None)
        if armed[0].seen < at:
            return at


FAULTS: list[tuple[Fault, ...]] = [
    (),
    (Fault("write", 28, first=3),),
    (Fault("write", 28, first=3, times=2),),
    (Fault("write", 0, first=3, short=5),),
    (Fault("write", 27, first=3, short=5),),
    (Fault("write", 28, first=3, short=5), Fault("truncate")),
]


@pytest.mark.parametrize("faults", FAULTS, ids=repr)
@pytest.mark.parametrize("fsync", [Fsync.NEVER, Fsync.ALWAYS])
def test_a_nested_append_at_any_place_costs_no_kept_record(
    faults: tuple[Fault, ...], fsync: Fsync, tmp_path: Path
) -> None:
    def run(directory: Path, arm: Callable[[Callable[[], None]], None]) -> None:
        files = FakeFiles(*faults)
        writer = untended(directory, Settings(segment_bytes=330, retry_s=0.0, fsync=fsync), files=files)
        told: dict[int, bool] = {}

        def nested() -> None:
            told[NESTED] = writer.append(Kind.PARAMS, number(NESTED))

        arm(nested)
        for n in range(4):
            told[n] = writer.append(Kind.PARAMS, number(n, "x" * 20 * n))
        sys.setprofile(None)
        assert writer.close(FINISHED)
        found = read_back(directory)
        assert sorted(found.numbers) == sorted(n for n, kept in told.items() if kept)
        assert [n for n in found.numbers if n < NESTED] == sorted(n for n in found.numbers if n < NESTED)
        assert sum(gap.count for gap in found.dropped) == list(told.values()).count(False) == writer.dropped
        assert writer.appended == list(told.values()).count(True) + 1
        assert found.ends == [FINISHED]

    assert at_every_place(tmp_path, run) > 40


@pytest.mark.parametrize("faults", FAULTS[:4], ids=repr)
def test_a_handler_that_raises_at_any_place_leaves_a_writer_that_works(
    faults: tuple[Fault, ...], tmp_path: Path
) -> None:
    def run(directory: Path, arm: Callable[[Callable[[], None]], None]) -> None:
        writer = untended(directory, Settings(segment_bytes=330, retry_s=0.0), files=FakeFiles(*faults))
        kept: list[int] = []

        def interrupt() -> None:
            raise KeyboardInterrupt

        arm(interrupt)
        for n in range(9):
            with contextlib.suppress(KeyboardInterrupt):
                if writer.append(Kind.PARAMS, number(n, "x" * 20)):
                    kept.append(n)
        sys.setprofile(None)
        assert writer.close(FINISHED)
        found = read_back(directory)
        assert set(kept) <= set(found.numbers)
        assert len(found.numbers) == len(set(found.numbers)) <= len(kept) + 1, "at most the interrupted one more"
        assert found.ends == [FINISHED]

    assert at_every_place(tmp_path, run) > 40


def test_close_by_a_handler_at_any_place_ends_the_log_or_says_that_it_did_not(tmp_path: Path) -> None:
    def run(directory: Path, arm: Callable[[Callable[[], None]], None]) -> None:
        writer = untended(directory, Settings(segment_bytes=330, retry_s=0.0), files=FakeFiles())
        kept: list[int] = []
        answers: list[bool] = []
        arm(lambda: answers.append(writer.close(FINISHED)))
        for n in range(4):
            if writer.append(Kind.PARAMS, number(n, "x" * 20)):
                kept.append(n)
        sys.setprofile(None)
        if answers != [True]:
            assert writer.close(FINISHED)
        found = read_back(directory)
        assert found.numbers == kept
        assert found.ends == [FINISHED]
        assert found.ended

    assert at_every_place(tmp_path, run) > 40


def test_close_by_a_handler_while_the_caretaker_works_never_hangs(tmp_path: Path) -> None:
    for round_ in range(60):
        settings = Settings(segment_bytes=2000, fsync_interval_s=0.0002, heartbeat_s=0.0002)
        files = Unsynced(range(2 + round_ % 7, 4 + round_ % 7))
        writer = Writer(tmp_path / str(round_), Open("w"), settings, files=files)
        closed: list[bool] = []

        def handler(
            signal_: int, frame: FrameType | None, writer: Writer = writer, closed: list[bool] = closed
        ) -> None:
            if not any(closed):
                closed.append(writer.close(FINISHED))

        kept = []
        with bombarded(handler, 0.0005 + 0.0001 * (round_ % 9)):
            n = 0
            while not any(closed):
                if writer.append(Kind.PARAMS, number(n)):
                    kept.append(n)
                n += 1
        found = read_back(tmp_path / str(round_))
        assert set(kept) <= set(found.numbers)
        assert set(found.ends) == {FINISHED}


def test_a_handler_that_waits_for_nobody_may_open_and_close_writers(tmp_path: Path) -> None:
    opened: list[int] = []
    numbers = count()

    def handler(signal_: int, frame: FrameType | None) -> None:
        mine = next(numbers)
        nested = Writer(tmp_path / "nested", Open(f"n{mine}"), Settings(fsync=Fsync.NEVER))
        nested.append(Kind.PARAMS, number(mine))
        nested.close(FINISHED)
        opened.append(mine)
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # not before: it may take longer than any interval

    with bombarded(handler, 0.001, again=False):
        for n in range(150):
            writer = Writer(tmp_path / "outer", Open(f"w{n}"), Settings(fsync=Fsync.NEVER))
            writer.sync_soon()
            writer.append(Kind.PARAMS, number(n))
            writer.close(FINISHED)
    assert len(opened) > 3
    assert sorted(read_back(tmp_path / "outer").numbers) == list(range(150))
    assert sorted(read_back(tmp_path / "nested").numbers) == sorted(opened)


def test_a_handler_that_raises_while_a_thread_waits_for_the_lock_raises_what_it_raised(tmp_path: Path) -> None:
    writer = untended(tmp_path, Settings())
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with writer._lock:
            held.set()
            done.wait(10)

    def handler(signal_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with bombarded(handler, 0.05, again=False), pytest.raises(KeyboardInterrupt):
        writer.append(Kind.PARAMS, number(1))
    done.set()
    thread.join()
    assert writer.append(Kind.PARAMS, number(2))
    assert writer.close(FINISHED)
    assert read_back(tmp_path).numbers == [2]
