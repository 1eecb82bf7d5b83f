"""The collector side of a lane: cut, send, gather, certify.

Adaptive batching: with nothing of its own on the way a collector cuts at once, so an idle cluster answers in one
round; while batches are on the way transactions gather, so that a loaded cluster pays the cost of a round once for
many. At most `IN_FLIGHT_MAX` batches of a lane are unexecuted, which also keeps the lane inside its byte quota.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.crypto.verification import are_refusals_well_formed
from bcami.endorsement.pool import HeldBatch, hold
from bcami.model.batch import (
    BATCH_BYTES_MAX,
    BATCH_TRANSACTIONS_MAX,
    Batch,
    BatchCertificate,
    CertificateVote,
    Endorsement,
    endorsement_digest,
)
from bcami.model.block import BlockCertificate
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction

IN_FLIGHT_MAX: Final = 4
GATHER_MS: Final = 40
"""While batches are on the way, the oldest waiting transaction waits at most this long before another is cut."""
GATHER_TRANSACTIONS: Final = 500
QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
_ENVELOPE_BYTES: Final = 8 * 1024
"""Room for the anchor certificate and the batch's own fields."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An admitted transaction that is in no batch yet."""

    transaction: Transaction
    transaction_id: bytes
    size_bytes: int
    since_ms: int


@dataclass(slots=True)
class OwnBatch:
    """One batch of this collector, from the cut to its execution."""

    held: HeldBatch
    votes: dict[int, CertificateVote] = field(default_factory=dict)
    certificate: BatchCertificate | None = None
    sent_ms: int | None = None
    """None after a restart: it has to go out again."""


class Collector:
    """The lane of one node."""

    def __init__(self, roster: Roster, replica: int, signer: Signer, executed: int) -> None:
        self._roster = roster
        self._replica = replica
        self._signer = signer
        self._next = executed + 1
        self._queue: deque[Waiting] = deque()
        self.queue_bytes = 0
        self.own: dict[int, OwnBatch] = {}

    def restore(self, held: HeldBatch) -> None:
        """Take back an own batch that was made durable before a crash: the same bytes go out again."""
        self.own[held.batch.number] = OwnBatch(held)
        self.number_used(held.batch.number)

    def number_used(self, number: int) -> None:
        """Never give this number or one below it to another batch, even when the ledger has been lost."""
        self._next = max(self._next, number + 1)

    def admit(self, tx: Transaction, tx_id: bytes, size_bytes: int, now_ms: int) -> Reason | None:
        """Queue a checked transaction, or say that the queue is full (in bytes)."""
        if self.queue_bytes + size_bytes > QUEUE_BYTES_MAX:
            return Reason.QUEUE_FULL
        self._queue.append(Waiting(tx, tx_id, size_bytes, now_ms))
        self.queue_bytes += size_bytes
        return None

    @property
    def queued(self) -> int:
        return len(self._queue)

    def cut(self, anchor: BlockCertificate | None, chain: bytes, now_ms: int) -> HeldBatch | None:
        """Return the next batch if one is due; the caller makes it durable before it is sent."""
        if not self._due(now_ms):
            return None
        limit = min(BATCH_BYTES_MAX, self._quota_left())
        taken: list[Waiting] = []
        size = _ENVELOPE_BYTES
        while self._queue and len(taken) < BATCH_TRANSACTIONS_MAX:
            if size + self._queue[0].size_bytes > limit and (taken or self.own):
                break
            item = self._queue.popleft()
            size += item.size_bytes
            self.queue_bytes -= item.size_bytes
            taken.append(item)
        if not taken:
            return None
        batch = Batch(self._roster.epoch, self._replica, self._next, anchor, tuple(item.transaction for item in taken))
        held = hold(batch, chain, [item.transaction_id for item in taken])
        self.own[self._next] = OwnBatch(held, sent_ms=now_ms)
        self._next += 1
        return held

    def _quota_left(self) -> int:
        """Return the bytes that endorsers still keep for this lane: a batch above them would never be endorsed."""
        used = sum(own.held.size_bytes for own in self.own.values())
        return self._roster.genesis.parameters.lane_quota_bytes - used

    def _due(self, now_ms: int) -> bool:
        if not self._queue or len(self.own) >= IN_FLIGHT_MAX:
            return False
        if not self.own:
            return True
        return len(self._queue) >= GATHER_TRANSACTIONS or now_ms - self._queue[0].since_ms >= GATHER_MS

    def vote(self, endorsement: Endorsement) -> Reason | BatchCertificate | None:
        """Count one endorsement of an own batch. Returns the certificate when it just became complete.

        The signature is checked here, against the digest of the batch that this node cut itself. All that verifiers
        of the certificate will ask of this vote is asked here: one vote that they refuse would spoil the certificate,
        and the lane would be stuck for ever.
        """
        if endorsement.epoch != self._roster.epoch:
            return Reason.WRONG_EPOCH
        own = self.own.get(endorsement.number)
        if own is None:
            return Reason.STALE
        held = own.held
        if endorsement.batch_digest != held.digest or endorsement.count != len(held.ids):
            return Reason.BAD_DIGEST
        if endorsement.replica in own.votes or own.certificate is not None:
            return None
        if not are_refusals_well_formed(endorsement.refusals, endorsement.count):
            return Reason.MALFORMED
        digest = endorsement_digest(
            self._roster.chain,
            endorsement.epoch,
            endorsement.collector,
            endorsement.number,
            endorsement.batch_digest,
            endorsement.count,
            endorsement.replica,
            endorsement.refusals,
        )
        if not self._roster.verify_by(endorsement.replica, endorsement.signature, digest):
            return Reason.BAD_SIGNATURE
        own.votes[endorsement.replica] = CertificateVote(
            endorsement.replica, endorsement.refusals, endorsement.signature
        )
        if len(own.votes) < self._roster.quorum.strong:
            return None
        votes = tuple(own.votes[replica] for replica in sorted(own.votes))
        own.certificate = BatchCertificate(
            self._roster.epoch, self._replica, endorsement.number, held.digest, len(held.ids), votes
        )
        return own.certificate

    def executed(self, number: int) -> list[OwnBatch]:
        """Forget own batches up to `number`, which have durably executed."""
        done = [self.own.pop(key) for key in sorted(self.own) if key <= number]
        self._next = max(self._next, number + 1)
        return done

    def overdue(self, now_ms: int, resend_ms: int) -> list[OwnBatch]:
        """Return unexecuted batches last sent long ago; the caller sends them (or their certificate) again."""
        due = [own for own in self.own.values() if own.sent_ms is None or now_ms - own.sent_ms >= resend_ms]
        for own in due:
            own.sent_ms = now_ms
        return due
