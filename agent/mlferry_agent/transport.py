"""One connection pool to one MLflow server: a `Request` goes out, a whole `Answer` comes back. What goes past the server to
an artifact store is handed to `repositories`.

Owns sockets, TLS, headers, time limits and the translation of every library exception into ours (`_translate`). Never
retries on its own, never follows a redirect, never judges an answer, never sends `Origin` (MLflow refuses foreign ones).

What must not be trusted to defaults:
* The environment. aiohttp's `trust_env` would also read netrc, so proxies come from the `Destination` instead.
* The answer. A server that lies about its size must not fill memory: bodies are read up to a limit, uncompressed.
* An upload's end. A total time limit would kill every large upload and a read limit does not run while sending, so an
  upload is watched: it may take for ever as long as bytes move. It is broken off when none did for `timeout_s`.
* aiohttp's one silent repeat of an idempotent request (PUT) on a dropped connection: it sends the body again from
  wherever the reader stands. `_FileBody` starts over from the file's beginning instead.
* Idle connections. uvicorn closes them after 5 s, and a POST that meets the closing one is in doubt for no reason, so
  they are let go a little earlier.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import ssl
import urllib.parse
from collections.abc import Callable, Coroutine, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import yarl
from aiohttp.abc import AbstractStreamWriter

from mlferry_agent.answers import Answer, printable
from mlferry_agent.credentials import Destination, Tls
from mlferry_agent.errors import AgentError, Misconfigured, Unreachable, UnreadableFile
from mlferry_agent.repositories import Repositories
from mlferry_agent.requests import Request
from mlferry_spool.blobs import open_regular
from mlferry_spool.errors import SpoolError

#: Requests, and files, on their way at once: a kind neighbour of a server that others use too.
#: Beyond: they wait for their turn, and a wait does not count against a request's time.
#: Test: tests/unit/test_transport.py::test_busy_uploads_do_not_keep_requests_waiting
MAX_API_CONNECTIONS, MAX_FILE_CONNECTIONS = 4, 4

#: The largest answer that MLflow gives is a page of 25,000 points, a few megabytes.
#: Beyond: it is no answer, and the request is tried again later.
#: Test: tests/unit/test_transport.py::test_an_answer_without_end_does_not_fill_the_memory
MAX_ANSWER_BYTES = 64 * 2**20
IDLE_CONNECTION_S = 4.0

#: Bytes of a file that are read at once. While they are sent the next are read, so that disk, digest and network do not wait
#: for each other; an upload holds two of these, and what its socket takes.
CHUNK_BYTES = 2**18

#: Characters of a secret that is taken out of what a server says; shorter ones would be found in any text.
#: Beyond: a shorter secret that a page quotes is shown in a log. MLflow's own passwords have at least 12 characters.
#: Test: tests/unit/agent/test_limits.py::test_a_secret_of_eight_characters_is_taken_out_of_a_page_and_a_shorter_one_is_not
MIN_SCRUBBED_SECRET = 8


class Transport:
    """An async context manager over one `Destination`. Safe for concurrent use within one event loop."""

    def __init__(
        self,
        destination: Destination,
        *,
        max_api_connections: int = MAX_API_CONNECTIONS,
        max_file_connections: int = MAX_FILE_CONNECTIONS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        """Opens nothing yet.

        Raises:
            Misconfigured: a certificate file cannot be used.
        """
        self.destination = destination
        self._max_answer_bytes = max_answer_bytes
        # Slots instead of the connector's own limit: waiting for one must not count against a request's time, and
        # checkpoints on their way must not keep metrics from theirs.
        self._api_slots = asyncio.Semaphore(max_api_connections)
        self._file_slots = asyncio.Semaphore(max_file_connections)
        self._ssl = _ssl_context(destination.tls)
        self._proxy_headers = _proxy_headers(destination)
        self._secrets = _secrets(destination)
        self._session: aiohttp.ClientSession | None = None
        self._repositories = Repositories(max_file_connections, destination.stores)

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl, keepalive_timeout=IDLE_CONNECTION_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_headers(self.destination),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._repositories.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> Answer:
        """One API request, within the destination's `timeout_s` in all.

        Raises:
            Unreachable: no whole answer. Misconfigured: certificates, proxy or address.
        """
        if request.is_direct:
            return await self._repositories.send(request)
        limit = aiohttp.ClientTimeout(total=self.destination.timeout_s)
        async with self._api_slots:
            with _translated():
                async with self._open(request, request.body, limit) as response:
                    return self._answer(response, await self._read(response))

    async def upload(self, request: Request, file: BinaryIO | str | os.PathLike[str], size: int) -> Answer:
        """Send exactly `size` bytes of `file` as the body, from its beginning, in constant memory.

        `file` is a path, or a binary file object that nobody else moves meanwhile; a `Content` is sent in one piece. The
        server sees Content-Length, so it keeps nothing when the upload breaks off.

        Raises:
            Unreachable: no whole answer, or no byte moved for `timeout_s`. Misconfigured: as `send`.
            UnreadableFile: the file cannot be read or is shorter than `size`. BlobMismatch: its reading raised that.
        """
        if isinstance(file, Content):
            return await self._upload_small(request, file.getvalue())
        async with contextlib.AsyncExitStack() as stack:
            if request.is_direct:
                return await self._repositories.upload(request, _open_file(file, stack), size)
            body = _FileBody(_open_file(file, stack), size)
            await stack.enter_async_context(self._file_slots)
            try:
                return await self._watched(self._upload(request, body), body)
            except (AgentError, SpoolError):
                # The reader's failure reaches us dressed as a connection error: the network is not to blame.
                if body.failure is not None:
                    raise body.failure from None
                raise

    async def download(self, request: Request, sink: Callable[[bytes], object]) -> Answer:
        """Pass the body of a 2xx answer to `sink` piece by piece; the returned answer has no body then.

        An error answer comes back whole, with nothing passed to `sink`. A download may take for ever as long as bytes
        arrive; what `sink` raises is raised here.

        Raises:
            Unreachable: broken off, the sink holds a part. Misconfigured: as `send`.
        """
        if request.is_direct:
            return await self._repositories.download(request, sink)
        failure: Exception | None = None
        async with self._file_slots:
            with _translated():
                async with self._open(request, None, self._patient()) as response:
                    if not 200 <= response.status < 300:
                        return self._answer(response, await self._read(response))
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        try:
                            sink(chunk)
                        except Exception as error:  # the sink's own, a full disk say: no fault of the network
                            failure = error
                            break
        if failure is not None:
            raise failure
        return self._answer(response, b"")

    async def _upload_small(self, request: Request, content: bytes) -> Answer:
        limit = aiohttp.ClientTimeout(total=self.destination.timeout_s)
        async with self._file_slots:
            with _translated():
                async with self._open(request, aiohttp.BytesPayload(content), limit) as response:
                    return self._answer(response, await self._read(response))

    async def _upload(self, request: Request, body: _FileBody) -> Answer:
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.destination.timeout_s)
        with _translated():
            async with self._open(request, body, limit) as response:
                return self._answer(response, await self._read(response))

    async def _watched(self, sending: Coroutine[Any, Any, Answer], body: _FileBody) -> Answer:
        """`sending`, cancelled once `body` has not moved for `timeout_s`."""
        task = asyncio.ensure_future(sending)
        seen = -1
        try:
            while not task.done() and seen != body.moved:
                seen = body.moved
                await asyncio.wait({task}, timeout=self.destination.timeout_s)
            if task.done():
                return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise Unreachable(f"the upload stood still for {self.destination.timeout_s:g} s")

    def _open(
        self, request: Request, body: bytes | aiohttp.Payload | None, limit: aiohttp.ClientTimeout
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("the transport is not open")
        headers = {"Content-Type": "application/json" if isinstance(body, bytes) else "application/octet-stream"}
        if body is None:
            headers = {}
        if request.workspace is not None:
            headers["X-MLFLOW-WORKSPACE"] = request.workspace
        headers.update({"Content-Type" if name == "content-type" else name: value for name, value in request.headers})
        return self._session.request(
            request.method,
            self._url(request),
            data=io.BytesIO(body) if isinstance(body, bytes) else body,  # bytes are written in one piece, however many
            headers=headers,
            timeout=limit,
            allow_redirects=False,
            proxy=self.destination.proxy,
            proxy_headers=self._proxy_headers,
        )

    def _url(self, request: Request) -> yarl.URL:
        """Encoded by `requests` already: yarl must not decode `%2B` or drop `%25` on the way."""
        query = "?" + urllib.parse.urlencode(request.query) if request.query else ""
        return yarl.URL(f"{self.destination.url}{request.path}{query}", encoded=True)

    def _patient(self) -> aiohttp.ClientTimeout:
        wait = self.destination.timeout_s
        return aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_answer_bytes:
                raise Unreachable(f"the answer is larger than {self._max_answer_bytes} bytes")
        return bytes(body)

    def _answer(self, response: aiohttp.ClientResponse, body: bytes) -> Answer:
        """A page of anybody but MLflow may quote the request: the credentials are taken out before anybody can print it."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        if response.status >= 300 or response.content_type != "application/json":
            for secret in self._secrets:
                body = body.replace(secret.encode(), b"***")
                headers = {name: value.replace(secret, "***") for name, value in headers.items()}
        return Answer(response.status, headers, body)


