"""What other nodes may ask of this one, within a credit for each: a flood of small requests cannot use up its time."""

from collections.abc import Iterator
from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.endorsement.pool import BatchPool
from bcami.ledger.store import Ledger
from bcami.model.batch import Batch
from bcami.model.block import CheckpointVote, checkpoint_digest
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint
from bcami.model.reasons import Reason
from bcami.model.wire import SNAPSHOT_PART_BYTES, FetchBatch, FetchBlocks, FetchSnapshot
from bcami.node.core import effects as out
from bcami.node.core.answers import Answers
from bcami.node.core.offers import Offers
from bcami.units import KIB, MIB

CREDIT_BYTES_PER_S: Final = 32 * MIB
CREDIT_BYTES_MAX: Final = 32 * MIB
REQUEST_BYTES: Final = 64 * KIB
"""What a request costs beside the bytes of its answer."""
BLOCK_BYTES: Final = 64 * KIB
"""What a block costs beside its bytes: a fifth of a millisecond to read, check and encode, however small it is."""
BLOCKS_MAX: Final = 64
BUNDLES_BYTES_MAX: Final = 8 * MIB
"""One answer to a request for blocks stops after this; the asker asks again."""
TRANSACTION_OVERHEAD_BYTES: Final = 320
"""At most what a transaction takes beside its argument."""
STATUS_MIN_MS: Final = 100
"""Between two statuses of a peer that are answered with what it lacks."""


def batch_bytes(batch: Batch) -> int:
    """Return about what the batch takes on the wire, and never much less."""
    return sum(len(tx.argument) + TRANSACTION_OVERHEAD_BYTES for tx in batch.transactions)


class Credit:
    """What each peer may still ask for: bytes, filled up with time."""

    def __init__(self, peers: int) -> None:
        self._left = [CREDIT_BYTES_MAX] * peers
        self._at_ms = [0] * peers
        self._status_ms = [-STATUS_MIN_MS] * peers

    def allows(self, peer: int, elapsed_ms: int) -> bool:
        """Charge one request; False when the peer has used up its credit."""
        earned = (elapsed_ms - self._at_ms[peer]) * CREDIT_BYTES_PER_S // 1000
        self._left[peer] = min(CREDIT_BYTES_MAX, self._left[peer] + earned)
        self._at_ms[peer] = elapsed_ms
        if self._left[peer] <= 0:
            return False
        self._left[peer] -= REQUEST_BYTES
        return True

    def charge(self, peer: int, size_bytes: int) -> None:
        """Take off what was sent; credit may go below zero by one answer."""
        self._left[peer] -= size_bytes

    def allows_status(self, peer: int, elapsed_ms: int) -> bool:
        """Tell whether a status of this peer is due an answer."""
        if elapsed_ms - self._status_ms[peer] < STATUS_MIN_MS:
            return False
        self._status_ms[peer] = elapsed_ms
        return True


def bundles(ledger: Ledger, request: FetchBlocks) -> Iterator[tuple[int, BlockBundle | None, int]]:
    """Yield (height, certified block, bytes) of what was asked for; one that nothing proves gives None and ends it."""
    sent = 0
    last = min(request.last, request.first + BLOCKS_MAX, ledger.certified_height)
    for height in range(max(1, request.first), last + 1):
        bundle = ledger.bundle(height)
        if bundle is None:
            yield height, None, 0
            return
        size_bytes = sum(batch_bytes(stored.batch) for stored in bundle.batches)
        yield height, bundle, size_bytes
        sent += size_bytes
        if sent > BUNDLES_BYTES_MAX:
            return


class Serving:
    """Answers what peers fetch. It goes on when the node has halted: what the ledger holds is certified or its own."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        signer: Signer,
        ledger: Ledger,
        pool: BatchPool,
        answers: Answers,
        outbox: out.Outbox,
    ) -> None:
        self._roster = roster
        self._replica = replica
        self._signer = signer
        self._ledger = ledger
        self._pool = pool
        self._answers = answers
        self._out = outbox
        self._credit = Credit(roster.quorum.n)
        self._offers = Offers(ledger)

    def allows_status(self, peer: int, elapsed_ms: int) -> bool:
        """Tell whether a status of this peer is due an answer."""
        return self._credit.allows_status(peer, elapsed_ms)

    def on_fetch_batch(self, peer: int, request: FetchBatch, elapsed_ms: int) -> None:
        """Send a batch that is on its way, or whose block is not certified yet."""
        if not self._allows(peer, elapsed_ms):
            return
        held = self._pool.get(request.batch_digest)
        batch = held.batch if held is not None else self._answers.batch(request.batch_digest)
        if batch is not None:
            self._credit.charge(peer, batch_bytes(batch))
            self._out.add(out.Send(peer, batch))

    def on_fetch_blocks(self, peer: int, request: FetchBlocks, elapsed_ms: int, *, may_sign: bool) -> bool:
        """Send certified blocks; with one whose own certificate is missing here, the own CHECKPOINT of it.

        False when the peer has used up its credit.
        """
        if not self._allows(peer, elapsed_ms):
            return False
        for height, bundle, size_bytes in bundles(self._ledger, request):
            if bundle is not None:
                self._credit.charge(peer, BLOCK_BYTES + size_bytes)
                self._out.add(out.Send(peer, bundle))
            if may_sign and (bundle is None or bundle.headers):
                self._vote_again(peer, height)
        return True

    def on_fetch_snapshot(self, peer: int, request: FetchSnapshot, elapsed_ms: int) -> None:
        """Send a part of the certified world state."""
        if not self._allows(peer, elapsed_ms):
            return
        part = self._offers.part(peer, request, elapsed_ms)
        if part is not None:
            self._credit.charge(peer, SNAPSHOT_PART_BYTES if part.rows else 0)
            self._out.add(out.Send(peer, part))

    def upkeep(self, elapsed_ms: int) -> None:
        """Let go of what nobody asks for any more."""
        self._offers.let_go(elapsed_ms)

    def _vote_again(self, peer: int, height: int) -> None:
        self._answers.recall(height)
        own = self._answers.hash_of(height)
        if own is not None:
            vote = self.vouch(height, own)
            self._out.add(out.Send(peer, Checkpoint(self._roster.epoch, height, own, vote.replica, vote.signature)))

    def vouch(self, height: int, hash_of_header: bytes) -> CheckpointVote:
        """Sign again for a block that is durable here: the same word as before, for what the ledger holds is final."""
        signed = checkpoint_digest(self._roster.chain, self._roster.epoch, height, hash_of_header)
        return CheckpointVote(self._replica, self._signer.sign(signed))

    def _allows(self, peer: int, elapsed_ms: int) -> bool:
        is_allowed = self._credit.allows(peer, elapsed_ms)
        if not is_allowed:
            self._out.refuse("serving", Reason.RATE_LIMITED, peer)
        return is_allowed
