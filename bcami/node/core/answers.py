"""What this node can say about outcomes: blocks that stand here, their certificates, and who waits for which.

A block is kept here from its execution until its certificate is in the ledger, so that at no moment a transaction that
has executed looks like one that was never seen. The first outcome of a transaction is the only one that is answered
(protocol 3.5); without a certificate it is not answered at all (protocol 5.3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bcami.crypto import merkle
from bcami.ledger.store import Ledger
from bcami.model.api import CertifiedHeader, SubmitResult
from bcami.model.batch import Batch
from bcami.model.block import BlockCertificate, Header, Outcome, header_hash, result_leaf
from bcami.model.chain import TransactionPlace
from bcami.model.reasons import Reason
from bcami.node.core.admission import Tickets, committed, refused, unknown
from bcami.node.core.execution import ExecutedBlock

LOOK_BACK_BLOCKS: Final = 1_024
"""At a start, this many newest blocks are searched for a missing certificate; older gaps are found when asked for."""
RECALLED_BLOCKS_MAX: Final = 64
"""Old blocks without a certificate that are kept in memory at once."""


@dataclass(slots=True)
class _Block:
    header: Header
    header_hash: bytes
    outcomes: Sequence[Outcome]
    digests: tuple[bytes, ...]
    """Batches that executed, in order."""
    results: merkle.Tree
    certificate: BlockCertificate | None = None


class Answers:
    """Outcomes of this node's chain, and the tickets that wait for them."""

    def __init__(self, ledger: Ledger) -> None:
        self.tickets = Tickets()
        self._ledger = ledger
        self._blocks: dict[int, _Block] = {}
        self._placed: dict[bytes, tuple[int, int]] = {}
        """Where the first outcome of a transaction stands, for the blocks that are kept here."""
        self._look_back()

    def _look_back(self) -> None:
        ledger = self._ledger
        for height in range(max(1, ledger.certified_height - LOOK_BACK_BLOCKS), ledger.height + 1):
            if ledger.certificate(height) is None:
                self._recall(height)

    def restart(self) -> list[int]:
        """Go on from where the ledger stands, after a snapshot; returns the tickets that are complete with it."""
        self._blocks.clear()
        self._placed.clear()
        self._look_back()
        ready: list[int] = []
        for tx_id in self.tickets.awaited_ids():
            if (known := self.known(tx_id)) is not None:
                ready += self.tickets.resolve(tx_id, *known)
        return ready

    # Blocks.

    def executed(self, block: ExecutedBlock) -> None:
        """Take note of a block that was executed here, durable or not."""
        outcomes = block.commit.block.outcomes
        self._blocks[block.height] = _Block(block.header, block.header_hash, outcomes, block.digests, block.results)
        for index, outcome in enumerate(outcomes):
            tx_id = outcome.transaction_id
            if tx_id in self._placed:
                continue
            # A repeated one is never valid: its number was consumed by the first.
            if outcome.reason is Reason.VALID or self._ledger.place(tx_id) is None:
                self._placed[tx_id] = (block.height, index)
        self._let_go()

    def absent(self, own: Iterable[tuple[bytes, Reason]]) -> list[int]:
        """Answer for transactions of own batches that weak refusals left out; returns the complete tickets.

        One that executed by way of another node keeps its outcome.
        """
        ready: list[int] = []
        for tx_id, reason in own:
            if (known := self.known(tx_id)) is not None:
                ready += self.tickets.resolve(tx_id, *known)
            elif not self.is_executed(tx_id):
                ready += self.tickets.resolve(tx_id, refused(tx_id, reason))
        return ready

    def left_out(self, own: Iterable[bytes]) -> list[int]:
        """Let go of transactions of own batches that a snapshot has executed; returns the complete tickets.

        One without an outcome was left out by weak refusals, which a snapshot does not hold: nothing is known of it,
        and it is taken in again when it is asked for again.
        """
        ready: list[int] = []
        for tx_id in own:
            if self.tickets.is_awaited(tx_id) and not self.is_executed(tx_id):
                ready += self.tickets.resolve(tx_id, unknown(tx_id))
        return ready

    def hash_of(self, height: int) -> bytes | None:
        """Return the header hash of a block that stands here and is not certified in the ledger yet."""
        block = self._blocks.get(height)
        return None if block is None else block.header_hash

    def certified(self, certificate: BlockCertificate) -> list[int] | None:
        """Answer who waits for outcomes of a durable block; returns the complete tickets, None if it was known."""
        block = self._blocks.get(certificate.height)
        if block is None or block.certificate is not None:
            return None
        block.certificate = certificate
        ready: list[int] = []
        for outcome in block.outcomes:
            tx_id = outcome.transaction_id
            if self.tickets.is_awaited(tx_id) and (known := self.known(tx_id)) is not None:
                ready += self.tickets.resolve(tx_id, *known)
        self._let_go()
        return ready

    def gaps(self) -> list[int]:
        """Return the heights below the newest certificate that lack their own."""
        newest = self._ledger.certified_height
        return [height for height, block in self._blocks.items() if block.certificate is None and height < newest]

    def is_gap(self, height: int) -> bool:
        block = self._blocks.get(height)
        return block is not None and block.certificate is None and height < self._ledger.certified_height

    def batch(self, digest: bytes) -> Batch | None:
        """Return a batch of a durable block that is not certified: somebody may still have to execute it.

        None when its payloads are pruned: what is left has another digest, and would be held against its collector.
        """
        for height, block in self._blocks.items():
            if digest in block.digests and height <= self._ledger.height:
                stored = self._ledger.batches(height)[block.digests.index(digest)]
                return None if stored.leaves else stored.batch
        return None

    # Transactions.

    def known(self, tx_id: bytes) -> tuple[SubmitResult, CertifiedHeader] | None:
        """Return the certified first outcome of a transaction."""
        place = self._placed.get(tx_id)
        if place is not None:
            height, index = place
            block = self._blocks[height]
            if block.certificate is None:
                return None
            result = committed(tx_id, block.outcomes[index].reason, height, index, block.results.path(index))
            return result, CertifiedHeader(block.header, block.certificate)
        receipt = self._ledger.receipt(tx_id)
        if receipt is None:
            return None
        result = committed(tx_id, receipt.outcome.reason, receipt.header.height, receipt.index, receipt.path)
        return result, CertifiedHeader(receipt.header, receipt.certificate)

    def is_executed(self, tx_id: bytes) -> bool:
        """Tell whether a transaction has its outcome, certified or not: it must not be taken in again."""
        if tx_id in self._placed:
            return True
        place = self._ledger.place(tx_id)
        if place is None:
            return False
        self.recall(place.height)
        return True

    def recall(self, height: int) -> None:
        """Keep an old block whose certificate is missing, so that it is asked for; bounded."""
        if height in self._blocks or len(self._blocks) >= RECALLED_BLOCKS_MAX:
            return
        if 1 <= height <= self._ledger.height and self._ledger.certificate(height) is None:
            self._recall(height)

    def _recall(self, height: int) -> None:
        block = self._ledger.block(height)
        assert block is not None
        leaves = [result_leaf(outcome, index) for index, outcome in enumerate(block.outcomes)]
        certificates = block.proposal.certificates
        digests = tuple(certificates[place].batch_digest for place in block.executed)
        self._blocks[height] = _Block(
            block.header, header_hash(block.header), block.outcomes, digests, merkle.Tree(leaves)
        )
        for index, outcome in enumerate(block.outcomes):
            if self._ledger.place(outcome.transaction_id) == TransactionPlace(height, index):
                self._placed[outcome.transaction_id] = (height, index)

    def _let_go(self) -> None:
        """Forget the blocks whose certificate the ledger has by now."""
        saved = [
            height
            for height, block in self._blocks.items()
            if block.certificate is not None and self._ledger.certificate(height) is not None
        ]
        for height in saved:
            for index, outcome in enumerate(self._blocks.pop(height).outcomes):
                if self._placed.get(outcome.transaction_id) == (height, index):
                    del self._placed[outcome.transaction_id]
