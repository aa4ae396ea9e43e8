"""Tells systemd how the agent does (sd_notify(3)): ready, reloading, alive, stopping, a status line. No systemd: nothing."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Speaks to ``$NOTIFY_SOCKET``. ``watchdog_s``: seconds between two signs of life, half of what systemd allows."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 2e6 if usec.isdecimal() else None
        self._said, self._said_at = "", -math.inf

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """Until ``ready`` is said again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self, status: str) -> None:
        """``status`` is one line for ``systemctl status``. It may be called all the time: what systemd knows is not said
        again, but for the sign of life before it is due."""
        now = time.monotonic()
        if status != self._said or now - self._said_at >= (self.watchdog_s or math.inf) / 2:
            self._said, self._said_at = status, now
            self._send(f"WATCHDOG=1\nSTATUS={status}")

    def _send(self, message: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(message.encode(), address)
