"""The transport against local sockets that behave, lie, hang and vanish."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from tests.servers import free_port, self_signed

from mlferry_agent import encoding, requests
from mlferry_agent.credentials import Destination, Tls, Token
from mlferry_agent.errors import Misconfigured, Unreachable, UnreadableFile
from mlferry_agent.requests import Request
from mlferry_agent.transport import CHUNK_BYTES, Transport

PUT = requests.put_artifact("mlflow-artifacts:/0/r/artifacts", "a b%+;@.bin")
GET = requests.get_artifact("mlflow-artifacts:/0/r/artifacts", "f")
POST = requests.restore_run("r")
PATIENCE_S = 30.0
SHORT_S = 0.3


class Receiver:
    """An HTTP server that keeps what it got and answers as told."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({})
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.heads.append((request.method, request.raw_path, {k.lower(): v for k, v in request.headers.items()}))
        self.bodies.append(await request.read())
        return self.answer()


@asynccontextmanager
async def receiver(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    got = Receiver()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{any:.*}", got.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    got.url = f"{'https' if context else 'http'}://127.0.0.1:{port}"
    try:
        yield got
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server; `talk` runs for each connection, which is cut when it returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def to(url: str, **kinds: object) -> Destination:
    return Destination(**{"url": url, "timeout_s": PATIENCE_S, **kinds})  # type: ignore[arg-type]


async def test_a_request_arrives_with_its_headers_and_the_path_prefix() -> None:
    async with (
        receiver() as server,
        Transport(to(f"{server.url}/mlflow", authorization=Token("Bearer t"), workspace="team-a")) as transport,
    ):
        answer = await transport.send(POST)
        await transport.send(requests.get_experiment_by_name("a b&c=é+%41", workspace="team-b"))
    assert (answer.status, answer.body) == (200, b"{}")
    (method, path, headers), (_, search, other) = server.heads
    assert (method, path) == ("POST", "/mlflow/api/2.0/mlflow/runs/restore")
    assert server.bodies[0] == b'{"run_id":"r"}'
    assert headers["authorization"] == "Bearer t" and headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("mlferry/") and headers["x-mlflow-workspace"] == "team-a"
    assert "origin" not in headers and "cookie" not in headers
    assert search.endswith("experiment_name=a+b%26c%3D%C3%A9%2B%2541")
    assert other["x-mlflow-workspace"] == "team-b" and "content-type" not in other


async def test_a_large_body_is_sent_piece_by_piece() -> None:
    profile = "p" * 5_000_000
    request = requests.log_inputs("r", [encoding.dataset_input("n", "d", "t", "s", profile=profile)])
    async with receiver() as server, Transport(to(server.url)) as transport:
        assert (await transport.send(request)).status == 200
    assert server.bodies == [request.body]
    assert server.heads[0][2]["content-length"] == str(len(server.bodies[0]))


async def test_an_upload_streams_the_file_with_its_length_and_its_encoded_name(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 + b"tail"
    (tmp_path / "f").write_bytes(data)
    async with receiver() as server, Transport(to(server.url)) as transport:
        assert (await transport.upload(PUT, tmp_path / "f", len(data))).status == 200
        file = io.BytesIO(data)
        file.seek(77)
        assert (await transport.upload(PUT, file, 10)).status == 200
        assert (await transport.upload(PUT, io.BytesIO(), 0)).status == 200
    assert server.bodies == [data, data[:10], b""]
    method, path, headers = server.heads[0]
    assert (method, path) == ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/r/artifacts/a%20b%25%2B%3B%40.bin")
    assert headers["content-length"] == str(len(data)) and "transfer-encoding" not in headers
    assert server.heads[2][2]["content-length"] == "0"


async def test_an_upload_holds_no_more_than_a_chunk_of_the_file_at_a_time() -> None:
    class Endless(io.RawIOBase):
        largest = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def read(self, size: int = -1) -> bytes:
            self.largest = max(self.largest, size)
            return bytes(size)

    file = Endless()
    async with receiver() as server, Transport(to(server.url)) as transport:
        await transport.upload(PUT, file, 40 * CHUNK_BYTES + 1)  # type: ignore[arg-type]
    assert len(server.bodies[0]) == 40 * CHUNK_BYTES + 1 and file.largest == CHUNK_BYTES


async def test_a_file_that_shrank_breaks_the_upload_off_and_blames_the_file() -> None:
    async with receiver() as server, Transport(to(server.url)) as transport:
        with pytest.raises(UnreadableFile, match="ends at byte 5 of 9"):
            await transport.upload(PUT, io.BytesIO(b"12345"), 9)
        assert (await transport.send(POST)).status == 200
    assert server.bodies == [b'{"run_id":"r"}']


async def test_a_file_that_cannot_be_read_is_no_fault_of_the_network(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    async with receiver() as server, Transport(to(server.url)) as transport:
        with pytest.raises(UnreadableFile, match="Input/output"):
            await transport.upload(PUT, Broken(), 9)
        with pytest.raises(UnreadableFile, match="missing"):
            await transport.upload(PUT, tmp_path / "missing", 9)


async def test_an_upload_that_the_connection_drops_once_is_sent_whole_again_or_not_at_all() -> None:
    data = b"x" * (5 * CHUNK_BYTES)
    bodies: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not bodies:
            bodies.append(await reader.readexactly(CHUNK_BYTES))
            return
        bodies.append(await reader.readexactly(len(data)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(talk) as url, Transport(to(url)) as transport:
        try:
            status = (await transport.upload(PUT, io.BytesIO(data), len(data))).status
        except Unreachable:  # versions of aiohttp differ in whether they try again by themselves
            status = 0
    assert (status, bodies[1:]) in ((200, [data]), (0, []))


async def test_an_upload_that_stands_still_is_broken_off() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(PATIENCE_S)

    size = 64 * 2**20  # more than any socket buffer takes
    async with raw_server(talk) as url, Transport(to(url, timeout_s=SHORT_S)) as transport:
        with pytest.raises(Unreachable, match="stood still"):
            await transport.upload(PUT, io.BytesIO(bytes(size)), size)


async def test_an_upload_that_moves_slowly_is_not_broken_off() -> None:
    size = 12 * CHUNK_BYTES

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left = size
        while left:
            left -= len(await reader.readexactly(min(left, CHUNK_BYTES)))
            await asyncio.sleep(SHORT_S / 4)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with raw_server(talk) as url, Transport(to(url, timeout_s=SHORT_S * 2)) as transport:
        assert (await transport.upload(PUT, io.BytesIO(bytes(size)), size)).status == 200


async def test_a_download_passes_the_bytes_on_and_keeps_none() -> None:
    pieces: list[bytes] = []
    async with receiver() as server, Transport(to(server.url), max_answer_bytes=10) as transport:
        server.answer = lambda: web.Response(body=b"z" * 3_000_000)
        answer = await transport.download(GET, pieces.append)
        server.answer = lambda: web.Response(status=404, body=b"missing")
        missing = await transport.download(GET, pieces.append)
    assert b"".join(pieces) == b"z" * 3_000_000 and max(map(len, pieces)) <= CHUNK_BYTES
    assert (answer.status, answer.body) == (200, b"")
    assert (missing.status, missing.body) == (404, b"missing")


async def test_what_a_sink_raises_is_no_fault_of_the_network() -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    async with receiver() as server, Transport(to(server.url)) as transport:
        server.answer = lambda: web.Response(body=b"z" * 3_000_000)
        with pytest.raises(OSError, match="No space"):
            await transport.download(GET, full)


async def test_a_redirect_is_handed_back_and_not_followed() -> None:
    async with receiver() as server, Transport(to(server.url, authorization=Token("Bearer t"))) as transport:
        server.answer = lambda: web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
        answer = await transport.send(POST)
    assert (answer.status, answer.headers["location"], len(server.heads)) == (307, "http://127.0.0.1:1/", 1)


async def test_an_answer_without_end_does_not_fill_the_memory() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(2**16))
            await writer.drain()

    async with raw_server(talk) as url, Transport(to(url), max_answer_bytes=2**20) as transport:
        with pytest.raises(Unreachable, match="larger than"):
            await transport.send(POST)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nContent-Encoding: gzip\r\n\r\nthis is no gzip data",
    ],
)
async def test_an_answer_that_is_not_whole_is_no_answer(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with raw_server(talk) as url, Transport(to(url)) as transport:
        with pytest.raises(Unreachable) as caught:
            await transport.send(POST)
    assert caught.value.reason.isprintable()


async def test_a_server_that_never_answers_is_unreachable() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(PATIENCE_S)

    async with raw_server(talk) as url, Transport(to(url, timeout_s=SHORT_S)) as transport:
        with pytest.raises(Unreachable, match="Timeout"):
            await transport.send(POST)
        with pytest.raises(Unreachable, match="Timeout"):
            await transport.download(GET, lambda _: None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
async def test_a_server_that_is_not_there_is_unreachable(url: str) -> None:
    async with Transport(to(url)) as transport:
        with pytest.raises(Unreachable):
            await transport.send(POST)
        with pytest.raises(Unreachable):
            await transport.upload(PUT, io.BytesIO(b"x"), 1)


async def test_an_error_page_that_quotes_the_token_loses_it() -> None:
    async with receiver() as server, Transport(to(server.url, authorization=Token("Bearer s3cret-token"))) as transport:
        server.answer = lambda: web.Response(status=400, text="your token s3cret-token is bad")
        assert (await transport.send(POST)).body == b"your token *** is bad"


async def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with receiver() as server, Transport(to(server.url)) as transport:
        await transport.send(POST)
    assert "authorization" not in server.heads[0][2]


async def test_a_proxy_gets_the_request_with_its_own_credentials() -> None:
    async with (
        receiver() as proxy,
        Transport(to("http://mlflow.invalid", proxy=proxy.url, proxy_authorization=Token("Basic abc"))) as transport,
    ):
        await transport.send(POST)
    method, path, headers = proxy.heads[0]
    assert (method, path) == ("POST", "http://mlflow.invalid/api/2.0/mlflow/runs/restore")
    assert headers["proxy-authorization"] == "Basic abc"


async def test_a_proxy_that_wants_other_credentials_is_a_matter_of_configuration() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Proxy-Authorization: Basic abc" in head
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with (
        raw_server(talk) as proxy,
        Transport(to("https://mlflow.invalid", proxy=proxy, proxy_authorization=Token("Basic abc"))) as transport,
    ):
        with pytest.raises(Misconfigured, match="407"):
            await transport.send(POST)


async def test_busy_uploads_do_not_keep_requests_waiting() -> None:
    release, arrived = asyncio.Event(), asyncio.Semaphore(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"PUT"):
            arrived.release()
            await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with raw_server(talk) as url, Transport(to(url), max_file_connections=2) as transport:
        uploads = [asyncio.ensure_future(transport.upload(PUT, io.BytesIO(b"x"), 1)) for _ in range(5)]
        for _ in range(2):
            await arrived.acquire()
        assert (await transport.send(POST)).status == 200
        release.set()
        assert [answer.status for answer in await asyncio.gather(*uploads)] == [200] * 5


async def test_a_request_through_a_closed_transport_is_a_mistake_of_ours() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await Transport(to("http://127.0.0.1:1")).send(POST)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "both.pem")


def serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_a_certificate_is_checked_unless_told_otherwise(certificate: Path) -> None:
    async with receiver(serving(certificate)) as server:
        async with Transport(to(server.url)) as transport:
            with pytest.raises(Misconfigured, match=r"(?i)certificate"):
                await transport.send(POST)
            with pytest.raises(Misconfigured, match=r"(?i)certificate"):
                await transport.upload(PUT, io.BytesIO(b"x"), 1)
        for tls in (Tls(ca_path=str(certificate)), Tls(verify=False)):
            async with Transport(to(server.url, tls=tls)) as transport:
                assert (await transport.send(POST)).status == 200


async def test_a_client_certificate_is_shown(certificate: Path) -> None:
    context = serving(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate)
    mine = Tls(ca_path=str(certificate), client_cert_path=str(certificate))
    async with receiver(context) as server, Transport(to(server.url, tls=mine)) as transport:
        assert (await transport.send(POST)).status == 200


async def test_tls_to_a_port_that_speaks_plain_http_is_a_matter_of_configuration() -> None:
    async with receiver() as server, Transport(to(server.url.replace("http", "https"))) as transport:
        with pytest.raises(Misconfigured, match="SSL"):
            await transport.send(POST)


@pytest.mark.parametrize("tls", [Tls(ca_path="/nowhere.pem"), Tls(client_cert_path="/nowhere.pem")])
def test_a_certificate_file_that_is_missing_is_said_at_once(tls: Tls) -> None:
    with pytest.raises(Misconfigured, match="certificates"):
        Transport(to("https://h", tls=tls))


def test_a_request_value_can_be_compared() -> None:
    assert requests.restore_run("r") == Request("POST", POST.path, body=b'{"run_id":"r"}')
