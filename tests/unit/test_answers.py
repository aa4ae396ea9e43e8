"""The table of answers: each row as an MLflow server or something in front of it really says it."""

from __future__ import annotations

import email.utils
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Answer, Verdict, classify

BATCH = requests.log_batch("r", params=[encoding.param("k", "v")])
DELETE_TAG = requests.delete_tag("r", "k")
RESTORE = requests.restore_experiment("1")
LOOK_UP = requests.get_experiment_by_name("e")
PUT = requests.put_artifact("mlflow-artifacts:/0/r/artifacts", "f")
GET = requests.get_artifact("mlflow-artifacts:/0/r/artifacts", "f")
HTML = b"<!doctype html><title>Sign in</title><p>Hotel network</p>"


def said(code: str, message: str = "words") -> bytes:
    return json.dumps({"error_code": code, "message": message}).encode()


HEAD = requests.head_artifact("mlflow-artifacts:/0/r/artifacts", "f")
NO_SERVE = (
    "Endpoint: /api/2.0/mlflow-artifacts/artifacts/<path:artifact_path> disabled due to the mlflow server running "
    "with `--no-serve-artifacts`. To enable artifacts server functionality, run `mlflow server` with `--serve-artifacts`"
)

POOL_IS_EMPTY = (
    "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00 (Background on this ...)"
)

TABLE: list[tuple[requests.Request, int, bytes, Verdict]] = [
    (BATCH, 200, b"{}", Verdict.ACCEPTED),
    (BATCH, 201, b'{"run": {}}', Verdict.ACCEPTED),
    (BATCH, 200, b"", Verdict.RETRY),
    (BATCH, 200, HTML, Verdict.RETRY),
    (BATCH, 200, b'{"run": {"info', Verdict.RETRY),
    (BATCH, 200, b"[]", Verdict.RETRY),
    (BATCH, 200, b"null", Verdict.RETRY),
    (BATCH, 204, b"", Verdict.RETRY),
    (PUT, 200, b"", Verdict.ACCEPTED),
    (PUT, 200, b"{}\n", Verdict.ACCEPTED),
    (PUT, 200, HTML, Verdict.RETRY),
    (GET, 200, HTML, Verdict.ACCEPTED),
    (requests.server_version(), 200, b"3.17.2", Verdict.ACCEPTED),
    (requests.server_version(), 200, b"2.9.0.dev0\n", Verdict.ACCEPTED),
    (requests.server_version(), 200, HTML, Verdict.RETRY),
    *((BATCH, status, b"", Verdict.CONFIG) for status in (301, 302, 303, 307, 308)),
    *((BATCH, status, HTML, Verdict.RETRY) for status in (408, 425, 429, 502, 503, 504, 507, 520, 524, 599)),
    (BATCH, 429, said("REQUEST_LIMIT_EXCEEDED"), Verdict.RETRY),
    (BATCH, 503, said("TEMPORARILY_UNAVAILABLE", "database is locked"), Verdict.RETRY),
    (PUT, 503, NO_SERVE.encode(), Verdict.CONFIG),
    (PUT, 503, b'{"detail":"Artifact serving is disabled. Run `mlflow server` with ..."}', Verdict.CONFIG),
    (PUT, 503, b'{"detail":"Artifact serving is not configured."}', Verdict.CONFIG),
    (BATCH, 400, said("BAD_REQUEST", "(psycopg2.errors.UniqueViolation)"), Verdict.SUSPECT),
    (BATCH, 400, said("BAD_REQUEST", POOL_IS_EMPTY), Verdict.RETRY),
    (BATCH, 400, said("BAD_REQUEST", f"(psycopg2.errors.X) [parameters: '{POOL_IS_EMPTY}']"), Verdict.SUSPECT),
    (BATCH, 400, said("INVALID_PARAMETER_VALUE", "Changing param values is not allowed"), Verdict.REFUSED),
    (
        BATCH,
        400,
        said("INVALID_PARAMETER_VALUE", "The run r must be in the 'active' state. Current state is deleted."),
        Verdict.GONE,
    ),
    (BATCH, 400, said("RESOURCE_ALREADY_EXISTS"), Verdict.ALREADY),
    (PUT, 400, said("INVALID_PARAMETER_VALUE", "Invalid path"), Verdict.REFUSED),
    (PUT, 400, b'{"detail":"Artifact path must include a filename"}', Verdict.REFUSED),
    (PUT, 400, said("INVALID_PARAMETER_VALUE", "Artifact path targets workspace 'a' but ..."), Verdict.CONFIG),
    (BATCH, 400, b"<h1>400</h1>The plain HTTP request was sent to HTTPS port", Verdict.CONFIG),
    (BATCH, 400, HTML, Verdict.SUSPECT),
    (BATCH, 422, HTML, Verdict.SUSPECT),
    (BATCH, 404, said("RESOURCE_DOES_NOT_EXIST", "Run with id=r not found"), Verdict.GONE),
    (BATCH, 404, said("RESOURCE_DOES_NOT_EXIST", "Workspace 'team-a' not found"), Verdict.CONFIG),
    (LOOK_UP, 404, said("RESOURCE_DOES_NOT_EXIST", "Could not find experiment with name 'e'"), Verdict.GONE),
    (DELETE_TAG, 404, said("RESOURCE_DOES_NOT_EXIST", "No tag with name: k in run with id r"), Verdict.ALREADY),
    (DELETE_TAG, 404, said("RESOURCE_DOES_NOT_EXIST", "Run with id=r not found"), Verdict.GONE),
    (RESTORE, 404, said("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=1 exists"), Verdict.ALREADY),
    (BATCH, 404, said("ENDPOINT_NOT_FOUND"), Verdict.UNSUPPORTED),
    (BATCH, 404, HTML, Verdict.UNSUPPORTED),
    (PUT, 404, b'{"detail":"Not Found"}', Verdict.UNSUPPORTED),
    (HEAD, 404, b"", Verdict.GONE),
    (BATCH, 405, HTML, Verdict.UNSUPPORTED),
    (BATCH, 501, said("NOT_IMPLEMENTED"), Verdict.UNSUPPORTED),
    (BATCH, 409, said("ALREADY_EXISTS"), Verdict.ALREADY),
    (BATCH, 409, said("RESOURCE_CONFLICT"), Verdict.RETRY),
    (BATCH, 401, HTML, Verdict.CONFIG),
    (BATCH, 403, b"Permission denied", Verdict.CONFIG),
    (BATCH, 403, b"Invalid Host header - possible DNS rebinding attack detected", Verdict.CONFIG),
    (BATCH, 403, b"Cross-origin request blocked", Verdict.CONFIG),
    (BATCH, 407, HTML, Verdict.CONFIG),
    (BATCH, 413, b"<h1>413 Request Entity Too Large</h1>", Verdict.TOO_LARGE),
    (BATCH, 500, said("INTERNAL_ERROR"), Verdict.SUSPECT),
    (BATCH, 500, said("INVALID_STATE"), Verdict.SUSPECT),
    (BATCH, 500, HTML, Verdict.SUSPECT),
    (PUT, 500, b"Internal Server Error", Verdict.SUSPECT),
]


