"""Networks between the agent and a real server that refuse, swallow, cut, delay and lie, while trainings log.

Each fault befalls every request for a while, and then some of them, at random. Afterwards the network behaves, and the
server must come to hold what was logged, each thing once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tests import faults
from tests.chaos.trial import Trial
from tests.faults import Fault, FaultProxy, Kind, black_hole
from tests.servers import free_port, self_signed
from tests.spooling import wait_until

#: Seconds for which a fault befalls everything.
_LASTS_S = 1.5

#: Seconds within which an agent asks again, however it was answered.
_ASKS_WITHIN_S = 60.0

#: So many more faults of a kind befall single requests.
_SPRINKLED = 6

#: Who waits for an answer waits so long; in seconds.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}

_ENDPOINTS = ("runs/search", "runs/create", "log-batch", "mlflow-artifacts", "runs/update", "experiments/create", "")

ERRORS: dict[str, Fault] = {
    "429": faults.too_many_requests("1"),
    **{str(status): faults.reply(status, b"<html>unwell</html>") for status in (500, 502, 503, 504)},
    "500 after the server acted": faults.commit_then_reply(500, b'{"error_code": "INTERNAL_ERROR", "message": "?"}'),
}
LIES: dict[str, Fault] = {
    "200 with a login page": faults.captive_portal(),
    "200 with half a body": faults.TRUNCATE,
}
CUTS: dict[str, Fault] = {
    "cut before the request": faults.CUT_BEFORE,
    "cut within the request": faults.cut_mid_request(20),
    "cut within the answer": faults.CUT_MID_RESPONSE,
    "cut after the server acted": faults.COMMIT_THEN_CUT,
}
SILENCE: dict[str, Fault] = {
    "no answer": faults.HANG,
    "no answer after the server acted": faults.COMMIT_THEN_HANG,
    "an answer at a byte a second": faults.DRIP,
}


def weather(kinds: Mapping[str, Fault]) -> Callable[[Trial], None]:
    """One kind of fault after the other."""

    def scenario(trial: Trial) -> None:
        with FaultProxy(trial.server.port) as proxy, trial.using(to=proxy.url, environ=_PATIENCE):
            _begin(trial)
            for name, fault in kinds.items():
                before = _befallen(proxy)
                proxy.add(fault, times=None)
                time.sleep(_LASTS_S)
                # An agent that the fault before has made wait asks rarely.
                with contextlib.suppress(AssertionError):
                    wait_until(lambda before=before: _befallen(proxy) > before, "a request", _ASKS_WITHIN_S)
                proxy.clear()
                for _ in range(_SPRINKLED):
                    proxy.add(fault, path=trial.dice.choice(_ENDPOINTS), skip=trial.dice.randrange(3))
                trial.job("sdk", pace_s=0.02)
                time.sleep(_LASTS_S)
                proxy.clear()
                trial.tally.faults[name] += _befallen(proxy) - before
            trial.ferry = replace(trial.ferry, environ={})  # a second is not enough for a machine that is busy
            trial.settle()
            _expect_faults(trial, kinds)

    return scenario


def _befallen(proxy: FaultProxy) -> int:
    """Requests that met a fault."""
    counts = proxy.counts()
    return sum(counts.values()) - counts[Kind.PASS]


def _begin(trial: Trial, *, agent: bool = True) -> None:
    trial.job("sdk", pace_s=0.01)
    trial.job("plugin", pace_s=0.01)
    if agent:
        trial.start_agent()
        trial.await_agent()
    for job in trial.jobs:
        job.await_notes("metrics", 10)


def _expect_faults(trial: Trial, kinds: Mapping[str, Fault]) -> None:
    never = [name for name in kinds if not trial.tally.faults[name]]
    if never:
        trial.tally.found.apart.append(f"nothing met these faults: {never}")


def unreachable(trial: Trial) -> None:
    """Nobody listens; then nobody answers an attempt to connect; then the server is there again."""
    port = free_port()
    with trial.using(to=f"http://127.0.0.1:{port}", environ=_PATIENCE):
        _begin(trial)
        for _ in range(2):
            time.sleep(_LASTS_S)
            trial.tally.faults["refused"] += 1
            with black_hole(port):
                time.sleep(2 * _LASTS_S)
                trial.tally.faults["swallowed"] += 1
            with FaultProxy(trial.server.port, port) as proxy:
                wait_until(lambda proxy=proxy: len(proxy.seen) > 5, "the agent comes back", 60)
        with FaultProxy(trial.server.port, port):
            trial.settle()


def nameless(trial: Trial) -> None:
    """The server's name is not known to the resolver, and then it is."""
    hosts = trial.folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    before = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    with FaultProxy(trial.server.port) as proxy:
        url = f"http://server.invalid:{proxy.port}"
        with trial.using(to=url, environ=_PATIENCE, before=before):
            _begin(trial)
            time.sleep(2 * _LASTS_S)
            trial.tally.faults["name not known"] += 1
            if "server.invalid:" not in trial.agent_log.read_text() or proxy.seen:
                trial.tally.found.apart.append("a name that is not known did not matter")
            hosts.write_text("127.0.0.1 localhost server.invalid\n")
            wait_until(lambda: len(proxy.seen) > 5, "the agent comes to know the name")
            trial.settle()


def strangers(trial: Trial) -> None:
    """TLS with a certificate that is its own, expired, or another host's: nothing is sent. Then with the right one."""
    good = self_signed(trial.folder / "good.pem")
    bad = {
        "certificate of its own": (self_signed(trial.folder / "own.pem"), good),
        "certificate expired": (expired := self_signed(trial.folder / "expired.pem", days=(-9, -1)), expired),
        "certificate of another host": (other := self_signed(trial.folder / "other.pem", address="127.0.0.2"), other),
    }
    port = free_port()
    with trial.using(to=f"https://127.0.0.1:{port}", environ=_trusting(good)):
        _begin(trial, agent=False)
        for name, (shown, trusted) in bad.items():
            with FaultProxy(trial.server.port, port, shown) as proxy:
                done = replace(trial.ferry, environ=_trusting(trusted))("sync", "--give-up-after", "2")
                trial.tally.faults[name] += 1
                words = done.stdout + done.stderr
                if done.returncode != 1 or "ertificate" not in words or proxy.seen:
                    trial.tally.found.apart.append(f"{name}: {done.returncode}, {len(proxy.seen)} requests: {words}")
        with FaultProxy(trial.server.port, port, good):
            trial.start_agent()
            trial.await_agent()
            trial.settle()


def _trusting(certificate: Path) -> dict[str, str]:
    return {**_PATIENCE, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate)}
