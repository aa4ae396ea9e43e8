"""Talking to a real server as the agent does: one exchange, one judgement, one new run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from mlferry_agent import requests
from mlferry_agent.answers import Answer, Judgement, classify
from mlferry_agent.credentials import Destination
from mlferry_agent.requests import API, Request
from mlferry_agent.transport import Transport

LARGEST = 1.7976931348623157e308


def exchange(url: str, *asked: Request, timeout_s: float = 120.0) -> list[Answer]:
    """Send one after the other over one transport."""

    async def send() -> list[Answer]:
        async with Transport(Destination(url, timeout_s=timeout_s)) as transport:
            return [await transport.send(request) for request in asked]

    return asyncio.run(send())


def judged(url: str, request: Request) -> Judgement:
    [answer] = exchange(url, request)
    return classify(request, answer)


def wait_until(holds: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Return as soon as `holds`; fail when it never does."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def said(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def new_run(url: str, experiment_id: str = "0", **fields: Any) -> dict[str, Any]:
    [answer] = exchange(url, requests.create_run(experiment_id, 1_700_000_000_123, **fields))
    info: dict[str, Any] = said(answer)["run"]["info"]
    return info


def new_run_id(url: str) -> str:
    run_id: str = new_run(url)["run_id"]
    return run_id


def raw(endpoint: str, body: object) -> Request:
    """What a careless encoder sends: Python's json with its NaN literals and lone surrogates."""
    return Request("POST", API + endpoint, body=json.dumps(body).encode())
