"""The words and lists of the status page: the most important first, nothing endless, no stranger's text as it is."""

from __future__ import annotations

import json
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mlferry_agent.carrier import Work
from mlferry_agent.courier import Health
from mlferry_agent.ledger import Quarantined
from mlferry_agent.status import RunStatus
from mlferry_agent.web.pulse import Pulse
from mlferry_agent.web.state import Agent, told
from mlferry_agent.web.surveys import Disk, Survey
from mlferry_agent.web.tallies import Delivered, Parked, Refused, Tally

#: A title, a cleared screen, markup, C1 controls, bidi, a second line, half a surrogate pair.
HOSTILE = (
    "\x1b]0;owned\x07<script>alert(1)</script>\x9b2J\x00\u202e\u2066evil\r\n' ; rm -rf ~ #\ud800 http://me:secret@host"
)


def status(run_id: str = "r", **told: Any) -> RunStatus:
    plain: dict[str, Any] = {
        **{"run_name": "name", "experiment_name": "e", "server_run_id": None, "status": None, "live": False},
        **{"acknowledged": 0, "pending": 0, "approximate": False, "quarantined": [], "dropped": 0, "lost": 0},
        **{"lag_s": None, "parked": None},
    }
    return RunStatus(run_id=run_id, **{**plain, **told})


def survey(*statuses: RunStatus, tally: Tally | None = None, work: Work | None = None, **told: Any) -> Survey:
    plain = {"uncounted": 0, "disks": [], "trouble": None, **told}
    return Survey(1.0, 0.1, work or Work(), tally or Tally(), list(statuses), **plain)


def agent(**health: Any) -> Agent:
    return Agent("1", "host", Path("/spool"), "http://server", Health(**{"answered_at": 1.0, **health}), Pulse())


def says(found: Survey | None, **health: Any) -> list[tuple[str, str]]:
    return [(say["kind"], say["text"].partition(":")[0]) for say in told(agent(**health), found, 10.0)["says"]]


def test_all_is_well_only_when_nothing_waits_and_nobody_is_needed() -> None:
    assert says(survey()) == [("well", "Everything that was logged is on the server.")]
    assert says(survey(status(pending=1))) == [("waiting", "1 record to deliver.")]
    assert says(survey(status(pending=1500, approximate=True))) == [("waiting", "About 1,500 records to deliver.")]
    assert says(survey(status(end_pending=True))) == [("waiting", "0 records to deliver.")]
    assert says(survey(uncounted=3))[0][0] == "waiting"
    assert says(survey(status(pending=7, live=True, lag_s=2.0))) == [("well", "7 records on the way.")]
    assert says(survey(status(pending=7, live=True, lag_s=90.0))) == [("waiting", "7 records to deliver.")]
    fresh_but_away = says(survey(status(pending=7, lag_s=2.0)), trouble="gone")
    assert [kind for kind, _ in fresh_but_away] == ["waiting", "waiting"]
    assert says(None) == [("waiting", "Counting what waits.")]


def test_what_needs_a_person_stands_first() -> None:
    trouble = {"trouble": "401", "failing_since": 4.0}
    both = survey(status(pending=1), tally=Tally(set_aside_runs=2))
    assert says(both, **trouble) == [
        ("aside", "2 runs need you; all else goes on."),
        ("waiting", "The server does not answer"),
        ("waiting", "1 record to deliver."),
    ]
    assert says(both, **trouble, misconfigured=True)[0] == ("aside", "The server refuses this agent")
    assert says(survey(trouble="the ledger is none"))[0] == ("aside", "Not everything can be seen")
    assert says(survey(work=Work(blind="the spool is gone")))[0] == ("aside", "Not everything can be seen")


def test_a_store_past_the_server_that_is_away_is_said_and_that_the_server_is_well() -> None:
    found = agent()
    found.store.trouble = "HTTP 503: no route"
    shown = told(found, survey(status(pending=1)), 10.0)
    assert shown["says"][0]["text"].startswith("Files cannot be stored: HTTP 503: no route.")
    assert shown["server"]["state"] == "answering"


