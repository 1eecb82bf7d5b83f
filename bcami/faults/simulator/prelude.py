"""The first blocks of every run: an MDMS period is open and meters have sessions, before anything goes wrong.

They are made directly, by everybody's keys, as an undisturbed cluster would have made them, and kept for all seeds of
the same shape. Their batches are lane 0's.
"""

from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from bcami.contract.issuance import answer_contribution
from bcami.endorsement.pool import HeldBatch, hold
from bcami.faults.simulator.events import START_MS
from bcami.faults.simulator.identities import Identities, entropy, identities
from bcami.faults.simulator.parties import Meter, Utility, open_period
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.store import LedgerCommit
from bcami.model.batch import Batch, BatchCertificate, CertificateVote, endorsement_digest
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest, header_hash
from bcami.model.chain import StateEntry
from bcami.model.consensus import Proposal
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import ContributionRequest
from bcami.model.transaction import Transaction
from bcami.node.core.execution import ExecutedBlock, Executor
from bcami.node.core.world import WorldState

METERS: Final = 3
PERIOD: Final = 1


@dataclass(frozen=True)
class Prelude:
    """What a run begins with."""

    network: Identities
    blocks: tuple[tuple[LedgerCommit, BlockCertificate], ...]
    period_key: bytes
    meters: tuple[Meter, ...]
    utility_sequence: int

    def ledger(self) -> MemoryLedger:
        """Return a ledger that ends after the prelude."""
        ledger = MemoryLedger(self.network.genesis)
        for commit, certificate in self.blocks:
            ledger.commit(commit, (certificate,))
        return ledger

    def new_meters(self) -> list[Meter]:
        """Return the meters, each with its session open and nothing sent."""
        return [copy(meter) for meter in self.meters]


class _Writer:
    """Makes certified blocks with everybody's keys."""

    def __init__(self, network: Identities) -> None:
        self._network = network
        self.ledger = MemoryLedger(network.genesis)
        self._world = WorldState(self.ledger)
        self._executor = Executor(network.roster, network.runtime, self._world, self.ledger)
        self.blocks: list[tuple[LedgerCommit, BlockCertificate]] = []

    def ask(self, node: int, request: ContributionRequest) -> object:
        network = self._network
        secret, signer = entropy("contribution", node), network.consensus[node]
        return answer_contribution(request, network.runtime, self._read, network.roster, node, signer, secret)

    def _read(self, key: bytes) -> StateEntry | None:
        return self.ledger.state(key)

    def write(self, transactions: tuple[Transaction, ...]) -> None:
        """Add a block of one batch; every transaction must be valid."""
        network = self._network
        anchor = self.blocks[-1][1] if self.blocks else None
        held = hold(Batch(0, 0, len(self.blocks) + 1, anchor, transactions), network.roster.chain)
        proposal = Proposal((self._certify(held),), START_MS)
        result = self._executor.execute(proposal, {held.digest: held}.get)
        assert isinstance(result, ExecutedBlock)
        assert all(outcome.reason is Reason.VALID for outcome in result.commit.block.outcomes)
        certificate = self._certificate(result)
        self.ledger.commit(result.commit, (certificate,))
        self._world.durable(result.height, [key for key, _ in result.commit.writes])
        self.blocks.append((result.commit, certificate))

    def _certify(self, held: HeldBatch) -> BatchCertificate:
        chain, batch, count = self._network.roster.chain, held.batch, len(held.ids)
        votes = tuple(
            CertificateVote(i, (), key.sign(endorsement_digest(chain, 0, 0, batch.number, held.digest, count, i, ())))
            for i, key in enumerate(self._network.consensus[: self._network.roster.quorum.strong])
        )
        return BatchCertificate(0, 0, batch.number, held.digest, count, votes)

    def _certificate(self, block: ExecutedBlock) -> BlockCertificate:
        signed = checkpoint_digest(self._network.roster.chain, 0, block.height, header_hash(block.header))
        signers = self._network.consensus[: self._network.roster.quorum.strong]
        votes = tuple(CheckpointVote(i, key.sign(signed)) for i, key in enumerate(signers))
        return BlockCertificate(0, block.height, block.header_hash, votes)


@lru_cache(maxsize=512)
def prelude(nodes: int, parameters: Parameters, *, real: bool) -> Prelude:
    """Return the beginning of every run of a shape."""
    network = identities(nodes, parameters, real=real)
    writer, utility = _Writer(network), Utility(network)
    meters = [Meter(network, f"meter{i}") for i in range(METERS)]
    writer.write(tuple(utility.enrol(item.hid, item.enrolment_key, item.kem.public_key, START_MS) for item in meters))
    tx, period_kem = open_period(network, PERIOD, START_MS, writer.ask)
    writer.write((tx,))
    everyone = range(network.roster.quorum.n)
    opened = [item.register(PERIOD, period_kem.public_key, START_MS, everyone, writer.ask) for item in meters]
    writer.write(tuple(tx for tx in opened if tx is not None))
    return Prelude(network, tuple(writer.blocks), period_kem.public_key, tuple(meters), utility.sequence)
