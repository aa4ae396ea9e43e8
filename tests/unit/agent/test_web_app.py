"""The status page's server: whom it answers, what it never does, and what those who look cannot do to a delivery."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.fakes.workbench import Workbench, apart
from tests.servers import free_port
from tests.spooling import SpooledRun

from mlferry_agent.carrier import Carrier
from mlferry_agent.web import app as module
from mlferry_agent.web.addresses import SocketAddress, TcpAddress, names_of
from mlferry_agent.web.app import StatusPage, opened
from mlferry_agent.web.listening import MOST_CONNECTIONS
from mlferry_agent.web.pulse import Pulse
from mlferry_agent.web.state import Agent
from mlferry_agent.web.streams import Audience
from mlferry_agent.web.surveyor import Surveyor
from mlferry_agent.web.surveys import Survey, Surveys

PATHS = ("/", "/page.css", "/page.js", "/icon.svg", "/status.json", "/metrics", "/healthz")


@dataclass
class Shown:
    """A page that is open, the agent behind it, and how often its spool was counted."""

    url: str
    page: StatusPage
    carrier: Carrier
    surveys: Counting
    session: aiohttp.ClientSession

    async def get(self, path: str, **options: Any) -> tuple[int, str]:
        async with self.session.get(self.url + path, **options) as answer:
            return answer.status, await answer.text()


class Counting(Surveys):
    taken = 0

    def take(self, *told: Any) -> Survey:
        self.taken += 1
        return super().take(*told)


@asynccontextmanager
async def shown(bench: Workbench, address: TcpAddress | SocketAddress | None = None) -> AsyncIterator[Shown]:
    address = address or TcpAddress("127.0.0.1", free_port())
    pulse = Pulse()
    with bench.carrier(pulse.add) as carrier:
        agent = Agent("1.2.3", "host", bench.spool, "http://server", carrier._courier.health, pulse)
        surveys = Counting(bench.spool, bench.ledger_path)
        page = StatusPage(agent, Surveyor(surveys, carrier.work), names_of(address))
        is_tcp = isinstance(address, TcpAddress)
        connector = None if isinstance(address, TcpAddress) else aiohttp.UnixConnector(str(address.path))
        async with opened(page, address, again_s=0.05), aiohttp.ClientSession(connector=connector) as session:
            found = Shown(str(address).rstrip("/") if is_tcp else "http://localhost", page, carrier, surveys, session)
            await answers(found)
            yield found


async def answers(found: Shown) -> None:
    for _ in range(200):
        try:
            await found.get("/healthz")
            return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.01)
    raise AssertionError("it never opened")


async def listen(found: Shown, **options: Any) -> aiohttp.ClientResponse:
    return await found.session.get(found.url + "/events", **options)


async def message(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    while not (line := await asyncio.wait_for(stream.content.readline(), 20)).startswith(b"data: "):
        assert line
    told: dict[str, Any] = json.loads(line[6:])
    return told


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def lookers(found: Shown) -> int:
    return len(found.page._audience)


async def test_everything_is_answered_with_headers_that_leave_nothing_open(bench: Workbench) -> None:
    async with shown(bench) as found:
        for path in PATHS:
            async with found.session.get(found.url + path, headers={"Origin": "http://evil.example"}) as answer:
                assert (answer.status, bool(await answer.read())) == (200, True), path
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
                assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert (answer.headers["X-Frame-Options"], answer.headers["Server"]) == ("DENY", "mlferry")
        assert (await found.get("/healthz"))[1].startswith('{"status": "ok"')
        assert (await found.get("/nothing"))[0] == 404


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    page = Path(module.__file__).parent / "page"
    for file in page.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""["'(=]\s*(https?:)?//|@import""", text)
        assert "innerHTML" not in text and "style=" not in text and "onclick" not in text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", ""])
async def test_a_page_of_another_name_is_not_answered(bench: Workbench, host: str) -> None:
    async with shown(bench) as found:
        for path in (*PATHS, "/events", "/nothing"):
            assert (await found.get(path, headers={"Host": host}))[0] in (400, 421)