class Content(io.BytesIO):
    """A small file that is in memory as a whole."""


class _FileBody(aiohttp.Payload):
    """A request body read from a file in a thread, always from its beginning, `size` bytes and no more.

    `moved` grows with every byte handed to the socket and is what the watch looks at; `failure` is our own error when
    the file, not the connection, gave way.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, content_type="application/octet-stream")
        self._file = file
        self._length = self._size = size  # _size is what aiohttp derives Content-Length from
        self.moved = 0
        self.failure: UnreadableFile | SpoolError | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        sent, reading = 0, self._begin(0)
        try:
            while sent < self._length:
                chunk = await self._chunk(reading, sent)
                if sent + len(chunk) < self._length:
                    reading = self._begin(sent + len(chunk))
                await writer.write(chunk)
                sent += len(chunk)
                self.moved += len(chunk)
        finally:
            # Whoever sends it again begins at the beginning: nobody else may move the file then.
            await asyncio.wait({reading})

    def _begin(self, offset: int) -> asyncio.Future[bytes]:
        reading = asyncio.get_running_loop().run_in_executor(None, self._read_at, offset)
        reading.add_done_callback(_seen)
        return reading

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a streamed body has no text")

    async def _chunk(self, reading: asyncio.Future[bytes], offset: int) -> bytes:
        try:
            chunk = await asyncio.shield(reading)
        except SpoolError as error:
            self.failure = error
            raise
        except (OSError, ValueError) as error:
            self.failure = UnreadableFile(f"reading failed at byte {offset}: {type(error).__name__}: {error}")
            raise self.failure from error
        if not chunk:
            self.failure = UnreadableFile(f"the file ends at byte {offset} of {self._length}")
            raise self.failure
        return chunk

    def _read_at(self, offset: int) -> bytes:
        if offset == 0:
            self._file.seek(0)
        return self._file.read(min(CHUNK_BYTES, self._length - offset))


def _seen(reading: asyncio.Future[bytes]) -> None:
    """What failed is of no interest to who does not send any more."""
    if not reading.cancelled():
        reading.exception()


def user_agent() -> str:
    """`mlferry/<version>`, for the server's log."""
    try:
        return f"mlferry/{metadata.version('mlferry')}"
    except metadata.PackageNotFoundError:
        return "mlferry/unknown"


