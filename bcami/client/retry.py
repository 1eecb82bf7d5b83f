"""Decides what to do next with a transaction that nodes were asked to carry. Pure: time and seed come in.

The rules, with their source in protocol.md:
* The same bytes are sent again, to any node, until there is a receipt (3.1): a proven outcome is final (3.5).
* `unknown` (accepted, no receipt in time) is no answer: ask again.
* A node that fails, is silent, is full (429) or not ready is left alone for a while, growing up to a cap, at least as
  long as its Retry-After says; meanwhile others are asked.
* A refusal is one node's word, and counts when that node signed it. When weak (f+1) different nodes refuse, one of
  them is honest: the number is abandoned (3.4). A client that was given fewer nodes than that decides by all it has.
  Abandoning is safe even when the refusals were lies: if the old bytes are executed after all, the MDMS stores each
  interval once.
"""

import enum
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

from bcami.model.reasons import BUSY_REASONS, Reason

AMNESIA_MS: Final = 60_000
"""A node that lost its vote log is asked again after so long: it comes back under a new key, or never."""

LAGGING_REASONS: Final = frozenset(
    {
        Reason.UNKNOWN_HID,
        Reason.UNKNOWN_SESSION,
        Reason.UNKNOWN_PERIOD,
        Reason.TIMESTAMP_AHEAD,
        Reason.REPLAY,
    }
)
"""A node that is a block or a second behind says these of a good transaction (`replay`: one that knows the id only
from another's batch)."""
LAGGING_MS: Final = 1_500
"""For so long after the first such word they do not count: time to catch up."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double with each failure up to a cap, the upper half of each drawn from the seed."""

    first_ms: int = 50
    cap_ms: int = 5_000

    def delay_ms(self, failures: int, seed: bytes) -> int:
        """Return the delay after the `failures`-th failure in a row, 1 being the first."""
        full = min(self.cap_ms, self.first_ms << min(failures - 1, 30))
        drawn = int.from_bytes(sha256(b"bcami/backoff/1" + seed + failures.to_bytes(4, "big")).digest()[:8], "big")
        return full - full // 2 + drawn % (full // 2 + 1)


class Send(NamedTuple):
    """Send the same bytes to `node`, not before `at_ms`."""

    node: int
    at_ms: int


class Verdict(enum.Enum):
    """What an answer means for a transaction."""

    AGAIN = "again"
    ABANDON = "abandon"


class NodePool:
    """Which nodes can be asked, and from when on."""

    def __init__(self, count: int, seed: bytes, backoff: Backoff | None = None) -> None:
        if count < 1:
            raise ValueError("at least one node is needed")
        self._backoff = backoff or Backoff()
        self._seed = seed
        self._failures = [0] * count
        self._from_ms = [0] * count

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, node: int, now_ms: int, retry_after_ms: int = 0) -> None:
        """Leave the node alone for a while. Several failures of requests that ran together count once."""
        if now_ms < self._from_ms[node]:
            self._from_ms[node] = max(self._from_ms[node], now_ms + retry_after_ms)
            return
        self._failures[node] += 1
        delay = self._backoff.delay_ms(self._failures[node], self._seed + node.to_bytes(4, "big"))
        self._from_ms[node] = now_ms + max(delay, retry_after_ms)

    def succeeded(self, node: int) -> None:
        self._failures[node] = 0
        self._from_ms[node] = 0

    def is_suspect(self, node: int) -> bool:
        """Tell whether the node's last answer was a failure: then one request at a time is enough to find out."""
        return self._failures[node] > 0

    def available_at_ms(self, node: int) -> int:
        return self._from_ms[node]

    def choose(self, preferred: int, now_ms: int, avoid: Container[int] = ()) -> Send:
        """Return the node to ask: the first from `preferred` on that is free and not avoided, else the soonest."""
        count = len(self._failures)
        order = [(preferred + step) % count for step in range(count)]
        wanted = [node for node in order if node not in avoid] or order
        for node in wanted:
            if self._from_ms[node] <= now_ms:
                return Send(node, now_ms)
        soonest = min(wanted, key=lambda node: self._from_ms[node])
        return Send(soonest, self._from_ms[soonest])


UNKNOWNS_AT_A_NODE: Final = 2
"""Times that a node may say `unknown` before the same bytes go to another: its lane may be stuck (protocol 4.2)."""


@dataclass(slots=True)
class Retry:
    """The history of one transaction that was not settled at the first attempt."""

    home: int
    """The node that is asked while nothing speaks against it."""
    weak: int
    """Different nodes whose signed refusals abandon the transaction."""
    seed: bytes
    backoff: Backoff = field(default_factory=lambda: Backoff(cap_ms=500))
    refusals: dict[int, Reason] = field(default_factory=dict)
    """By the replica that signed."""
    refusers: set[int] = field(default_factory=set)
    """Nodes that are not asked again."""
    lagging_from_ms: int | None = None
    unknowns: int = 0
    rounds: int = 0
    wait_until_ms: int = 0

    def next(self, pool: NodePool, now_ms: int) -> Send:
        """Return where and when to send the same bytes again."""
        send = pool.choose(self.home, max(now_ms, self.wait_until_ms), self.refusers)
        return Send(send.node, max(send.at_ms, self.wait_until_ms))

    def unreachable(self, node: int) -> Verdict:
        """The node failed or was busy: go on with the next one."""
        self.unknowns = 0
        self.home = node + 1
        return Verdict.AGAIN

    def unknown(self, node: int, now_ms: int) -> Verdict:
        """The node has it and no receipt yet."""
        self._slow_down(now_ms)
        self.unknowns += 1
        if self.unknowns >= UNKNOWNS_AT_A_NODE:
            self.unknowns = 0
            self.home = node + 1
        return Verdict.AGAIN

    def unproven(self, node: int, now_ms: int) -> Verdict:
        """The node claimed an outcome and did not prove it: it lies or is broken."""
        self._slow_down(now_ms)
        self.home = node + 1
        return Verdict.AGAIN

    def refused(
        self, node: int, reason: Reason, now_ms: int, retry_after_ms: int = 0, *, signer: int | None = None
    ) -> Verdict:
        """Count one node's no: that of the replica `signer`, None when nobody's signature is under it."""
        if reason is Reason.AMNESIA:
            return self.unreachable(node)  # no other node has it for that reason: ask the next one at once
        self.home = node + 1
        self._slow_down(now_ms)
        if reason in BUSY_REASONS:
            self.wait_until_ms = max(self.wait_until_ms, now_ms + retry_after_ms)
            return Verdict.AGAIN
        if reason in LAGGING_REASONS:
            if self.lagging_from_ms is None:
                self.lagging_from_ms = now_ms
            if now_ms < self.lagging_from_ms + LAGGING_MS:
                return Verdict.AGAIN
        if signer is None:
            return Verdict.AGAIN
        self.refusals[signer] = reason
        self.refusers.add(node)
        if len(self.refusals) >= self.weak:
            return Verdict.ABANDON
        return Verdict.AGAIN

    def _slow_down(self, now_ms: int) -> None:
        self.rounds += 1
        self.wait_until_ms = max(self.wait_until_ms, now_ms + self.backoff.delay_ms(self.rounds, self.seed))


def common_reason(reasons: Sequence[Reason]) -> Reason:
    """Return the reason that most nodes gave; among equals the one given last."""
    return max(reversed(reasons), key=reasons.count)
