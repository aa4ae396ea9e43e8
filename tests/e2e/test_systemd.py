"""The units, booted: a real systemd installs, starts, kills, reloads and stops the agent, which delivers to a real server.

They are installed as docs/systemd.md says. What differs is said in a drop-in: where the log goes, and times so short that
a test can wait for them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.machines import SOURCE, Machine, machine, why_not
from tests.s3 import object_store
from tests.servers import MlflowServer
from tests.spooling import (
    SpooledRun,
    a_bit_of_everything,
    on_server,
    server_runs,
    unique,
    wait_for_arrival,
    wait_until,
)

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no machine can be booted here: {why_not()}")

AGENT, ALICE = "mlferry-agent.service", "mlferry-agent@alice.service"
SPOOL, HOME = "/var/spool/mlferry", "/home/alice"
TOKEN = "a-token-that-only-root-may-read"

#: Long enough for what takes part of a second, on a machine that does other things besides.
SOON_S = 30.0


class Gate(FaultProxy):
    """A reverse proxy that lets nobody through to the server but who shows the token."""

    token = TOKEN

    def _choose(self, method: str, target: str, head: Any) -> faults.Fault:
        fault = super()._choose(method, target, head)
        is_let_in = head.get("authorization") == f"Bearer {self.token}"
        return fault if is_let_in else faults.reply(401, b"who are you?")


@dataclass(frozen=True)
class Host:
    """A booted machine on which the units are installed, and the way to the server."""

    machine: Machine
    gate: Gate
    server: MlflowServer

    @property
    def spool(self) -> Path:
        return self.machine.root / SPOOL.lstrip("/")

    @property
    def home(self) -> Path:
        return self.machine.root / HOME.lstrip("/")

    @contextmanager
    def told(self, *settings: str) -> Iterator[None]:
        """Say something in a drop-in for the agent."""
        place = f"/etc/systemd/system/{AGENT}.d/test.conf"
        self.machine.write(place, "\n".join(("[Service]", *settings, "")))
        self.machine("systemctl", "daemon-reload")
        try:
            yield
        finally:
            (self.machine.root / place.lstrip("/")).unlink()
            self.machine("systemctl", "daemon-reload")

    def own(self, run: SpooledRun, user: str = "mlferry") -> SpooledRun:
        """A run of that user's."""
        self.machine("chown", "-R", f"{user}:", "/" + str(run.root.relative_to(self.machine.root)))
        return run

    def arriving(self, experiment: str) -> SpooledRun:
        """A run that is copied into the spool as a whole, while an agent may be looking."""
        staging = f"{SPOOL}-staging"
        run = self.own(a_bit_of_everything(self.machine.root / staging.lstrip("/"), experiment))
        self.machine("install", "--directory", "--owner=mlferry", f"{SPOOL}/runs")
        self.machine("mv", f"{staging}/runs/{run.directory.name}", f"{SPOOL}/runs/")
        return run

    def status(self) -> str:
        return self.machine.says(AGENT, "StatusText")

    def acknowledged(self, run: SpooledRun) -> int:
        """What `mlferry status` says of a run, asked as docs/systemd.md asks."""
        ask = f"mlferry status --json --dir {SPOOL} --state-dir /var/lib/mlferry --to {self.gate.url}"
        said = self.machine(
            "sh", "-c", f"setpriv --reset-env --reuid=mlferry --regid=mlferry --clear-groups {ask} || true"
        )
        return next(int(status["acknowledged"]) for status in json.loads(said) if status["run_id"] == run.run_id)

    def restarts(self) -> int:
        return int(self.machine.says(AGENT, "NRestarts"))

    def signal(self, name: str) -> None:
        """Send it to the agent."""
        self.machine("kill", f"-{name}", self.machine.says(AGENT, "MainPID"))

    def requests(self, since: int, part: str) -> int:
        return sum(part in seen.target for seen in self.gate.seen[since:])

    @contextmanager
    def running(self, unit: str = AGENT) -> Iterator[None]:
        """`systemctl start` comes back when the agent has said that it is ready."""
        try:
            self.machine("systemctl", "start", unit)
            yield
        except BaseException:
            print(self.machine.journal(unit))
            raise
        finally:
            self.machine("systemctl", "stop", unit)
            self.machine("systemctl", "reset-failed")


