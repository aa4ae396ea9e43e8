"""Bad input, bad servers, bad disks: each gets one clear error, the documented exit code, and nothing is lost."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.disks import can_mount
from tests.servers import MlflowServer, free_port
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, differences, unique

SECRET = "a-token-nobody-should-see"


@pytest.fixture
def ferry(tmp_path: Path, mlflow_server: MlflowServer) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said, said
    for word in words:
        assert word in said, said


def delivered(ferry: Ferry, server: MlflowServer, *runs: SpooledRun) -> None:
    done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [differences(server, run.logged) for run in runs] == [[]] * len(runs)


class _NotMlflow(http.server.BaseHTTPRequestHandler):
    """Some other web server: a page for everything."""

    def do_GET(self) -> None:
        body = b"<html>It works!</html>"
        self.send_response(404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


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


def test_an_address_of_something_else_is_said_to_be_no_mlflow_server(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = a_bit_of_everything(ferry.spool, unique("elsewhere"), points=5, files=1)
    with serving(_NotMlflow) as url:
        refused(ferry("sync", "--to", url), 1, "does not answer like an MLflow server", "Nothing was sent")
    delivered(ferry, mlflow_server, run)


def test_a_server_that_is_not_there_leaves_everything_pending(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = a_bit_of_everything(ferry.spool, unique("away"), points=5, files=1)
    nowhere = f"http://127.0.0.1:{free_port()}"
    refused(ferry("sync", "--to", nowhere, "--give-up-after", "1"), 4, "could not be reached", "Everything is kept")
    delivered(ferry, mlflow_server, run)


@pytest.mark.parametrize("address", ["ftp://mlflow.example.org", "mlflow.example.org:5000", "http://"])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(ferry: Ferry, address: str) -> None:
    a_bit_of_everything(ferry.spool, unique("address"), points=1, files=0)
    refused(ferry("sync", "--to", address), 1, "tracking URI", "everything is kept")


def test_without_an_address_the_command_says_how_to_give_one(ferry: Ferry) -> None:
    a_bit_of_everything(ferry.spool, unique("nowhere"), points=1, files=0)
    refused(replace(ferry, to=None)("sync"), 1, "MLFERRY_TO", "--to")


def _guarded(upstream: str) -> type[http.server.BaseHTTPRequestHandler]:
    """A proxy that wants the token."""

    class Guard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            if self.headers.get("Authorization") != f"Bearer {SECRET}":
                return self._answer(401, b"<html>You are not authenticated</html>", "text/html")
            request = urllib.request.Request(upstream + self.path, data=body, method=self.command)
            request.add_header("Content-Type", self.headers.get("Content-Type") or "application/json")
            try:
                with urllib.request.urlopen(request) as reply:
                    self._answer(reply.status, reply.read(), reply.headers.get("Content-Type") or "text/plain")
            except urllib.error.HTTPError as error:
                with error:
                    self._answer(error.code, error.read(), error.headers.get("Content-Type") or "text/plain")

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Guard


def test_a_wrong_token_is_named_and_never_shown(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = a_bit_of_everything(ferry.spool, unique("token"), points=50, files=2)
    with serving(_guarded(mlflow_server.url)) as url:
        guarded = replace(ferry, to=url, environ={"MLFLOW_TRACKING_TOKEN": "wrong-and-private"})
        done = guarded("sync")
        refused(done, 1, "HTTP 401", "credentials", "everything is kept")
        assert "wrong-and-private" not in done.stdout + done.stderr
        delivered(replace(ferry, to=url, environ={"MLFLOW_TRACKING_TOKEN": SECRET}), mlflow_server, run)


def _segment(run: SpooledRun) -> Path:
    return next(run.directory.glob("*/*.seg"))


def test_a_segment_of_a_newer_format_waits_for_a_newer_mlferry(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    healthy = a_bit_of_everything(ferry.spool, unique("healthy"), points=5, files=1)
    newer = a_bit_of_everything(ferry.spool, unique("newer"), points=5, files=1)
    path = _segment(newer)
    original = path.read_bytes()
    head = original[:10] + b"\x02" + original[11:20]
    path.write_bytes(head + zlib.crc32(head).to_bytes(4, "big") + original[24:])
    refused(ferry("sync"), 3, "newer mlferry", "upgrade mlferry")
    assert differences(mlflow_server, healthy.logged) == []
    path.write_bytes(original)
    delivered(ferry, mlflow_server, healthy, newer)


def test_a_segment_of_random_bytes_stops_only_itself(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    healthy = a_bit_of_everything(ferry.spool, unique("healthy"), points=5, files=1)
    broken = a_bit_of_everything(ferry.spool, unique("broken"), points=5, files=1)
    path = _segment(broken)
    original = path.read_bytes()
    path.write_bytes(os.urandom(len(original)))
    refused(ferry("sync"), 3, "not a segment", path.name)
    assert differences(mlflow_server, healthy.logged) == []
    path.write_bytes(original)
    delivered(ferry, mlflow_server, healthy, broken)


def test_a_state_directory_that_cannot_be_used_is_named(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("state"), points=5, files=1)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    refused(
        ferry("sync", "--state-dir", str(blocked / "state")), 1, "ledger", "MLFERRY_STATE_DIR", "spool was not touched"
    )
    delivered(ferry, mlflow_server, run)


@pytest.mark.skipif(not can_mount(), reason="mounting needs root")
def test_a_state_directory_that_is_read_only_is_named_and_can_be_looked_at(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("read-only"), points=5, files=1)
    delivered(ferry, mlflow_server, run)
    subprocess.run(["mount", "--bind", ferry.state, ferry.state], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", ferry.state], check=True)
        refused(ferry("sync"), 1, "Read-only file system", "MLFERRY_STATE_DIR", "spool was not touched")
        refused(ferry("status"), 0, "0 pending", "FINISHED")
    finally:
        subprocess.run(["umount", ferry.state], check=True)
    delivered(ferry, mlflow_server, run)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_under_the_ledger_is_named_and_nothing_is_sent_twice(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("full"), points=3000, files=3)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        filler = small / "filler"
        filler.write_bytes(b"\0" * (200 << 10))
        cramped = replace(ferry, state=small)
        refused(cramped("sync"), 1, "full")
        filler.unlink()
        delivered(cramped, mlflow_server, run)
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_run_that_the_spool_does_not_hold_is_named(ferry: Ferry) -> None:
    a_bit_of_everything(ferry.spool, unique("known"), points=1, files=0)
    refused(ferry("status", "no-such-run"), 1, "no-such-run", "mlferry status")


def test_an_empty_spool_and_one_that_is_not_there_have_nothing_pending(ferry: Ferry, tmp_path: Path) -> None:
    refused(ferry("sync"), 0, "0 runs")
    refused(ferry("sync", "--dir", str(tmp_path / "nothing here")), 0, "0 runs")


def test_a_hostile_name_cannot_speak_to_the_terminal(ferry: Ferry) -> None:
    run = SpooledRun(ferry.spool, unique("hostile"), run_name="\x1b]0;owned\x07[red]mark[/red]\x1b[2J")
    run.end()
    done = ferry("status")
    assert "\x1b" not in done.stdout
    assert "[red]mark[/red]" in done.stdout
