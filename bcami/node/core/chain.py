"""What is decided becomes blocks: executed in height order, written, then vouched for and answered.

The one commit point of ordering, view change and catch-up. A block is compared with its certificate before it is
written when the certificate is there first, else when it comes; a node whose block is another one stops (protocol 5.4).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle
from bcami.endorsement.pool import BatchPool, hold
from bcami.ledger.store import Ledger
from bcami.model import events
from bcami.model.batch import BatchCertificate
from bcami.model.block import BlockCertificate, header_hash
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Proposal
from bcami.model.reasons import Reason
from bcami.node.core import effects as out
from bcami.node.core.answers import Answers
from bcami.node.core.execution import ExecutedBlock, Executor, MissingBatches


@dataclass(frozen=True, slots=True)
class Decision:
    """What ordering or catch-up says about a height."""

    proposal: Proposal
    view: int
    header_hash: bytes | None = None
    """What a certificate says that the block is; None where votes decided it."""
    certificate: BlockCertificate | None = None
    """That certificate: of this height, or of a later one."""


class Chain:
    """The blocks of one node from their decision to their certificate."""

    def __init__(
        self,
        roster: Roster,
        replica: int,
        ledger: Ledger,
        executor: Executor,
        pool: BatchPool,
        answers: Answers,
        outbox: out.Outbox,
    ) -> None:
        self.halted: str | None = None
        self.durable = ledger.height
        """Highest block that is on disk, as far as the driver has said."""
        self.decided: dict[int, Decision] = {}
        self.writing: dict[int, ExecutedBlock] = {}
        """Blocks on their way to disk."""
        self.is_suspended = False
        """No block is executed while a snapshot comes."""
        self.certificates: dict[int, BlockCertificate] = {}
        """Of blocks that are not durable here yet."""
        self._roster = roster
        self._replica = replica
        self._executor = executor
        self._pool = pool
        self._answers = answers
        self._out = outbox

    @property
    def height(self) -> int:
        """Highest block that was executed here."""
        return self._executor.height

    def halt(self, reason: str) -> None:
        """Stop for good and say why; the first reason counts."""
        if self.halted is None:
            self.halted = reason
            self._out.observe(events.Halted(reason))

    # Decided, executed.

    def decide(self, height: int, decision: Decision) -> None:
        """Take a decision; execute what is ready with it."""
        if height > self.height:
            self.decided.setdefault(height, decision)
            self.execute_ready()

    def execute_ready(self) -> None:
        """Execute decided heights in order, as far as their batches are here; `wanted` tells what is missing."""
        while not self.halted and not self.is_suspended:
            decision = self.decided.get(self.height + 1)
            if decision is None:
                return
            result = self._executor.execute(decision.proposal, self._pool.get)
            if isinstance(result, MissingBatches):
                return
            del self.decided[result.height]
            self._adopt(result, decision)

    @property
    def can_execute(self) -> bool:
        """Tell whether the next height is decided, and all that it lacks is leave to be executed."""
        return self.height + 1 in self.decided and not self.wanted()

    def suspend(self, is_suspended: bool) -> None:
        """Execute no block until told otherwise, or what has become ready meanwhile."""
        self.is_suspended = is_suspended
        self.execute_ready()

    def wanted(self) -> Mapping[bytes, BatchCertificate]:
        """Return the batches that the next height lacks, by digest."""
        decision = self.decided.get(self.height + 1)
        if decision is None:
            return {}
        needed = self._executor.needed(decision.proposal)
        return {item.batch_digest: item for _, item in needed if self._pool.get(item.batch_digest) is None}

    def take_bundle(self, bundle: BlockBundle, view: int) -> Reason | None:
        """Execute the next block from a peer's bundle, or return why the bundle is not to be believed."""
        reason = verify_bundle(bundle, self._roster, self._executor.parent_hash)
        if reason is not None:
            return reason
        if any(stored.leaves for stored in bundle.batches):
            return Reason.PRUNED
        held = {item.digest: item for item in (hold(stored.batch, self._roster.chain) for stored in bundle.batches)}
        result = self._executor.execute(bundle.block.proposal, held.get)
        if isinstance(result, MissingBatches):
            return Reason.MALFORMED
        self.decided.pop(result.height, None)
        hash_of = header_hash(bundle.block.header)
        self._adopt(result, Decision(bundle.block.proposal, view, hash_of, bundle.certificate))
        self.execute_ready()
        return None

    def _adopt(self, block: ExecutedBlock, decision: Decision) -> None:
        """Write a block that was executed here, unless a certificate says that it is another one."""
        height = block.height
        if decision.certificate is not None and decision.certificate.height == height:
            self.certificates.setdefault(height, decision.certificate)
        certificate = self.certificates.get(height)
        proved = (decision.header_hash, None if certificate is None else certificate.header_hash)
        if any(expected not in (None, block.header_hash) for expected in proved):
            self.halt(f"executing height {height} gives another block than is certified: the state is wrong")
            return
        self.writing[height] = block
        self._answers.executed(block)
        own = [(item.transaction_id, item.reason) for item in block.absent if item.collector == self._replica]
        self._ready(self._answers.absent(own))
        for tx_id, fault in block.faults:
            self._out.observe(events.ContractFault(height, tx_id, fault))
        rejected = sum(outcome.reason is not Reason.VALID for outcome in block.commit.block.outcomes)
        count = block.header.transaction_count
        self._out.observe(events.BlockExecuted(height, decision.view, count, rejected))
        self._out.add(out.CommitBlock(block.commit, decision.certificate))

    def installed(self, height: int, own: Iterable[bytes]) -> None:
        """Go on above a snapshot: what was decided below it is in it, and `own` transactions of this node's batches."""
        self.durable = height
        self.is_suspended = False
        self.decided = {item: decision for item, decision in self.decided.items() if item > height}
        self.certificates = {item: known for item, known in self.certificates.items() if item > height}
        self._ready(self._answers.restart())
        self._ready(self._answers.left_out(own))

    # Durable, certified.

    def written(self, height: int) -> tuple[ExecutedBlock, BlockCertificate | None]:
        """Take note that a block is on disk; returns it with its certificate if that came first."""
        self.durable = height
        return self.writing.pop(height), self.certificates.pop(height, None)

    def certified(self, certificate: BlockCertificate) -> None:
        """Take a verified block certificate: answer who waits, at once or when the block is durable here."""
        height = certificate.height
        self._out.observe(events.BlockCertified(height))
        if height <= self.durable:
            self.answer(certificate)
        elif self._agrees(certificate):
            self._keep(height, certificate)

    def _keep(self, height: int, certificate: BlockCertificate) -> None:
        """Keep a certificate for its block, which may be decided by votes and bring none; of far ones the newest.

        So all are here that ordering knows of, which tells of each once.
        """
        limit = self.height + 2 * self._roster.genesis.parameters.window
        if height > limit:
            for far in [item for item in self.certificates if item > limit]:
                del self.certificates[far]
        self.certificates.setdefault(height, certificate)

    def answer(self, certificate: BlockCertificate) -> None:
        """Save the certificate of a durable block and answer for its outcomes, once."""
        if not self._agrees(certificate):
            return
        ready = self._answers.certified(certificate)
        if ready is not None:
            self._out.add(out.SaveCertificate(certificate))
            self._ready(ready)

    def _agrees(self, certificate: BlockCertificate) -> bool:
        own = self._answers.hash_of(certificate.height)
        if own is None or own == certificate.header_hash:
            return True
        self.halt(f"the certificate of height {certificate.height} contradicts this node's own block")
        return False

    def _ready(self, tickets: list[int]) -> None:
        for ticket in tickets:
            self._out.add(out.TicketReady(ticket))
