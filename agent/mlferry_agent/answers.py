"""What an answer of the server means.

Owns the table from (status, MLflow error code, message) to a verdict. Pure: never sleeps, never sends again, decides no
policy. The status alone does not classify an MLflow answer: 400 may be a passing race in the database or a permanent
refusal, 503 a restart or an artifact proxy that was switched off for good, and 200 may come from a hotel's login page.

The rules are tried in this order, first match wins:
1. 2xx: ACCEPTED when the body is what the endpoint answers with, else RETRY (a captive portal, a body cut short), or
   SUSPECT where it is an object of JSON without the fields that we read: somebody answers, and does not know this.
2. 3xx: CONFIG. A redirect is never followed: it could carry the credentials to another host.
3. A known message of MLflow or of a proxy (`_MESSAGES`), where the code alone would mislead.
4. MLflow's `error_code` (`_CODES`); JSON that was cut short is RETRY.
5. The status (`_STATUSES`); unknown 5xx are RETRY, unknown 4xx SUSPECT.
"""

from __future__ import annotations

import email.utils
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlferry_agent.requests import API, ARTIFACTS, SPANS, VERSION, Request
from mlferry_agent.shapes import has_shape, is_shaped

#: Characters of a server's words that are kept with a record, shown and logged.
#: Beyond: cut.
#: Test: tests/unit/test_answers.py::test_a_long_or_deep_answer_is_cut
MAX_REASON_LENGTH = 500

#: Objects and lists, and values, in one large answer: each costs fifty times the bytes that it takes in JSON. The largest
#: page of a metric's history has 25,000 objects of five values. Answers below the first of these are not counted.
#: Beyond: it is no answer, and the request is tried again later.
#: Test: tests/fuzz/test_agent_fuzz.py::test_an_answer_that_would_fill_the_memory_is_none
_SMALL_BYTES, _MOST_PARTS, _MOST_COMMAS = 1 << 20, 1 << 19, 1 << 22


class Verdict(enum.Enum):
    """What to do with a request, given its answer."""

    ACCEPTED = "accepted"
    """The server did it."""
    RETRY = "retry"
    """Transient: wait and send the same bytes again, for as long as it takes."""
    SUSPECT = "suspect"
    """Transient or permanent, the answer cannot tell: try a bounded number of times, then treat as REFUSED."""
    REFUSED = "refused"
    """Something in this body is refused for good: bisect, quarantine what is left."""
    ALREADY = "already"
    """The server is already in the wished state."""
    GONE = "gone"
    """What the request names does not exist, or is deleted. For a look-up: not found."""
    CONFIG = "config"
    """Credentials, host name, TLS, workspace or server options: pause the destination, blame no record."""
    TOO_LARGE = "too large"
    """Some proxy takes no body of this size: halve it."""
    UNSUPPORTED = "unsupported"
    """The server has no such endpoint: too old, or the feature is off."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the server's own words (printable, at most 500 characters), and how long it asked us to wait."""

    verdict: Verdict
    reason: str
    retry_after_s: float | None = None
    status: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    """What an error answer said: MLflow's error code ('' when it is not MLflow's JSON) and the text of it.

    `is_cut`: it began as JSON and did not end as such, so its status came without its meaning.
    """

    code: str
    text: str
    is_cut: bool = False


#: MLflow's pool of connections is exhausted, often for good as long as everybody goes on asking: a batch needs two, and
#: whoever has one waits for the second. 400, although nothing in the request is to blame. Only where the message begins so:
#: an error of SQL may repeat a value that somebody logged.
_POOL = "QueuePool limit of size"
_POOL_ADVICE = (
    "MLflow's pool of database connections is too small (set MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=120 there): "
)

