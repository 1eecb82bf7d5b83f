"""What a member's key can say without a node behind it: batches, endorsements and certificates of its own making."""

from collections.abc import Sequence

from bcami.endorsement.pool import HeldBatch, hold
from bcami.model.batch import Batch, BatchCertificate, CertificateVote, Endorsement, endorsement_digest
from bcami.model.block import BlockCertificate, CheckpointVote, checkpoint_digest
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.report.security.grounds import Grounds, Puppet


def own_endorsement(grounds: Grounds, held: HeldBatch, replica: int) -> Endorsement:
    """Return a member's endorsement of a batch, in which it refuses nothing."""
    batch, count = held.batch, len(held.ids)
    signed = endorsement_digest(
        grounds.roster.chain, batch.epoch, batch.collector, batch.number, held.digest, count, replica, ()
    )
    signature = grounds.identities.consensus[replica].sign(signed)
    return Endorsement(batch.epoch, batch.collector, batch.number, held.digest, count, replica, (), signature)


def certificate_of(votes: Sequence[Endorsement]) -> BatchCertificate:
    """Return what the endorsements add up to, checked by nobody."""
    first = votes[0]
    listed = tuple(CertificateVote(vote.replica, vote.refusals, vote.signature) for vote in votes)
    return BatchCertificate(first.epoch, first.collector, first.number, first.batch_digest, first.count, listed)


def block_certificate(grounds: Grounds, height: int, header_hash: bytes, voters: Sequence[int]) -> BlockCertificate:
    """Return checkpoints of these members for any header."""
    signed = checkpoint_digest(grounds.roster.chain, grounds.roster.epoch, height, header_hash)
    votes = tuple(CheckpointVote(voter, grounds.identities.consensus[voter].sign(signed)) for voter in voters)
    return BlockCertificate(grounds.roster.epoch, height, header_hash, votes)


def collect(grounds: Grounds, index: int, transactions: Sequence[Transaction]) -> dict[int, Reason] | None:
    """Bring a batch of any transactions to execution with member `index`'s key.

    Returns what honest endorsers refused, by place; None when they gave no certificate.
    """
    puppet = grounds.puppets.get(index) or Puppet(grounds, index)
    ledger = grounds.ledger(puppet.others[0])
    anchor = ledger.certificate(ledger.certified_height)
    lanes = [grounds.core(node).executor.lanes[index] for node in puppet.others]
    held = hold(Batch(0, index, max(lanes) + 1, anchor, tuple(transactions)), grounds.roster.chain)
    puppet.say(held.batch)

    def votes() -> list[Endorsement]:
        found = {index: own_endorsement(grounds, held, index)}
        for _, message in puppet.heard:
            if isinstance(message, Endorsement) and message.batch_digest == held.digest:
                found[message.replica] = message
        return [found[replica] for replica in sorted(found)]

    if not grounds.run(5_000, lambda: len(votes()) > len(puppet.others)):
        return None
    puppet.say(certificate_of(votes()))
    target = max(lanes) + 1
    grounds.run(20_000, lambda: all(grounds.core(node).executor.lanes[index] >= target for node in puppet.others))
    return {item.index: item.reason for vote in votes() for item in vote.refusals}
