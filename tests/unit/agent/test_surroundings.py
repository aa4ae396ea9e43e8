"""What the agent knows of the machine: file systems, systemd's socket, events of a directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from functools import partial
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent

from mlferry_agent.filesystems import file_system, is_local
from mlferry_agent.notify import Notifier
from mlferry_agent.wakeups import Wakeups

MOUNTS = r"""
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:30 / /proc rw - proc proc rw
40 22 0:40 / /home rw,relatime shared:5 master:3 - nfs4 server:/home rw
41 40 0:41 / /home/lustre\040of\040all rw - lustre mgs@tcp:/fs rw
42 22 0:42 / /données rw - nfs server:/d rw
43 22 0:43 / /odd\134\011name rw - tmpfs tmpfs rw
44 22 0:44 / /fuse rw - fuse.sshfs user@there: rw
45 22 0:45 / /over rw - overlay overlay rw
46 22 0:46 / /twice rw - ext4 /dev/a rw
47 46 0:47 / /twice rw - nfs4 server:/b rw
this line is no mount
"""


@pytest.mark.parametrize(
    ("path", "kind", "local"),
    [
        ("/somewhere/runs", "ext4", True),
        ("/home/me/spool", "nfs4", False),
        ("/homely", "ext4", True),
        ("/home/lustre of all/x", "lustre", False),
        ("/données/spool", "nfs", False),
        ("/odd\\\tname/x", "tmpfs", True),
        ("/fuse/x", "fuse.sshfs", False),
        ("/over/x", "overlay", True),
        ("/twice/x", "nfs4", False),
    ],
)
def test_a_path_is_on_the_file_system_that_is_mounted_nearest_above_it(path: str, kind: str, local: bool) -> None:
    assert file_system(Path(path), MOUNTS) == kind
    assert is_local(Path(path), MOUNTS) is local


def test_what_cannot_be_known_counts_as_shared() -> None:
    assert not is_local(Path("/anywhere"), "")
    assert file_system(Path("/tmp")) != ""


# -- systemd -------------------------------------------------------------------------------------------------------------


def test_systemd_hears_that_the_agent_is_ready_alive_and_stopping() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{directory}/notify")
        heard.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "60000000"})
        notifier.ready()
        notifier.alive("idle")
        notifier.stopping()
        said = [heard.recv(100) for _ in range(3)]
    assert said == [b"READY=1", b"WATCHDOG=1\nSTATUS=idle", b"STOPPING=1"]
    assert notifier.watchdog_s == 30.0


def test_systemd_is_told_what_is_new_and_else_only_as_often_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mlferry_agent.notify.time.monotonic", lambda: now)
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{directory}/notify")
        heard.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "60000000"})
        told = []
        for status in ["idle"] * 40 + ["delivering"] * 2:
            notifier.alive(status)
            now += 1
            with contextlib.suppress(BlockingIOError):
                told.append((now - 1001, heard.recv(100).partition(b"STATUS=")[2]))
    assert told == [(0, b"idle"), (15, b"idle"), (30, b"idle"), (40, b"delivering")]


def test_a_socket_without_a_name_in_the_file_system_is_heard_too() -> None:
    name = f"mlferry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:1:2"])
def test_without_systemd_nothing_is_said_and_nothing_fails(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "soon"})
    notifier.ready()
    assert notifier.watchdog_s is None


# -- events --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "run" / "w").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "blobs").mkdir()
    return tmp_path


async def test_a_new_run_wakes_the_agent(spool: Path) -> None:
    wakeups = Wakeups(spool, asyncio.get_running_loop())
    wakeups.start()
    try:
        assert wakeups.watching
        assert await wakeups.wait(0)  # what began before it watched is news too
        (spool / "runs" / "another").mkdir()
        assert await wakeups.wait(60)
    finally:
        wakeups.stop()


class _Noting(Wakeups):
    """Remembers the names that events were about."""

    def __init__(self, root: Path, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(root, loop)
        self.names: list[str] = []

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.names.append(Path(os.fsdecode(event.src_path)).name)
        super().on_any_event(event)


async def test_what_happens_within_a_run_wakes_nobody(spool: Path) -> None:
    segment = spool / "runs" / "run" / "w" / "0.seg"
    segment.touch()
    wakeups = _Noting(spool, asyncio.get_running_loop())
    wakeups.start()
    try:
        assert await wakeups.wait(0)
        with segment.open("ab") as file:
            file.write(b"x")
        (spool / "runs" / "run" / "w" / "1.seg").touch()
        (spool / "runs" / "run" / "another writer").mkdir()
        (spool / "runs" / "last").mkdir()  # events come in order: when this one is here, the others were
        assert await wakeups.wait(60)
    finally:
        wakeups.stop()
    assert set(wakeups.names) == {"last"}


async def test_a_run_that_is_moved_into_the_spool_wakes_the_agent(spool: Path) -> None:
    (spool / "imported").mkdir()
    wakeups = Wakeups(spool, asyncio.get_running_loop())
    wakeups.start()
    try:
        assert await wakeups.wait(0)
        (spool / "imported").rename(spool / "runs" / "imported")
        assert await wakeups.wait(60)
    finally:
        wakeups.stop()


async def test_a_spool_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    wakeups = Wakeups(tmp_path / "nothing", asyncio.get_running_loop())
    wakeups.start()
    assert not wakeups.watching
    assert not await wakeups.wait(0)
    wakeups.wake()
    assert await wakeups.wait(60)
    wakeups.stop()


async def test_where_other_machines_write_nothing_is_watched(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"36 35 0:30 / {spool} rw,relatime shared:1 - nfs4 server:/export rw"
    monkeypatch.setattr("mlferry_agent.wakeups.is_local", partial(is_local, mountinfo=mounts))
    wakeups = Wakeups(spool, asyncio.get_running_loop())
    wakeups.start()
    assert not wakeups.watching
    (spool / "runs" / "new").mkdir()
    assert not await wakeups.wait(0.1), "polling is all there is"
    wakeups.stop()


class _NoWatches(Wakeups):
    """As on a machine that is out of inotify watches."""

    def __init__(self, root: Path, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(root, loop)
        self.asked = 0
        self._observer.start = self._refuse  # type: ignore[method-assign]

    def _refuse(self) -> None:
        self.asked += 1
        raise OSError(28, "inotify watch limit reached")


async def test_a_machine_out_of_watches_is_asked_once(spool: Path) -> None:
    wakeups = _NoWatches(spool, asyncio.get_running_loop())
    for _ in range(3):
        wakeups.start()
    assert (wakeups.asked, wakeups.watching) == (1, False)
    wakeups.stop()
