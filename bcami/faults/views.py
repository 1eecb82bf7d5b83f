"""View changes that are asked for without need, or proved with forged proofs."""

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from bcami.faults.behaviour import Behaviour, Options, flipped
from bcami.faults.primary import other_proposal
from bcami.model.block import BlockCertificate, CheckpointVote
from bcami.model.consensus import NULL_PROPOSAL, NewView, PhaseVote, PreparedProof, PrePrepare, ViewChange
from bcami.model.ids import HASH_BYTES
from bcami.model.wire import PeerMessage
from bcami.node.core.effects import Broadcast, Effect

if TYPE_CHECKING:
    from bcami.faults.node import FaultyNode

EVERY_TICKS: Final = 10
"""A forger speaks up once a second."""


class SpamOptions(Options, frozen=True, kw_only=True):
    messages: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    """View changes in each tenth of a second."""


class ViewSpam(Behaviour[SpamOptions]):
    """Asks for views near and unimaginably far, properly signed, again and again."""

    name = "view_spam"
    family = "views"
    claim = "one replica alone moves nobody, and its views cost a bounded memory"
    options_type = SpamOptions

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(self.options.messages):
            far = self.random.choice((1, 2, 5, 1_000, 2**31, 2**62)) + self.random.randrange(100)
            effects.append(Broadcast(node.statements.view_change(node.view + far, node.pbft.stable, ())))
        return effects


class ForgedPrepared(Behaviour[Options]):
    """Leaves views with proofs of proposals that were never prepared."""

    name = "forged_prepared"
    family = "views"
    claim = "a proof counts only with a strong quorum's own signatures: the forger has none but its own"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._seen: PrePrepare | None = None
        self._ticks = 0

    def incoming(self, node: "FaultyNode", peer: int, message: PeerMessage, now_ms: int) -> bool:
        if isinstance(message, PrePrepare):
            self._seen = message
        return True

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if isinstance(message, PrePrepare) and message.replica == node.replica:
            self._seen = message
        if not isinstance(message, ViewChange) or message.replica != node.replica or self._seen is None:
            return (message,)
        proofs = [*message.prepared, self._forge(node, self._seen, message.view)]
        proofs.sort(key=lambda proof: proof.pre_prepare.height)
        return (node.statements.view_change(message.view, message.stable, proofs),)

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        self._ticks += 1
        if self._seen is None or self._ticks % EVERY_TICKS:
            return []
        view = node.view + 1
        forged = self._forge(node, self._seen, view)
        return [Broadcast(node.statements.view_change(view, node.pbft.stable, (forged,)))]

    def _forge(self, node: "FaultyNode", seen: PrePrepare, below_view: int) -> PreparedProof:
        """Return a proof of something else: with own signatures under other names, bent ones, or one vote doubled."""
        replace = msgspec.structs.replace
        false = other_proposal(seen.proposal)
        view = max(0, below_view - 1)
        digest = node.statements.digest_of_proposal(false)
        primary = node.roster.quorum.primary(view)
        height = (node.ledger.certified_height or 0) + self.random.randint(1, 4)
        own = node.statements.pre_prepare(view, height, false)
        first = replace(own, replica=primary)
        vote = node.statements.prepare(view, height, digest)
        backups = [replica for replica in range(node.roster.quorum.n) if replica != primary]
        votes = [PhaseVote(replica, vote.signature) for replica in backups[: node.roster.quorum.strong - 1]]
        draw = self.random.randrange(3)
        if draw == 0:
            votes = [replace(item, signature=flipped(item.signature, self.random)) for item in votes]
        elif draw == 1:
            votes = [votes[0]] * len(votes)
        return PreparedProof(first, tuple(votes))


class ForgedNewView(Behaviour[Options]):
    """Opens views that nobody asked for, and proposes again something else than it must."""

    name = "forged_new_view"
    family = "views"
    claim = "every backup recomputes the choice from the signed view changes, and refuses any other"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._ticks = 0

    def sent(self, node: "FaultyNode", to: int, message: PeerMessage, now_ms: int) -> Iterable[PeerMessage]:
        if not isinstance(message, NewView) or message.replica != node.replica:
            return (message,)
        orders = list(message.pre_prepares)
        if orders:
            place = self.random.randrange(len(orders))
            false = other_proposal(orders[place].proposal)
            orders[place] = node.statements.pre_prepare(message.view, orders[place].height, false)
        else:
            height = 0 if message.view_changes[0].stable is None else message.view_changes[0].stable.height
            orders.append(node.statements.pre_prepare(message.view, height + 1, other_proposal(NULL_PROPOSAL)))
        return (node.statements.new_view(message.view, message.view_changes, orders),)

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        self._ticks += 1
        if self._ticks % EVERY_TICKS:
            return []
        quorum = node.roster.quorum
        view = next(view for view in range(node.view + 1, node.view + 1 + quorum.n) if node.statements.is_own(view))
        own = node.statements.view_change(view, node.pbft.stable, ())
        changes = [msgspec.structs.replace(own, replica=replica) for replica in range(quorum.strong)]
        return [Broadcast(node.statements.new_view(view, changes, ()))]


class ForgedStable(Behaviour[Options]):
    """Claims certified blocks that nobody has: its own signature many times over, or those of a real certificate."""

    name = "forged_stable"
    family = "views"
    claim = "a block certificate counts distinct members, each with a signature over that very block"

    def __init__(self, options: Options, randomness: Random) -> None:
        super().__init__(options, randomness)
        self._ticks = 0

    def tick(self, node: "FaultyNode", now_ms: int) -> list[Effect]:
        self._ticks += 1
        if self._ticks % EVERY_TICKS:
            return []
        height = max(1, node.height + self.random.choice((-1, 0, 0, 1, 40)))
        false = self._forge(node, height)
        return [Broadcast(node.statements.view_change(node.view + self.random.randint(1, 3), false, ()))]

    def _forge(self, node: "FaultyNode", height: int) -> BlockCertificate:
        header_hash = self.random.randbytes(HASH_BYTES)
        own = node.statements.checkpoint(height, header_hash).signature
        strong = node.roster.quorum.strong
        stable = node.pbft.stable
        if stable is not None and self.random.random() < 0.5:
            return BlockCertificate(node.roster.epoch, height, header_hash, stable.votes)
        votes = (CheckpointVote(node.replica, own),) * strong
        return BlockCertificate(node.roster.epoch, height, header_hash, votes)