# (status, error code or None, endpoint suffix or None, words in the message, verdict)
_MESSAGES: tuple[tuple[int, str | None, str | None, str, Verdict], ...] = (
    (503, None, None, "--no-serve-artifacts", Verdict.CONFIG),
    (503, None, None, "Artifact serving is", Verdict.CONFIG),
    (400, "INVALID_PARAMETER_VALUE", None, "must be in the 'active' state", Verdict.GONE),
    (400, None, None, "Artifact path targets workspace", Verdict.CONFIG),
    (400, "", None, "plain HTTP request was sent to HTTPS port", Verdict.CONFIG),
    (404, "RESOURCE_DOES_NOT_EXIST", None, "Workspace '", Verdict.CONFIG),
    (404, "RESOURCE_DOES_NOT_EXIST", "runs/delete-tag", "No tag with name", Verdict.ALREADY),
    (404, "RESOURCE_DOES_NOT_EXIST", "experiments/restore", "", Verdict.ALREADY),
)

_CODES = {
    "BAD_REQUEST": Verdict.SUSPECT,
    "INVALID_PARAMETER_VALUE": Verdict.REFUSED,
    "RESOURCE_ALREADY_EXISTS": Verdict.ALREADY,
    "ALREADY_EXISTS": Verdict.ALREADY,
    "RESOURCE_DOES_NOT_EXIST": Verdict.GONE,
    "NOT_FOUND": Verdict.GONE,
    "ENDPOINT_NOT_FOUND": Verdict.UNSUPPORTED,
    "NOT_IMPLEMENTED": Verdict.UNSUPPORTED,
    "TEMPORARILY_UNAVAILABLE": Verdict.RETRY,
    "DEADLINE_EXCEEDED": Verdict.RETRY,
    "REQUEST_LIMIT_EXCEEDED": Verdict.RETRY,
    "RESOURCE_EXHAUSTED": Verdict.RETRY,
    "RESOURCE_CONFLICT": Verdict.RETRY,
    "ABORTED": Verdict.RETRY,
    "CANCELLED": Verdict.RETRY,
    "PERMISSION_DENIED": Verdict.CONFIG,
    "CUSTOMER_UNAUTHORIZED": Verdict.CONFIG,
    "UNAUTHENTICATED": Verdict.CONFIG,
    "INTERNAL_ERROR": Verdict.SUSPECT,
}

_STATUSES = {
    401: Verdict.CONFIG,
    402: Verdict.CONFIG,
    403: Verdict.CONFIG,
    404: Verdict.UNSUPPORTED,
    405: Verdict.UNSUPPORTED,
    407: Verdict.CONFIG,
    408: Verdict.RETRY,
    409: Verdict.RETRY,
    410: Verdict.UNSUPPORTED,
    413: Verdict.TOO_LARGE,
    414: Verdict.REFUSED,
    421: Verdict.CONFIG,
    425: Verdict.RETRY,
    426: Verdict.CONFIG,
    429: Verdict.RETRY,
    431: Verdict.CONFIG,
    451: Verdict.CONFIG,
    495: Verdict.CONFIG,
    496: Verdict.CONFIG,
    499: Verdict.RETRY,
    500: Verdict.SUSPECT,
    501: Verdict.UNSUPPORTED,
}

_VERSION = re.compile(rb"\d+\.\d+[\w.+-]*\s*")
_SECRETS = re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;]+", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s@]+@")


def classify(request: Request, answer: Answer, *, now_s: float | None = None) -> Judgement:
    """The meaning of `answer` to `request`.

    `now_s`, seconds since the epoch, is needed only to read a Retry-After that is a date when the answer has no Date
    header of its own; the server's own clock is preferred because ours may be wrong.
    """
    retry_after = _retry_after(answer.headers, now_s)
    if 200 <= answer.status < 300:
        verdict, reason = _judge_success(request, answer)
    elif answer.status < 400:
        verdict, reason = Verdict.CONFIG, f"redirect to {answer.headers.get('location', 'nowhere')} is not followed"
    else:
        said = _said(answer)
        advice = _POOL_ADVICE if said.text.startswith(_POOL) else ""
        verdict, reason = _judge_error(request, answer.status, said), f"{advice}{said.code} {said.text}".strip()
    return Judgement(verdict, printable(f"HTTP {answer.status}: {reason}"), retry_after, answer.status)


