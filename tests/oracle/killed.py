"""A script that is killed while it logs offline: what its spool holds then is what arrives, and no more."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from tests.oracle import differences
from tests.oracle.normalise import Flat
from tests.oracle.stage import Stage

#: What is written once and stays, so that a part of an execution is found again in a whole one. (Tables grow.)
_FINAL = ("runs/*/params/*", "runs/*/points/*/value", "runs/*/files/*")
_GROWING = ("runs/*/files/*table*",)

_SPOOLED = re.compile(rb"spool:[^\s\"']*?/artifacts/(?:\d+|<experiment>)")
_NOTHING = ("models/*/model_type", "models/*/status_message")


def wrong(stage: Stage, script: str, *words: str, seed: int) -> list[str]:
    """Kill the script at a moment drawn with ``seed``, deliver, and say in sentences what is not as it must be."""
    title = "-".join((script, *words))
    if not stage.spool(title).exists():
        stage.perform_offline(script, *words, title=title)
    name = f"{title}.killed.{seed}"
    killed, share = stage.kill_offline(script, *words, title=name, seed=seed, whole=title)
    print(f"{name}: SIGKILL after {share:.0%} of its logs")
    spooled = stage.spooled(name, killed)
    delivered = stage.deliver(name)
    assert delivered.returncode == 0, delivered.stdout + delivered.stderr
    found = stage.held(stage.target, killed)
    stage.forget()
    assert spooled.get("experiments/count"), killed.words
    whole = stage.spooled(title, killed)
    # A registry behind a server says "nothing" in other ways: by empty texts, and by words such as UNSPECIFIED.
    unset = [path for path, value in spooled.items() if value is None and path.startswith("registered/")]
    return [*differences.between(closed(spooled), found, [*differences.allowed(), *unset]), *_invented(found, whole)]


def closed(spooled: Flat) -> Flat:
    """What must arrive of a spool whose writers are dead: its runs that were running are killed, at their last sign."""
    expected = {path: _on_server(path, value) for path, value in spooled.items()}
    for path in [path for path, value in spooled.items() if fnmatchcase(path, "runs/*/status") and value == "RUNNING"]:
        run = path.removesuffix("status")
        expected |= {path: "KILLED", f"{run}end_time": "<during the script>"}
    return expected


def _on_server(path: str, value: Any) -> Any:
    """A value of a local store as one that came through a server: under its addresses, and nothing is an empty text."""
    if value is None and _is(path, _NOTHING):
        return ""
    if fnmatchcase(path, "registered/*/versions/*/version"):
        return str(value)
    if isinstance(value, bytes):
        return _SPOOLED.sub(b"mlflow-artifacts:/<experiment>", value)
    return _SPOOLED.sub(b"mlflow-artifacts:/<experiment>", value.encode()).decode() if isinstance(value, str) else value


def _invented(found: Flat, whole: Flat) -> list[str]:
    """What arrived of a killed execution and is not in a whole one."""
    settled = [path for path in found if _is(path, _FINAL) and not _is(path, _GROWING)]
    return [f"{path}: a whole execution has no such thing" for path in settled if found[path] != whole.get(path)]


def _is(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
