"""The endorser side: one digest per (collector, number), checked, durable, then signed (protocol 4.1 – 4.3)."""

from collections.abc import Callable, Sequence
from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.crypto.verification import verify_block_certificate
from bcami.endorsement.pool import HeldBatch
from bcami.model.batch import Endorsement, Refusal, endorsement_digest
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction

LANE_AHEAD_MAX: Final = 16
"""Numbers above the last executed one that are endorsed: gaps cannot exhaust memory."""

CheckTransaction = Callable[[Transaction, bytes], Reason | None]


class Endorser:
    """What one node has endorsed and not yet executed, for all lanes."""

    def __init__(self, roster: Roster, replica: int, signer: Signer, lanes: Sequence[int]) -> None:
        self._roster = roster
        self._replica = replica
        self._signer = signer
        self._executed = list(lanes)
        self._endorsed: dict[tuple[int, int], Endorsement] = {}
        self._sizes: dict[tuple[int, int], int] = {}
        self._lane_bytes = [0] * len(self._executed)

    def restore(self, endorsement: Endorsement, size_bytes: int) -> None:
        """Take back an endorsement that was made durable before a crash."""
        self._keep(endorsement, size_bytes)

    def known(self, collector: int, number: int) -> Endorsement | None:
        return self._endorsed.get((collector, number))

    def gate(self, held: HeldBatch, executed_height: int) -> Reason | None:
        """Return why a batch may not be endorsed now, before any transaction is looked at; None when it may.

        BEHIND means: catch up to the anchor first and ask again (protocol 4.2).
        """
        batch = held.batch
        if batch.epoch != self._roster.epoch:
            return Reason.WRONG_EPOCH
        if batch.collector >= self._roster.quorum.n:
            return Reason.UNKNOWN_REPLICA
        last = self._executed[batch.collector]
        if batch.number <= last:
            return Reason.STALE
        if batch.number > last + LANE_AHEAD_MAX:
            return Reason.OVER_QUOTA
        earlier = self._endorsed.get((batch.collector, batch.number))
        if earlier is not None:
            return Reason.DUPLICATE if earlier.batch_digest == held.digest else Reason.EQUIVOCATION
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

    def endorse(self, held: HeldBatch, check: CheckTransaction | None) -> Endorsement:
        """Return the endorsement; the caller makes it and the batch durable before it leaves.

        `check` None: the collector's own batch, whose transactions it checked when it admitted them.
        """
        batch = held.batch
        refusals: tuple[Refusal, ...] = ()
        if check is not None:
            found = []
            for index, (tx, tx_id) in enumerate(zip(batch.transactions, held.ids, strict=True)):
                reason = check(tx, tx_id)
                if reason is not None:
                    found.append(Refusal(index, reason))
            refusals = tuple(found)
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
        endorsement = Endorsement(
            batch.epoch,
            batch.collector,
            batch.number,
            held.digest,
            len(held.ids),
            self._replica,
            refusals,
            self._signer.sign(digest),
        )
        self._keep(endorsement, held.size_bytes)
        return endorsement

    def executed(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """Forget what has durably executed; returns the (collector, number) pairs whose promises may be deleted."""
        self._executed = list(lanes)
        done = [key for key in self._endorsed if key[1] <= lanes[key[0]]]
        for key in done:
            del self._endorsed[key]
            self._lane_bytes[key[0]] -= self._sizes.pop(key)
        return done

    def lane_bytes(self, collector: int) -> int:
        return self._lane_bytes[collector]

    def _keep(self, endorsement: Endorsement, size_bytes: int) -> None:
        key = (endorsement.collector, endorsement.number)
        self._endorsed[key] = endorsement
        self._sizes[key] = size_bytes
        self._lane_bytes[endorsement.collector] += size_bytes
