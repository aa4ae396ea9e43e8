"""The credentials of the agent are in the header of its requests and nowhere else, whatever goes wrong on the way."""

from __future__ import annotations

import base64
import http.server
import os
import re
import signal
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zstandard
from tests.security.conftest import NOBODY, needs_root
from tests.servers import MlflowServer
from tests.spooling import Ferry, a_bit_of_everything, differences, unique, wait_until

from mlferry_agent.config import load
from mlferry_agent.credentials import Destination, Token, destination
from mlferry_agent.errors import Misconfigured
from mlferry_agent.transport import Transport

PASSWORD = "pa+ss/wo rd-that-nobody=sees"
TOKEN = "token.that/nobody+sees=="
BASIC = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
_SECRETS = (PASSWORD, TOKEN, BASIC)
FORMS = sorted({form for secret in _SECRETS for form in (secret, urllib.parse.quote(secret, safe=""))})

CREDENTIALS = {
    f"Bearer {TOKEN}": {"MLFLOW_TRACKING_TOKEN": TOKEN},
    f"Basic {BASIC}": {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD},
}


@dataclass
class Front:
    """Stands between the agent and the server, wants credentials, and is unwell in the way that ``mood`` says. Each of its
    pages quotes the request, as pages for debugging do."""

    upstream: str
    wanted: list[str]
    elsewhere: str
    mood: str = "well"
    moods_shown: set[str] = field(default_factory=set)

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                given = self.headers.get("Authorization") or ""
                front.moods_shown.add(front.mood)
                if front.mood == "well" and given in front.wanted:
                    return self._forward(body)
                quoted = f"your header was {given}: {given.partition(' ')[2]}"
                quoted += f", that is {PASSWORD}" if BASIC in given else ""
                if front.mood == "elsewhere":
                    return self._answer(
                        307, quoted.encode(), "text/html", {"Location": f"{front.elsewhere}/?was={given}"}
                    )
                status = {"portal": 200, "broken": 500, "away": 503, "odd": 418}.get(front.mood, 401)
                self._answer(status, quoted.encode(), "text/html", {"X-Quoted": given})

            do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

            def _forward(self, body: bytes | None) -> None:
                request = urllib.request.Request(front.upstream + self.path, data=body, method=self.command)
                request.add_header("Content-Type", self.headers.get("Content-Type") or "application/json")
                try:
                    with urllib.request.urlopen(request) as reply:
                        self._answer(reply.status, reply.read(), reply.headers.get("Content-Type") or "text/plain", {})
                except urllib.error.HTTPError as error:
                    with error:
                        self._answer(error.code, error.read(), error.headers.get("Content-Type") or "text/plain", {})

            def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def visited(log: list[str]) -> type[http.server.BaseHTTPRequestHandler]:
    """Another host, which notes who comes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            log.append(f"{self.path} {self.headers}")
            self.send_error(404)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def shown(data: bytes) -> list[str]:
    return [form for form in FORMS if form.encode() in data]


def told(ferry: Ferry, *words: str) -> bytes:
    done = ferry(*words)
    assert "Traceback" not in done.stderr, done.stderr
    return f"{words}: {done.stdout}{done.stderr}".encode()


def an_agent_that_crashes(ferry: Ferry, front: Front, log: Path) -> bytes:
    """What the system shows of an agent that is refused, then dies of SIGABRT as a crash would have it."""
    front.moods_shown.clear()
    with ferry.agent(log=log) as agent:
        wait_until(lambda: front.moods_shown, "the agent asks")
        seen = Path(f"/proc/{agent.pid}/cmdline").read_bytes() + Path(f"/proc/{agent.pid}/comm").read_bytes()
        limits = Path(f"/proc/{agent.pid}/limits").read_text()
        os.kill(agent.pid, signal.SIGABRT)
        assert agent.wait() == -signal.SIGABRT
    assert re.search(r"Max core file size +0 ", limits)
    return seen


def test_after_a_session_full_of_failures_no_secret_is_found_anywhere(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    visits: list[str] = []
    debugging = {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1"}
    with serving(visited(visits)) as elsewhere:
        front = Front(mlflow_server.url, [*CREDENTIALS], elsewhere)
        with serving(front.handler()) as url:
            ferries = [
                Ferry(tmp_path / "spool", tmp_path / "state", url, {**debugging, **told_by})
                for told_by in CREDENTIALS.values()
            ]
            run = a_bit_of_everything(tmp_path / "spool", unique("secrets"), points=20, files=2)
            output = b""
            for mood, ferry in zip(("401", "elsewhere", "portal", "broken", "away", "odd"), ferries * 3, strict=True):
                front.mood = mood
                output += told(ferry, "sync", "--give-up-after", "0.2")
                assert mood in front.moods_shown
            for ferry in ferries:
                output += an_agent_that_crashes(ferry, front, tmp_path / "agent.log")
            front.mood = "well"
            output += told(ferries[0], "sync")
            assert differences(mlflow_server, run.logged) == []
            for words in (("verify",), ("status",), ("dump", str(tmp_path / "spool"))):
                output += told(ferries[1], *words)
            output += told(ferries[1], "export", str(tmp_path / "bundle"))
    assert visits == []
    assert shown(output) == []
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) > 5
    assert {path: found for path, data in files.items() if (found := shown(data))} == {}
    with zstandard.ZstdDecompressor().stream_reader(files[tmp_path / "bundle"]) as bundle:
        assert shown(bundle.read()) == []
    assert shown(mlflow_server.database.read_bytes()) == []


def test_the_search_would_find_them() -> None:
    """The test above must not pass for looking in the wrong way."""
    for secret in _SECRETS:
        assert shown(b"xx" + secret.encode() + b"yy")
        assert shown(urllib.parse.quote(secret, safe="").encode())


@pytest.mark.parametrize("status", [200, 307, 401, 500])
async def test_a_page_that_quotes_the_request_is_cleaned(status: int) -> None:
    quoted = f"{TOKEN} {urllib.parse.quote(TOKEN, safe='')} {PASSWORD} {BASIC}"

    class Quoting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Location", f"http://elsewhere/?{quoted.replace(' ', ';')}")
            self.send_header("Content-Length", str(len(quoted)))
            self.end_headers()
            self.wfile.write(quoted.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    from mlferry_agent import requests

    with serving(Quoting) as url:
        for authorization in CREDENTIALS:
            async with Transport(Destination(url, Token(authorization))) as transport:
                answer = await transport.send(requests.server_version())
                ours = [TOKEN] if authorization.startswith("Bearer") else [PASSWORD, BASIC]
                assert not [form for form in ours if form in f"{answer}"]


def test_a_configuration_does_not_show_the_password_in_its_address(tmp_path: Path) -> None:
    config = load({"HOME": str(tmp_path), "MLFERRY_TO": "http://ann:password-of-ann@127.0.0.1"}, {})
    assert config.to is not None and "password-of-ann" in config.to
    assert "password-of-ann" not in f"{config!r}{config}"
    found = destination(config.to, {})
    assert "password-of-ann" not in f"{found!r}{found}"


def test_a_password_on_the_command_line_is_warned_about_and_not_shown(tmp_path: Path) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state")
    done = ferry("sync", "--to", "http://ann:password-of-ann@127.0.0.1:1", "--give-up-after", "0.2")
    assert "the password in --to can be read by every user" in done.stderr
    assert "password-of-ann" not in done.stdout + done.stderr
    quiet = replace(ferry, to="http://ann:password-of-ann@127.0.0.1:1")("sync", "--give-up-after", "0.2")
    assert "can be read" not in quiet.stderr
    assert "password-of-ann" not in quiet.stdout + quiet.stderr


@pytest.mark.parametrize("variable", ["MLFERRY_TOKEN_FILE", "HOME", "CREDENTIALS_DIRECTORY"])
def test_a_pipe_in_the_place_of_a_credential_is_refused_at_once(tmp_path: Path, variable: str) -> None:
    places = {
        "MLFERRY_TOKEN_FILE": (tmp_path / "token", str(tmp_path / "token")),
        "HOME": (tmp_path / ".mlflow" / "credentials", str(tmp_path)),
        "CREDENTIALS_DIRECTORY": (tmp_path / "mlflow-token", str(tmp_path)),
    }
    path, value = places[variable]
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(Misconfigured, match="cannot read the credential"):
        destination("https://there", {variable: value})


def test_a_credential_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "token").touch(mode=0o600)
    os.truncate(tmp_path / "token", 1 << 40)
    with pytest.raises(Misconfigured, match="larger than"):
        destination("https://there", {"MLFERRY_TOKEN_FILE": str(tmp_path / "token")})


@needs_root
def test_a_credential_that_somebody_else_can_exchange_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("t")
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)
    [warning] = destination("https://there", {"MLFERRY_TOKEN_FILE": str(path)}).warnings
    assert f"belongs to user {NOBODY}" in warning


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"])
def test_a_password_that_is_no_text_is_refused_without_being_told(name: str) -> None:
    environ = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD, name: f"{PASSWORD}\udcff"}
    with pytest.raises(Misconfigured, match="not Unicode") as caught:
        destination("https://there", environ)
    assert PASSWORD not in f"{caught.value}{caught.value.__cause__}{caught.value.__suppress_context__}"


def test_a_broken_file_of_credentials_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / ".mlflow" / "credentials"
    path.parent.mkdir()
    for content in (
        f"{PASSWORD}\n",
        "[mlflow]\nprivate\n".replace("private", TOKEN.strip("=")),
        f"[mlflow\nx = {PASSWORD}",
    ):
        path.write_text(content)
        with pytest.raises(Misconfigured) as caught:
            destination("https://there", {"HOME": str(tmp_path)})
        said = f"{caught.value}{caught.value.__cause__}"
        assert PASSWORD not in said and TOKEN.strip("=") not in said
