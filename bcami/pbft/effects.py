"""What a replica wants done: a closed set of frozen records, and the collector that one step fills.

The shell carries effects out in their order. Its duties:

1. Every `Persist` is durable before any later `Broadcast` or `SendTo` of any step leaves (protocol 5.2). Several may
   share one durable write. When the write fails, nothing later leaves and the replica is not stepped again.
2. `Decided` heights are executed in order; a height that catch-up has executed meanwhile is skipped.
3. `SetTimer` replaces the timer of the same name.
4. After `Halt` the replica answers nothing any more; an operator has to look (protocol 5.4).
"""

from collections import Counter
from typing import Final

import msgspec

from bcami.codec import encode
from bcami.model.batch import BatchCertificate
from bcami.model.block import BlockCertificate
from bcami.model.consensus import ConsensusMessage, Proposal
from bcami.model.events import EquivocationSeen, Halted, Observation, Refused
from bcami.model.reasons import Reason


class Persist(msgspec.Struct, frozen=True):
    """Store the value under the key, in place of an earlier one, before anything later is sent."""

    key: bytes
    value: bytes


class Forget(msgspec.Struct, frozen=True):
    """Records that nothing rests on any more; deleting them is not urgent."""

    keys: tuple[bytes, ...]


class Broadcast(msgspec.Struct, frozen=True):
    """Send to every other replica."""

    message: ConsensusMessage


class SendTo(msgspec.Struct, frozen=True):
    replica: int
    message: ConsensusMessage


class Relay(msgspec.Struct, frozen=True):
    """Send a certificate that this replica did not collect to the primary: time counts against it from now on."""

    replica: int
    certificate: BatchCertificate


class TellStatus(msgspec.Struct, frozen=True):
    """Tell all peers the status now; it says something that they wait for."""


class SetTimer(msgspec.Struct, frozen=True):
    name: str
    delay_ms: int


class CancelTimer(msgspec.Struct, frozen=True):
    name: str


class Decided(msgspec.Struct, frozen=True):
    """The proposal is committed at this height: in height order, once in the life of the object."""

    height: int
    proposal: Proposal
    view: int


class Certified(msgspec.Struct, frozen=True):
    """A block certificate became known; the low watermark moves when its block is executed here as well."""

    certificate: BlockCertificate


class NeedBlocks(msgspec.Struct, frozen=True):
    """Others are certified up to `target_height` and this replica cannot get there by votes alone: catch up."""

    target_height: int


class Observe(msgspec.Struct, frozen=True):
    observation: Observation


class Halt(msgspec.Struct, frozen=True):
    """Ordering stopped for good (protocol 5.4)."""

    reason: str


Effect = (
    Persist
    | Forget
    | Broadcast
    | SendTo
    | Relay
    | TellStatus
    | SetTimer
    | CancelTimer
    | Decided
    | Certified
    | NeedBlocks
    | Observe
    | Halt
)


EVIDENCE_PER_REPLICA_MAX: Final = 64
"""Pairs of contradicting statements that are passed on for each replica; later ones are only counted as refusals."""


class Outbox:
    """Collects the effects of one step in order."""

    def __init__(self, dumb: int | None = None) -> None:
        """`dumb` is the own number of a replica that lost its votes: nothing of its own is stored or leaves."""
        self._dumb = dumb
        self._effects: list[Effect] = []
        self._convictions: Counter[int] = Counter()
        self.halted = False

    def add(self, effect: Effect) -> None:
        if self._dumb is None or not self._is_own(effect):
            self._effects.append(effect)

    def _is_own(self, effect: Effect) -> bool:
        """Tell whether the effect stores votes, or sends what this replica itself once said."""
        match effect:
            case Persist() | Forget():
                return True
            case Broadcast(message) | SendTo(_, message):
                return message.replica == self._dumb
            case _:
                return False

    def refuse(self, reason: Reason, peer: int | None = None, detail: str = "") -> None:
        """Say that an input was dropped, and why."""
        self.add(Observe(Refused("consensus", reason, peer, detail=detail)))

    def convict(self, what: str, first: ConsensusMessage, second: ConsensusMessage) -> None:
        """Keep two verified statements of one replica that contradict each other."""
        self._convictions[first.replica] += 1
        if self._convictions[first.replica] <= EVIDENCE_PER_REPLICA_MAX:
            self.add(Observe(EquivocationSeen(first.replica, what, encode(first), encode(second))))
        self.refuse(Reason.EQUIVOCATION, first.replica, what)

    def halt(self, reason: str) -> None:
        if not self.halted:
            self.halted = True
            self.add(Halt(reason))
            self.add(Observe(Halted(reason)))

    def take(self) -> list[Effect]:
        taken, self._effects = self._effects, []
        return taken
