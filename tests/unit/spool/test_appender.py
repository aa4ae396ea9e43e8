"""The hot path, in Python and in C: both write the same frames, and what is rare ends the same way."""

from __future__ import annotations

import errno
import gc
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.house.test_structure import REPOSITORY

from mlferry_spool import appender, frames
from mlferry_spool.appender import Appender, PythonAppender
from mlferry_spool.codec import decode, packer
from mlferry_spool.errors import Unencodable
from mlferry_spool.frames import Frame, next_frame
from mlferry_spool.records import Kind, Metrics
from mlferry_spool.templates import Template, template

SALT = 0xFEDCBA98
TYPES = {float, int, bool, np.float64}

compiled = pytest.mark.skipif(not appender.IS_COMPILED, reason="this environment has the hot path in Python alone")
both = pytest.mark.parametrize("base", [PythonAppender, pytest.param(Appender, marks=compiled)], ids=["Python", "C"])


class Bare:
    """What a writer is to its appender: counters, a lock, and what is told of trouble. A base comes beside it."""

    _sequence: int
    _position: int

    def begin(self, fd: int, write: Any = os.write) -> None:
        lock = threading.RLock()
        self._acquire, self._release = lock.acquire, lock.release
        self._pack, self._write = packer().pack, write
        self._fd, self._salt, self._act_at = fd, SALT, 1 << 40
        self._sequence = self._position = 0
        self.acted = 0
        self.recovered: list[tuple[Any, ...]] = []

    def _look_at(self, payload: bytes) -> None:
        pass

    def _act(self) -> bool:
        self.acted += 1
        return True

    def _recover(self, *told: Any) -> bool:
        self.recovered.append(told)
        return False


def bare(base: type[PythonAppender], fd: int, write: Any = os.write) -> Any:
    made = type("Made", (Bare, base), {})()
    made.begin(fd, write)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "segment", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield fd
    os.close(fd)


def written(fd: int) -> list[Frame]:
    buffer, found, at = os.pread(fd, 1 << 24, 0), list[Frame](), 0
    while at < len(buffer):
        frame = next_frame(buffer, at, SALT)
        assert isinstance(frame, Frame)
        found.append(frame)
        at = frame.end
    return found


def templates(*names: str) -> dict[str, Template]:
    return {name: template(name) for name in names}


def metrics(fd: int) -> list[tuple[int, dict[str, bytes]]]:
    """Steps and values, bit for bit, of what was written just now."""
    found, now = [], time.time_ns() // 1_000_000
    for frame in written(fd):
        record = decode(frame.kind, frame.payload)
        assert isinstance(record, Metrics)
        assert now - 60_000 < record.timestamp <= now
        found.append((record.step, {key: struct.pack("d", value) for key, value in record.values.items()}))
    return found


def test_it_is_compiled_where_there_is_a_compiler() -> None:
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which("cc") is None or not header.exists() or os.environ.get("MLFERRY_PURE_PYTHON", "0") != "0":
        pytest.skip("no C compiler here, or no Python.h, or it is not wanted")
    assert appender.IS_COMPILED


@pytest.mark.parametrize("said", ["1", "true", "TRUE"])
def test_it_stays_in_python_where_that_is_asked_for(said: str) -> None:
    assert is_compiled(said) == "False\n"


@compiled
@pytest.mark.parametrize("said", ["", "0", "false"])
def test_it_is_compiled_where_python_is_not_asked_for(said: str) -> None:
    assert is_compiled(said) == "True\n"