def _headers(destination: Destination) -> dict[str, str]:
    headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity"}
    if destination.authorization is not None:
        headers["Authorization"] = destination.authorization.reveal()
    if destination.workspace is not None:
        headers["X-MLFLOW-WORKSPACE"] = destination.workspace
    # A proxy sees a plain http request itself; for https it sees only the CONNECT, whose headers are given apart.
    if destination.proxy_authorization is not None and destination.url.startswith("http:"):
        headers["Proxy-Authorization"] = destination.proxy_authorization.reveal()
    return headers


def _proxy_headers(destination: Destination) -> dict[str, str] | None:
    if destination.proxy_authorization is None or not destination.url.startswith("https:"):
        return None
    return {"Proxy-Authorization": destination.proxy_authorization.reveal()}


def _secrets(destination: Destination) -> tuple[str, ...]:
    """What must not be printed, in each form in which a page may quote it; short ones would be found in any text."""
    found: set[str] = set()
    for token in (destination.authorization, destination.proxy_authorization):
        value = "" if token is None else token.reveal().partition(" ")[2]
        found |= {form for text in (value, _password(value)) for form in (text, urllib.parse.quote(text, safe=""))}
    return tuple(sorted((text for text in found if len(text) >= MIN_SCRUBBED_SECRET), key=len, reverse=True))


def _password(basic: str) -> str:
    """The password in the value of a Basic header; empty where it is none."""
    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    try:
        is_folder = tls.ca_path is not None and Path(tls.ca_path).is_dir()
        context = ssl.create_default_context(
            cafile=None if is_folder else tls.ca_path, capath=tls.ca_path if is_folder else None
        )
        if tls.client_cert_path is not None:
            # A password callback instead of the default prompt: a daemon has no terminal to ask at.
            context.load_cert_chain(tls.client_cert_path, password=_no_password)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot use the certificates: {type(error).__name__}: {error}") from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise ValueError("the client certificate's key has a password")


def _open_file(file: BinaryIO | str | os.PathLike[str], stack: contextlib.AsyncExitStack) -> BinaryIO:
    if not isinstance(file, (str, os.PathLike)):
        return file
    try:
        return stack.enter_context(open_regular(file))
    except OSError as error:
        raise UnreadableFile(f"cannot open {os.fspath(file)!a}: {error.strerror}") from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The one place where library and system exceptions become ours."""
    try:
        yield
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise _translate(error) from error


def _translate(error: Exception) -> AgentError:
    """Misconfigured for what only a person can mend, Unreachable for everything that may pass by itself."""
    reason = printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if isinstance(error, aiohttp.InvalidURL):
        return Misconfigured(reason)
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status in (401, 403, 407):
        return Misconfigured(reason)
    if isinstance(error, aiohttp.ClientSSLError):
        # A handshake that is cut is a network's doing; one that is answered wrongly is a certificate's or a port's.
        cause = getattr(error, "certificate_error", error.os_error)
        return Unreachable(reason) if isinstance(cause, ssl.SSLEOFError) else Misconfigured(reason)
    return Unreachable(reason)
