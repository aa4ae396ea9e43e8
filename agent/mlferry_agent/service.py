"""The daemon: looks at the spool, delivers what has news, sleeps, until it is told to stop.

Idle, it wakes for a look at living runs twice a second, at the whole spool every 15 seconds, and when something begins.
It runs through an unreachable server, a wrong token and a missing spool alike: it says so once, and waits.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping

from mlferry_agent.config import Config
from mlferry_agent.errors import AgentError, WrongDestination
from mlferry_agent.notify import Notifier
from mlferry_agent.sessions import Session, check_server, open_session
from mlferry_agent.wakeups import Wakeups

__all__ = ["serve"]

_log = logging.getLogger("mlferry.agent")


async def serve(config: Config, environ: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. Raises as ``open_session``, but for what time may mend."""
    notifier = Notifier(environ)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    wakeups = Wakeups(config.dir, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, wakeups)
    async with open_session(config, environ, patient=True) as session:
        _greet(session, config)
        notifier.ready()
        checking = asyncio.create_task(_check(session, stopping, wakeups))
        try:
            await _look_and_sleep(session, config, wakeups, notifier, stopping)
            if checking.done():
                checking.result()
        finally:
            notifier.stopping()
            checking.cancel()
            await session.carrier.stop()
            wakeups.stop()
            _log.info("stopped; everything that is not acknowledged waits in the spool")


async def _look_and_sleep(
    session: Session, config: Config, wakeups: Wakeups, notifier: Notifier, stopping: asyncio.Event
) -> None:
    interval = min(config.poll_s, notifier.watchdog_s or config.poll_s)
    woken, said = True, ""
    while not stopping.is_set():
        wakeups.start()
        session.carrier.look(everywhere=woken)
        status = _status(session)
        notifier.alive(status)
        if status != said:
            _log.info("%s", status)
            said = status
        woken = await wakeups.wait(interval)


def _status(session: Session) -> str:
    trouble = session.courier.health.trouble
    if trouble is not None:
        return f"{session.destination.url}: {trouble}; waiting, everything is kept"
    return f"delivering to {session.destination.url}" if session.carrier.is_busy else "idle, everything is delivered"


async def _check(session: Session, stopping: asyncio.Event, wakeups: Wakeups) -> None:
    try:
        await check_server(session.courier, session.destination)
    except WrongDestination:
        _stop(stopping, wakeups)
        raise
    except AgentError as error:
        _log.warning("%s", error.reason)


def _greet(session: Session, config: Config) -> None:
    for warning in session.destination.warnings:
        _log.warning("%s", warning)
    _log.info("spool %s, destination %s", config.dir, session.destination.url)


def _stop(stopping: asyncio.Event, wakeups: Wakeups) -> None:
    stopping.set()
    wakeups.wake()
