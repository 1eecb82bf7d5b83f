"""Nodes that keep quiet: altogether, to some, or in some kinds of message."""

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING

from bcami.faults.behaviour import Behaviour, Options, ToPeers, kind_of
from bcami.model.wire import PeerMessage

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode


class Mute(Behaviour[Options]):
    """Sends nothing to any node; its gateway still answers clients."""

    name = "mute"
    family = "silence"
    claim = "the others go on; a mute primary is replaced"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        return ()


class PartialSilence(Behaviour[ToPeers]):
    """Sends nothing to some peers, drawn by the seed when none are named."""

    name = "partial_silence"
    family = "silence"
    claim = "those whom it does not speak to get everything from the others"
    options_type = ToPeers

    def __init__(self, options: ToPeers, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._peers: frozenset[int] = frozenset(options.peers)

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not self._peers:
            self._peers = frozenset(self.random.sample(node.others, max(1, len(node.others) // 2)))
        return () if to in self._peers else (message,)


class WithholdOptions(ToPeers, frozen=True, kw_only=True):
    kinds: tuple[str, ...] = ("commit",)
    """Names of messages as on the wire: prepare, commit, checkpoint, endorsement …"""


class Withhold(Behaviour[WithholdOptions]):
    """Never sends messages of some kinds."""

    name = "withhold"
    family = "silence"
    claim = "the votes of the others are enough"
    options_type = WithholdOptions

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        concerned = not self.options.peers or to in self.options.peers
        return () if concerned and kind_of(message) in self.options.kinds else (message,)
