"""Which timers run, how long views wait, and whether a collector is treated fairly.

[CL99 4.5.2] gives the liveness rules: a waiting time that doubles with each failed view, and that no replica runs ahead
of the others. The time is capped here (protocol 6.2): an uncapped one leaves restarted replicas hours apart.
"""

from dataclasses import dataclass
from typing import Final

from bcami.pbft.effects import CancelTimer, Outbox, SetTimer

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
    since_ms: int
    left_ms: int
    """Time left at `since_ms`."""


class Fairness:
    """One timer for each collector whose next-numbered certificate waits (protocol 4.4).

    It restarts only when that number is ordered or the view changes, and pauses while the primary is excused: the
    window is full, or this replica is late itself.
    """

    def __init__(self, timers: Timers, fairness_ms: int) -> None:
        self._timers = timers
        self._fairness_ms = fairness_ms
        self._watched: dict[int, _Watch] = {}

    def reset(self) -> None:
        """Forget all: the view changed."""
        for collector in sorted(self._watched):
            self._timers.cancel(f"{FAIRNESS}{collector}")
        self._watched.clear()

    def watch(self, owed: dict[int, int], paused: bool, now_ms: int) -> None:
        """Bring the timers in line with what the primary owes now."""
        if not owed and not self._watched:
            return
        for collector in [known for known in self._watched if self._watched[known].number != owed.get(known)]:
            del self._watched[collector]
            self._timers.cancel(f"{FAIRNESS}{collector}")
        for collector, number in sorted(owed.items()):
            watched = self._watched.setdefault(collector, _Watch(number, now_ms, self._fairness_ms))
            name = f"{FAIRNESS}{collector}"
            if paused and self._timers.is_running(name):
                passed = max(0, now_ms - watched.since_ms)
                watched.left_ms = max(1, watched.left_ms - passed)
                self._timers.cancel(name)
            elif not paused and not self._timers.is_running(name):
                watched.since_ms = now_ms
                self._timers.restart(name, watched.left_ms)
