"""Every scenario: what it is called in the table, what it needs of the machine, and how much of it each run takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import clocks, kills, networks, servers_lost, storage
from tests.chaos.trial import Trial
from tests.disks import Disk, can_limit, can_mount


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table. ``possible``: whether this machine can do it; ``needs`` says what it lacks if not."""

    name: str
    play: Callable[[Trial], None]
    possible: Callable[[], bool] = lambda: True
    needs: str = ""


_ROOT = "root and loop devices"


def _disk(name: str, play: Callable[[Trial], None], possible: Callable[[], bool] = can_mount) -> Scenario:
    return Scenario(name, play, possible, _ROOT)


def chaos() -> list[Scenario]:
    """Each kind of fault, in minutes."""
    return [
        *kill_scenarios(20),
        _disk("spool: disk full, three times", storage.full(3)),
        _disk(
            "spool: room for records, none for files",
            storage.full(2, leave=400_000, what="no room for files", artifact_bytes=900_000),
        ),
        _disk("spool: quota used up (EDQUOT)", storage.over_quota(2), can_limit),
        _disk("spool: inodes used up", storage.no_inodes),
        _disk("spool: disk fails (EIO on write), another takes its place", storage.broken(Disk.fail, "EIO")),
        _disk("spool: disk turns read-only", storage.broken(Disk.turn_read_only, "EROFS")),
        Scenario("spool: file size limit (short writes, EFBIG)", storage.limited_files),
        Scenario(
            "spool: fdatasync fails (EIO)", storage.failing_sync, lambda: shutil.which("strace") is not None, "strace"
        ),
        _disk("ledger: disk full", storage.ledger_full(2)),
        _disk("ledger: disk fails (EIO)", storage.ledger_broken(Disk.fail, "EIO")),
        _disk("ledger: disk turns read-only", storage.ledger_broken(Disk.turn_read_only, "EROFS")),
        Scenario("network: 429, 500, 502, 503, 504, 500 after the server acted", networks.weather(networks.ERRORS)),
        Scenario("network: 200 with a login page, with half a body", networks.weather(networks.LIES)),
        Scenario("network: cut before, within and after a request", networks.weather(networks.CUTS)),
        Scenario("network: no answer, or one at a byte a second", networks.weather(networks.SILENCE)),
        Scenario("network: connections refused, or swallowed", networks.unreachable),
        Scenario("network: the server's name is not known", networks.nameless, can_mount, "root"),
        Scenario("network: TLS by a stranger, expired, of another host", networks.strangers),
        Scenario("server replaced by an empty one", servers_lost.emptied),
        Scenario("server restored from a backup", servers_lost.restored),
        Scenario("clocks jump a day back", clocks.jumps(-1)),
        Scenario("clocks jump 30 days ahead", clocks.jumps(30)),
    ]


def kill_scenarios(count: int) -> list[Scenario]:
    """So many kills of trainings; fewer where an agent or even a server takes its time to come back."""
    some, few = count // 3, max(count // 15, 2)
    return [
        Scenario("SIGKILL: a training's process", kills.kills(kills.ONE_PROCESS, count)),
        Scenario("SIGKILL: a training's whole group", kills.kills(kills.GROUP, count)),
        Scenario("SIGKILL: the agent", kills.kills(kills.AGENT, some)),
        Scenario("SIGKILL: the server", kills.kills(kills.SERVER, few)),
        Scenario("SIGKILL: trainings, agent and server at once", kills.kills(kills.ALL, few)),
        Scenario("SIGKILL: any of these", kills.kills(None, count)),
    ]


#: The soak's rounds, again and again, each with dice of its own.
def soak() -> list[Scenario]:
    return kill_scenarios(60)


def short() -> list[Scenario]:
    """A few of each family, for `make test`."""
    return [
        Scenario("SIGKILL: any of these", kills.kills(None, 8)),
        _disk("spool: disk full", storage.full(1)),
        Scenario(
            "network: cut after the server acted",
            networks.weather({"cut": networks.CUTS["cut after the server acted"]}),
        ),
    ]