def is_compiled(said: str) -> str:
    """What a process with this ``MLFERRY_PURE_PYTHON`` says."""
    program = "from mlferry_spool.appender import IS_COMPILED; print(IS_COMPILED)"
    environ = {**os.environ, "MLFERRY_PURE_PYTHON": said}
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    source = REPOSITORY / "spool/mlferry_spool/_appender.c"
    flags = ("-std=c99", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror")
    include = ("-isystem", sysconfig.get_path("include"))
    done = subprocess.run(
        ["cc", *flags, *include, "-D_POSIX_C_SOURCE=200809L", "-c", str(source), "-o", str(tmp_path / "x.o")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@both
def test_a_frame_of_every_size_is_what_the_format_says(base: type[PythonAppender], file: int) -> None:
    made, expected = bare(base, file), b""
    for sequence, size in enumerate([*range(200), 4095, 4096, 4097, 9000]):
        payload = os.urandom(size)
        assert made.append(6, payload) is True
        expected += frames.encode(6, sequence, payload, SALT)
    assert os.pread(file, 1 << 20, 0) == expected
    assert (made._position, made._sequence) == (len(expected), 204)


@both
def test_fields_are_packed_as_msgpack_does(base: type[PythonAppender], file: int) -> None:
    made, fields = bare(base, file), [1, {"k": "v"}, b"\0", None, 1.5]
    assert made.append(Kind.PARAMS, fields)
    assert [frame.payload for frame in written(file)] == [packer().pack(fields)]
    with pytest.raises(Unencodable):
        made.append(Kind.PARAMS, [object()])
    with pytest.raises(Unencodable):
        made.append(Kind.PARAMS, ["\ud800"])
    with pytest.raises(struct.error):
        made.append(300, b"")
    assert (made._sequence, len(written(file))) == (1, 1)


NAMES = ("a", "loss/train 1", "x" * 31, "y" * 250, "\u00fc")
VALUES = st.one_of(
    st.floats(), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.floats().map(np.float64), st.just(5e-324)
)
STEPS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))


@compiled
@given(st.sampled_from(NAMES), VALUES, STEPS)
def test_a_point_is_the_same_from_both(key: str, value: Any, step: int | None) -> None:
    assert one_from(PythonAppender, key, value, step) == one_from(Appender, key, value, step)


def one_from(base: type[PythonAppender], key: str, value: Any, step: int | None) -> Any:
    fd = os.memfd_create("segment")
    try:
        assert bare(base, fd).append_point(templates(*NAMES), TYPES, key, value, step) is True
        return metrics(fd)
    finally:
        os.close(fd)


@compiled
@given(st.dictionaries(st.sampled_from([*NAMES, *map(str, range(600))]), VALUES, min_size=1, max_size=600), STEPS)
def test_points_are_the_same_from_both(values: dict[str, Any], step: int | None) -> None:
    told = [several_from(base, values, step) for base in (PythonAppender, Appender)]
    assert told[0] == told[1]
    assert told[0] == [(step or 0, {key: struct.pack("d", float(value)) for key, value in values.items()})]


def several_from(base: type[PythonAppender], values: dict[str, Any], step: int | None) -> Any:
    fd = os.memfd_create("segment")
    try:
        assert bare(base, fd).append_points(templates(*values), TYPES, values, step) is True
        return metrics(fd)
    finally:
        os.close(fd)


class Unasked:
    """Nobody may ask it for its number."""

    def __float__(self) -> float:
        raise AssertionError("asked")

    __radd__ = __add__ = __index__ = __float__

    def __repr__(self) -> str:
        return "Unasked()"


NOT_PLAIN = [
    *(("unknown", 1.0, 1), ("a", "1.5", 1), ("a", None, 1), ("a", Unasked(), 1), ("a", np.array([1.0]), 1)),
    *(("a", 1.0, 1.0), ("a", 1.0, True), ("a", 1.0, "1"), ("a", 1.0, 2**63), ("a", 1.0, -(2**63) - 1)),
    *((["a"], 1.0, 1), (b"a", 1.0, 1), (None, 1.0, 1), ("a", 10**400, 1), ("a", 1 + 1j, 1)),
]


@both
@pytest.mark.parametrize("key, value, step", NOT_PLAIN, ids=repr)
def test_what_is_not_plain_is_left_to_the_caller(
    base: type[PythonAppender], file: int, key: Any, value: Any, step: Any
) -> None:
    made = bare(base, file)
    assert made.append_point(templates("a"), TYPES, key, value, step) is None
    if type(key) is not list:
        assert made.append_points(templates("a", "b"), TYPES, {"b": 1.0, key: value}, step) is None
    assert (made._sequence, made._position, written(file)) == (0, 0, [])


@both
@pytest.mark.parametrize("given", [{}, None, [("a", 1.0)], "a", 5], ids=repr)
def test_what_is_no_mapping_or_empty_is_left_to_the_caller(base: type[PythonAppender], file: int, given: Any) -> None:
    made = bare(base, file)
    assert made.append_points(templates("a"), TYPES, given, 1) is None
    assert written(file) == []


@both
def test_a_failed_write_is_counted_and_told_with_its_place(base: type[PythonAppender]) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        made = bare(base, full.fileno())
        assert made.append(6, b"payload") is False
        assert made.append_point(templates("a"), TYPES, "a", 1.0, 7) is False
    (first, second) = made.recovered
    kind, payload, place, failure = first
    assert (kind, payload, place) == (6, b"payload", (0, SALT))
    assert isinstance(failure, OSError)
    assert (failure.errno, failure.strerror) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (second[0], msgpack.unpackb(second[1])[1:], second[2]) == (Kind.METRICS, [7, {"a": 1.0}], (1, SALT))
    assert made._position == 2 * frames.OVERHEAD + 7 + len(second[1])


@both
def test_a_closed_door_is_told_as_such(base: type[PythonAppender]) -> None:
    made = bare(base, -1)
    assert made.append_points(templates("a"), TYPES, {"a": 1.0}, None) is False
    assert made.recovered[0][3].errno == errno.EBADF


@both
def test_a_short_write_is_told_by_its_length(base: type[PythonAppender]) -> None:
    out, into = os.pipe()
    try:
        os.set_blocking(into, False)
        room = os.write(into, bytes(1 << 20))
        os.read(out, 4096)  # a pipe takes whole pages
        made = bare(base, into)
        assert made.append(6, bytes(4090)) is False
        assert made.recovered == [(6, bytes(4090), (0, SALT), 4096)]
        assert room > 4096
    finally:
        os.close(out)
        os.close(into)


@both
def test_what_is_due_is_done_after_the_record_that_reached_it(base: type[PythonAppender], file: int) -> None:
    made = bare(base, file)
    made._act_at = 3 * (frames.OVERHEAD + 10)
    assert [made.append(6, bytes(10)) and made.acted for _ in range(4)] == [0, 0, 1, 2]


@compiled
def test_other_files_than_the_systems_are_written_by_python(file: int) -> None:
    seen: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        seen.append(data)
        return os.write(fd, data)

    made = bare(Appender, file, write)
    made.append(6, b"1")
    made.append_point(templates("a"), TYPES, "a", 1.0, 1)
    made.append_points(templates("a"), TYPES, {"a": 1.0}, 1)
    assert len(seen) == len(written(file)) == 3


class Blocked:
    """A full pipe, whose reader is a signal handler: it logs, makes room, and may raise."""

    def __init__(self, base: type[PythonAppender], raises: bool) -> None:
        self.out, self.into = os.pipe()
        os.set_blocking(self.into, False)
        self.filled = os.write(self.into, bytes(1 << 20))
        os.set_blocking(self.into, True)
        self.made, self._raises = bare(base, self.into), raises

    def __call__(self, *_: object) -> None:
        self.made._fd = os.open(os.devnull, os.O_WRONLY)  # as after a rotation
        assert self.made.append(7, b"of the handler")
        if self._raises:
            raise TimeoutError
        os.close(self.made._fd)
        self.made._fd = self.into
        os.read(self.out, self.filled)


@compiled
@pytest.mark.parametrize("raises", [False, True])
def test_a_handler_runs_while_a_write_waits_and_the_counters_stay_right(raises: bool) -> None:
    blocked = Blocked(Appender, raises)
    before = signal.signal(signal.SIGALRM, blocked)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        if raises:
            with pytest.raises(TimeoutError):
                blocked.made.append(6, b"waits")
        else:
            assert blocked.made.append(6, b"waits")
            frame = next_frame(os.read(blocked.out, 1 << 20), 0, SALT)
            assert isinstance(frame, Frame)
            assert (frame.sequence, frame.payload) == (1, b"waits")
        assert blocked.made._sequence == (1 if raises else 2)
        assert blocked.made._acquire(blocking=False)
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(blocked.out)
        os.close(blocked.into)


@both
def test_threads_take_turns(base: type[PythonAppender], file: int) -> None:
    made, known = bare(base, file), templates(*"abcdefgh")

    def log(name: str) -> None:
        for step in range(2_000):
            assert made.append_point(known, TYPES, name, 1.0, step)

    threads = [threading.Thread(target=log, args=(name,)) for name in known]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = written(file)
    assert [frame.sequence for frame in found] == list(range(16_000))
    assert made._position == found[-1].end


@compiled
def test_no_call_keeps_what_it_was_given(file: int) -> None:
    made, known, key, value, fields = bare(Appender, file), templates("a", "b"), "a", 1.5, [1, {"k": "v"}]
    given = {"a": value, "b": math.pi}
    held = (known, TYPES, key, value, fields, given, None, True, made._pack, made._release)

    def calls() -> None:
        made.append_point(known, TYPES, key, value, 1)
        made.append_point(known, TYPES, key, "no number", 1)
        made.append_points(known, TYPES, given, 1)
        made.append_points(known, TYPES, {"unknown": value}, 1)
        made.append(6, fields)
        with pytest.raises(Unencodable):
            made.append(6, [fields, object()])

    calls()
    gc.collect()
    before = [sys.getrefcount(one) for one in held]
    for _ in range(200):
        calls()
    gc.collect()
    kept = [now - was for now, was in zip(map(sys.getrefcount, held), before, strict=True)]
    assert [many for many in kept if many >= 200] == []


@compiled
def test_one_that_refers_to_itself_is_collected(file: int) -> None:
    made = bare(Appender, file)
    made._write = made
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None


@compiled
def test_one_without_a_lock_says_so() -> None:
    with pytest.raises(AttributeError, match="no lock"):
        type("Made", (Appender,), {})().append(6, b"")  # type: ignore[attr-defined]
