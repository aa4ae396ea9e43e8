"""Values on their way from a device: which have landed, and who is told. Owns the helper thread; calls no torch.

A thread that logs only appends to ``_arrived``, which takes no lock, so it never waits for the helper, which may be writing
to a disk. Everything else is done with ``_lock`` held, by the helper or by a thread that may wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from mlferry.devices.accelerator import tolerate_captures
from mlferry.errors import DeviceFailed, NeverCame
from mlferry.values import Call

__all__ = ["Cargo", "Flight", "Flights"]

#: Seconds between two looks at what is in flight: what SIGKILL takes besides what the device has not computed. Each look
#: takes the GIL for some microseconds.
_LOOK_S = 0.01

#: Seconds without a flight after which the helper sleeps until it is woken, which costs the thread that logs a system call.
_LINGER_S = 2.0


class Cargo(Protocol):
    """What a flight carries."""

    def landed(self) -> bool:
        """Whether it can be read. Raises what the device raises: it never will be."""
        ...

    def values(self) -> dict[str, float]:
        """The numbers, once it has landed."""
        ...

    def release(self) -> None:
        """Nobody needs it any more, and the device does not write to it."""
        ...


@dataclass(slots=True)
class Flight:
    """The values of a call that one event announces.

    Attributes:
        lane: flights of one lane land in the order of their departure: a device and a stream.
        count: how many values it carries.
        call: who waits for them; None once that was given up.
    """

    lane: Hashable
    cargo: Cargo
    count: int
    call: Call | None


class Flights:
    """Everything in flight in this process.

    Args:
        new_thread: makes the helper.
        prepare: called in the helper before it asks a device anything.
    """

    def __init__(
        self,
        new_thread: Callable[..., threading.Thread] = threading.Thread,
        prepare: Callable[[], None] = tolerate_captures,
    ) -> None:
        self._new_thread = new_thread
        self._prepare = prepare
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._starting = threading.RLock()
        self._arrived: deque[Flight] = deque()
        self._lanes: dict[Hashable, deque[Flight]] = {}
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._thread: threading.Thread | None = None

    def forget(self) -> object:
        """In a forked child: what is in flight is the parent's. Returns it, to be kept from being destroyed here."""
        parents = (self._arrived, self._lanes)
        self._begin()
        return parents

    def add(self, flight: Flight) -> None:
        """Take charge of a flight; never waits for another one."""
        self._arrived.append(flight)
        if self._thread is None:
            self._start()
        elif self._idle:
            self._wake.put(None)

    # -- the helper thread -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Where no thread can be had, what is in flight is looked after when somebody waits for it."""
        with self._starting:
            if self._thread is None:
                thread = self._new_thread(target=self._run, name="mlferry-devices", daemon=True)
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        self._prepare()
        flew_at = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            self.look()
            if self._any():
                flew_at = time.monotonic()
            elif time.monotonic() - flew_at > _LINGER_S:
                self._rest()

    def _rest(self) -> None:
        """Sleep until there is something in flight."""
        self._idle = True  # before the look: who adds a flight from now on wakes
        if not self._any():
            self._wake.get()
        self._idle = False

    def _any(self) -> bool:
        return bool(self._arrived or self._lanes)

    # -- looking ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Have every flight that has landed logged, and every one that never will be counted. Asks, and waits for none."""
        with self._lock:
            self._sort_in()
            for lane in list(self._lanes):
                flights = self._lanes[lane]
                while flights and self._over(flights[0]):
                    flights.popleft()
                if not flights:
                    del self._lanes[lane]

    def _sort_in(self) -> None:
        while self._arrived:
            flight = self._arrived.popleft()
            self._lanes.setdefault(flight.lane, deque()).append(flight)

    def _over(self, flight: Flight) -> bool:
        """Whether it has come to an end, this way or that."""
        call, cargo = flight.call, flight.cargo
        try:
            if not cargo.landed():
                return False
            if call is not None:
                call.deliver(cargo.values())
            cargo.release()
        except Exception as error:  # whatever the device has come to
            if "captur" in str(error):  # where the driver could not be told to tolerate it: ask again later
                return False
            if call is not None:
                call.lose(DeviceFailed(f"{type(error).__name__}: {error!s:.200}"), flight.count)
        return True

    # -- ends ------------------------------------------------------------------------------------------------

    def settle(self, timeout_s: float, owner: object | None = None) -> bool:
        """Wait until everything in flight (of ``owner``, if given) is logged; False: the time was not enough.

        What of ``owner``'s has not come by then is counted as lost, and not logged when it comes.
        """
        until = time.monotonic() + timeout_s
        while self._busy(owner):
            if time.monotonic() >= until:
                self._give_up(owner)
                return False
            time.sleep(_LOOK_S / 5)
        return True

    def _busy(self, owner: object | None) -> bool:
        if self._thread is None or not self._thread.is_alive():
            self.look()
        with self._lock:
            return any(True for _ in self._flights_of(owner))

    def _give_up(self, owner: object | None) -> None:
        if owner is None:
            return
        with self._lock:
            for flight in list(self._flights_of(owner)):
                call, flight.call = flight.call, None
                if call is not None:
                    call.lose(NeverCame(), flight.count)

    def _flights_of(self, owner: object | None) -> Iterator[Flight]:
        self._sort_in()
        for flights in self._lanes.values():
            for flight in flights:
                if flight.call is not None and owner in (None, flight.call.owner):
                    yield flight