@pytest.mark.parametrize(
    ("health", "word"),
    [
        ({"answered_at": None}, "unknown"),
        ({}, "answering"),
        ({"trouble": "x"}, "unreachable"),
        ({"trouble": "x", "misconfigured": True}, "misconfigured"),
    ],
)
def test_the_servers_health_is_one_word(health: dict[str, Any], word: str) -> None:
    assert told(agent(**health), None, 10.0)["server"]["state"] == word


def test_no_time_to_go_is_told_while_the_server_is_away() -> None:
    found = agent()
    found.pulse.add("r", 600)
    found.pulse._clock, began = lambda: began + 60.0, found.pulse._clock()
    waiting = survey(status(pending=100))
    assert told(found, waiting, 10.0)["eta_s"] == 10
    found.health.trouble = "gone"
    assert told(found, waiting, 10.0)["eta_s"] is None


def test_living_runs_stand_first_then_what_waited_longest_and_the_rest_is_counted() -> None:
    waiting = [status(f"w{number}", pending=1, lag_s=float(number)) for number in range(60)]
    shown = told(agent(), survey(*waiting, status("alive", live=True), uncounted=5), 1.0)
    assert [row["run_id"] for row in shown["runs"]][:3] == ["alive", "w59", "w58"]
    assert (len(shown["runs"]), shown["more_runs"]) == (50, 16)


@pytest.mark.parametrize(
    ("found", "work", "word"),
    [
        (status(live=True), Work(), "live"),
        (status(live=True), Work(delayed={"r": "slow"}), "delayed"),
        (status(pending=1), Work(), "waiting"),
        (status(pending=1), Work(active=frozenset({"r"})), "delivering"),
        (status(status="FINISHED"), Work(), "FINISHED"),
        (status(parked="gone", live=True), Work(), "parked"),
        (status(given_up_why="no"), Work(), "dropped"),
    ],
)
def test_a_runs_state_is_one_word(found: RunStatus, work: Work, word: str) -> None:
    assert told(agent(), survey(found, work=work), 1.0)["runs"][0]["state"] == word


def test_runs_that_nobody_came_to_look_at_wait_as_the_usual_run_does() -> None:
    found = survey(*(status(str(pending), pending=pending) for pending in (10, 12, 1_000_000)), uncounted=100)
    shown = told(agent(), found, 1.0)["counts"]
    assert (shown["pending"], shown["approximate"], shown["waiting"]) == (1_000_022 + 1_200, True, 103)
    assert told(agent(), survey(uncounted=4), 1.0)["counts"]["pending"] == 0


def everything_hostile() -> dict[str, Any]:
    entry = Quarantined(HOSTILE, "w", 1, HOSTILE, HOSTILE, HOSTILE)
    tally = Tally(
        records=[Refused(entry, HOSTILE)],
        parked_runs=[Parked(HOSTILE, HOSTILE, HOSTILE)],
        latest=[Delivered(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 2**63 - 1)],
    )
    run = status(HOSTILE, run_name=HOSTILE, experiment_name=HOSTILE, status=HOSTILE, troubles=[HOSTILE], parked=HOSTILE)
    found = survey(
        run, tally=tally, work=Work(delayed={HOSTILE: HOSTILE}), trouble=HOSTILE, disks=[Disk("x", 1, 2, None)]
    )
    hostile = Agent("1", HOSTILE, Path("/\x1b[2J\u202e\ud800"), HOSTILE, Health(trouble=HOSTILE), Pulse())
    return told(hostile, found, 1.0)


def test_nothing_that_a_stranger_wrote_reaches_the_page_as_it_is() -> None:
    text = json.dumps(everything_hostile(), ensure_ascii=False)
    assert "owned" in text
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert "secret" not in text


def test_a_command_that_is_copied_runs_mlferry_and_nothing_else() -> None:
    for concern in everything_hostile()["concerns"]:
        for way in concern["ways"]:
            words = shlex.split(way)
            assert words[:2] in (["mlferry", "retry"], ["mlferry", "drop"])
            assert len(words) in (3, 4)


def test_a_time_that_no_calendar_has_is_not_told() -> None:
    assert everything_hostile()["latest"][0]["end_time"] is None
