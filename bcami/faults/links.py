"""Links that lose, delay, double or cut off messages. The node stays honest: its network is to blame.

A link is directed: these act on what the node sends to the peers. `cut` also swallows what comes from them.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import msgspec

from bcami.faults.behaviour import Behaviour, ToPeers
from bcami.model.wire import PeerMessage

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=60_000)]


class Cut(Behaviour[ToPeers]):
    """Nothing passes between the node and the peers, in either direction."""

    name = "cut"
    family = "links"
    claim = "a side with a strong quorum goes on; without one all wait, and go on when the cut heals"
    options_type = ToPeers
    is_byzantine = False
    order = 1

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        return () if self._is_cut(to) else (message,)

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        return not self._is_cut(peer)

    def _is_cut(self, peer: int) -> bool:
        return not self.options.peers or peer in self.options.peers


class LossOptions(ToPeers, frozen=True, kw_only=True):
    share: Share = 0.2
    """Of the messages that are lost."""


class Loss(Behaviour[LossOptions]):
    """Loses a share of the messages."""

    name = "loss"
    family = "links"
    claim = "votes are sent again until they are not needed; nothing is lost for good"
    options_type = LossOptions
    is_byzantine = False
    order = 1

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        concerned = not self.options.peers or to in self.options.peers
        return () if concerned and self.random.random() < self.options.share else (message,)


class DelayOptions(ToPeers, frozen=True, kw_only=True):
    ms: Millis = 80
    jitter_ms: Millis = 40
    """Drawn evenly and added; messages overtake each other by it."""


class Delay(Behaviour[DelayOptions]):
    """Delivers late, and out of order."""

    name = "delay"
    family = "links"
    claim = "latency grows by the delay of each phase; no view change while it is below the view timer"
    options_type = DelayOptions
    is_byzantine = False
    order = 3

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if self.options.peers and to not in self.options.peers:
            return (message,)
        late_ms = self.options.ms + self.random.randint(0, self.options.jitter_ms)
        return () if node.hold_back(to, message, now_ms + late_ms) else (message,)


class DuplicateOptions(ToPeers, frozen=True, kw_only=True):
    share: Share = 0.5
    copies: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    """More than the one that is due."""
    late_ms: Millis = 200
    """Up to so late."""


class Duplicate(Behaviour[DuplicateOptions]):
    """Delivers messages more than once, copies at any time."""

    name = "duplicate"
    family = "links"
    claim = "a repeated message changes nothing"
    options_type = DuplicateOptions
    is_byzantine = False
    order = 2

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        concerned = not self.options.peers or to in self.options.peers
        if not concerned or self.random.random() >= self.options.share:
            return (message,)
        for _ in range(self.options.copies):
            node.hold_back(to, message, now_ms + self.random.randint(0, self.options.late_ms))
        return (message, message)
