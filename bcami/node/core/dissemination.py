"""Batches of all lanes at one node: cutting and certifying its own, checking and endorsing those of others.

Checking signatures is what a node spends its time on. It is done in slices, so that votes never wait behind a batch
(design D16): `work` does one slice, and `has_work` tells the driver to come again after it has looked at the network.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.endorsement.collector import Collector
from bcami.endorsement.endorser import Endorser
from bcami.endorsement.pool import BatchPool, HeldBatch, hold
from bcami.model import events
from bcami.model.batch import Batch, BatchCertificate, Endorsement, Refusal
from bcami.model.block import BlockCertificate
from bcami.model.reasons import Reason
from bcami.model.signing import u64
from bcami.model.transaction import Transaction
from bcami.model.wire import FRAME_BYTES_MAX
from bcami.node.core import effects as out

SLICE_TRANSACTIONS: Final = 48
"""Signatures checked in one go: about two milliseconds."""
PATIENCE_MS: Final = 200
"""How long a node whose turn it is not waits for a certificate before it checks a batch after all."""
RESEND_MS: Final = 1_000
BEHIND_BATCHES_MAX: Final = 8
"""Batches kept for each collector while this node catches up to their anchor."""
ENDORSED_PREFIX: Final = b"endorsed/"

Check = Callable[[Transaction, bytes, int], Reason | None]


class EndorsedRecord(msgspec.Struct, frozen=True, array_like=True):
    """The promise store's record of an endorsement: the batch stays until it has durably executed (protocol 4.2)."""

    batch: Batch
    endorsement: Endorsement


_RECORD_CODEC: Final[Codec[EndorsedRecord]] = Codec(EndorsedRecord, FRAME_BYTES_MAX)


def endorsed_key(collector: int, number: int) -> bytes:
    return ENDORSED_PREFIX + u64(collector) + u64(number)


@dataclass(slots=True)
class _Checking:
    """A batch whose transactions are being checked."""

    held: HeldBatch
    next: int = 0
    refusals: list[Refusal] = field(default_factory=list)