async def test_pages_of_other_sites_may_link_here_and_load_nothing(bench: Workbench) -> None:
    cross = {"Sec-Fetch-Site": "cross-site"}
    async with shown(bench) as found:
        assert (await found.get("/events", headers={**cross, "Sec-Fetch-Mode": "cors"}))[0] == 403
        assert (await found.get("/", headers={**cross, "Sec-Fetch-Mode": "navigate"}))[0] == 200


async def test_nothing_can_be_changed(bench: Workbench) -> None:
    async with shown(bench) as found:
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            for path in (*PATHS, "/events"):
                async with found.session.request(method, found.url + path, data=b"x" * 5_000) as answer:
                    assert answer.status in (405, 413)


async def test_nobody_looks_nothing_is_counted(bench: Workbench) -> None:
    async with shown(bench) as found:
        before = len(asyncio.all_tasks())
        stream = await listen(found)
        await message(stream)
        assert found.surveys.taken == 1
        stream.close()
        await until(lambda: not lookers(found))
        taken = found.surveys.taken
        await asyncio.sleep(2.5)
        assert found.surveys.taken == taken
        assert found.page._audience._telling is None
        assert len(asyncio.all_tasks()) <= before


async def test_those_who_look_are_told_when_something_changes(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e", run_name="alive")
    run.metrics(1, {"m": 1.0})
    async with shown(bench) as found:
        stream = await listen(found)
        told = await message(stream)
        await found.carrier.look(everywhere=True)
        while told["counts"] is None or told["counts"]["acknowledged"] == 0:
            told = await message(stream)
        assert [row["run"] for row in told["runs"]] == ["alive"]
        assert apart(bench.server, run.logged) == []
        stream.close()


async def test_more_than_a_few_cannot_look_at_once(bench: Workbench) -> None:
    async with shown(bench) as found:
        streams = [await listen(found) for _ in range(16)]
        assert {stream.status for stream in streams} == {200}
        async with await listen(found) as refused:
            assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        for stream in streams:
            stream.close()
        await until(lambda: not lookers(found))
        async with await listen(found) as again:
            assert again.status == 200


async def test_who_does_not_read_loses_his_place_and_delays_nobody(bench: Workbench) -> None:
    """A listener whose socket is full; another one is told all the same, and a delivery goes on meanwhile."""
    runs = [SpooledRun(bench.spool, "e") for _ in range(20)]
    for run in runs:
        run.metrics(1, {"m": 1.0})
        run.end()
    told = iter(range(10**9))

    async def much() -> str:
        return f'"{next(told)}{"x" * 300_000}"'

    async with shown(bench) as found:
        found.page._audience._tell = much
        found.page._audience._tick_s, found.page._audience._stalled_s = 0.01, 0.3
        _, writer = await asyncio.open_connection("127.0.0.1", int(found.url.rpartition(":")[2]), limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: lookers(found) == 1)
        reading = await listen(found)
        began = time.monotonic()
        await found.carrier.look(everywhere=True)
        while found.carrier.is_busy:
            await asyncio.wait(found.carrier._active.values())
        assert all(apart(bench.server, run.logged) == [] for run in runs)
        while lookers(found) > 1:
            assert await reading.content.readany()
        assert time.monotonic() - began < 15
        reading.close()
        writer.close()


async def test_a_file_system_that_hangs_makes_the_page_old_and_delays_nothing_else(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    runs = [SpooledRun(bench.spool, "e") for _ in range(20)]
    for run in runs:
        run.metrics(1, {"m": 1.0})
        run.end()
    hangs = threading.Event()
    async with shown(bench) as found:
        monkeypatch.setattr(found.surveys, "take", lambda work: hangs.wait(60) and Counting.take(found.surveys, work))
        told = json.loads((await found.get("/status.json"))[1])
        assert (told["counts"], told["says"][0]["text"]) == (None, "Counting what waits.")
        await found.carrier.look(everywhere=True)
        while found.carrier.is_busy:
            await asyncio.wait(found.carrier._active.values())
        assert all(apart(bench.server, run.logged) == [] for run in runs)
        status, scraped = await found.get("/metrics")
        assert (status, "mlferry_acknowledged_records_total 20.0" in scraped, "mlferry_runs" in scraped) == (
            200,
            True,
            False,
        )
        hangs.set()
        await until(lambda: found.page._surveyor.newest is not None)
        assert "mlferry_runs" in (await found.get("/metrics"))[1]


async def test_connections_that_say_nothing_leave_the_agent_its_descriptors(bench: Workbench) -> None:
    async with shown(bench) as found:
        await found.session.close()
        before = len(os.listdir("/proc/self/fd"))
        port = int(found.url.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS + 40)]
        for _ in range(100):
            ended = sum(reader.at_eof() or reader.exception() is not None for reader, _ in silent)
            if ended >= 40:
                break
            await asyncio.sleep(0.02)
        held = len(os.listdir("/proc/self/fd")) - before - len(silent)
        assert held <= MOST_CONNECTIONS
        assert ended >= 40
        for _, writer in silent:
            writer.close()


async def test_nonsense_is_refused_and_not_logged(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    async with shown(bench) as found:
        port = int(found.url.rpartition(":")[2])
        for nonsense in (
            b"\x16\x03\x01\x02\x00\n\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 20_000 + b"\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(nonsense)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert not answer or answer.split()[1] == b"400"
            writer.close()
        assert (await found.get("/healthz"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_defect_of_the_page_is_said_once_and_answered(
    bench: Workbench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "exposition", broken)
    async with shown(bench) as found:
        for _ in range(3):
            assert (await found.get("/metrics"))[0] == 500
        assert (await found.get("/healthz"))[0] == 200
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_socket_is_its_owners_alone_and_is_taken_away(bench: Workbench, tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    before = os.umask(0)
    try:
        async with shown(bench, SocketAddress(path)) as found:
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert (await found.get("/status.json"))[0] == 200
            assert (await found.get("/", headers={"Host": "evil.example"}))[0] == 421
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_socket_that_a_killed_agent_left_is_taken_over(bench: Workbench, tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with shown(bench, SocketAddress(path)) as found:
        assert (await found.get("/healthz"))[0] == 200


async def test_a_file_in_the_place_of_a_socket_stays(
    bench: Workbench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AssertionError, match="never opened"):
        async with shown(bench, SocketAddress(path)):
            pass
    assert path.read_text() == "data"
    assert "something else stands there" in caplog.text


@pytest.mark.parametrize("kind", ["port", "socket"])
async def test_a_taken_address_is_said_once_and_tried_again(
    bench: Workbench, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = socket.socket() if kind == "port" else socket.socket(socket.AF_UNIX)
    taken.bind(("127.0.0.1", 0) if kind == "port" else str(tmp_path / "s"))
    taken.listen()
    address = TcpAddress("127.0.0.1", taken.getsockname()[1]) if kind == "port" else SocketAddress(tmp_path / "s")
    run = SpooledRun(bench.spool, "e")
    run.end()
    with bench.carrier() as carrier:
        surveyor = Surveyor(Surveys(bench.spool, bench.ledger_path), carrier.work)
        agent = Agent("1", "h", bench.spool, "u", carrier._courier.health, Pulse())
        async with opened(StatusPage(agent, surveyor, frozenset()), address, again_s=0.05):
            await asyncio.sleep(0.3)
            await carrier.look(everywhere=True)
            await asyncio.wait(carrier._active.values())
            assert apart(bench.server, run.logged) == []
            assert caplog.text.count("no status page at") == 1
            taken.close()
            with caplog.at_level(logging.INFO):
                await asyncio.sleep(0.3)
            assert f"status page: {str(address).rstrip('/')}" in caplog.text


async def test_a_page_that_others_reach_is_warned_about(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    async with shown(bench, TcpAddress("0.0.0.0", free_port())):
        assert "can read the names of runs" in caplog.text


async def test_an_audience_that_left_leaves_no_task() -> None:
    async def tell() -> str:
        return "{}"

    audience = Audience(tell)
    await audience.close()
    assert len(audience) == 0
