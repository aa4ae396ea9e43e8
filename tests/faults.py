"""A bad network between the agent and a real server: `FaultProxy` forwards HTTP and misbehaves on request.

Owns one loopback listener in a thread of its own, so that synchronous tests, asynchronous tests and other processes can
all use it. Never answers for the server unless a rule says so. Each request goes upstream on a connection of its own,
while the client's connection is kept alive as HTTP/1.1 wants it; request bodies are streamed, not buffered.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MAX_HEAD = 2**17
PIECE = 2**16
HTML = b"<!doctype html><html><title>Welcome</title><body>Please log in to the hotel network.</body></html>"


class Kind(enum.Enum):
    """What may go wrong with one request."""

    PASS = "pass"
    REPLY = "reply without asking the server"
    COMMIT_THEN_REPLY = "let the server do it, then answer something else"
    CUT_BEFORE = "cut the connection, the server never heard of it"
    CUT_MID_REQUEST = "cut while the body is on its way to the server"
    COMMIT_THEN_CUT = "let the server do it, then cut before its answer"
    CUT_MID_RESPONSE = "cut in the middle of the server's answer"
    TRUNCATE = "a well-formed answer that holds half of the server's body"
    HANG = "never answer, the server never heard of it"
    COMMIT_THEN_HANG = "let the server do it, never answer"
    DRIP = "pass the server's answer on, a byte a second"
    COMMIT_LATE = "never answer, and let the server do it when `release` is called"


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour; the fields beyond `kind` matter to the replies and to CUT_MID_REQUEST (after `at` bytes)."""

    kind: Kind
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    at: int = 0


PASS = Fault(Kind.PASS)
CUT_BEFORE = Fault(Kind.CUT_BEFORE)
COMMIT_THEN_CUT = Fault(Kind.COMMIT_THEN_CUT)
CUT_MID_RESPONSE = Fault(Kind.CUT_MID_RESPONSE)
TRUNCATE = Fault(Kind.TRUNCATE)
HANG = Fault(Kind.HANG)
DRIP = Fault(Kind.DRIP)
COMMIT_THEN_HANG = Fault(Kind.COMMIT_THEN_HANG)
COMMIT_LATE = Fault(Kind.COMMIT_LATE)


