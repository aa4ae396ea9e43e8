"""The gate for foreign bytes stays the only one: bounded decoders, no pickles, no archives that unpack themselves."""

from __future__ import annotations

import ast
import contextlib
import functools
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import msgpack
import pytest
from tests.house.test_structure import MODULES, REPOSITORY

from mlferry_spool.codec import decode, pack
from mlferry_spool.errors import CorruptRecord
from mlferry_spool.limits import MAX_PAYLOAD_BYTES, MAX_VALUES
from mlferry_spool.records import Kind, Metrics

OURS = [path for path in MODULES if path.relative_to(REPOSITORY).parts[0] in ("spool", "sdk", "agent")]
LIMITS = {"max_str_len", "max_bin_len", "max_array_len", "max_map_len", "max_ext_len", "strict_map_key"}
HOOKS = {"ext_hook", "object_hook", "object_pairs_hook", "list_hook", "unicode_errors"}

#: Calls that run, or unpack to names of its own choice, what they are given.
FORBIDDEN = {"Unpacker", "unpack", "extractall", "extract", "eval", "exec", "mmap", "unsafe_load", "full_load"}


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Where, the called name, the call."""
    return [
        (
            f"{path.relative_to(REPOSITORY)}:{node.lineno}",
            getattr(node.func, "attr", getattr(node.func, "id", "")),
            node,
        )
        for path in OURS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_every_msgpack_decoder_has_explicit_limits_and_no_hooks() -> None:
    found = [(where, {item.arg for item in call.keywords}) for where, name, call in calls() if name == "unpackb"]
    assert found
    assert [where for where, given in found if not given >= LIMITS or given & HOOKS] == []


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_nothing_that_runs_or_unpacks_foreign_bytes_is_called(name: str) -> None:
    assert [where for where, called, call in calls() if called == name and not is_struct(call)] == []


def is_struct(call: ast.Call) -> bool:
    """``struct.Struct.unpack`` reads so many numbers, and no more."""
    return "struct" in ast.unparse(call.func).lower()


def test_no_module_imports_what_unpickles() -> None:
    names = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    found = []
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(path.name, item.name) for item in node.names if item.name.partition(".")[0] in names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in names:
                found.append((path.name, node.module or ""))
    assert found == []


def costly() -> Iterator[tuple[str, int, bytes]]:
    """Payloads that cost the most which were found: as many values as there may be, in the shapes that are checked slowest,
    and beside them a text of a megabyte that is four in memory."""
    many = MAX_VALUES - 20
    keys = [f"{number:05x}" for number in range(70_000)]
    wide = "x" * 1_000_000 + "😀"
    trace = {"timestamp": 1, "trace_id": "t"}
    yield "numbers", Kind.METRICS, msgpack.packb([0, 0, dict.fromkeys(keys[: many // 2], 0)])
    yield "texts", Kind.TAGS, msgpack.packb([0, {**dict.fromkeys(keys[: many // 2 - 1], ""), "wide": wide}])
    yield "datasets", Kind.INPUTS, msgpack.packb([0, [["n", "d", "l", "s", None, None, {}]] * (many // 8)])
    yield "empty maps", Kind.TRACE, msgpack.packb({**trace, "info": {"a": [{}] * many}})
    yield "maps", Kind.TRACE, msgpack.packb({**trace, "info": {"a": [{"a": 1}] * (many // 3), "wide": wide}})
    yield "more lists than there may be", Kind.METRICS, msgpack.packb([0, 0, {key: [] for key in keys[:65_000]}])
    yield "more numbers than there may be", Kind.METRICS, msgpack.packb([0, 0, dict.fromkeys(keys[:69_000], 0.0)])
    yield "headers that claim much", Kind.TRACE, b"\xdd\x00\x00\x1f\xff" * 200_000


@pytest.mark.parametrize(("name", "kind", "payload"), [pytest.param(*found, id=found[0]) for found in costly()])
def test_the_costliest_frame_takes_less_than_ten_megabytes_and_ten_milliseconds(
    name: str, kind: int, payload: bytes
) -> None:
    assert len(payload) <= MAX_PAYLOAD_BYTES
    attempted = functools.partial(attempt, kind, payload)
    assert quickest(attempted, tries=20) < 0.01
    assert min(peak(attempted) for _ in range(3)) < 10_000_000


def test_a_frame_as_writers_write_it_takes_less_than_ten_milliseconds() -> None:
    payload = pack(Metrics(0, 0, {f"a metric with a name {number}": 0.5 for number in range(1000)}))
    assert quickest(lambda: decode(Kind.METRICS, payload), tries=20) < 0.01


def peak(call: Callable[[], object]) -> int:
    """Bytes that were in use at once; those of the process's other threads too, so take the least of some."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attempt(kind: int, payload: bytes) -> None:
    with contextlib.suppress(CorruptRecord):
        decode(kind, payload)


def quickest(task: Callable[[], object], tries: int = 5) -> float:
    """CPU seconds of this thread that the fastest try took: other processes do not count."""
    took = []
    for _ in range(tries):
        began = time.thread_time()
        task()
        took.append(time.thread_time() - began)
    return min(took)


def test_the_clock_of_these_tests_sees_time_go_by() -> None:
    assert quickest(lambda: zlib.crc32(bytes(50 << 20)), tries=1) > 0.001
