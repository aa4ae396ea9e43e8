"""Reads the server back and compares it with the spool, record by record: the proof that a run may be deleted here.

Memory stays bounded: metrics are folded and read back a group of keys at a time, artifacts are hashed as they stream in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mlferry_agent import requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.comparisons import Comparisons, short
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.discovery import RunLog
from mlferry_agent.errors import RunDelayed
from mlferry_agent.folding import Folded, Point, as_stored
from mlferry_agent.ledger import Ledger
from mlferry_agent.rewriting import rewrite_tag
from mlferry_agent.transport import Transport
from mlferry_agent.uploads import ids_of
from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord, UnsupportedKind
from mlferry_spool.reader import LogReader
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Metrics,
    ModelUpdate,
    Record,
    Series,
    Tags,
    TagsDeleted,
)
from mlferry_spool.tailer import Entry

__all__ = ["Verification", "verify"]

#: Points folded at once; a point in a set costs about 250 bytes.
#: Beyond: the spool is read once more for the next metrics; a single metric is never divided.
#: Test: tests/e2e/test_delivery.py::test_a_run_of_more_points_than_fit_in_memory_is_verified_in_groups
_POINTS_AT_ONCE = 500_000


#: Of several records about one thing, the last counts.
_ORDERED = (Tags, TagsDeleted, Artifact, ArtifactDeleted, ModelUpdate)


@dataclass(slots=True)
class Verification:
    """What was compared, and every difference in words. ``given_up``: why nothing was, if the run was dropped.
    ``deleted``: somebody deleted the run on the server, which still has it. ``partly``: the spool has only some of its logs,
    for `mlferry clean` deleted others, so the server may have points that are not here."""

    run_id: str
    points: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0
    datasets: int = 0
    models: int = 0
    differences: list[str] = field(default_factory=list)
    given_up: str | None = None
    deleted: bool = False
    partly: bool = False


async def verify(run: RunLog, ledger: Ledger, courier: Courier, transport: Transport) -> Verification:
    """Compare one run. What is in quarantine, or was dropped, is not expected on the server.

    Raises:
        GaveUp, Misconfigured: as ``Courier.ask``. SpoolError, OSError: the spool cannot be read.
    """
    found = Verification(run.run_id)
    row = ledger.run(run.run_id)
    if row is not None and row.given_up is not None:
        found.given_up = row.given_up
        return found
    if row is None or row.server_run_id is None:
        found.differences.append("the run was never delivered")
        return found
    spooled, workspace = _Spooled(run, ledger), ledger.workspace(run.run_id)
    reply = await courier.ask(requests.get_run(row.server_run_id, workspace))
    if reply.verdict is not Verdict.ACCEPTED:
        found.differences.append(f"the server does not have the run: {reply.reason}")
        return found
    info = _run(reply)
    found.partly = bool(ledger.writers(run.run_id).keys() - {writer.name for writer in run.writers()})
    found.deleted = row.lifecycle != "deleted" and _is_deleted(info)
    keys = spooled.points_by_key()
    expected = spooled.fold(())
    _compare_texts(expected, info, ledger, found)
    _compare_links(expected, info, ledger, found)
    for group in _groups(keys):
        await _compare_metrics(spooled.fold(group), (row.server_run_id, workspace), courier, found)
    comparisons = Comparisons(list(run.directories), ledger, courier, transport, workspace)
    found.artifacts = len(expected.artifacts)
    found.differences += await comparisons.files(expected.artifacts, row.artifact_uri or "")
    found.models = len(expected.models)
    for model_id, model in expected.models.items():
        found.differences += await comparisons.model(model_id, model)
    return found


class _Spooled:
    """The records of a run, read from its logs as often as needed."""

    def __init__(self, run: RunLog, ledger: Ledger) -> None:
        self._run = run
        self._aside: dict[str, set[tuple[int, str, str]]] = {}
        for entry in (*ledger.quarantined(run.run_id), *ledger.dropped(run.run_id)):
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
        """Times tell the logs of several writers apart; within one log its order counts, also where the clock went back."""
        folded, clocks = Folded(keys=frozenset(keys)), dict[str, int]()
        for writer_id, offset, record in self._records():
            if isinstance(record, _ORDERED):
                clocks[writer_id] = max(record.timestamp, clocks.get(writer_id, record.timestamp))
                record = replace(record, timestamp=clocks[writer_id])
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
            found.differences.append(f"param {key!r}: {short(params.get(key))} instead of {short(value)}")
    for key, (_, tag) in expected.tags.items():
        if tag is not None:
            tag = rewrite_tag(key, tag, ids_of(ledger))
        if tags.get(key) != tag:
            found.differences.append(f"tag {key!r}: {short(tags.get(key))} instead of {short(tag)}")
    inputs = run.get("inputs")
    listed = inputs.get("dataset_inputs", []) if isinstance(inputs, dict) else []
    datasets = {(item["dataset"]["name"], item["dataset"]["digest"]) for item in listed}
    found.datasets = len(expected.datasets)
    found.differences += [f"dataset {name!r} is missing" for name, digest in expected.datasets - datasets]


def _compare_links(expected: Folded, run: dict[str, object], ledger: Ledger, found: Verification) -> None:
    """Models that the run used or put out."""
    for of, listed, models in (
        ("outputs", "model_outputs", expected.outputs),
        ("inputs", "model_inputs", expected.inputs),
    ):
        stored = run.get(of)
        there = {item["model_id"] for item in stored.get(listed, [])} if isinstance(stored, dict) else set()
        for model_id in sorted(models):
            if (ids_of(ledger).model(model_id) or model_id) not in there:
                found.differences.append(f"model {model_id} is not among the run's {of}")


async def _compare_metrics(expected: Folded, of: tuple[str, str | None], courier: Courier, found: Verification) -> None:
    for key, points in expected.metrics.items():
        try:
            stored = await _history(of, key, courier)
        except RunDelayed as error:
            found.differences.append(error.reason)
            continue
        found.points += len(points)
        missing, surplus = len(points - stored.keys()), len(stored.keys() - points - expected.spared.get(key, set()))
        surplus = 0 if found.partly else surplus
        repeated = sum(stored.values()) - len(stored)
        if missing or surplus or repeated:
            found.differences.append(
                f"metric {key!r}: {missing} points missing, {surplus} unknown, {repeated} repeated"
            )


async def _history(of: tuple[str, str | None], key: str, courier: Courier) -> Counter[Point]:
    """Of a run, which is given by the server's id and its workspace. Raises RunDelayed: the server does not show it."""
    server_run_id, workspace = of
    points: Counter[Point] = Counter()
    token: str | None = None
    while True:
        reply = await courier.ask(requests.get_metric_history(server_run_id, key, token, workspace=workspace))
        if reply.verdict is not Verdict.ACCEPTED:
            raise RunDelayed(f"metric {key!r} cannot be read back: {reply.reason}")
        body: Any = json_object(reply.answer.body) or {}
        for item in body.get("metrics", []):
            points[(as_stored(float(item["value"])), int(item["timestamp"]), int(item.get("step", 0)))] += 1
        before, token = token, str(body.get("next_page_token") or "") or None
        if token is not None and (token == before or not body.get("metrics")):
            raise RunDelayed(f"metric {key!r} cannot be read back: the server leads in a circle")
        if token is None:
            return points


def _run(reply: Reply) -> dict[str, object]:
    run = (json_object(reply.answer.body) or {}).get("run")
    return run if isinstance(run, dict) else {}


def _is_deleted(run: dict[str, object]) -> bool:
    info = run.get("info")
    return isinstance(info, dict) and info.get("lifecycle_stage") == "deleted"