def reply(status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> Fault:
    """Answer at once; the server never hears of the request."""
    return Fault(Kind.REPLY, status, tuple(headers), body)


def commit_then_reply(status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> Fault:
    """Let the server do it and answer this instead of what it said."""
    return Fault(Kind.COMMIT_THEN_REPLY, status, tuple(headers), body)


def captive_portal() -> Fault:
    """200 with a login page."""
    return reply(200, HTML, [("Content-Type", "text/html")])


def too_many_requests(retry_after: str) -> Fault:
    """429 with Retry-After."""
    return reply(429, b"slow down", [("Retry-After", retry_after)])


def cut_mid_request(at: int) -> Fault:
    """Forward `at` bytes of the body, then cut both sides."""
    return Fault(Kind.CUT_MID_REQUEST, at=at)


@dataclass(slots=True)
class Rule:
    """`fault` befalls the requests whose method, path and size match: after the first `skip` of them, `times` times."""

    fault: Fault
    method: str | None = None
    path: str = ""
    skip: int = 0
    times: int | None = 1
    larger_than: int = -1
    done: int = 0

    def takes(self, method: str, target: str, size: int) -> bool:
        """Whether it is this rule's turn; counts the request."""
        if self.method not in (None, method) or self.path not in target or size <= self.larger_than:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.done >= self.times:
            return False
        self.done += 1
        return True


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came by, and what was done to it."""

    method: str
    target: str
    kind: Kind
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Head:
    start: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def with_header(self, name: str, value: str | None) -> _Head:
        kept = [(k, v) for k, v in self.headers if k.lower() != name.lower()]
        return replace(self, headers=kept if value is None else [*kept, (name, value)])

    def encode(self) -> bytes:
        lines = [self.start, *(f"{name}: {value}" for name, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(slots=True)
class FaultProxy:
    """A context manager; `url` is what the agent is given. Rules may be added at any time, from any thread.

    With a `certificate` (and its key, in one file) it speaks TLS to its clients, and plain HTTP to the server.
    `held` lists the targets whose answers are withheld: once one is there, what was to be committed first has been.
    """

    upstream_port: int
    port: int = 0
    certificate: Path | None = None
    seen: list[Seen] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    _late: list[bytes] = field(default_factory=list)
    _rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ready: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stopped: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault-proxy", daemon=True)
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the fault proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._stopped is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "",
        skip: int = 0,
        times: int | None = 1,
        larger_than: int = -1,
    ) -> Rule:
        """Earlier rules go first. `path` is a part of the request target; `times=None` is for ever; `larger_than` spares
        requests whose body has no more bytes."""
        rule = Rule(fault, method, path, skip, times, larger_than)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._rules.clear()

    def release(self) -> list[bytes]:
        """Send the requests that were to be late; the server's answers, which nobody waits for any more."""
        with self._lock:
            late, self._late = self._late, []
        return [self._send_late(request) for request in late]

    def _send_late(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.upstream_port), timeout=60) as upstream:
            upstream.sendall(request)
            return b"".join(iter(lambda: upstream.recv(PIECE), b""))

    def counts(self) -> Counter[Kind]:
        """How often what was done."""
        return Counter(seen.kind for seen in list(self.seen))

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._serve(reader, writer)
            finally:
                connections.discard(task)

        tls = None
        if self.certificate is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(self.certificate)
        server = await asyncio.start_server(accept, "127.0.0.1", self.port, limit=MAX_HEAD, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass  # either side went away: so do we
        except asyncio.CancelledError:
            pass  # the proxy stops; asyncio's stream server would report the cancellation as an error
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the client's connection lives on."""
        head = await _read_head(reader)
        method, target, _ = head.start.split(" ", 2)
        fault = self._choose(method, target, head)
        if fault.kind is Kind.CUT_BEFORE:
            return _cut(writer)
        if fault.kind is Kind.HANG:
            return await self._hang(target)
        if fault.kind is Kind.COMMIT_LATE:
            pieces = [piece async for piece in _body(reader, head)]
            with self._lock:
                self._late.append(self._upwards(head).encode() + b"".join(pieces))
            return await self._hang(target)
        if fault.kind is Kind.REPLY:
            async for _piece in _body(reader, head):
                pass
            return await _write_reply(writer, fault, method)
        return await self._forward(reader, writer, head, fault)

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: _Head,
        fault: Fault,
    ) -> bool:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=MAX_HEAD)
        try:
            up_writer.write(self._upwards(head).encode())
            sent = 0
            async for piece in _body(reader, head):
                if fault.kind is Kind.CUT_MID_REQUEST and sent + len(piece) > fault.at:
                    up_writer.write(piece[: fault.at - sent])
                    await up_writer.drain()
                    return _cut(up_writer, writer)
                up_writer.write(piece)
                await up_writer.drain()
                sent += len(piece)
            return await self._pass_back(up_reader, writer, fault, head.start)
        finally:
            up_writer.close()

    async def _pass_back(
        self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault, start: str
    ) -> bool:
        method, target, _ = start.split(" ", 2)
        head = (await _read_head(up_reader)).with_header("Connection", None)
        if fault.kind is Kind.PASS:
            writer.write(head.encode())
            while piece := await up_reader.read(PIECE):
                writer.write(piece)
                await writer.drain()
            await writer.drain()
            framed = method == "HEAD" or head.get("content-length") or head.get("transfer-encoding")
            return bool(framed) or _close(writer)
        body = await up_reader.read(-1)  # the server has answered: it has committed
        if fault.kind is Kind.COMMIT_THEN_REPLY:
            return await _write_reply(writer, fault, method)
        if fault.kind is Kind.COMMIT_THEN_HANG:
            return await self._hang(target)
        if fault.kind is Kind.DRIP:
            for byte in head.encode() + body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
            return _close(writer)
        half = body[: len(body) // 2]
        if fault.kind is Kind.TRUNCATE:
            writer.write(head.with_header("Content-Length", str(len(half))).encode() + half)
            await writer.drain()
            return True
        if fault.kind is Kind.CUT_MID_RESPONSE:
            writer.write(head.encode() + half if half else head.encode()[:-9])
            await writer.drain()
            return _close(writer)  # FIN, not RST: the client must see the half that was sent
        return _cut(writer)

    def _upwards(self, head: _Head) -> _Head:
        """What the server is asked: under its own name, as a reverse proxy does that has another one."""
        return head.with_header("Connection", "close").with_header("Host", f"127.0.0.1:{self.upstream_port}")

    def _choose(self, method: str, target: str, head: _Head) -> Fault:
        size = int(head.get("content-length") or 0)
        with self._lock:
            fault = next((rule.fault for rule in self._rules if rule.takes(method, target, size)), PASS)
            self.seen.append(Seen(method, target, fault.kind, {k.lower(): v for k, v in head.headers}))
        return fault

    async def _hang(self, target: str) -> bool:
        assert self._stopped is not None
        self.held.append(target)
        await self._stopped.wait()
        return False


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return _Head(start, [(name, value.strip()) for name, _, value in pairs])


async def _body(reader: asyncio.StreamReader, head: _Head) -> AsyncIterator[bytes]:
    """The raw bytes of a request body, framing included, piece by piece."""
    if (head.get("transfer-encoding") or "").lower() == "chunked":
        size = -1
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
        return
    left = int(head.get("content-length") or 0)
    while left:
        piece = await reader.read(min(left, PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


async def _write_reply(writer: asyncio.StreamWriter, fault: Fault, method: str) -> bool:
    head = _Head(f"HTTP/1.1 {fault.status} Scripted", [*fault.headers, ("Content-Length", str(len(fault.body)))])
    writer.write(head.encode() + (b"" if method == "HEAD" else fault.body))
    await writer.drain()
    return True


def _cut(*writers: asyncio.StreamWriter) -> bool:
    for writer in writers:
        writer.transport.abort()
    return False


def _close(writer: asyncio.StreamWriter) -> bool:
    writer.close()
    return False


@contextlib.contextmanager
def black_hole(port: int) -> Iterator[None]:
    """A loopback port that answers no attempt to connect: the queue of a listener that accepts nobody is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            guest = stack.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(("127.0.0.1", port))
        yield
