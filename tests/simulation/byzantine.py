"""A node that is a script: it has a member's key, hears what it is told, and says what a test makes it say."""

from collections.abc import Callable, Sequence

from bcami.crypto.verification import verify_batch_certificate
from bcami.endorsement.pool import HeldBatch, hold
from bcami.model.batch import Batch, BatchCertificate, CertificateVote, Endorsement, Refusal, endorsement_digest
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest
from bcami.model.transaction import Transaction
from bcami.model.wire import Status
from tests.simulation.cluster import Cluster


def sign_endorsement(
    cluster: Cluster, held: HeldBatch, replica: int, refusals: Sequence[Refusal] = (), epoch: int = 0
) -> Endorsement:
    batch = held.batch
    digest = endorsement_digest(
        cluster.chain, epoch, batch.collector, batch.number, held.digest, len(held.ids), replica, refusals
    )
    return Endorsement(
        epoch,
        batch.collector,
        batch.number,
        held.digest,
        len(held.ids),
        replica,
        tuple(refusals),
        cluster.identities.consensus[replica].sign(digest),
    )


def certify(votes: Sequence[Endorsement]) -> BatchCertificate:
    """Return what the endorsements add up to, checked by nobody."""
    first = votes[0]
    listed = tuple(CertificateVote(vote.replica, vote.refusals, vote.signature) for vote in votes)
    return BatchCertificate(first.epoch, first.collector, first.number, first.batch_digest, first.count, listed)


def block_certificate(cluster: Cluster, height: int, header_hash: bytes, voters: Sequence[int]) -> BlockCertificate:
    digest = checkpoint_digest(cluster.chain, 0, height, header_hash)
    votes = tuple(CheckpointVote(i, cluster.identities.consensus[i].sign(digest)) for i in voters)
    return BlockCertificate(0, height, header_hash, votes)


class _Mute:
    """Stands where a core would, for a cluster that tells it of connections."""

    def connected(self, peer: int) -> list:
        return []

    disconnected = connected


class Puppet:
    """Takes the place of node i."""

    def __init__(self, cluster: Cluster, i: int) -> None:
        cluster.crash(i)
        self.cluster = cluster
        self.i = i
        self.core = _Mute()
        self.heard: list[tuple[int, object]] = []
        self.on_message: Callable[[int, object], None] = lambda sender, message: None
        cluster.shells[i] = self

    def step(self, effects: list) -> None:
        assert not effects

    def crash(self) -> None:
        """A script has nothing to lose."""

    def receive(self, sender: int, message: object) -> None:
        self.heard.append((sender, message))
        self.on_message(sender, message)

    @property
    def others(self) -> list[int]:
        return [j for j in range(self.cluster.n) if j != self.i]

    def say(self, message: object, to: Sequence[int] | None = None) -> None:
        for j in self.others if to is None else to:
            self.cluster.inject(self.i, j, message)

    def say_at_once(self, message: object, to: int) -> None:
        """Say it faster than any honest node can."""
        shell = self.cluster.shells[to]
        if shell is not None:
            self.cluster.at(0, lambda: shell.receive(self.i, message))

    def batch(
        self, transactions: Sequence[Transaction], number: int = 1, anchor: BlockCertificate | None = None
    ) -> HeldBatch:
        return hold(Batch(0, self.i, number, anchor, tuple(transactions)), self.cluster.chain)

    def endorse(self, held: HeldBatch, refusals: Sequence[Refusal] = ()) -> Endorsement:
        return sign_endorsement(self.cluster, held, self.i, refusals)

    def gather(self, held: HeldBatch, wait_ms: int = 2_000) -> BatchCertificate | None:
        """Return the certificate of endorsements that came for a batch within the time, the own one included."""

        def votes() -> list[Endorsement]:
            found = {self.i: self.endorse(held)}
            for _, item in self.heard:
                if isinstance(item, Endorsement) and item.batch_digest == held.digest:
                    found[item.replica] = item
            return [found[i] for i in sorted(found)]

        strong = self.cluster.roster.quorum.strong
        if not self.cluster.run(wait_ms, lambda: len(votes()) >= strong):
            return None
        certificate = certify(votes())
        assert verify_batch_certificate(certificate, self.cluster.roster) is None
        return certificate

    def status(self, certified: int, executed: int | None = None) -> Status:
        return Status(
            0, self.i, 0, False, certified if executed is None else executed, certified, (0,) * self.cluster.n
        )

    def lane(self) -> int:
        """Return the number after the last one that executed in this node's lane at an honest node."""
        return max(core.executor.lanes[self.i] for core in self.cluster.cores if hasattr(core, "executor")) + 1