@pytest.fixture(scope="module")
def host(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    directory = tmp_path_factory.mktemp("systemd") / "machine"
    with Gate(mlflow_server.port) as gate, machine(directory) as booted:
        install(booted, gate.url)
        yield Host(booted, gate, mlflow_server)


def install(booted: Machine, url: str) -> None:
    """As docs/systemd.md has it."""
    booted.install_command()
    for source, target in (
        ("sysusers.d/mlferry.conf", "/usr/lib/sysusers.d/mlferry.conf"),
        ("tmpfiles.d/mlferry.conf", "/usr/lib/tmpfiles.d/mlferry.conf"),
        (AGENT, f"/etc/systemd/system/{AGENT}"),
        ("mlferry-agent@.service", "/etc/systemd/system/mlferry-agent@.service"),
    ):
        booted.write(target, (SOURCE / "systemd" / source).read_text())
    booted.write("/usr/lib/sysusers.d/people.conf", 'u alice - "Alice" /home/alice /bin/sh\n')
    booted("systemd-sysusers")
    booted("systemd-tmpfiles", "--create", "mlferry.conf")
    booted.write("/etc/mlferry/token", f"{TOKEN}\n", 0o600)
    booted.write("/etc/mlferry/agent.env", f"MLFLOW_TRACKING_URI={url}\n")
    booted("systemctl", "daemon-reload")


def test_systemd_starts_it_and_it_delivers_by_the_token_that_only_root_may_read(host: Host) -> None:
    run = host.own(a_bit_of_everything(host.spool, unique("unit")))
    with host.running():
        assert host.machine.says(AGENT, "ActiveState") == "active"
        wait_for_arrival(host.server, run.logged, SOON_S)
        wait_until(lambda: host.status() == "idle, nothing new", "it says that all is done", SOON_S)
        pid = host.machine.says(AGENT, "MainPID")
        environ = host.machine("cat", f"/proc/{pid}/environ")
        assert "CREDENTIALS_DIRECTORY=" in environ and TOKEN not in environ
        assert host.machine("stat", "--format=%U", f"/proc/{pid}").strip() == "mlferry"
        said = host.machine.journal(AGENT)
        assert f"destination {host.gate.url}" in said and TOKEN not in said


def test_a_new_token_is_used_when_it_is_told_to_reload(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = "/etc/mlferry/rotated"
    host.machine.write(mine, TOKEN, 0o600)
    host.machine("chown", "mlferry:", mine)
    with host.told(f"Environment=MLFERRY_TOKEN_FILE={mine}"), host.running():
        pid = host.machine.says(AGENT, "MainPID")
        wait_until(lambda: "idle" in host.status(), "it has looked round", SOON_S)
        monkeypatch.setattr(Gate, "token", "the-next-token")
        run = host.arriving(unique("rotated"))
        wait_until(lambda: "401" in host.status(), "it says what is wrong", SOON_S)
        host.machine.write(mine, "the-next-token\n", 0o600)
        host.machine("systemctl", "reload", AGENT)
        wait_for_arrival(host.server, run.logged, SOON_S)
        assert host.machine.says(AGENT, "MainPID") == pid


def test_it_stops_while_a_file_is_on_its_way_and_goes_on_from_there(host: Host) -> None:
    run = SpooledRun(host.spool, unique("stopped"))
    run.params({"a": "b"})
    run.artifact("first.bin", os.urandom(1000))
    run.artifact("large.bin", os.urandom(16 << 20))
    run.end()
    host.own(run)
    host.gate.add(faults.HANG, method="PUT", path="large.bin")
    with host.running():
        wait_until(lambda: any("large.bin" in target for target in host.gate.held), "it uploads", SOON_S)
        wait_until(lambda: host.acknowledged(run) == 2, "all but the large file is acknowledged", SOON_S)
        began = time.monotonic()
        host.machine("systemctl", "stop", AGENT)
        assert time.monotonic() - began < 5
        assert host.machine.says(AGENT, "Result") == "success"
    before = len(host.gate.seen)
    with host.running():
        wait_for_arrival(host.server, run.logged, SOON_S)
    assert host.requests(before, "large.bin") == 1
    assert host.requests(before, "first.bin") == host.requests(before, "log-batch") == 0
    assert len(server_runs(host.server, run.run_id)) == 1


#: What no line of the unit says, but what its lines together are for.
_PROBE = """#!/bin/sh
refused() {{ if "$@" 2>/dev/null; then echo "allowed: $*"; exit 1; fi; }}
refused cat /etc/mlferry/token
refused cat /etc/shadow
refused ls /root
refused ls /home/alice
refused touch {spool}/here
refused touch /etc/here
refused unshare --user true
refused mknod /tmp/null c 1 3
refused {python} -c 'import os; os.nice(-5)'
refused {python} -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'
refused {python} -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'
refused {python} -c 'import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)'
touch /var/lib/mlferry/here && rm /var/lib/mlferry/here
cat {spool}/readable "$CREDENTIALS_DIRECTORY/mlflow-token" >/dev/null
test "$(ls -A /tmp)" = ""
"""


def test_the_sandbox_lets_it_do_its_work_and_nothing_else(host: Host) -> None:
    (host.spool / "readable").write_text("")
    host.machine("chown", "mlferry:", f"{SPOOL}/readable")
    host.machine.write("/usr/bin/probe", _PROBE.format(spool=SPOOL, python="/opt/python/bin/python3"), 0o755)
    with host.told("ExecStartPre=/bin/sh -x /usr/bin/probe"), host.running():
        assert host.machine.says(AGENT, "ActiveState") == "active"


@pytest.mark.long
def test_killed_after_the_server_acted_it_is_started_again_and_doubles_nothing(host: Host) -> None:
    run = SpooledRun(host.spool, unique("killed"))
    for step in range(100):
        run.metrics(step, {"loss": float(step)})
    host.own(run)
    host.gate.held.clear()
    host.gate.add(faults.COMMIT_THEN_HANG, path="log-batch")
    with host.running():
        wait_until(lambda: host.gate.held, "the server has the points, the agent does not know", SOON_S)
        host.signal("KILL")
        for step in range(100, 200):
            run.metrics(step, {"loss": float(step)})
        run.end()
        host.own(run)
        wait_for_arrival(host.server, run.logged, SOON_S)
        assert host.restarts() == 1


@pytest.mark.long
def test_an_agent_that_hangs_is_replaced(host: Host) -> None:
    with host.told("WatchdogSec=2", "RestartSec=100ms"), host.running():
        wait_until(lambda: "idle" in host.status(), "it has looked round", SOON_S)
        host.signal("STOP")
        run = host.arriving(unique("hangs"))
        wait_for_arrival(host.server, run.logged, SOON_S)
        assert host.restarts() == 1
        assert "Watchdog timeout" in host.machine.journal(AGENT)


@pytest.mark.long
def test_a_user_has_an_agent_of_the_template_with_a_token_and_a_state_apart(host: Host) -> None:
    host.machine.write("/etc/mlferry/tokens/alice", TOKEN, 0o600)
    run = a_bit_of_everything(host.home / ".local/share/mlferry", unique("template"))
    host.machine("chown", "-R", "alice:", HOME)
    with host.running(ALICE):
        wait_for_arrival(host.server, run.logged, SOON_S)
        pid = host.machine.says(ALICE, "MainPID")
        assert host.machine("stat", "--format=%U", f"/proc/{pid}").strip() == "alice"
    owner = host.machine("sh", "-c", "stat --format='%U %a' /var/lib/mlferry-users/alice").strip()
    assert owner == "alice 700"


#: What logind would start when she logs in.
_MANAGER = """[Service]
Type=notify
User=alice
Delegate=yes
RuntimeDirectory=user/alice
Environment=XDG_RUNTIME_DIR=/run/user/alice
ExecStart=/lib/systemd/systemd --user
"""


@pytest.mark.long
def test_the_unit_for_users_runs_in_a_manager_of_theirs(host: Host) -> None:
    run = a_bit_of_everything(host.home / ".local/share/mlferry", unique("user"))
    told = f"MLFLOW_TRACKING_URI={host.gate.url}\nMLFERRY_TOKEN_FILE={HOME}/.config/mlferry/token\n"
    host.machine.write(f"{HOME}/.config/mlferry/agent.env", told)
    host.machine.write(f"{HOME}/.config/mlferry/token", TOKEN, 0o600)
    unit = (SOURCE / "systemd/user" / AGENT).read_text()
    host.machine.write(f"{HOME}/.config/systemd/user/{AGENT}", unit)
    host.machine.install_command(f"{HOME}/.local/bin/mlferry")
    host.machine("chown", "-R", "alice:", HOME)
    host.machine.write("/etc/systemd/system/manager.service", _MANAGER)
    host.machine("systemctl", "daemon-reload")

    def alice(*words: str) -> str:
        become = (
            "setpriv --reuid=alice --regid=alice --clear-groups env XDG_RUNTIME_DIR=/run/user/alice systemctl --user"
        )
        return host.machine(*become.split(), *words)

    with host.running("manager.service"):
        alice("start", AGENT)
        wait_for_arrival(host.server, run.logged, SOON_S)
        alice("reload", AGENT)
        wait_until(lambda: "idle" in alice("show", "--property=StatusText", AGENT), "it goes on", SOON_S)
        alice("stop", AGENT)
        assert "Result=success" in alice("show", "--property=Result", AGENT)


def test_the_sandbox_leaves_room_for_a_status_page_that_its_owner_alone_opens(host: Host) -> None:
    path = host.machine.root / "var/lib/mlferry/page.sock"
    with host.told("Environment=MLFERRY_HTTP=unix:/var/lib/mlferry/page.sock"), host.running():
        wait_until(path.exists, "the page is open", SOON_S)
        assert host.machine("stat", "--format=%U %a", "/var/lib/mlferry/page.sock") == "mlferry 600\n"
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(SOON_S)
            asking.connect(str(path))
            asking.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: asking.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b"mlferry_spool_readable 1.0" in answer
    assert not path.exists()


@pytest.mark.long
def test_the_sandbox_with_the_room_that_the_page_names_lets_it_write_to_an_artifact_store(
    host: Host, tmp_path: Path
) -> None:
    pytest.importorskip("moto")
    drop_in = re.findall(r"`((?:TasksMax|MemoryMax)=\w+)`", (SOURCE / "docs/server.md").read_text())
    assert len(drop_in) == 2
    with object_store(tmp_path / "s3.log") as store:
        experiment = unique("direct")
        host.server.client().create_experiment(experiment, artifact_location=f"s3://{store.bucket}/here")
        run = SpooledRun(host.spool, experiment)
        for number in range(6):
            run.artifact(f"{number}.bin", os.urandom(20 << 20))  # boto3 sends such a file by several threads
        run.end()
        host.own(run)
        with (
            host.told(*drop_in, *(f"Environment={name}={value}" for name, value in store.environ.items())),
            host.running(),
        ):
            wait_until(lambda: server_runs(host.server, run.run_id), "its delivery begins", SOON_S)
            wait_until(lambda: host.server.stored(on_server(host.server, run)).status == "FINISHED", "it ends", 250)
            assert host.restarts() == 0
        stored = {key.rpartition("/")[2]: content for key, content in store.objects("here/").items()}
        assert stored == run.logged.artifacts
