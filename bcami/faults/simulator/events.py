"""Virtual time: what happens next, and nothing in between."""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

START_MS: Final = 1_700_000_000_000
"""Unix time at which every run begins."""

_Happening = tuple[int, int, Callable[..., None], tuple[Any, ...]]


def stream(seed: int, purpose: str) -> Random:
    """Return a stream of draws of its own, so that one part's draws do not move those of another."""
    return Random(f"bcami/simulator/{purpose}/{seed}")


class Events:
    """What is going to happen, by time; at one time in the order in which it was asked for."""

    def __init__(self) -> None:
        self.now_ms = 0
        """Milliseconds since the run began."""
        self._due: list[_Happening] = []
        self._count = 0

    @property
    def wall_ms(self) -> int:
        """Return what a perfect clock shows."""
        return START_MS + self.now_ms

    def after(self, delay_ms: int, happen: Callable[..., None], *args: Any) -> None:
        """Let something happen later; with no delay, after all that is already due now."""
        self._count += 1
        heapq.heappush(self._due, (self.now_ms + delay_ms, self._count, happen, args))

    def run_until(self, end_ms: int, is_done: Callable[[], bool] | None = None) -> bool:
        """Go on to `end_ms`; returns True, at once, when `is_done` holds after something happened."""
        due = self._due
        while due and due[0][0] <= end_ms:
            self.now_ms, _, happen, args = heapq.heappop(due)
            happen(*args)
            if is_done is not None and is_done():
                return True
        self.now_ms = end_ms
        return False
