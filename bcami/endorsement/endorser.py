"""The endorser side: one digest per (collector, number), checked, durable, then signed (protocol 4.1 – 4.3).

A batch is first *taken* (it counts against its lane's quota and fixes the digest of its number), then perhaps
endorsed. Not every node has to check every signature: a certificate needs a strong quorum only (design D2), so the
nodes that come last in a batch's order of turns wait a moment, and check it only when no certificate has come by then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.crypto.verification import verify_block_certificate
from bcami.endorsement.pool import HeldBatch
from bcami.model.batch import BATCH_BYTES_MAX, Endorsement, Refusal, endorsement_digest
from bcami.model.reasons import Reason

LANE_AHEAD_MAX: Final = 16
"""Numbers above the last executed one that are endorsed: gaps cannot exhaust memory."""


@dataclass(slots=True)
class _Taken:
    digest: bytes
    size_bytes: int
    endorsement: Endorsement | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A number of a lane that this node had taken and that is over."""

    collector: int
    number: int
    digest: bytes
    """Of the batch that was taken here; another one may have executed under this number."""
    is_endorsed: bool


class Endorser:
    """What one node has taken or endorsed and not yet executed, for all lanes."""

    def __init__(self, roster: Roster, replica: int, signer: Signer, lanes: Sequence[int]) -> None:
        self._roster = roster
        self._replica = replica
        self._signer = signer
        self._executed = list(lanes)
        self._floors = [0] * len(self._executed)
        self._taken: dict[tuple[int, int], _Taken] = {}
        self._lane_bytes = [0] * len(self._executed)

    def restore(self, endorsement: Endorsement, size_bytes: int) -> None:
        """Take back an endorsement that was made durable before a crash."""
        key = (endorsement.collector, endorsement.number)
        self._taken[key] = _Taken(endorsement.batch_digest, size_bytes, endorsement)
        self._lane_bytes[endorsement.collector] += size_bytes

    def given_up(self, collector: int, number: int) -> None:
        """Never endorse up to `number` again, whatever the ledger says: the promises for it are gone."""
        self._floors[collector] = max(self._floors[collector], number)

    def known(self, collector: int, number: int) -> Endorsement | None:
        """Return the endorsement that this node gave for a number."""
        taken = self._taken.get((collector, number))
        return None if taken is None else taken.endorsement

    def is_turn(self, collector: int, number: int) -> bool:
        """Tell whether this node is among the first strong − 1 to endorse; turns rotate with the number."""
        others = self._roster.quorum.n - 1
        if others == 0 or self._replica == collector:
            return True
        place = (self._replica - collector - 1) % self._roster.quorum.n
        return (place + number) % others < self._roster.quorum.strong - 1

    def gate(self, held: HeldBatch, executed_height: int) -> Reason | None:
        """Return why a batch may not be taken now, before any transaction is looked at; None when it may.

        BEHIND means: catch up to the anchor first and ask again (protocol 4.2).
        """
        batch = held.batch
        if batch.epoch != self._roster.epoch:
            return Reason.WRONG_EPOCH
        if batch.collector >= self._roster.quorum.n:
            return Reason.UNKNOWN_REPLICA
        if held.size_bytes > BATCH_BYTES_MAX:
            return Reason.OVERSIZED  # a block of such batches would fit into no frame, and nobody could catch up
        last = max(self._executed[batch.collector], self._floors[batch.collector])
        if batch.number <= last:
            return Reason.STALE
        if batch.number > last + LANE_AHEAD_MAX:
            return Reason.OVER_QUOTA
        earlier = self._taken.get((batch.collector, batch.number))
        if earlier is not None:
            return Reason.DUPLICATE if earlier.digest == held.digest else Reason.EQUIVOCATION
        if self._lane_bytes[batch.collector] + held.size_bytes > self._roster.genesis.parameters.lane_quota_bytes:
            return Reason.OVER_QUOTA
        if batch.anchor is None:
            return None
        if batch.anchor.height > executed_height + self._roster.genesis.parameters.window:
            return Reason.OUTSIDE_WATERMARKS
        reason = verify_block_certificate(batch.anchor, self._roster)
        if reason is not None:
            return reason
        return Reason.BEHIND if batch.anchor.height > executed_height else None

    def take(self, held: HeldBatch) -> None:
        """Count a batch that passed the gate against its lane, and fix the digest of its number."""
        batch = held.batch
        self._taken[batch.collector, batch.number] = _Taken(held.digest, held.size_bytes)
        self._lane_bytes[batch.collector] += held.size_bytes

    def endorse(self, held: HeldBatch, refusals: Sequence[Refusal]) -> Endorsement | None:
        """Return the endorsement of a taken batch; the caller makes it and the batch durable before it leaves.

        None when the batch has executed meanwhile.
        """
        batch = held.batch
        taken = self._taken.get((batch.collector, batch.number))
        if taken is None or taken.digest != held.digest:
            return None
        digest = endorsement_digest(
            self._roster.chain,
            batch.epoch,
            batch.collector,
            batch.number,
            held.digest,
            len(held.ids),
            self._replica,
            refusals,
        )
        taken.endorsement = Endorsement(
            batch.epoch,
            batch.collector,
            batch.number,
            held.digest,
            len(held.ids),
            self._replica,
            tuple(refusals),
            self._signer.sign(digest),
        )
        return taken.endorsement

    def executed(self, lanes: Sequence[int]) -> list[Finished]:
        """Forget what has durably executed, or can no more; returns what was forgotten."""
        self._executed = list(lanes)
        finished = []
        for collector, number in [key for key in self._taken if key[1] <= lanes[key[0]]]:
            taken = self._taken.pop((collector, number))
            self._lane_bytes[collector] -= taken.size_bytes
            finished.append(Finished(collector, number, taken.digest, taken.endorsement is not None))
        return finished

    def lane_bytes(self, collector: int) -> int:
        return self._lane_bytes[collector]
