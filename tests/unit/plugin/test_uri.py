"""``spool:`` URIs in every spelling that MLflow makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlferry.errors import BadSpoolUri
from mlferry.plugin import uri

ROOT = Path("/data/my spool")


@pytest.mark.parametrize("given", ["spool:///data/my spool", "spool:/data/my spool", "spool:///data/x/../my spool/"])
def test_each_spelling_of_a_path_is_that_path(given: str) -> None:
    assert uri.root_of(given) == ROOT


def test_without_a_path_it_is_the_spool_of_the_environment() -> None:
    assert uri.root_of("spool:", {"MLFERRY_DIR": "/elsewhere"}) == Path("/elsewhere")
    assert uri.root_of("spool://", {"XDG_DATA_HOME": "/data"}) == Path("/data/mlferry")


@pytest.mark.parametrize("given", ["spool://host/p", "spool:///p?a=1", "spool:///p#x", "file:///p", "http://p", ""])
def test_what_names_no_directory_is_refused(given: str) -> None:
    with pytest.raises(BadSpoolUri):
        uri.root_of(given)


@pytest.mark.parametrize(
    ("made", "kind", "owner_id"),
    [
        (uri.run_artifacts(ROOT, "0", "r" * 32), "run", "r" * 32),
        (uri.model_artifacts(ROOT, "123", "m-1"), "model", "m-1"),
        (uri.trace_artifacts(ROOT, "123", "tr-1"), "trace", "tr-1"),
    ],
)
def test_artifacts_are_found_again_by_their_uri(made: str, kind: str, owner_id: str) -> None:
    for spelling in (made, made.replace("spool://", "spool:", 1), f"{made}/"):
        assert uri.parse_artifacts(spelling) == uri.Owner(ROOT, kind, owner_id)
        assert uri.parse_artifacts(f"{spelling}/a/b.txt") == uri.Owner(ROOT, kind, owner_id, "a/b.txt")


def test_what_mlflow_appends_to_a_uri_leads_below_it() -> None:
    from mlflow.utils.uri import append_to_uri_path

    appended = append_to_uri_path(uri.experiment_artifacts(ROOT, "7"), "r" * 32, "artifacts", "model/MLmodel")
    assert uri.parse_artifacts(appended) == uri.Owner(ROOT, "run", "r" * 32, "model/MLmodel")


def test_the_directory_above_the_artifacts_is_their_owner_s() -> None:
    assert uri.parse_artifacts("spool:/s/artifacts/0/r1") == uri.Owner(Path("/s"), "run", "r1", above=True)
    assert uri.parse_artifacts("spool:/s/artifacts/0/models/m-1/") == uri.Owner(Path("/s"), "model", "m-1", above=True)


def test_an_artifact_path_that_looks_like_another_owner_is_only_a_path() -> None:
    made = f"{uri.run_artifacts(ROOT, '0', 'r1')}/artifacts/9/r2/artifacts"
    assert uri.parse_artifacts(made) == uri.Owner(ROOT, "run", "r1", "artifacts/9/r2/artifacts")


@pytest.mark.parametrize("given", ["spool:///p", "spool:///p/artifacts/0", "spool:///p/artifacts//r1"])
def test_a_uri_of_nobodys_artifacts_is_refused(given: str) -> None:
    with pytest.raises(BadSpoolUri):
        uri.parse_artifacts(given)
