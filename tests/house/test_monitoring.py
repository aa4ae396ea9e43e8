"""What operators get to watch agents with: the table of metrics, the alerts and the dashboard speak of what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from mlferry_agent.carrier import Work
from mlferry_agent.courier import Health
from mlferry_agent.web.metrics import exposition
from mlferry_agent.web.pulse import Pulse
from mlferry_agent.web.state import Agent
from mlferry_agent.web.surveys import Disk, Survey
from mlferry_agent.web.tallies import Tally

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "monitoring"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.prefix) / "bin"))

with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: make tools")

_NAME = re.compile(r"\b(?:mlferry|process)_[a-z_]+\b")


def scraped() -> str:
    disks = [Disk(of, 10, 20, None) for of in ("spool", "state")]
    survey = Survey(1.0, 0.1, Work(), Tally(), [], 0, disks)
    agent = Agent("1.2.3", "host", Path("/spool"), "http://server", Health(), Pulse())
    return exposition(agent, survey, 0.0, 0).decode()


def samples() -> dict[str, set[str]]:
    """Every name of a sample, with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scraped()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression that we ship, as Prometheus itself would be asked it."""
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield panel["title"], expr


def promtool(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *words], input=stdin, capture_output=True, text=True, timeout=60, cwd=FOLDER)


def test_the_documented_metrics_are_those_that_there_are() -> None:
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^\| `(mlferry_\w+)` \|", text)
    assert listed == [name for name in samples() if name.startswith("mlferry_")]
    assert set(_NAME.findall(text)) <= set(samples())


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    asked = list(expressions())
    assert len(asked) > 20
    for title, expr in asked:
        names = set(_NAME.findall(expr)) - {"mlferry_"}
        assert names <= set(samples()), title
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expr)) - {"instance", "job"}
        assert labels <= {label for name in names for label in samples().get(name, ())}, title


def test_no_label_names_a_run() -> None:
    assert {label for labels in samples().values() for label in labels} == {"version", "state", "of"}


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["description"] and panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in ("stat", "timeseries")
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["datasource", "instance"]
    assert dashboard()["id"] is None


def test_grafanas_own_model_of_a_dashboard_has_a_place_for_all_of_it() -> None:
    asked = dashboard()
    understood = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(asked)))
    # What only the import of a file asks for, and what an editor remembers of a query.
    beside = {"/__inputs", "/__requires", "/id", "/templating/list/definition"}
    assert set(_lost(asked, understood)) == beside


def _lost(asked: Any, held: Any, path: str = "") -> Iterator[str]:
    """Where something of ``asked`` is missing in ``held``, or another value."""
    if isinstance(asked, dict) and isinstance(held, dict):
        for key, value in asked.items():
            yield from _lost(value, held.get(key, _lost), f"{path}/{key}")
    elif isinstance(asked, list) and isinstance(held, list) and len(asked) == len(held):
        for one, other in zip(asked, held, strict=True):
            yield from _lost(one, other, path)
    elif asked != held:
        yield path


@with_promtool
def test_prometheus_finds_no_fault_with_what_it_scrapes() -> None:
    done = promtool("check", "metrics", stdin=scraped())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@with_promtool
def test_the_alerts_are_valid_and_each_is_tried() -> None:
    assert promtool("check", "rules", "alerts.yml").returncode == 0
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
    assert not [title for title, _ in expressions() if title.startswith("Mlferry") and title not in tried]


@with_promtool
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": expr} for number, (_, expr) in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
