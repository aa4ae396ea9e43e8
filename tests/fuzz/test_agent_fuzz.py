"""What others say to the agent (servers, bundles, settings, credentials): any of it is understood or refused by name."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import random
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.fakes.workbench import Workbench, run_alone
from tests.fuzz.targets import REQUESTS
from tests.spooling import SpooledRun, a_bit_of_everything

from mlferry_agent.answers import Answer, Verdict, classify, json_object
from mlferry_agent.bundles import Entry, Manifest, read_bundle, write_bundle
from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.config import Config, load
from mlferry_agent.credentials import Destination, destination
from mlferry_agent.discovery import discover
from mlferry_agent.errors import AgentError, BadBundle, BadConfiguration, GaveUp
from mlferry_agent.ferrying import import_bundle
from mlferry_agent.ledger import RunRow
from mlferry_agent.requests import Request
from mlferry_agent.verification import verify

MEMORY = 10 << 20

#: What JSON can be, and what is most likely to be taken for something else.
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12),
    st.sampled_from(["", "\ud800", "NaN", "9" * 19, "http://[", "mlflow-artifacts:/../..", "x\0", "\u202e"]),
)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


# -- servers --------------------------------------------------------------------------------------------------------------


class Liar:
    """Between agent and server: now and then a part of an answer is replaced by something else, or left out."""

    def __init__(self, chance: random.Random, lies: list[Any]) -> None:
        self.chance, self.lies, self.told = chance, lies, 0

    def __call__(self, answer: Answer) -> Answer:
        found = json_object(answer.body)
        if found is None or self.chance.random() < 0.5:
            return answer
        self.told += 1
        return Answer(answer.status, answer.headers, json.dumps(self._changed(copy.deepcopy(found))).encode())

    def _changed(self, value: Any) -> Any:
        inside = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
        if not inside or self.chance.random() < 0.2:
            return self.chance.choice(self.lies)
        place = self.chance.choice(inside)
        if self.chance.random() < 0.2:
            del value[place]
        else:
            value[place] = self._changed(value[place])
        return value


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.defects: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.defects.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 2**32), st.lists(anything, min_size=1, max_size=4))
def test_no_answer_of_a_server_makes_the_agent_trip(seed: int, lies: list[Any]) -> None:
    log, said = logging.getLogger("mlferry.agent"), Said()
    log.addHandler(said)
    try:
        with tempfile.TemporaryDirectory() as name:
            bench, liar = Workbench(Path(name), seed=seed), Liar(random.Random(seed), lies)
            serve = bench.server._serve
            bench.server._serve = lambda request, answer: liar(serve(request, answer))  # type: ignore[method-assign]
            a_bit_of_everything(bench.spool, "e", points=3, files=1)

            async def deliver() -> None:
                with bench.carrier(give_up_after_s=300.0, patient=False) as carrier:
                    await carrier.deliver(discover(bench.spool))

            with contextlib.suppress(AgentError):
                run_alone(deliver())
    finally:
        log.removeHandler(said)
    assert said.defects == []


class Told:
    """A server that has the run, and says whatever about its points."""

    def __init__(self, history: Any) -> None:
        self.history = history

    async def send(self, request: Request) -> Answer:
        run = {"info": {"run_id": "r", "status": "RUNNING"}, "data": {}}
        found = self.history if request.path.endswith("get-history") else {"run": run}
        return Answer(200, {}, json.dumps(found).encode())

    async def upload(self, request: Request, file: object, size: int) -> Answer:
        raise AssertionError(request)


points = st.fixed_dictionaries({}, optional=dict.fromkeys(("value", "timestamp", "step"), anything))
histories = anything | st.fixed_dictionaries({"metrics": anything | st.lists(points, max_size=3)})


@settings(max_examples=examples(60), deadline=None)
@given(histories)
@example({"metrics": [], "next_page_token": "again"})
def test_no_history_of_a_server_makes_verify_trip_or_believe_it(history: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        bench = Workbench(Path(name))
        run = SpooledRun(bench.spool, "e")
        run.metrics(1, {"loss": 0.123456})
        bench.server = Told(history)  # type: ignore[assignment]
        with bench.ledger() as ledger:
            with ledger.transaction():
                ledger.put_run(RunRow(run.run_id, server_run_id="r"))
            [log] = discover(bench.spool)
            try:
                found = run_alone(verify(log, ledger, bench.courier(give_up_after_s=300.0), None))  # type: ignore[arg-type]
            except GaveUp:  # what is no object of JSON may be a page of a proxy, and that passes
                return
    assert any("loss" in difference for difference in found.differences)


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(REQUESTS), st.integers(100, 599), anything | st.binary(max_size=100))
@example(REQUESTS[2], 200, {"runs": [{"info": {"run_id": "r", "start_time": 10**30}}]})
@example(REQUESTS[5], 200, {"metrics": [{"value": "x", "timestamp": 1}]})
def test_any_answer_has_a_meaning(request: Request, status: int, body: Any) -> None:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    judgement = classify(request, Answer(status, {"retry-after": "x", "date": "y"}, encoded))
    assert judgement.reason.isprintable() and len(judgement.reason) <= 500
    if judgement.verdict is Verdict.ACCEPTED and "/mlflow/" in request.path:
        assert json_object(encoded) is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"runs": [' + b"[]," * (10 << 20) + b"[]]}",
        b'{"runs": [' + b"{}," * (10 << 20) + b"{}]}",
        b'{"runs": [' + b"1," * (16 << 20) + b"1]}",
        b'{"a":' * (6 << 20),
        b'{"a":' + b"9" * (3 << 20) + b"}",
    ],
    ids=["lists", "objects", "numbers", "depth", "digits"],
)
def test_an_answer_that_would_fill_the_memory_is_none(body: bytes) -> None:
    tracemalloc.start()
    try:
        began = time.thread_time()
        assert classify(REQUESTS[2], Answer(200, {}, body)).verdict is Verdict.RETRY
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        assert time.thread_time() - began < 5
    finally:
        tracemalloc.stop()


# -- bundles --------------------------------------------------------------------------------------------------------------

RUN = "runs/20260101T000000-r1"
_LOG = b"the log of a run" * 40


def a_bundle(directory: Path) -> bytes:
    path = directory / RUN / "w1" / f"{0:020d}.seg"
    path.parent.mkdir(parents=True)
    path.write_bytes(_LOG)
    import hashlib

    out = io.BytesIO()
    entry = Entry(path.relative_to(directory).as_posix(), len(_LOG), hashlib.sha256(_LOG).hexdigest())
    for _ in write_bundle(directory, Manifest((entry,)), out):
        pass
    with zstandard.ZstdDecompressor().stream_reader(out.getvalue()) as archive:
        return archive.read()  # type: ignore[no-any-return]


with tempfile.TemporaryDirectory() as _name:
    ARCHIVE = a_bundle(Path(_name))


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(ARCHIVE)), st.integers(0, 40), st.binary(max_size=40)), max_size=3))
def test_a_bundle_that_somebody_edited_is_refused_or_is_the_same(edits: list[tuple[int, int, bytes]]) -> None:
    """Behind the compression, whose own checksum would find most of it."""
    edited = ARCHIVE
    for at, gone, new in edits:
        edited = edited[:at] + new + edited[at + gone :]
    with tempfile.TemporaryDirectory() as name:
        root, path = Path(name) / "spool", Path(name) / "bundle"
        path.write_bytes(zstandard.compress(edited))
        try:
            import_bundle(root, [LocalPlace(path)])
        except BadBundle:
            assert not [found for found in root.rglob("*") if found.is_file()]
            return
        [imported] = [found for found in root.rglob("*") if found.is_file()]
        assert imported.read_bytes() == _LOG


@settings(max_examples=examples(200), deadline=None)
@given(anything)
@example({"format": 1, "files": [{"path": f"{RUN}/w1/{0:020d}.seg", "size": True, "sha256": "0" * 64}], "known": []})
@example({"format": 1, "files": {}, "known": "x"})
def test_any_json_is_a_manifest_or_refused(found: Any) -> None:
    try:
        manifest = Manifest.decoded(json.dumps(found).encode())
    except BadBundle:
        return
    assert all(type(entry) is Entry for entry in (*manifest.files, *manifest.known))


def bombs() -> Iterator[tuple[str, bytes]]:
    def tarred(manifest: bytes) -> bytes:
        from mlferry_agent.bundles import _MANIFEST, _header, _padding

        return _header(_MANIFEST, len(manifest)) + manifest + _padding(len(manifest))

    yield "zeros", bytes(200 << 20)
    yield "values", tarred(b'{"format": 1, "files": [' + b"1," * (8 << 20) + b'1], "known": []}')
    yield "objects", tarred(b'{"format": 1, "files": [' + b"{}," * (5 << 20) + b'{}], "known": []}')
    yield "depth", tarred(b"[" * (8 << 20))


@pytest.mark.parametrize(("name", "archive"), list(bombs()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_bundle_that_is_a_bomb_is_refused_before_it_goes_off(name: str, archive: bytes) -> None:
    packed = zstandard.compress(archive)
    allowed = len(archive) if name != "zeros" else 0  # a manifest is read whole, and no more than that
    del archive
    tracemalloc.start()
    try:
        began = time.thread_time()
        with pytest.raises(BadBundle):
            list(read_bundle(io.BytesIO(packed)))
        assert tracemalloc.get_traced_memory()[1] < 3 * allowed + MEMORY
        assert time.thread_time() - began < 5
    finally:
        tracemalloc.stop()


# -- settings and credentials ---------------------------------------------------------------------------------------------

names = st.sampled_from(
    ["to", "dir", "state_dir", "poll_s", "uploads", "stale_after_s", "connections", "else", "deleted"]
)
values = st.sampled_from(
    ['"x"', "1", "-1", "0", "nan", "inf", "1e400", "true", "[]", "{}", '"\\u0000"', '"~nobody-is-called-this/x"']
) | st.sampled_from(['"http://[::1"', "1979-05-27", "'''", "0x", '"\\ud800"', '""', "9" * 400, "9" * 5000, "[" * 3000])
toml = st.one_of(
    st.lists(st.tuples(names, values), max_size=4).map(
        lambda pairs: "\n".join(f"{k} = {v}" for k, v in pairs).encode()
    ),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)


@settings(max_examples=examples(300), deadline=None)
@given(toml)
def test_any_file_is_a_configuration_or_refused_by_name(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mlferry" / "agent.toml"
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            config = load({"HOME": name, "XDG_CONFIG_HOME": name}, {})
        except BadConfiguration as error:
            assert str(path) in error.reason
            return
        assert usable(config)


def usable(config: Config) -> bool:
    numbers = (config.stale_after_s, config.poll_s, config.give_up_after_s, config.connections, config.uploads)
    return all(number > 0 for number in numbers) and "\0" not in f"{config.dir}{config.state_dir}"


variables = st.sampled_from(
    [
        "MLFERRY_POLL_S",
        "MLFERRY_UPLOADS",
        "MLFERRY_DIR",
        "MLFERRY_STATE_DIR",
        "MLFERRY_STALE_AFTER_S",
        "XDG_STATE_HOME",
        "MLFERRY_TO",
        "MLFLOW_TRACKING_URI",
        "XDG_DATA_HOME",
        "STATE_DIRECTORY",
        "MLFERRY_DELETED",
        "HOME",
    ]
)
#: What an environment can hold: any bytes but NUL, of which those that are no UTF-8 are read as lone surrogates.
given_values = st.one_of(
    st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
    st.sampled_from(["nan", "inf", "-1", "1e999", "9" * 500, "~", "~nobody-is-called-this", "http://[", "1_0"]),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(variables, given_values, max_size=4))
@example({"HOME": "9" * 500})
def test_any_environment_is_a_configuration_or_refused_by_name(environ: dict[str, str]) -> None:
    try:
        assert usable(load({"HOME": "/nonexistent", **environ}, {}))
    except BadConfiguration as error:
        assert any(variable in error.reason for variable in environ)


credentials = st.sampled_from(
    [
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_WORKSPACE",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "https_proxy",
        "HTTP_PROXY",
        "no_proxy",
        "MLFERRY_TOKEN_FILE",
        "MLFERRY_ALLOW_INSECURE",
        "ALL_PROXY",
        "HOME",
        "CREDENTIALS_DIRECTORY",
        "REQUESTS_CA_BUNDLE",
    ]
)
hosts = st.one_of(
    st.sampled_from(["h", "[::1]", "[", "h:99999999", "h:x", "a b", "u:p@h", "@", "\u2100", "xn--", "é.example", "h%"]),
    st.text(max_size=12),
)
uris = st.tuples(
    st.sampled_from(["http://", "https://", "HTTPS://", "ftp://", "", "//"]), hosts, st.text(max_size=6)
).map("".join)


@settings(max_examples=examples(300), deadline=None)
@given(uris, st.dictionaries(credentials, given_values | uris, max_size=4))
def test_any_address_and_environment_is_a_destination_or_refused_by_name(uri: str, environ: dict[str, str]) -> None:
    try:
        found = destination(uri, {"HOME": "/nonexistent", **environ})
    except AgentError as error:
        password = environ.pop("MLFLOW_TRACKING_PASSWORD", "")
        assert len(password) < 8 or password in f"{uri}{environ}" or password not in error.reason
        return
    assert isinstance(found, Destination)
    assert "@" not in found.url.partition("://")[2].partition("/")[0]
