"""Reads the server back and compares it with the spool, record by record: the proof that a run may be deleted here.

Memory stays bounded: metrics are folded and read back a group of keys at a time, artifacts are hashed as they stream in.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlferry_agent import requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import NotProxied, UndeliverableName
from mlferry_agent.folding import Folded, Point, as_stored
from mlferry_agent.ledger import Ledger
from mlferry_agent.transport import Transport
from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord, UnsupportedKind
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Artifact, Metrics, Record, Series
from mlferry_spool.tailer import Entry

__all__ = ["Verification", "verify"]

#: Points folded at once; a point in a set costs about 250 bytes.
_POINTS_AT_ONCE = 500_000


@dataclass(slots=True)
class Verification:
    """What was compared, and every difference in words."""

    run_id: str
    points: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0
    datasets: int = 0
    differences: list[str] = field(default_factory=list)


async def verify(run: RunLog, ledger: Ledger, courier: Courier, transport: Transport) -> Verification:
    """Compare one run. What is in quarantine is not expected on the server.

    Raises:
        GaveUp, Misconfigured: as ``Courier.ask``. SpoolError, OSError: the spool cannot be read.
    """
    found = Verification(run.run_id)
    row = ledger.run(run.run_id)
    if row is None or row.server_run_id is None:
        found.differences.append("the run was never delivered")
        return found
    spooled = _Spooled(run, ledger)
    reply = await courier.ask(requests.get_run(row.server_run_id))
    if reply.verdict is not Verdict.ACCEPTED:
        found.differences.append(f"the server does not have the run: {reply.reason}")
        return found
    info = _run(reply)
    keys = spooled.points_by_key()
    _compare_texts(spooled.fold(()), info, ledger, found)
    for group in _groups(keys):
        await _compare_metrics(spooled.fold(group), row.server_run_id, courier, found)
    await _compare_artifacts(spooled.fold(()), row.artifact_uri or "", transport, found)
    return found


class _Spooled:
    """The records of a run, read from its logs as often as needed."""

    def __init__(self, run: RunLog, ledger: Ledger) -> None:
        self._run = run
        self._aside: dict[str, set[tuple[int, str, str]]] = {}
        for entry in ledger.quarantined(run.run_id):
            self._aside.setdefault(entry.writer_id, set()).add((entry.offset, entry.action, entry.name))

    def points_by_key(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for _, _, record in self._records():
            if isinstance(record, Series):
                counts[record.key] += len(record)
            elif isinstance(record, Metrics):
                counts.update(dict.fromkeys(record.values, 1))
        return counts

    def fold(self, keys: tuple[str, ...]) -> Folded:
        folded = Folded(keys=frozenset(keys))
        for writer_id, offset, record in self._records():
            folded.add(offset, record, self._aside.get(writer_id, ()))
        return folded

    def _records(self) -> Iterator[tuple[str, int, Record]]:
        for writer in self._run.writers():
            reader = LogReader(writer)
            while events := reader.read():
                for event in events:
                    record = _decoded(event) if isinstance(event, Entry) else None
                    if record is not None:
                        yield writer.name, event.offset, record  # type: ignore[union-attr]


def _decoded(entry: Entry) -> Record | None:
    try:
        return decode(entry.kind, entry.payload)
    except (CorruptRecord, UnsupportedKind):
        return None


def _groups(counts: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Keys in groups of bounded size together."""
    group: list[str] = []
    size = 0
    for key, count in sorted(counts.items()):
        if group and size + count > _POINTS_AT_ONCE:
            yield tuple(group)
            group, size = [], 0
        group.append(key)
        size += count
    if group:
        yield tuple(group)


def _compare_texts(expected: Folded, run: dict[str, object], ledger: Ledger, found: Verification) -> None:
    data = run.get("data")
    stored = data if isinstance(data, dict) else {}
    params = {item["key"]: item["value"] for item in stored.get("params", [])}
    tags = {item["key"]: item["value"] for item in stored.get("tags", [])}
    found.params, found.tags = len(expected.params), len(expected.tags)
    for key, value in expected.params.items():
        if params.get(key) != value:
            found.differences.append(f"param {key!r}: {_short(params.get(key))} instead of {_short(value)}")
    for key, (_, tag) in expected.tags.items():
        allowed = {tag, None if tag is None else ledger.server_run_id(tag)}
        if tags.get(key) not in allowed or (tag is not None and key not in tags):
            found.differences.append(f"tag {key!r}: {_short(tags.get(key))} instead of {_short(tag)}")
    inputs = run.get("inputs")
    listed = inputs.get("dataset_inputs", []) if isinstance(inputs, dict) else []
    datasets = {(item["dataset"]["name"], item["dataset"]["digest"]) for item in listed}
    found.datasets = len(expected.datasets)
    found.differences += [f"dataset {name!r} is missing" for name, digest in expected.datasets - datasets]


async def _compare_metrics(expected: Folded, server_run_id: str, courier: Courier, found: Verification) -> None:
    for key, points in expected.metrics.items():
        stored = await _history(server_run_id, key, courier)
        found.points += len(points)
        missing, surplus = len(points - stored.keys()), len(stored.keys() - points)
        repeated = sum(stored.values()) - len(stored)
        if missing or surplus or repeated:
            found.differences.append(
                f"metric {key!r}: {missing} points missing, {surplus} unknown, {repeated} repeated"
            )


async def _history(server_run_id: str, key: str, courier: Courier) -> Counter[Point]:
    points: Counter[Point] = Counter()
    token: str | None = None
    while True:
        reply = await courier.ask(requests.get_metric_history(server_run_id, key, token))
        body = json_object(reply.answer.body) or {}
        listed = body.get("metrics", [])
        assert isinstance(listed, list)
        for item in listed:
            points[(as_stored(float(item["value"])), int(item["timestamp"]), int(item.get("step", 0)))] += 1
        token = str(body.get("next_page_token") or "") or None
        if token is None:
            return points


async def _compare_artifacts(expected: Folded, artifact_uri: str, transport: Transport, found: Verification) -> None:
    for path, (_, artifact) in expected.artifacts.items():
        found.artifacts += 1
        problem = await _artifact_problem(artifact_uri, path, artifact, transport)
        if problem:
            found.differences.append(f"artifact {path!r}: {problem}")


async def _artifact_problem(
    artifact_uri: str, path: str, artifact: Artifact | None, transport: Transport
) -> str | None:
    sha256 = hashlib.sha256()
    try:
        answer = await transport.download(requests.get_artifact(artifact_uri, path), sha256.update)
    except (NotProxied, UndeliverableName) as error:
        return error.reason
    there = answer.status == 200
    if artifact is None:
        return "it was deleted and is there" if there else None
    if not there:
        return f"it is missing (HTTP {answer.status})"
    return None if sha256.digest() == artifact.sha256 else "its bytes differ"


def _run(reply: Reply) -> dict[str, object]:
    run = (json_object(reply.answer.body) or {}).get("run")
    return run if isinstance(run, dict) else {}


def _short(text: str | None) -> str:
    return "nothing" if text is None else repr(text if len(text) <= 60 else text[:60] + "...")
