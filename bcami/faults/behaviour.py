"""What a behaviour may do to its node: change what leaves, swallow what comes in, speak up by itself, judge and answer
falsely.

A behaviour is a small class with its options. `FaultyNode` asks it at each of these places, counts how often it acted,
and stops asking when its lease is over.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec

from bcami.model.reasons import Reason
from bcami.model.registration import ContributionAnswer, ContributionRequest
from bcami.model.transaction import Transaction
from bcami.model.wire import PeerMessage
from bcami.node.core.effects import Broadcast, Effect, Send

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a behaviour can be told. Nodes are replica ids here; whoever reads a file turns names into ids."""


class ToPeers(Options, frozen=True, kw_only=True):
    """Options of what concerns some peers only."""

    peers: tuple[int, ...] = ()
    """Replica ids; all others when empty."""


O = TypeVar("O", bound=Options)  # noqa: E741 - the options of the behaviour, in this file only


class Behaviour(Generic[O]):
    """One way to misbehave. A subclass overrides what it does; everything else stays as the node does it."""

    name: ClassVar[str]
    family: ClassVar[str]
    claim: ClassVar[str]
    """What must hold all the same."""
    options_type: ClassVar[type[Options]] = Options
    is_byzantine: ClassVar[bool] = True
    """False where the node stays honest and its links or its disk are to blame."""
    order: ClassVar[int] = 0
    """Behaviours of a lower order see messages first: what a node says comes before what its links make of it."""

    def __init__(self, options: O, randomness: Random) -> None:
        self.options = options
        self.random = randomness
        self.acted = 0
        """How often something was changed, swallowed or forged: a fault that never acted proved nothing."""

    def outgoing(self, node: "FaultyNode", effects: Sequence[Effect], now_ms: int) -> list[Effect]:
        """Return the effects that leave instead; by default each message to each peer passes `sent`."""
        result: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Send):
                result += self._one(node, effect.to, effect, now_ms)
            elif isinstance(effect, Broadcast):
                changed = [item for to in node.others for item in self._one(node, to, Send(to, effect.message), now_ms)]
                untouched = [Send(to, effect.message) for to in node.others]
                result += [effect] if changed == untouched else changed
            else:
                result.append(effect)
        return result

    def _one(self, node: "FaultyNode", to: int, effect: Send, now_ms: int) -> list[Effect]:
        messages = list(self.sent(node, to, effect.message, now_ms))
        if len(messages) == 1 and messages[0] is effect.message:
            return [effect]
        self.acted += 1
        return [Send(to, message) for message in messages]

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        """Return what goes to the peer in place of the message."""
        return (message,)

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        """Tell whether the node gets to see the message."""
        return True

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        """Do something unasked; called every TICK_MS."""
        return []

    def verdict(self, node: "FaultyNode", tx: Transaction, honest: Reason | None) -> Reason | None:
        """Return why the node refuses a transaction, when admitting and when endorsing; None accepts it."""
        return honest

    def answer(
        self, node: "FaultyNode", request: ContributionRequest, answer: ContributionAnswer
    ) -> ContributionAnswer | Reason:
        """Return the answer to a request for a key share."""
        return answer


AnyBehaviour = Behaviour[Any]


def kind_of(message: PeerMessage) -> str:
    """Return the name of a message's type, as on the wire: pre_prepare, prepare, batch, status and so on."""
    return str(message.__struct_config__.tag)


def flipped(data: bytes, randomness: Random) -> bytes:
    """Return the bytes with one bit turned; no bytes stay none."""
    if not data:
        return data
    place = randomness.randrange(len(data) * 8)
    changed = bytearray(data)
    changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)
