"""Votes that contradict each other, lie about results, come again, or are garbled."""

from collections import deque
from collections.abc import Iterable
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from bcami.faults.behaviour import Behaviour, Options, flipped
from bcami.model.batch import Endorsement
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.wire import PeerMessage
from bcami.node.core.effects import Effect, Send

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

KEPT_MAX: Final = 1_024
"""Old messages that a replaying node keeps."""
INTEGER_MAX: Final = 2**63 - 1
_SIGNABLE: Final = PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView | Endorsement


class EquivocatingVoter(Behaviour[Options]):
    """Signs two votes for each place: some peers get one, some the other, one both."""

    name = "equivocating_voter"
    family = "votes"
    claim = "no two quorums form; whoever sees both votes keeps them as evidence"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Prepare | Commit) or message.replica != node.replica:
            return (message,)
        other = node.sign(msgspec.structs.replace(message, digest=sha256(b"other" + message.digest).digest()))
        draw = self.random.randrange(3)
        if draw == 0:
            return (other,)
        return (message, other) if draw == 1 else (message,)


class CheckpointLiar(Behaviour[Options]):
    """Signs checkpoints of blocks that nobody has."""

    name = "checkpoint_liar"
    family = "votes"
    claim = "no certificate forms for a false block; nobody halts because of one liar"

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, Checkpoint) or message.replica != node.replica:
            return (message,)
        false = sha256(b"false" + message.header_hash).digest()
        return (node.sign(msgspec.structs.replace(message, header_hash=false)),)


class ReplayOptions(Options, frozen=True, kw_only=True):
    messages: Annotated[int, msgspec.Meta(ge=1, le=200)] = 10
    """So many in each tenth of a second, each to a peer that is drawn."""


class ReplayedVotes(Behaviour[ReplayOptions]):
    """Keeps what was said, by itself and others, and says it again later."""

    name = "replayed_votes"
    family = "votes"
    claim = "what is old or known changes nothing"
    options_type = ReplayOptions

    def __init__(self, options: ReplayOptions, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._kept: deque[PeerMessage] = deque(maxlen=KEPT_MAX)

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        self._kept.append(message)
        return (message,)

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        self._kept.append(message)
        return True

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        if not self._kept:
            return []
        kept = list(self._kept)
        return [Send(self.random.choice(node.others), self.random.choice(kept)) for _ in range(self.options.messages)]


class MutateOptions(Options, frozen=True, kw_only=True):
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.2
    """Of the messages that are changed."""
    signed: bool = False
    """Sign own consensus messages again after the change: the lie is then the node's own word."""


class Mutate(Behaviour[MutateOptions]):
    """Changes one field of a message at a time: numbers, bits of hashes and signatures, lengths of lists."""

    name = "mutate"
    family = "votes"
    claim = "nothing that a peer can say stops a node or passes for somebody else's word"
    options_type = MutateOptions

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if self.random.random() >= self.options.share:
            return (message,)
        changed: PeerMessage = mutated(message, self.random)
        if self.options.signed and isinstance(changed, _SIGNABLE) and changed.replica == node.replica:
            changed = node.sign(changed)
        return (changed,)


def mutated(value: Any, randomness: Random) -> Any:
    """Return the value with one change somewhere inside, still of the right types."""
    if isinstance(value, msgspec.Struct):
        names = [name for name in value.__struct_fields__ if _is_mutable(getattr(value, name))]
        if not names:
            return value
        name = randomness.choice(names)
        return msgspec.structs.replace(value, **{name: mutated(getattr(value, name), randomness)})
    if isinstance(value, bytes):
        return flipped(value, randomness)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = (value + 1, value - 1, 0, value + 2**20, randomness.randrange(INTEGER_MAX))
        return min(max(0, randomness.choice(near)), INTEGER_MAX)
    assert isinstance(value, tuple)
    return _mutated_list(value, randomness)


def _is_mutable(value: Any) -> bool:
    return isinstance(value, msgspec.Struct | int) or (isinstance(value, bytes | tuple) and bool(value))


def _mutated_list(items: tuple[Any, ...], randomness: Random) -> tuple[Any, ...]:
    place = randomness.randrange(len(items))
    draw = randomness.randrange(4)
    if draw == 0:
        return (*items[:place], *items[place + 1 :])
    if draw == 1:
        return (*items[:place], items[place], *items[place:])
    if draw == 2 and len(items) > 1:
        return (items[-1], *items[1:-1], items[0])
    return (*items[:place], mutated(items[place], randomness), *items[place + 1 :])