class Dissemination:
    """The lanes as one node sees them. Effects go to the list that it was given, in order."""

    def __init__(self, roster: Roster, replica: int, signer: Signer, lanes: tuple[int, ...], check: Check) -> None:
        self._roster = roster
        self._replica = replica
        self._check = check
        self._collector = Collector(roster, replica, signer, lanes[replica])
        self._endorser = Endorser(roster, replica, signer, lanes)
        self._checking: deque[_Checking] = deque()
        self._patient: dict[bytes, tuple[HeldBatch, int]] = {}
        self._behind: dict[bytes, HeldBatch] = {}
        self.pool = BatchPool()
        self.out: list[out.Effect] = []
        self.anchors: list[BlockCertificate] = []
        """Certificates of heights that batches rest on and this node lacks; the core takes them."""
        self.certified: list[BatchCertificate] = []
        """Own batches that just got their certificate; the core takes them."""

    # Own batches.

    def admit(self, tx: Transaction, tx_id: bytes, size_bytes: int, now_ms: int) -> Reason | None:
        """Queue a checked transaction for this node's next batch."""
        return self._collector.admit(tx, tx_id, size_bytes, now_ms)

    @property
    def queued(self) -> int:
        return self._collector.queued

    @property
    def queue_bytes(self) -> int:
        return self._collector.queue_bytes

    def cut(self, anchor: BlockCertificate | None, now_ms: int) -> None:
        """Cut own batches that are due; the own endorsement is the first vote."""
        while True:
            held = self._collector.cut(anchor, self._roster.chain, now_ms)
            if held is None:
                return
            self.pool.add(held)
            self._endorser.take(held)
            endorsement = self._endorse(held, [])
            assert endorsement is not None
            self.out.append(out.Broadcast(held.batch))
            self.vote(endorsement)

    def vote(self, endorsement: Endorsement) -> None:
        """Count an endorsement of an own batch."""
        if endorsement.collector != self._replica:
            self._refused(Reason.NOT_AUTHORIZED, endorsement.replica, "collector")
            return
        result = self._collector.vote(endorsement)
        if isinstance(result, Reason):
            if result is not Reason.STALE:
                self._refused(result, endorsement.replica, "collector")
        elif result is not None:
            self.out.append(out.Broadcast(result))
            self.certified.append(result)

    def resend(self, now_ms: int) -> None:
        """Send own batches again that are on the way for long: to those that did not endorse, or their certificate."""
        for own in self._collector.overdue(now_ms, RESEND_MS):
            if own.certificate is not None:
                self.out.append(out.Broadcast(own.certificate))
                continue
            for peer in range(self._roster.quorum.n):
                if peer != self._replica and peer not in own.votes:
                    self.out.append(out.Send(peer, own.held.batch))

    # Batches of others.

    def consider(self, held: HeldBatch, durable_height: int, now_ms: int) -> None:
        """Take a collector's batch, or say why not."""
        batch = held.batch
        reason = self._endorser.gate(held, durable_height)
        if reason is Reason.DUPLICATE:
            self._asked_again(held)
        elif reason is Reason.BEHIND:
            assert batch.anchor is not None
            self._keep_behind(held)
            self.anchors.append(batch.anchor)
        elif reason is not None:
            self._refused(reason, batch.collector, "endorsement")
        else:
            self._endorser.take(held)
            self.pool.add(held)
            if self._endorser.is_turn(batch.collector, batch.number):
                self._checking.append(_Checking(held))
            else:
                self._patient[held.digest] = (held, now_ms + PATIENCE_MS)
                self.out.append(out.SetTimer("patience", PATIENCE_MS))

    def retry_behind(self, durable_height: int, now_ms: int) -> None:
        """Look again at batches that waited for this node to catch up."""
        waiting, self._behind = self._behind, {}
        for held in waiting.values():
            self.consider(held, durable_height, now_ms)

    def out_of_patience(self, now_ms: int) -> None:
        """Check batches after all for which no certificate has come."""
        for digest, (held, due_ms) in list(self._patient.items()):
            if due_ms <= now_ms:
                del self._patient[digest]
                self._checking.append(_Checking(held))
        if self._patient:
            self.out.append(out.SetTimer("patience", PATIENCE_MS))

    def certificate_seen(self, certificate: BatchCertificate) -> None:
        """A valid certificate makes this node's own check needless."""
        self._patient.pop(certificate.batch_digest, None)
        self._checking = deque(item for item in self._checking if item.held.digest != certificate.batch_digest)

    @property
    def has_work(self) -> bool:
        return bool(self._checking)

    def work(self, now_ms: int) -> None:
        """Check the next slice of the oldest batch; endorse it when that was the last."""
        if not self._checking:
            return
        job = self._checking[0]
        held = job.held
        end = min(job.next + SLICE_TRANSACTIONS, len(held.ids))
        for index in range(job.next, end):
            reason = self._check(held.batch.transactions[index], held.ids[index], now_ms)
            if reason is not None:
                job.refusals.append(Refusal(index, reason))
                self._refused(reason, held.batch.collector, "endorsement")
        job.next = end
        if end < len(held.ids):
            return
        self._checking.popleft()
        endorsement = self._endorse(held, job.refusals)
        if endorsement is not None:
            self.out.append(out.Send(held.batch.collector, endorsement))

    def executed(self, digests: Iterable[bytes], lanes: tuple[int, ...]) -> None:
        """Batches have durably executed: let go of them and of the promises for them."""
        for digest in digests:
            self.pool.executed(digest)
            self._patient.pop(digest, None)
        self._collector.executed(lanes[self._replica])
        forgotten = self._endorser.executed(lanes)
        if forgotten:
            self.out.append(out.Persist((), [endorsed_key(*key) for key in forgotten]))
        self._checking = deque(
            item for item in self._checking if item.held.batch.number > lanes[item.held.batch.collector]
        )

    # Restart.

    def restore(self, key: bytes, value: bytes, lanes: tuple[int, ...]) -> tuple[bytes, ...]:
        """Take back an endorsed batch; returns the ids of its transactions when it is an own one."""
        record = _RECORD_CODEC.decode(value)
        collector, number = record.batch.collector, record.batch.number
        if number <= lanes[collector]:
            self.out.append(out.Persist((), (key,)))
            return ()
        held = hold(record.batch, self._roster.chain)
        self.pool.add(held)
        self._endorser.restore(record.endorsement, held.size_bytes)
        if collector != self._replica:
            return ()
        self._collector.restore(held)
        self._collector.vote(record.endorsement)
        return held.ids

    def _endorse(self, held: HeldBatch, refusals: list[Refusal]) -> Endorsement | None:
        endorsement = self._endorser.endorse(held, refusals)
        if endorsement is not None:
            record = encode(EndorsedRecord(held.batch, endorsement))
            self.out.append(out.Persist(((endorsed_key(held.batch.collector, held.batch.number), record),)))
        return endorsement

    def _asked_again(self, held: HeldBatch) -> None:
        earlier = self._endorser.known(held.batch.collector, held.batch.number)
        if earlier is not None:
            self.out.append(out.Send(held.batch.collector, earlier))
        elif self._patient.pop(held.digest, None) is not None:
            self._checking.append(_Checking(held))

    def _keep_behind(self, held: HeldBatch) -> None:
        same = [key for key, item in self._behind.items() if item.batch.collector == held.batch.collector]
        if len(same) < BEHIND_BATCHES_MAX:
            self._behind[held.digest] = held

    def _refused(self, reason: Reason, peer: int, source: str) -> None:
        self.out.append(out.Observe(events.Refused(source, reason, peer)))
