"""The daemon: looks at the spool, delivers what has news, sleeps, until it is told to stop.

Idle, it wakes for a look at living runs twice a second, at the whole spool every 15 seconds, and when something begins.
While runs grow it looks up to ten times a second.
It runs through an unreachable server, a wrong token and a missing spool alike: it says so once, and waits.

SIGHUP has it read files of configuration, credentials and certificates anew, and begin again with what they say: the same as
a restart, but without the process's start, and what cannot be used is refused while the old goes on. What was on its way is
sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping

from mlferry_agent.answers import printable
from mlferry_agent.config import Config
from mlferry_agent.errors import AgentError, WrongDestination
from mlferry_agent.notify import Notifier
from mlferry_agent.sessions import Session, check_server, check_settings, open_session
from mlferry_agent.wakeups import Wakeups
from mlferry_agent.web.pulse import Pulse

__all__ = ["serve"]

_log = logging.getLogger("mlferry.agent")


async def serve(read: Callable[[], Config], environ: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. ``read`` is called for the configuration, and again at each SIGHUP.

    Raises as ``read`` and ``open_session``, but for what time may mend.
    """
    notifier, orders = Notifier(environ), _Orders()
    orders.listen(asyncio.get_running_loop())
    config: Config | None = read()
    try:
        while config is not None:
            config = await _Service(config, read, environ, notifier, orders).run()
    finally:
        notifier.stopping()
        _log.info("stopped; everything that is not acknowledged waits in the spool")


class _Orders:
    """What signals ask for. ``wakeups`` is what they wake, if anything sleeps."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        self.wakeups: Wakeups | None = None

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        # Where there is a terminal, its hang-up means what it always has.
        loop.add_signal_handler(signal.SIGHUP, self.end if os.isatty(0) else self.begin_again)

    def end(self) -> None:
        self.stop = True
        self._wake()

    def begin_again(self) -> None:
        self.reload = True
        self._wake()

    @property
    def given(self) -> bool:
        return self.stop or self.reload

    def _wake(self) -> None:
        if self.wakeups is not None:
            self.wakeups.wake()


class _Service:
    """Delivery as one configuration says."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        environ: Mapping[str, str],
        notifier: Notifier,
        orders: _Orders,
    ) -> None:
        self._config, self._read, self._environ = config, read, environ
        self._notifier, self._orders = notifier, orders
        self._wakeups = orders.wakeups = Wakeups(config.dir, asyncio.get_running_loop())
        self._interval_s = min(config.poll_s, notifier.watchdog_s or config.poll_s)
        self._said = ""

    async def run(self) -> Config | None:
        """Deliver until another configuration is to be used, which is returned, or none, which is to stop."""
        try:
            async with self._session() as session:
                self._greet(session)
                self._notifier.ready()
                checking = asyncio.create_task(self._check(session))
                try:
                    following = await self._look_and_sleep(session)
                    if checking.done():
                        checking.result()
                    return following
                finally:
                    checking.cancel()
                    await session.carrier.stop()
        finally:
            self._wakeups.stop()

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        """What delivers, and its status page where one is wished for; what that needs is loaded only then."""
        pulse = Pulse()
        async with open_session(self._config, self._environ, patient=True, on_progress=pulse.add) as session:
            if self._config.http is None:
                yield session
                return
            from mlferry_agent.web.app import status_page

            async with status_page(self._config, session, pulse):
                yield session

    async def _look_and_sleep(self, session: Session) -> Config | None:
        woken = True
        while not self._orders.stop:
            if self._orders.reload and (following := self._another()) is not None:
                return following
            self._wakeups.start()
            await self._look(session, woken)
            pause_s = session.carrier.pause_s(self._config.poll_s)
            woken = await self._wakeups.wait(min(pause_s, self._notifier.watchdog_s or pause_s))
        return None

    async def _look(self, session: Session, everywhere: bool) -> None:
        """Look for news, and say every so often that we live: a look at a large spool on a slow disk may take minutes."""
        looking = asyncio.ensure_future(session.carrier.look(everywhere=everywhere))
        try:
            while not looking.done() and not self._orders.given:
                await asyncio.wait({looking}, timeout=self._interval_s)
                self._say(session)
            if looking.done():
                looking.result()
        finally:
            looking.cancel()

    def _another(self) -> Config | None:
        """The configuration as the files say it now; None if it cannot be used, and the present one stays."""
        self._orders.reload = False
        self._notifier.reloading()
        try:
            following = self._read()
            check_settings(following, self._environ)
        except AgentError as error:
            _log.warning("not reloaded, going on as before: %s", error.reason)
            self._notifier.ready()
            return None
        _log.info("reloading")
        return following

    def _say(self, session: Session) -> None:
        status = _status(session)
        self._notifier.alive(status)
        if status != self._said:
            _log.info("%s", status)
            self._said = status

    async def _check(self, session: Session) -> None:
        try:
            await check_server(session.courier, session.destination)
        except WrongDestination:
            self._orders.end()
            raise
        except AgentError as error:
            _log.warning("%s", error.reason)

    def _greet(self, session: Session) -> None:
        for warning in session.destination.warnings:
            _log.warning("%s", warning)
        _log.info("spool %s, destination %s", self._config.dir, session.destination.url)


def _status(session: Session) -> str:
    trouble = session.courier.health.trouble
    if trouble is not None:
        return f"{session.destination.url}: {trouble}; waiting, everything is kept"
    if session.carrier.blind is not None:
        return printable(session.carrier.blind)
    if session.courier.store_health.trouble is not None:
        return f"files cannot be stored: {session.courier.store_health.trouble}; they wait, all else goes on"
    doing = f"delivering to {session.destination.url}" if session.carrier.is_busy else "idle, nothing new"
    return f"{doing}; {session.carrier.delayed} runs are delayed" if session.carrier.delayed else doing
