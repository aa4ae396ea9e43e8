"""What happens beyond limits that no other test comes to; docs/limits.md names a test for each."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent import encoding, feeds, limits, requests, uploads
from mlferry_agent.bundles import Manifest
from mlferry_agent.credentials import Destination, Token
from mlferry_agent.drops import Drop
from mlferry_agent.errors import BadBundle, Unencodable
from mlferry_agent.feeds import Feed
from mlferry_agent.lanes import Lane, LaneQueue
from mlferry_agent.ledger import Quarantined, WriterRow
from mlferry_agent.transport import MIN_SCRUBBED_SECRET, Transport
from mlferry_agent.views.messages import show_drop
from mlferry_spool import records
from mlferry_spool.blobs import Blobs


def test_a_request_holds_no_more_datasets_than_mlflow_takes() -> None:
    dataset = encoding.dataset_input("n", "d", "local", "s")
    assert requests.log_inputs("r", [dataset] * limits.MAX_DATASETS_PER_BATCH)
    with pytest.raises(ValueError, match="MLflow takes 1000"):
        requests.log_inputs("r", [dataset] * (limits.MAX_DATASETS_PER_BATCH + 1))


def test_an_experiment_tag_may_fill_its_limits_and_no_more() -> None:
    key = "k" * limits.MAX_EXPERIMENT_TAG_KEY_LENGTH
    assert encoding.experiment_tag(key, "v")["key"] == key
    with pytest.raises(Unencodable):
        encoding.experiment_tag(f"{key}k", "v")


@pytest.mark.parametrize(
    ("key", "value"), [(limits.MAX_INPUT_TAG_KEY_LENGTH, 1), (1, limits.MAX_INPUT_TAG_VALUE_LENGTH)]
)
def test_a_tag_of_an_input_may_fill_its_limits_and_no_more(key: int, value: int) -> None:
    def given(more: int) -> list[tuple[str, str]]:
        return [("é" * (key + more * (key > 1)), "é" * (value + more * (value > 1)))]

    assert encoding.dataset_input("n", "d", "local", "s", tags=given(0))
    with pytest.raises(Unencodable):
        encoding.dataset_input("n", "d", "local", "s", tags=given(1))


def test_a_secret_of_eight_characters_is_taken_out_of_a_page_and_a_shorter_one_is_not() -> None:
    def cleaned(secret: str) -> tuple[str, ...]:
        return Transport(Destination("http://server", authorization=Token(f"Bearer {secret}")))._secrets

    assert cleaned("x" * MIN_SCRUBBED_SECRET) == ("x" * 8,)
    assert cleaned("x" * (MIN_SCRUBBED_SECRET - 1)) == ()


def test_a_manifest_may_claim_a_petabyte_for_a_file_and_no_more() -> None:
    def manifest(size: int) -> bytes:
        digest = "ab" * 32
        entry = {"path": f"runs/20260101T000000-{'a' * 32}/blobs/{digest}", "size": size, "sha256": digest}
        return json.dumps({**json.loads(Manifest(()).encoded()), "files": [entry]}).encode()

    assert Manifest.decoded(manifest(1 << 50)).files[0].size == 1 << 50
    with pytest.raises(BadBundle, match="it claims"):
        Manifest.decoded(manifest((1 << 50) + 1))


def test_of_very_many_records_that_are_to_be_dropped_the_rest_is_counted() -> None:
    entries = [Quarantined("run", "w", offset, "metric", f"m{offset}", "why") for offset in range(1020)]
    said = io.StringIO()
    show_drop(Console(file=said, width=200), Drop(entries, []))
    lines = said.getvalue().splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 1,000 more"


async def test_a_few_files_of_a_run_are_on_their_way_at_once(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    for number in range(40):
        run.artifact(f"{number}.bin", bytes([number]) * 10)
    run.end()
    bench.server.crowd = 8
    await bench.deliver(uploads=16)
    assert apart(bench.server, run.logged) == []
    assert bench.server.most_in_flight == 8


async def test_an_mlmodel_that_is_too_large_to_be_one_is_sent_as_it_is(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SpooledRun(bench.spool, "e")
    small = f"run_id: {run.run_id}\n".encode()
    large = small + b"# more\n" * 100
    monkeypatch.setattr(uploads, "MOST_MLMODEL_BYTES", len(small))
    run.artifact("small/MLmodel", small)
    run.artifact("large/MLmodel", large)
    run.end()
    await bench.deliver()
    server_id = bench.server.run_of(run.run_id).run_id
    run.logged.artifacts["small/MLmodel"] = f"run_id: {server_id}\n".encode()
    assert apart(bench.server, run.logged) == []


def test_a_text_longer_than_any_that_mlflow_keeps_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SpooledRun(tmp_path, "e")
    blobs = Blobs(run.directory, durable=False)

    def dataset(text: str) -> records.Dataset:
        blob = blobs.put_bytes(text.encode())
        return records.Dataset(text[:3], "d", "local", records.BlobRef(blob.sha256, blob.size))

    monkeypatch.setattr(feeds, "_MAX_TEXT_BYTES", 1000)
    run.dataset(dataset("fit" + "x" * 997))
    run.dataset(dataset("not" + "x" * 998))
    run.end()
    feed = Feed(run.writer.directory, WriterRow(run.run_id, run.writer.directory.name))
    lanes: dict[Lane, LaneQueue] = {lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}
    [aside] = feed.fill(lanes, 0.0)
    assert (aside.action, "not in the run's blobs" in aside.reason) == ("dataset", True)
    [piece] = lanes[Lane.INPUTS].ready
    entity: Any = piece.entity
    assert entity["dataset"]["name"] == "fit"
