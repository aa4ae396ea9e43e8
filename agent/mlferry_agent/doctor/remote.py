"""Is the server there, is it one to deliver to, are we let in, and do the clocks agree?"""

from __future__ import annotations

import email.utils
import importlib.util
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mlferry_agent import limits, requests, stores
from mlferry_agent.answers import Answer, Verdict, classify, json_object
from mlferry_agent.config import Config
from mlferry_agent.credentials import Destination
from mlferry_agent.destinations import destination_of
from mlferry_agent.doctor.check import Check, bad, fine, note, poor
from mlferry_agent.errors import AgentError, Misconfigured, Unreachable
from mlferry_agent.requests import Request
from mlferry_agent.transport import Transport

__all__ = ["artifacts", "clock", "remote_checks", "store", "version_check"]

#: Seconds by which clocks may differ before times look odd, and before who took over from whom is decided wrongly.
_SKEW_S, _WRONG_S = 5.0, 60.0

_ADVICE = (
    "set the clock by NTP (chrony, systemd-timesyncd): times in the curves and the order of requeued jobs follow it"
)


async def remote_checks(config: Config, environ: Mapping[str, str]) -> AsyncIterator[Check]:
    """Everything about the server; one failure where it cannot be asked."""
    if config.to is None:
        yield note("server", "nobody said which", "mlferry doctor --to http://your-mlflow-server:5000, or MLFERRY_TO")
        return
    try:
        where = destination_of(config, environ)
    except AgentError as error:
        yield bad("server", error.reason, _of(error))
        return
    for warning in where.warnings:
        yield poor("credentials", warning, "see docs/security.md")
    async with Transport(where) as transport:
        try:
            async for check in _asked(where, transport):
                yield check
        except (Unreachable, Misconfigured) as error:
            advice = (
                _of(error)
                if isinstance(error, Misconfigured)
                else f"is it up, and is that its address? try: curl {where.url}/health"
            )
            yield bad("server", f"{where.url}: {error.reason}", advice)


async def _asked(where: Destination, transport: Transport) -> AsyncIterator[Check]:
    began, now = time.monotonic(), time.time()
    answer, said = await _ask(transport, requests.server_version())
    took = time.monotonic() - began
    if said is not None:
        yield bad("server", f"{where.url} does not answer like an MLflow server: {said}", "look at the address")
        return
    yield fine("server", f"{where.url} answers in {1000 * took:.0f} ms")
    yield version_check(answer.body.decode(errors="replace").strip())
    yield clock(answer.headers.get("date", ""), now + took / 2)
    info, said = await _ask(transport, requests.server_info())
    yield store(json_object(info.body) if said is None else None)
    _, said = await _ask(transport, requests.search_experiments(max_results=1))
    if said is not None:
        yield bad("access", said, "MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD; see docs/security.md")
        return
    yield fine("access", "with credentials" if where.authorization else "without credentials")
    found, said = await _ask(transport, requests.get_experiment("0"))
    if said is None:
        yield artifacts(json_object(found.body) or {}, where.stores)
    yield fine(
        "limits",
        f"kept to: {limits.MAX_METRICS_PER_BATCH:,} points, {limits.MAX_PARAMS_TAGS_PER_BATCH} params or tags,"
        f" {limits.MAX_REQUEST_BYTES:,} bytes a request",
    )


async def _ask(transport: Transport, request: Request) -> tuple[Answer, str | None]:
    """The answer, and what is wrong with it."""
    answer = await transport.send(request)
    judgement = classify(request, answer, now_s=time.time())
    return answer, None if judgement.verdict is Verdict.ACCEPTED else judgement.reason


def version_check(text: str) -> Check:
    """Whether a server of this version is one that was tried."""
    major = text.partition(".")[0]
    if major.isdecimal() and int(major) >= 3:
        return fine("version", f"MLflow {text}")
    return poor("version", f"MLflow {text[:40]!r}", "delivery is tried with MLflow 3; upgrade the server")


def clock(date: str, now_s: float) -> Check:
    """This machine's clock against the server's ``Date``, which has whole seconds."""
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return note("clock", "the server does not say what time it is")
    skew = now_s - there - 0.5
    said = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) <= _SKEW_S:
        return fine("clock", "agrees with the server's")
    return poor("clock", said, _ADVICE) if abs(skew) <= _WRONG_S else bad("clock", said, _ADVICE)


def store(info: Mapping[str, Any] | None) -> Check:
    """Where the server keeps its runs: a store of files doubles metrics that are sent again."""
    kind = None if info is None else info.get("store_type")
    if kind == "FileStore":
        advice = "start it with --backend-store-uri sqlite:///... or another database"
        return bad("store", "the server keeps its runs in files", advice)
    return fine("store", str(kind)) if kind else note("store", "the server does not say what it keeps its runs in")


def artifacts(body: Mapping[str, Any], allowed: tuple[str, ...] = ()) -> Check:
    """Where the files of a run of the default experiment go: through the server, or by what is installed here."""
    experiment = body.get("experiment")
    place = str(experiment.get("artifact_location", "")) if isinstance(experiment, dict) else ""
    if place.startswith("mlflow-artifacts:"):
        return fine("artifacts", "through the server")
    scheme = place.partition(":")[0] if ":" in place else "a folder of the server's"
    if scheme not in requests.DIRECT:
        return poor("artifacts", f"not through the server, but to {scheme}", "start it with --serve-artifacts")
    if not stores.allows(allowed, place):
        return poor(
            "artifacts", f"past the server, to {place}", f"MLFERRY_STORES={place}, if the agent may write there"
        )
    needed = ("mlflow", "boto3") if scheme == "s3" else ("mlflow",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        advice = "pip install 'mlferry[s3]' here, or start the server with --serve-artifacts"
        return poor("artifacts", f"past the server to {scheme}, for which {' and '.join(missing)} is missing", advice)
    return fine("artifacts", f"past the server to {scheme}, by MLflow's own repository")


def _of(error: AgentError) -> str:
    """What the error's class says, without its first sentence."""
    words = " ".join((type(error).__doc__ or "").split())
    return words.partition(". ")[2] or words
