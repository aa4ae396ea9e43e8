"""A server over HTTP that takes what an agent delivers as fast as it comes, and keeps counts only: ``python -m
tests.fakes.sink``.

For measuring the agent alone. It gives out ids and finds nothing, so it is good for a spool of which it has nothing yet.
It prints its port; ``GET /counts`` tells what has come, also how often a step of a metric came before an earlier one of
its run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from aiohttp import web

__all__ = ["main"]

_API = "/api/2.0/mlflow"


class Sink:
    """``first``: when a request came first, and when a point did, in seconds of ``time.monotonic``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, float] = {}
        self._last: dict[tuple[str, str], int] = {}

    @web.middleware
    async def note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path != "/counts":
            self.first.setdefault("request", time.monotonic())
            self.counts["requests"] += 1
        answer: web.StreamResponse = await handler(request)
        return answer

    async def log_batch(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        run = body["run_id"]
        for point in body.get("metrics", ()):
            last, step = self._last.get((run, point["key"]), -1), point["step"]
            self.counts["out of order"] += step < last
            self._last[run, point["key"]] = step
        self.counts["points"] += len(body.get("metrics", ()))
        if body.get("metrics"):
            self.first.setdefault("point", time.monotonic())
        return web.json_response({})

    async def create_run(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.counts["runs"] += 1
        run_id = f"{self.counts['runs']:032x}"
        return web.json_response(_run(run_id, int(body["start_time"])))

    async def get_run(self, request: web.Request) -> web.Response:
        return web.json_response(_run(request.query["run_id"], 0))

    async def update_run(self, request: web.Request) -> web.Response:
        self.counts["ends"] += json.loads(await request.read()).get("status") == "FINISHED"
        return web.json_response({})

    async def put(self, request: web.Request) -> web.Response:
        async for data in request.content.iter_any():
            self.counts["artifact bytes"] += len(data)
        self.counts["artifacts"] += 1
        return web.json_response({})

    async def tell(self, request: web.Request) -> web.Response:
        return web.json_response({**self.counts, "first": self.first})


def _run(run_id: str, start_time: int) -> dict[str, Any]:
    info = {
        "run_id": run_id,
        "experiment_id": "1",
        "status": "RUNNING",
        "lifecycle_stage": "active",
        "start_time": start_time,
        "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts",
    }
    return {"run": {"info": info}}


async def _nothing(request: web.Request) -> web.Response:
    return web.json_response({})


async def _experiment(request: web.Request) -> web.Response:
    return web.json_response({"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}})


async def _version(request: web.Request) -> web.Response:
    return web.Response(text="3.17.0")


def main() -> None:
    """Serve until killed."""
    sink = Sink()
    app = web.Application(middlewares=[sink.note], client_max_size=64 << 20)
    app.router.add_get("/version", _version)
    app.router.add_get("/counts", sink.tell)
    app.router.add_get("/api/3.0/mlflow/server-info", _nothing)
    app.router.add_get(f"{_API}/experiments/get-by-name", _experiment)
    app.router.add_get(f"{_API}/experiments/get", _experiment)
    app.router.add_get(f"{_API}/runs/get", sink.get_run)
    app.router.add_post(f"{_API}/runs/create", sink.create_run)
    app.router.add_post(f"{_API}/runs/log-batch", sink.log_batch)
    app.router.add_post(f"{_API}/runs/update", sink.update_run)
    app.router.add_put("/api/2.0/mlflow-artifacts/artifacts/{path:.+}", sink.put)
    app.router.add_route("*", "/{path:.*}", _nothing)
    web.run_app(app, host="127.0.0.1", port=0, print=lambda told: print(told, flush=True), access_log=None)


if __name__ == "__main__":
    main()
