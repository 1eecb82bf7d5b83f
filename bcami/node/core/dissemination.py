"""Batches of all lanes at one node: cutting and certifying its own, checking and endorsing those of others.

Checking signatures is what a node spends its time on. It is done in slices, so that votes never wait behind a batch
(design D16): `work` does one slice, and `has_work` tells the driver to come again after it has looked at the network.
"""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec

from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.endorsement.collector import Collector
from bcami.endorsement.endorser import Endorser
from bcami.endorsement.pool import BatchPool, HeldBatch, hold
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
OWN_LANE_KEY: Final = b"lane/own"
"""The promise store's record of the highest number that this node gave to a batch of its own."""
GIVEN_UP_PREFIX: Final = b"lane/given_up/"
"""With a collector: the highest number whose endorsement was given up. A rebuilt ledger does not know it at first."""
FORWARD_MS: Final = 500
"""A certificate that has not executed after this long is passed on: its collector may have told few."""
OWED_AHEAD_MAX: Final = 64
"""Numbers above the last executed one of which certificates are kept to be passed on."""

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


@dataclass(slots=True)
class _Owed:
    """A certificate that waits to be ordered and executed."""

    certificate: BatchCertificate
    sent_ms: int
    is_gossiped: bool = False


class Dissemination:
    """The lanes as one node sees them. Effects go to the outbox that it was given, in order."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        lanes: tuple[int, ...],
        check: Check,
        outbox: out.Outbox,
        *,
        is_amnesiac: bool = False,
    ) -> None:
        """With `is_amnesiac`, batches are kept for their execution and nothing is collected or endorsed."""
        self._is_amnesiac = is_amnesiac
        self._roster = roster
        self._replica = replica
        self._check = check
        self._collector = Collector(roster, replica, signer, lanes[replica])
        self._endorser = Endorser(roster, replica, signer, lanes)
        self._checking: deque[_Checking] = deque()
        self._patient: dict[bytes, tuple[HeldBatch, int]] = {}
        self._behind: dict[bytes, HeldBatch] = {}
        self._owed: dict[tuple[int, int], _Owed] = {}
        self._lanes = lanes
        self.pool = BatchPool()
        self._out = outbox
        self.anchors: list[BlockCertificate] = []
        """Certificates of heights that batches rest on and this node lacks; the core takes them."""
        self.certified: list[BatchCertificate] = []
        """Own batches that just got their certificate; the core takes them."""

    # Own batches.

    def admit(self, tx: Transaction, tx_id: bytes, size_bytes: int, elapsed_ms: int) -> Reason | None:
        """Queue a checked transaction for this node's next batch."""
        return self._collector.admit(tx, tx_id, size_bytes, elapsed_ms)

    @property
    def queued(self) -> int:
        return self._collector.queued

    @property
    def queue_bytes(self) -> int:
        return self._collector.queue_bytes

    def cut(self, anchor: BlockCertificate | None, elapsed_ms: int) -> None:
        """Cut own batches that are due; the own endorsement is the first vote."""
        while True:
            held = self._collector.cut(anchor, self._roster.chain, elapsed_ms)
            if held is None:
                return
            self.pool.add(held)
            self._endorser.take(held)
            self._out.add(out.Persist(((OWN_LANE_KEY, u64(held.batch.number)),)))
            endorsement = self._endorse(held, [])
            assert endorsement is not None
            self._out.add(out.Broadcast(held.batch))
            self._count(endorsement)

    def vote(self, endorsement: Endorsement, peer: int) -> None:
        """Count a peer's endorsement of an own batch."""
        if endorsement.collector != self._replica or endorsement.replica != peer:
            self._out.refuse("collector", Reason.NOT_AUTHORIZED, peer)
            return
        self._count(endorsement)

    def _count(self, endorsement: Endorsement) -> None:
        result = self._collector.vote(endorsement)
        if isinstance(result, Reason):
            if result is not Reason.STALE:
                self._out.refuse("collector", result, endorsement.replica)
        elif result is not None:
            self._out.add(out.Broadcast(result))
            self.certified.append(result)

    def resend(self, elapsed_ms: int) -> None:
        """Send own batches again that are on the way for long: to those that did not endorse, or their certificate."""
        for own in self._collector.overdue(elapsed_ms, RESEND_MS):
            if own.certificate is not None:
                self._out.add(out.Broadcast(own.certificate))
                continue
            for peer in range(self._roster.quorum.n):
                if peer != self._replica and peer not in own.votes:
                    self._out.add(out.Send(peer, own.held.batch))

    def forward(self, primary: int, elapsed_ms: int) -> None:
        """Pass on the next certificate of each lane when it is on the way for long (protocol 4.4).

        To everybody once, so that all know what the primary owes and none leaves the view alone; then to the primary.
        """
        for (collector, number), owed in self._owed.items():
            is_next = collector != self._replica and number == self._lanes[collector] + 1
            if not is_next or elapsed_ms - owed.sent_ms < FORWARD_MS:
                continue
            owed.sent_ms = elapsed_ms
            if not owed.is_gossiped:
                owed.is_gossiped = True
                self._out.add(out.Broadcast(owed.certificate))
            elif primary != self._replica:
                self._out.add(out.Send(primary, owed.certificate))

    # Batches of others.

    def consider(self, held: HeldBatch, durable_height: int, elapsed_ms: int) -> None:
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
            self._out.refuse("endorsement", reason, batch.collector)
        else:
            self._endorser.take(held)
            self.pool.add(held)
            if self._is_amnesiac:
                return
            if self._endorser.is_turn(batch.collector, batch.number):
                self._checking.append(_Checking(held))
            else:
                if not self._patient:  # the timer runs already when others wait; setting it anew would put it off
                    self._out.add(out.SetTimer("patience", PATIENCE_MS))
                self._patient[held.digest] = (held, elapsed_ms + PATIENCE_MS)

    def retry_behind(self, durable_height: int, elapsed_ms: int) -> None:
        """Look again at batches that waited for this node to catch up."""
        waiting, self._behind = self._behind, {}
        for held in waiting.values():
            self.consider(held, durable_height, elapsed_ms)

    def out_of_patience(self, elapsed_ms: int) -> None:
        """Check batches after all for which no certificate has come."""
        for digest, (held, due_ms) in list(self._patient.items()):
            if due_ms <= elapsed_ms:
                del self._patient[digest]
                self._checking.append(_Checking(held))
        if self._patient:
            self._out.add(out.SetTimer("patience", PATIENCE_MS))

    def certificate_seen(self, certificate: BatchCertificate, elapsed_ms: int) -> None:
        """A valid certificate makes this node's own check needless, and is kept until it has executed."""
        self._patient.pop(certificate.batch_digest, None)
        self._checking = deque(item for item in self._checking if item.held.digest != certificate.batch_digest)
        collector, number = certificate.collector, certificate.number
        if self._lanes[collector] < number <= self._lanes[collector] + OWED_AHEAD_MAX:
            self._owed.setdefault((collector, number), _Owed(certificate, elapsed_ms))

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
        counts: dict[Reason, int] = {}
        for index in range(job.next, end):
            reason = self._check(held.batch.transactions[index], held.ids[index], now_ms)
            if reason is not None:
                job.refusals.append(Refusal(index, reason))
                counts[reason] = counts.get(reason, 0) + 1
        for reason, count in counts.items():
            self._out.refuse("endorsement", reason, held.batch.collector, count)
        job.next = end
        if end < len(held.ids):
            return
        self._checking.popleft()
        endorsement = self._endorse(held, job.refusals)
        if endorsement is not None:
            self._out.add(out.Send(held.batch.collector, endorsement))

    def executed(self, digests: Collection[bytes], lanes: tuple[int, ...]) -> None:
        """Batches have durably executed: let go of them, of the promises for them, and of what lost its number."""
        self._lanes = lanes
        for digest in digests:
            self.pool.executed(digest)
            self._patient.pop(digest, None)
        self._collector.executed(lanes[self._replica])
        finished = self._endorser.executed(lanes)
        for item in finished:
            if item.digest not in digests:  # an equivocating collector's other batch, which nobody will ask for
                self.pool.drop(item.digest)
                self._patient.pop(item.digest, None)
        endorsed = [(item.collector, item.number) for item in finished if item.is_endorsed]
        if endorsed:
            floors = dict(sorted(endorsed))
            puts = tuple((GIVEN_UP_PREFIX + u64(collector), u64(number)) for collector, number in floors.items())
            self._out.add(out.Persist(puts, [endorsed_key(*key) for key in endorsed]))
        self._checking = deque(
            item for item in self._checking if item.held.batch.number > lanes[item.held.batch.collector]
        )
        for collector, number in [key for key in self._owed if key[1] <= lanes[key[0]]]:
            del self._owed[collector, number]

    def jumped(self, lanes: tuple[int, ...]) -> list[bytes]:
        """A snapshot has executed batches that this node has not seen executing: let go of those too.

        Returns the transactions of own batches among them.
        """
        own = [item.held for number, item in self._collector.own.items() if number <= lanes[self._replica]]
        self.executed((), lanes)
        self.pool.drop_executed(lanes)
        return [tx_id for held in own for tx_id in held.ids]

    # Restart.

    def restore(self, key: bytes, value: bytes, lanes: tuple[int, ...]) -> tuple[bytes, ...]:
        """Take back a promise; returns the ids of its transactions when it is an own batch.

        Raises MalformedError when the record is damaged.
        """
        if key == OWN_LANE_KEY:
            self._collector.number_used(int.from_bytes(value, "big"))
            return ()
        if key.startswith(GIVEN_UP_PREFIX):
            self._endorser.given_up(int.from_bytes(key[len(GIVEN_UP_PREFIX) :], "big"), int.from_bytes(value, "big"))
            return ()
        record = _RECORD_CODEC.decode(value)
        collector, number = record.batch.collector, record.batch.number
        if number <= lanes[collector]:
            floor = (GIVEN_UP_PREFIX + u64(collector), u64(number))
            self._endorser.given_up(collector, number)
            self._out.add(out.Persist((floor,), (key,)))
            return ()
        held = hold(record.batch, self._roster.chain)
        self.pool.add(held)
        self._endorser.restore(record.endorsement, held.size_bytes)
        if collector != self._replica:
            return ()
        self._collector.restore(held)
        self._count(record.endorsement)
        return held.ids

    @staticmethod
    def is_promise(key: bytes) -> bool:
        """Tell whether a record of the promise store is one of the lanes'."""
        return key == OWN_LANE_KEY or key.startswith((ENDORSED_PREFIX, GIVEN_UP_PREFIX))

    def _endorse(self, held: HeldBatch, refusals: list[Refusal]) -> Endorsement | None:
        endorsement = self._endorser.endorse(held, refusals)
        if endorsement is not None:
            record = encode(EndorsedRecord(held.batch, endorsement))
            self._out.add(out.Persist(((endorsed_key(held.batch.collector, held.batch.number), record),)))
        return endorsement

    def _asked_again(self, held: HeldBatch) -> None:
        """Answer a batch that is here already with its endorsement or certificate, else see to it that it gets one."""
        collector, number = held.batch.collector, held.batch.number
        earlier = self._endorser.known(collector, number)
        owed = self._owed.get((collector, number))
        if owed is not None and owed.certificate.batch_digest == held.digest:
            self._out.add(out.Send(collector, owed.certificate))
        elif earlier is not None:
            self._out.add(out.Send(collector, earlier))
        elif not self._is_amnesiac and all(job.held.digest != held.digest for job in self._checking):
            self._patient.pop(held.digest, None)
            self._checking.append(_Checking(held))

    def _keep_behind(self, held: HeldBatch) -> None:
        same = [key for key, item in self._behind.items() if item.batch.collector == held.batch.collector]
        if len(same) < BEHIND_BATCHES_MAX:
            self._behind[held.digest] = held