def printable(text: str) -> str:
    """`text` for a terminal or a log: no control characters, no bidi tricks, no credentials, at most 500 characters."""
    text = _USERINFO.sub("://***@", _SECRETS.sub(r"\1 ***", text))
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:MAX_REASON_LENGTH])
    return shown[:MAX_REASON_LENGTH]


def json_object(body: bytes) -> dict[str, object] | None:
    """The JSON object that `body` is, or None when it is anything else, also one that would fill the memory."""
    if len(body) > _SMALL_BYTES and (
        body.count(b"{") + body.count(b"[") > _MOST_PARTS or body.count(b",") > _MOST_COMMAS
    ):
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _judge_success(request: Request, answer: Answer) -> tuple[Verdict, str]:
    if not _is_as_expected(request, answer.body):
        return Verdict.RETRY, f"not an answer of MLflow: {_plain(answer.body)[:200]}"
    if not _is_shaped(request, answer.body):
        return Verdict.SUSPECT, f"not what MLflow answers here: {_plain(answer.body)[:200]}"
    return Verdict.ACCEPTED, "accepted"


def _is_as_expected(request: Request, body: bytes) -> bool:
    """Whether `body` is of the kind the endpoint answers with.

    Artifacts come back as their bytes, whatever those are. A stored artifact is answered with nothing (uvicorn) or
    with `{}` (gunicorn, waitress).
    """
    if request.path == VERSION:
        return _VERSION.fullmatch(body) is not None
    if request.path == SPANS:
        return True  # a protobuf message, mostly an empty one
    if request.path.startswith(ARTIFACTS + "/"):
        return request.method in ("GET", "HEAD") or not body.strip() or json_object(body) is not None
    return json_object(body) is not None


def _is_shaped(request: Request, body: bytes) -> bool:
    """Whether an object of JSON has the fields that the agent reads."""
    endpoint = request.path.rpartition("/mlflow/")[2]
    return not has_shape(request.method, endpoint) or is_shaped(request.method, endpoint, json_object(body) or {})


def _judge_error(request: Request, status: int, said: _Said) -> Verdict:
    if said.code == "BAD_REQUEST" and said.text.startswith(_POOL):
        return Verdict.RETRY
    for at, code, endpoint, words, verdict in _MESSAGES:
        if at != status or words not in said.text:
            continue
        if code in (None, said.code) and endpoint in (None, request.path[len(API) :]):
            return verdict
    if said.code in _CODES:
        return _CODES[said.code]
    if said.is_cut:
        return Verdict.RETRY
    if request.method == "HEAD" and status == 404:
        return Verdict.GONE  # an answer to HEAD has no body that could tell a missing artifact from a missing endpoint
    if status in _STATUSES:
        return _STATUSES[status]
    return Verdict.RETRY if status >= 500 else _unknown_4xx(request)


def _unknown_4xx(request: Request) -> Verdict:
    """An artifact route answers 400 without an error code when it refuses the name; elsewhere nobody knows."""
    return Verdict.REFUSED if request.path.startswith(ARTIFACTS + "/") else Verdict.SUSPECT


def _said(answer: Answer) -> _Said:
    found = json_object(answer.body)
    if found is None:
        return _Said("", _plain(answer.body), is_cut=answer.body.lstrip().startswith(b"{"))
    code, text = found.get("error_code"), found.get("message", found.get("detail", ""))
    return _Said(code if isinstance(code, str) else "", text if isinstance(text, str) else str(text))


def _plain(body: bytes) -> str:
    """The words of an HTML or text page: without tags, on one line."""
    text = body[:20_000].decode(errors="replace")
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def _retry_after(headers: Mapping[str, str], now_s: float | None) -> float | None:
    """Seconds to wait (RFC 9110, 10.2.3: a number of seconds or an HTTP date), never negative; None if unreadable."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return float(value)
    until, since = _http_date(value), _http_date(headers.get("date", ""))
    start = since if since is not None else now_s
    if until is None or start is None:
        return None
    return max(0.0, until - start)


def _http_date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
