"""Which timers run, how long views wait, and whether a collector is treated fairly.

[CL99 4.5.2] gives the liveness rules: a waiting time that doubles with each failed view, and that no replica runs ahead
of the others. The time is capped here (protocol 6.2): an uncapped one leaves restarted replicas hours apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bcami.pbft.effects import CancelTimer, Outbox, SetTimer
from bcami.pbft.monitor import Owed

VIEW: Final = "view"
"""Runs while something waits to be ordered; progress restarts it."""
VIEW_CHANGE: Final = "view_change"
"""Runs while a strong quorum has left for a view whose NEW-VIEW is missing."""
CATCH_UP: Final = "catch_up"
"""Runs while others are certified above what is decided here."""
CERTIFY: Final = "certify"
"""Runs while an executed block has no certificate. A primary that shows a proposal to just a quorum can decide it with
the votes of faulty replicas, which then keep their checkpoints back; only a view change brings it to the others."""
FAIRNESS: Final = "fairness/"
"""With the collector's replica id; see protocol 4.4."""
RELAY: Final = "relay/"
"""With the collector's replica id: its certificate waits for long enough to be sent to the primary by this replica."""
RELAY_DIVISOR: Final = 10
"""A certificate that another replica collected is passed on to the primary after a tenth of the view timer."""


class Timers:
    """The timers that run, by name."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._running: set[str] = set()

    def is_running(self, name: str) -> bool:
        return name in self._running

    def restart(self, name: str, delay_ms: int) -> None:
        self._running.add(name)
        self._out.add(SetTimer(name, delay_ms))

    def cancel(self, name: str) -> None:
        if name in self._running:
            self._running.remove(name)
            self._out.add(CancelTimer(name))

    def keep(self, name: str, wanted: bool, delay_ms: int) -> None:
        """Start the timer when it is wanted and does not run; cancel it when it is not wanted."""
        if not wanted:
            self.cancel(name)
        elif name not in self._running:
            self.restart(name, delay_ms)

    def has_fired(self, name: str) -> bool:
        """Take note that the timer ran out; False when it was cancelled meanwhile."""
        if name not in self._running:
            return False
        self._running.remove(name)
        return True

    def cancel_all(self) -> None:
        for name in sorted(self._running):
            self.cancel(name)


class Backoff:
    """The view timer: doubles for each view that failed, up to the cap; progress brings it back [CL99 4.5.2]."""

    def __init__(self, base_ms: int, cap_ms: int) -> None:
        self._base_ms = base_ms
        self._cap_ms = cap_ms
        self._failures = 0

    @property
    def delay_ms(self) -> int:
        doublings = min(max(0, self._failures - 1), 32)
        return max(1, min(self._base_ms << doublings, self._cap_ms))

    def failed(self) -> None:
        self._failures += 1

    def progressed(self) -> None:
        self._failures = 0


@dataclass(slots=True)
class _Watch:
    number: int
    left_ms: int
    """Time left at `since_ms`."""
    since_ms: int = 0
    is_sent: bool = False
    """The certificate is at the primary as far as this replica can see to it."""


class Fairness:
    """One timer for each collector whose next-numbered certificate waits (protocol 4.4).

    It starts when the certificate was sent to the primary, restarts only when that number is ordered or the view
    changes, and pauses while the primary is excused: the window is full, or this replica is late itself.

    Whoever collected a certificate sends it to everybody. But a faulty collector may leave out the primary, so that
    the others blame it: a replica sends what it did not collect itself to the primary once it has waited a while (in a
    new view at once, because the new primary may have missed it), and only then the timer starts.
    """

    def __init__(self, timers: Timers, fairness_ms: int, relay_ms: int) -> None:
        self._timers = timers
        self._fairness_ms = fairness_ms
        self._relay_ms = relay_ms
        self._watched: dict[int, _Watch] = {}
        self._is_new_view = False

    def reset(self) -> None:
        """Forget all: the view changed."""
        for collector in sorted(self._watched):
            self._cancel(collector)
        self._watched.clear()
        self._is_new_view = True

    @property
    def is_owed(self) -> bool:
        """Tell whether the primary has something that it did not order yet."""
        return any(watched.is_sent for watched in self._watched.values())

    def owed(self) -> dict[int, Owed]:
        """Return what waits, by collector."""
        return {collector: Owed(item.number, item.is_sent) for collector, item in self._watched.items()}

    def relay(self, collector: int) -> bool:
        """Count the certificate as sent from here on; False when it was ordered meanwhile."""
        watched = self._watched.get(collector)
        if watched is None or watched.is_sent:
            return False
        watched.is_sent = True
        return True

    def watch(self, owed: dict[int, int], at_primary: Callable[[int], bool], paused: bool, now_ms: int) -> list[int]:
        """Bring the timers in line with what the primary owes now; returns whose certificates to send to it now.

        `at_primary` tells whose certificates it has from their collector: its own, and those of this replica.
        """
        if not owed and not self._watched:
            self._is_new_view = False
            return []
        for collector in [known for known in self._watched if self._watched[known].number != owed.get(known)]:
            del self._watched[collector]
            self._cancel(collector)
        relayed = []
        for collector, number in sorted(owed.items()):
            watched = self._watched.get(collector)
            if watched is None:
                watched = self._watched[collector] = _Watch(number, self._fairness_ms)
                watched.is_sent = self._is_new_view or at_primary(collector)
                if self._is_new_view:
                    relayed.append(collector)
            self._time(collector, watched, paused, now_ms)
        self._is_new_view = False
        return relayed

    def _time(self, collector: int, watched: _Watch, paused: bool, now_ms: int) -> None:
        name = f"{FAIRNESS}{collector}"
        self._timers.keep(f"{RELAY}{collector}", not paused and not watched.is_sent, self._relay_ms)
        if paused and self._timers.is_running(name):
            passed = max(0, now_ms - watched.since_ms)
            watched.left_ms = max(1, watched.left_ms - passed)
            self._timers.cancel(name)
        elif not paused and watched.is_sent and not self._timers.is_running(name):
            watched.since_ms = now_ms
            self._timers.restart(name, watched.left_ms)

    def _cancel(self, collector: int) -> None:
        self._timers.cancel(f"{RELAY}{collector}")
        self._timers.cancel(f"{FAIRNESS}{collector}")