@pytest.mark.parametrize(("request_", "status", "body", "verdict"), TABLE)
def test_an_answer_means_what_the_table_says(
    request_: requests.Request, status: int, body: bytes, verdict: Verdict
) -> None:
    assert classify(request_, Answer(status, {}, body)).verdict is verdict


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_answer_breaks_the_classifier_and_no_reason_breaks_a_terminal(status: int, body: bytes) -> None:
    for request in (BATCH, PUT, DELETE_TAG):
        judgement = classify(request, Answer(status, {"retry-after": body.decode("latin-1")}, body))
        assert judgement.reason.isprintable() and len(judgement.reason) <= 500
        assert judgement.status == status


def test_the_reason_holds_the_servers_own_words() -> None:
    judgement = classify(
        BATCH, Answer(400, {}, said("INVALID_PARAMETER_VALUE", "Names may only contain alphanumerics"))
    )
    assert judgement.reason == "HTTP 400: INVALID_PARAMETER_VALUE Names may only contain alphanumerics"
    assert classify(BATCH, Answer(502, {}, b"<html><h1>Bad\n Gateway</h1></html>")).reason == "HTTP 502: Bad Gateway"


def test_a_long_or_deep_answer_is_cut() -> None:
    assert len(classify(BATCH, Answer(400, {}, said("BAD_REQUEST", "x" * 10_000))).reason) == 500
    assert classify(BATCH, Answer(200, {}, b"[" * 100_000)).verdict is Verdict.RETRY


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer s3cret-token", "bearer s3cret-token", "Basic s3cret-token", "http://u:s3cret-token@host/x"],
)
def test_credentials_in_an_error_page_do_not_reach_the_reason(text: str) -> None:
    for body in (text.encode(), said("BAD_REQUEST", text)):
        assert "s3cret" not in classify(BATCH, Answer(400, {}, body)).reason


def test_a_pool_that_is_too_small_is_said_with_what_to_do() -> None:
    judgement = classify(BATCH, Answer(400, body=said("BAD_REQUEST", POOL_IS_EMPTY)))
    assert "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW" in judgement.reason and "overflow 10 reached" in judgement.reason


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("120", 120), (" 7 ", 7), ("999999999999", 999999999999)])
def test_retry_after_in_seconds_is_read(value: str, seconds: float) -> None:
    assert classify(BATCH, Answer(429, {"retry-after": value}, b"")).retry_after_s == seconds


def test_retry_after_as_a_date_is_measured_on_the_servers_own_clock() -> None:
    dates = {
        "retry-after": email.utils.formatdate(5030, usegmt=True),
        "date": email.utils.formatdate(5000, usegmt=True),
    }
    assert classify(BATCH, Answer(503, dates, b""), now_s=99_999_999).retry_after_s == 30


def test_retry_after_as_a_date_falls_back_on_the_given_clock_and_is_never_negative() -> None:
    headers = {"retry-after": email.utils.formatdate(5030, usegmt=True)}
    assert classify(BATCH, Answer(503, headers, b""), now_s=5000).retry_after_s == 30
    assert classify(BATCH, Answer(503, headers, b""), now_s=6000).retry_after_s == 0
    assert classify(BATCH, Answer(503, headers, b"")).retry_after_s is None


@pytest.mark.parametrize("value", ["", "-5", "1.5", "soon", "1e3", "Tue, 99 Nov 2026 00:00:00 GMT", "9" * 50])
def test_an_unreadable_retry_after_is_no_wait(value: str) -> None:
    assert classify(BATCH, Answer(429, {"retry-after": value}, b""), now_s=0).retry_after_s is None
