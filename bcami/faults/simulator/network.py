"""Links that lose, delay, reorder, duplicate and replay. Worse than TLS over TCP in every way but one: nobody can speak
as another node, because a live node knows who is at the other end.
"""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Final

from bcami.model.wire import PeerMessage

KEPT_FOR_REPLAY: Final = 64
"""Newest messages of each link that may come a second time."""
DELAY_MS_MAX: Final = 30_000


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """How links behave while faults last. Rates are chances for each message."""

    delay_ms: tuple[int, int] = (1, 5)
    loss: float = 0.0
    duplication: float = 0.0
    replay: float = 0.0
    """An old message of the same link comes as well."""
    straggle: float = 0.0
    """A message takes up to `straggle_ms` longer: it is overtaken."""
    straggle_ms: int = 1_000


class Network:
    """Decides what becomes of each message."""

    def __init__(self, nodes: int, plan: NetworkPlan, draw: Random) -> None:
        self.plan = plan
        self._draw = draw
        self._nodes = nodes
        self.blocked: set[tuple[int, int]] = set()
        """Directed links that lose everything."""
        self._clogged: dict[tuple[int, int], int] = {}
        self._passed: dict[tuple[int, int], deque[PeerMessage]] = {}
        self.sent = 0
        self.lost = 0

    def passages(self, sender: int, to: int, message: PeerMessage, now_ms: int) -> list[tuple[int, PeerMessage]]:
        """Return (delay, message) of everything that comes out at the other end because of this message."""
        self.sent += 1
        link = (sender, to)
        plan, draw = self.plan, self._draw
        if link in self.blocked or (plan.loss and draw.random() < plan.loss):
            self.lost += 1
            return []
        wait_ms = max(0, self._clogged[link] - now_ms) if link in self._clogged else 0
        found = [(wait_ms + self._delay(), message)]
        if plan.duplication and draw.random() < plan.duplication:
            found.append((wait_ms + self._delay(), message))
        if plan.replay:
            passed = self._passed.setdefault(link, deque(maxlen=KEPT_FOR_REPLAY))
            if passed and draw.random() < plan.replay:
                found.append((wait_ms + self._delay(), passed[draw.randrange(len(passed))]))
            passed.append(message)
        return found

    def _delay(self) -> int:
        plan, draw = self.plan, self._draw
        low, high = plan.delay_ms
        delay_ms = low + int(draw.random() * (high - low + 1))
        if plan.straggle and draw.random() < plan.straggle:
            delay_ms += int(draw.random() * plan.straggle_ms)
        return delay_ms

    # Faults.

    def isolate(self, node: int) -> None:
        """Cut a node off, both ways."""
        for other in range(self._nodes):
            self.blocked |= {(node, other), (other, node)}

    def split(self, left: list[int]) -> None:
        """Cut the nodes in two sides."""
        right = [node for node in range(self._nodes) if node not in left]
        self.blocked |= {link for a in left for b in right for link in ((a, b), (b, a))}

    def bridge(self, order: list[int]) -> None:
        """Leave two overlapping sides: only the node in the middle hears both (fault F3)."""
        middle = len(order) // 2
        self.blocked |= {link for a in order[:middle] for b in order[middle + 1 :] for link in ((a, b), (b, a))}

    def cut(self, sender: int, to: int) -> None:
        """Cut one direction of one link."""
        self.blocked.add((sender, to))

    def clog(self, sender: int, to: int, until_ms: int) -> None:
        """Keep everything on one link back until a time."""
        self._clogged[sender, to] = until_ms

    def heal(self) -> None:
        """Let everything through again; what was clogged comes at once from now on."""
        self.blocked.clear()
        self._clogged.clear()
