"""What takes foreign bytes, each as a function of bytes that fails where its promise is broken.

Owns the promises, and where inputs worth keeping stand: ``corpus/<target>.txt``, one a line, as a list of JSON:
texts, a character for each byte, and numbers, which are so many zeros.
``test_corpus`` tries them and what can be made of them; ``grow`` looks for more.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import zstandard
from tests.compat.golden import RECORDS, SEGMENT

from mlferry_agent import entity_requests, requests
from mlferry_agent.answers import Answer, Verdict, classify, json_object
from mlferry_agent.bundles import Entry, Manifest, read_bundle
from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.config import load
from mlferry_agent.errors import BadBundle, BadConfiguration
from mlferry_agent.ferrying import read_receipt
from mlferry_agent.requests import Request
from mlferry_spool.codec import KIND_OF, decode, pack
from mlferry_spool.errors import CorruptRecord, CorruptSegment, UnsupportedKind, UnsupportedVersion
from mlferry_spool.frames import PREAMBLE_BYTES, read_preamble
from mlferry_spool.tailer import Cursor, scan
from mlferry_spool.tailer import Entry as Read

CORPUS = Path(__file__).parent / "corpus"

REQUESTS: list[Request] = [
    requests.create_run("0", 1),
    requests.get_run("r"),
    requests.search_runs_by_tag(["0"], "k", "v"),
    requests.get_experiment_by_name("e"),
    requests.create_experiment("e"),
    requests.get_metric_history("r", "k"),
    entity_requests.get_model("m-1"),
    entity_requests.search_models_by_tag("0", "k", "v"),
    entity_requests.search_versions_by_tag("m", "k", "v"),
    entity_requests.trace("GET", "/tr-1", None),
    requests.put_artifact("mlflow-artifacts:/0/r/artifacts", "f"),
]


def payload(data: bytes) -> None:
    """A kind, then a frame's payload: a record that can be written again, or one of two errors."""
    kind = data[0] if data else 0
    try:
        record = decode(kind, data[1:])
    except (CorruptRecord, UnsupportedKind):
        return
    assert record is None or decode(kind, pack(record)) is not None


def segment(data: bytes) -> None:
    """A segment: its frames in order, each once, and the stretches between them."""
    try:
        found = read_preamble(data)
    except (CorruptSegment, UnsupportedVersion):
        return
    if found is None:
        return
    at = Cursor(0, PREAMBLE_BYTES, 0)
    events, end = scan(at, data[PREAMBLE_BYTES:], found.salt)
    for event in events:
        assert (event.after.byte, event.after.sequence) > (at.byte, at.sequence)
        at = event.after
        if isinstance(event, Read):
            payload(bytes([event.kind & 0x7F]) + event.payload)
    assert at == end and end.byte <= len(data)


def bundle(data: bytes) -> None:
    """What a bundle's compression holds: files of a spool, each as its manifest lists it, or a refusal."""
    seen: list[Manifest | Entry] = []
    try:
        for part in read_bundle(io.BytesIO(zstandard.compress(data))):
            seen.append(part if isinstance(part, Manifest) else part[0])
    except BadBundle as error:
        assert error.reason
        return
    assert isinstance(seen[0], Manifest) and [*dict.fromkeys(seen[1:])] == [*dict.fromkeys(seen[0].files)]


def manifest(data: bytes) -> None:
    """A receipt, or the list of a bundle."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "receipt"
        path.write_bytes(data)
        try:
            found = read_receipt(LocalPlace(path))
        except BadBundle:
            return
    assert all(type(entry) is Entry and not Path(entry.path).is_absolute() for entry in found)


def answer(data: bytes) -> None:
    """Which request, which status, then a body: a judgement that a terminal can show."""
    if len(data) < 2:
        return
    request, status, body = REQUESTS[data[0] % len(REQUESTS)], 200 + data[1] * 2, data[2:]
    judgement = classify(request, Answer(status, {"content-type": "application/json"}, body))
    assert judgement.reason.isprintable() and len(judgement.reason) <= 500
    if judgement.verdict is Verdict.ACCEPTED and "/mlflow/" in request.path:
        assert json_object(body) is not None


def settings(data: bytes) -> None:
    """``agent.toml``: a configuration that can be used, or a refusal that names the file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mlferry" / "agent.toml"
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            found = load({"HOME": name, "XDG_CONFIG_HOME": name}, {})
        except BadConfiguration as error:
            assert str(path) in error.reason
            return
    assert min(found.stale_after_s, found.poll_s, found.give_up_after_s, found.connections, found.uploads) > 0
    assert "\0" not in f"{found.dir}{found.state_dir}"


TARGETS: dict[str, Callable[[bytes], None]] = {
    made.__name__: made for made in (payload, segment, bundle, manifest, answer, settings)
}


def kept(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    place = CORPUS / f"{target}.txt"
    lines = place.read_text(encoding="ascii").splitlines() if place.exists() else []
    return [
        b"".join(bytes(part) if type(part) is int else part.encode("latin-1") for part in json.loads(line))
        for line in lines
    ]


def keep(target: str, inputs: list[bytes]) -> None:
    """Write them, the short before the long."""
    CORPUS.mkdir(exist_ok=True)
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    lines = [json.dumps([_part(part) for part in _ZEROS.split(data) if part]) + "\n" for data in ordered]
    (CORPUS / f"{target}.txt").write_text("".join(lines), encoding="ascii")


_ZEROS = re.compile(rb"(\0{8,})")


def _part(part: bytes) -> int | str:
    return len(part) if len(part) >= 8 and not any(part) else part.decode("latin-1")


def beginnings(target: str) -> list[bytes]:
    """Good inputs, from which ``grow`` starts."""
    entry = {"path": f"runs/20260101T000000-r1/w1/{0:020d}.seg", "size": 3, "sha256": "0" * 64}
    listed = json.dumps({"format": 1, "files": [entry], "known": []}).encode()
    pages = [
        {"runs": [{"info": {"run_id": "r", "start_time": "1"}, "data": {"tags": [{"key": "k", "value": "v"}]}}]},
        {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}, "metrics": [{"value": 1, "timestamp": 2}]},
        {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"},
    ]
    found: dict[str, list[bytes]] = {
        "payload": [bytes([KIND_OF[type(record)]]) + pack(record) for record in RECORDS],
        "segment": [SEGMENT.read_bytes()[:600]],
        "bundle": kept("bundle")[:1],
        "manifest": [listed],
        "answer": [
            bytes([number, code]) + json.dumps(page).encode()
            for number in range(len(REQUESTS))
            for code in (0, 100, 102, 150)
            for page in pages
        ],
        "settings": [b'to = "http://h"\ndir = "x"\npoll_s = 1\nuploads = 2\ndeleted = "drop"\n'],
    }
    return found[target]
