"""The status page's server: what it answers, to whom, with which headers; opened beside an agent that delivers.

If its address is taken, the agent says so, delivers, and tries again every minute: nobody's training data should wait for
a page. Nothing here can be changed: there are only GET and HEAD.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from importlib.resources import files

from aiohttp import web

from mlferry_agent.config import Config
from mlferry_agent.ledger import ledger_path
from mlferry_agent.sessions import Session
from mlferry_agent.web.addresses import SocketAddress, TcpAddress, is_ours, names_of, parse
from mlferry_agent.web.listening import Listener
from mlferry_agent.web.metrics import CONTENT_TYPE, exposition
from mlferry_agent.web.pulse import Pulse
from mlferry_agent.web.state import Agent, told
from mlferry_agent.web.streams import Audience
from mlferry_agent.web.surveyor import Surveyor
from mlferry_agent.web.surveys import Surveys

__all__ = ["StatusPage", "opened", "status_page"]

_log = logging.getLogger("mlferry.agent")

#: Seconds until a taken address is tried again, and that a scrape waits for new numbers before it gets the last ones.
_AGAIN_S, _PATIENCE_S = 60.0, 5.0

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Server": "mlferry",
}


class StatusPage:
    """Answers for one agent."""

    def __init__(self, agent: Agent, surveyor: Surveyor, names: frozenset[str]) -> None:
        self._agent, self._surveyor, self._names = agent, surveyor, names
        self._audience = Audience(self._news)
        self._reported: set[type[Exception]] = set()
        root = files("mlferry_agent.web") / "page"
        self._pages = {path: ((root / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def application(self) -> web.Application:
        """What an ``AppRunner`` runs."""
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.on_response_prepare.append(_with_headers)
        app.on_shutdown.append(self._close)
        for path in self._pages:
            app.router.add_get(path, self._file)
        app.router.add_get("/events", self._audience.serve, allow_head=False)
        app.router.add_get("/status.json", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        return app

    async def _close(self, _: web.Application) -> None:
        await self._audience.close()
        self._surveyor.close()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not is_ours(request.headers.get("Host", ""), self._names):
            return _refusal(
                421, "this page does not answer to that name; ask by address, or name it with --http NAME:PORT"
            )
        if (
            request.headers.get("Sec-Fetch-Site") == "cross-site"
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        ):
            return _refusal(403, "this page is not part of others")
        try:
            return await handler(request)
        except web.HTTPException as refusal:
            return _refusal(refusal.status, refusal.reason)
        except Exception as defect:
            self._report(defect)
            return _refusal(500, "a defect of mlferry; its log says more")

    def _report(self, defect: Exception) -> None:
        """Once each kind: whoever asks again must not fill the log."""
        if type(defect) not in self._reported:
            self._reported.add(type(defect))
            _log.error("the status page has a defect", exc_info=defect)

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._pages[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(text=await self._now(_PATIENCE_S))

    async def _news(self) -> str:
        return await self._now(0.5)

    async def _now(self, patience_s: float) -> str:
        survey = await self._surveyor.look(patience_s)
        return json.dumps(told(self._agent, survey, time.monotonic()))

    async def _metrics(self, _: web.Request) -> web.Response:
        survey = await self._surveyor.look(_PATIENCE_S)
        body = exposition(self._agent, survey, time.monotonic(), len(self._audience))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        """That this is answered is the news: the loop that delivers is the one that answers."""
        return web.json_response({"status": "ok", "server": self._agent.server, "version": self._agent.version})


@contextlib.asynccontextmanager
async def status_page(config: Config, session: Session, pulse: Pulse) -> AsyncIterator[None]:
    """The page of a session, open at ``config.http`` for as long as it can be."""
    address = parse(config.http or "off")
    assert address is not None
    agent = Agent(
        version=version("mlferry"),
        host=os.uname().nodename,
        spool=config.dir,
        url=session.destination.url,
        health=session.courier.health,
        pulse=pulse,
        store=session.courier.store_health,
    )
    surveys = Surveys(config.dir, ledger_path(config.state_dir, session.destination.url))
    async with opened(StatusPage(agent, Surveyor(surveys, session.carrier.work), names_of(address)), address):
        yield


@contextlib.asynccontextmanager
async def opened(
    page: StatusPage, address: TcpAddress | SocketAddress, *, again_s: float = _AGAIN_S
) -> AsyncIterator[None]:
    """A page that is open at its address for as long as it can be, tried again after ``again_s`` seconds."""
    runner = web.AppRunner(page.application(), access_log=None, logger=_silent(), shutdown_timeout=1.0)
    await runner.setup()
    opening = asyncio.create_task(_keep_open(address, runner, again_s), name="open the status page")
    try:
        yield
    finally:
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        await runner.cleanup()


async def _keep_open(address: TcpAddress | SocketAddress, runner: web.AppRunner, again_s: float) -> None:
    listener = await _open(address, runner, again_s)
    try:
        _log.info("status page: %s", listener.url)
        if isinstance(address, TcpAddress) and not address.is_private:
            _log.warning("everybody who reaches %s can read the names of runs there", listener.url)
        await asyncio.Event().wait()
    finally:
        await listener.close()


async def _open(address: TcpAddress | SocketAddress, runner: web.AppRunner, again_s: float) -> Listener:
    said = ""
    while True:
        try:
            assert runner.server is not None
            return await Listener.open(address, runner.server)
        except OSError as error:
            why = error.strerror or str(error)
        if why != said:
            _log.warning(
                "no status page at %s: %s; delivery goes on, and it is tried again every %.0f s", address, why, again_s
            )
            said = why
        await asyncio.sleep(again_s)


async def _with_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _refusal(status: int, reason: str) -> web.Response:
    return web.Response(status=status, text=f"{reason}\n")


def _silent() -> logging.Logger:
    """Whoever sends nonsense must not fill the log; what our own handlers raise is reported by the guard."""
    silent = logging.getLogger("mlferry.web")
    silent.setLevel(logging.CRITICAL)
    return silent
