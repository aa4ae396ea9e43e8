"""Configuration: who wins, who said it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlferry_agent.config import load
from mlferry_agent.errors import BadConfiguration


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "mlferry").mkdir()
    return tmp_path


def environ(home: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(home), "XDG_CONFIG_HOME": str(home), **variables}


def write(home: Path, text: str) -> str:
    path = home / "mlferry" / "agent.toml"
    path.write_text(text)
    return str(path)


def test_later_sources_win_and_each_value_names_its_own(home: Path) -> None:
    file = write(home, 'to = "http://file"\npoll_s = 2\nuploads = 7\n')
    found = load(environ(home, MLFERRY_TO="http://variable", MLFERRY_POLL_S="3"), {"poll_s": 4.0, "dir": None})
    assert (found.to, found.poll_s, found.uploads, found.connections) == ("http://variable", 4.0, 7, 4)
    origins = found.origins
    assert (origins["to"], origins["poll_s"], origins["uploads"]) == ("MLFERRY_TO", "--poll-s", file)
    assert (origins["connections"], origins["dir"]) == ("default", "default")


def test_mlflows_own_address_is_taken_when_it_is_a_servers(home: Path) -> None:
    assert load(environ(home, MLFLOW_TRACKING_URI="https://there"), {}).to == "https://there"
    assert load(environ(home, MLFLOW_TRACKING_URI="spool:///here"), {}).to is None
    assert load(environ(home, MLFLOW_TRACKING_URI="http://a", MLFERRY_TO="http://b"), {}).to == "http://b"


def test_the_state_is_where_systemd_says_or_where_xdg_says(home: Path) -> None:
    assert load(environ(home, STATE_DIRECTORY="/var/lib/mlferry:/other"), {}).state_dir == Path("/var/lib/mlferry")
    assert load(environ(home, XDG_STATE_HOME="/state"), {}).state_dir == Path("/state/mlferry")
    assert load(environ(home), {}).state_dir == home / ".local" / "state" / "mlferry"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poll_s = 0", "above 0"),
        ("poll_s = -1", "above 0"),
        ("poll_s = nan", "above 0"),
        ('connections = "many"', "connections"),
        ("dir = 5", "dir"),
        ("pol_s = 1", "no setting called 'pol_s'"),
        ("[agent]\npoll_s = 1", "no setting called 'agent'"),
        ("poll_s = ", "agent.toml"),
        ('dir = "~nobody-of-this-name/spool"', "home"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(home: Path, text: str, words: str) -> None:
    write(home, text)
    with pytest.raises(BadConfiguration, match=words):
        load(environ(home), {})


@pytest.mark.parametrize("value", ["nan", "0", "soon"])
def test_a_variable_is_checked_like_a_file(home: Path, value: str) -> None:
    variables: dict[str, Any] = {"MLFERRY_STALE_AFTER_S": value}
    with pytest.raises(BadConfiguration, match="MLFERRY_STALE_AFTER_S"):
        load(environ(home, **variables), {})
