"""Certificates, receipts and blocks, checked by whoever knows genesis (design D4, protocol 4.3, 5.3).

Every function returns None when all holds, else the reason of the first thing that does not. None of them reads the
clock, a store or the network. What is known good is remembered in a bounded cache, because the same certificate comes
with proposals, view changes, status answers and blocks; what is bad is never remembered.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from threading import Lock
from typing import Final

from bcami.codec import encode
from bcami.crypto import merkle
from bcami.crypto.roster import Roster
from bcami.model.batch import (
    BATCH_TRANSACTIONS_MAX,
    BatchCertificate,
    CertificateVote,
    Refusal,
    batch_digest,
    endorsement_digest,
    leaf_hash,
)
from bcami.model.block import (
    BlockCertificate,
    CheckpointVote,
    Header,
    Receipt,
    checkpoint_digest,
    header_hash,
    result_leaf,
)
from bcami.model.chain import BlockBundle, ChainBlock, StoredBatch
from bcami.model.consensus import proposal_digest
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest, transaction_id, transaction_leaf

VERIFIED_MAX: Final = 8192
"""Certificates remembered, about 1 MB."""


class _Verified:
    """A bounded set of digests of certificates that were found good; the oldest leaves first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[bytes, None] = {}
        self._lock = Lock()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, digest: bytes) -> None:
        with self._lock:
            self._known[digest] = None
            if len(self._known) > self._limit:
                del self._known[next(iter(self._known))]


_VERIFIED: Final = _Verified(VERIFIED_MAX)


def _cache_key(certificate: BlockCertificate | BatchCertificate, roster: Roster) -> bytes:
    """Return a digest over the whole certificate and over all of the roster that decides."""
    return sha256(roster.chain + roster.members_hash + encode((roster.epoch, certificate))).digest()


def verify_block_certificate(certificate: BlockCertificate, roster: Roster) -> Reason | None:
    """Check that a strong quorum of distinct members signed this header hash at this height."""
    if certificate.epoch != roster.epoch:
        return Reason.WRONG_EPOCH
    refused = _check_voters(certificate.votes, roster)
    if refused is not None:
        return refused
    known = _cache_key(certificate, roster)
    if known in _VERIFIED:
        return None
    signed = checkpoint_digest(roster.chain, roster.epoch, certificate.height, certificate.header_hash)
    for vote in certificate.votes:
        if not roster.verify_by(vote.replica, vote.signature, signed):
            return Reason.BAD_SIGNATURE
    _VERIFIED.add(known)
    return None


def verify_batch_certificate(certificate: BatchCertificate, roster: Roster) -> Reason | None:
    """Check that a strong quorum of distinct members endorsed this batch, each with a well-formed refusal set."""
    if certificate.epoch != roster.epoch:
        return Reason.WRONG_EPOCH
    if certificate.collector >= roster.quorum.n:
        return Reason.UNKNOWN_REPLICA
    if certificate.number < 1 or not 1 <= certificate.count <= BATCH_TRANSACTIONS_MAX:
        return Reason.BAD_CERTIFICATE
    refused = _check_voters(certificate.votes, roster)
    if refused is not None:
        return refused
    known = _cache_key(certificate, roster)
    if known in _VERIFIED:
        return None
    for vote in certificate.votes:
        if not are_refusals_well_formed(vote.refusals, certificate.count):
            return Reason.BAD_CERTIFICATE
        if not roster.verify_by(vote.replica, vote.signature, _signed_by_endorser(certificate, vote, roster)):
            return Reason.BAD_SIGNATURE
    _VERIFIED.add(known)
    return None


def _check_voters(votes: Sequence[CheckpointVote] | Sequence[CertificateVote], roster: Roster) -> Reason | None:
    """Check that the voters are members, strictly ascending (so none counts twice) and strong."""
    voters = [vote.replica for vote in votes]
    if any(left >= right for left, right in pairwise(voters)):
        return Reason.BAD_CERTIFICATE
    if any(not 0 <= voter < roster.quorum.n for voter in voters):
        return Reason.UNKNOWN_REPLICA
    return None if len(voters) >= roster.quorum.strong else Reason.BAD_CERTIFICATE


def _signed_by_endorser(certificate: BatchCertificate, vote: CertificateVote, roster: Roster) -> bytes:
    return endorsement_digest(
        roster.chain,
        roster.epoch,
        certificate.collector,
        certificate.number,
        certificate.batch_digest,
        certificate.count,
        vote.replica,
        vote.refusals,
    )


def are_refusals_well_formed(refusals: Sequence[Refusal], count: int) -> bool:
    """Tell whether the indices ascend strictly below `count` and each reason is a no (protocol 4.3)."""
    indices = [refusal.index for refusal in refusals]
    return (
        all(left < right for left, right in pairwise(indices))
        and all(0 <= index < count for index in indices)
        and all(refusal.reason is not Reason.VALID for refusal in refusals)
    )


def absent_transactions(certificate: BatchCertificate, quorum: Quorum) -> frozenset[int]:
    """Return the places in the batch that at least a weak quorum refused: no outcome, may be asked again."""
    refused = Counter(refusal.index for vote in certificate.votes for refusal in vote.refusals)
    return frozenset(index for index, voters in refused.items() if voters >= quorum.weak)


def verify_receipt(receipt: Receipt, roster: Roster) -> Reason | None:
    """Check that a certified block gave this outcome to this transaction (protocol 5.3)."""
    header = receipt.header
    refused = verify_header(header, receipt.certificate, roster)
    if refused is not None:
        return refused
    leaf = result_leaf(receipt.outcome, receipt.index)
    root = merkle.root_from_path(leaf, receipt.index, header.transaction_count, receipt.path)
    return None if root == header.results_root else Reason.BAD_PROOF


def verify_header(header: Header, certificate: BlockCertificate, roster: Roster) -> Reason | None:
    """Check that the header is of this chain and that the certificate is valid and of this header."""
    if header.chain != roster.chain:
        return Reason.WRONG_CHAIN
    if header.epoch != roster.epoch or header.members_hash != roster.members_hash:
        return Reason.WRONG_EPOCH
    if header.height < 1 or certificate.height != header.height or certificate.header_hash != header_hash(header):
        return Reason.BAD_CERTIFICATE
    return verify_block_certificate(certificate, roster)


def _check_proof(
    header: Header, above: Sequence[Header], certificate: BlockCertificate, roster: Roster
) -> Reason | None:
    """Check that the certificate is valid and of the last header, and each header names the hash of the one below."""
    line = (header, *above)
    refused = verify_header(line[-1], certificate, roster)
    if refused is not None:
        return refused
    for lower, upper in pairwise(line):
        if upper.height != lower.height + 1 or upper.previous != header_hash(lower):
            return Reason.BAD_CERTIFICATE
    return None if header.height >= 1 else Reason.BAD_CERTIFICATE


def verify_bundle(bundle: BlockBundle, roster: Roster, previous_hash: bytes) -> Reason | None:
    """Check all of a block that needs no state: that it is certified, follows `previous_hash`, and is whole.

    Certified is what has a certificate of its own, and what a later certified header names through the hash chain.

    The batch certificates inside are not checked again: a strong quorum signed the header that covers them.
    Signatures of transactions, outcomes and the state root need the world state and are the caller's.
    """
    block = bundle.block
    header = block.header
    refused = _check_proof(header, bundle.headers, bundle.certificate, roster)
    if refused is not None:
        return refused
    if header.previous != previous_hash:
        return Reason.BAD_PROOF
    if proposal_digest(roster.chain, roster.epoch, block.proposal) != header.proposal_digest:
        return Reason.BAD_DIGEST
    if header.time_ms < block.proposal.time_ms:
        return Reason.BAD_TIME
    refused = _check_batches(block, bundle.batches, roster)
    if refused is not None:
        return refused
    return _check_outcomes(block, bundle.batches, roster)


def _check_batches(block: ChainBlock, batches: Sequence[StoredBatch], roster: Roster) -> Reason | None:
    """Check that the batches are the executed certificates' own, each collector's in number order (protocol 4.2)."""
    certificates = block.proposal.certificates
    if len(batches) != len(block.executed) or any(left >= right for left, right in pairwise(block.executed)):
        return Reason.BAD_PROOF
    lanes: dict[int, int] = {}
    for place, stored in zip(block.executed, batches, strict=True):
        if place >= len(certificates):
            return Reason.BAD_PROOF
        certificate = certificates[place]
        if certificate.number != lanes.get(certificate.collector, certificate.number - 1) + 1:
            return Reason.BAD_PROOF
        lanes[certificate.collector] = certificate.number
        if not is_batch_of(stored, certificate, roster.chain):
            return Reason.BAD_DIGEST
    return None


def is_batch_of(stored: StoredBatch, certificate: BatchCertificate, chain: bytes) -> bool:
    """Tell whether a stored batch, whole or pruned, is the one that the certificate names."""
    batch = stored.batch
    leaves = batch_leaves(stored)
    if leaves is None or len(leaves) != certificate.count:
        return False
    if (batch.epoch, batch.collector, batch.number) != (certificate.epoch, certificate.collector, certificate.number):
        return False
    computed = batch_digest(chain, batch.epoch, batch.collector, batch.number, batch.anchor_height, leaves)
    return computed == certificate.batch_digest


def batch_leaves(stored: StoredBatch) -> tuple[bytes, ...] | None:
    """Return the leaf hash of each transaction; None when a kept leaf contradicts a transaction that is still whole.

    The leaf of a transaction whose payload is gone cannot be recomputed and is taken as stored; the batch digest
    covers it, and the block's roots cover what is left of the transaction (protocol 7.2).
    """
    transactions = stored.batch.transactions
    if not stored.leaves:
        return tuple(leaf_hash(tx) for tx in transactions)
    if len(stored.leaves) != len(transactions):
        return None
    for tx, leaf in zip(transactions, stored.leaves, strict=True):
        if not is_pruned(tx) and leaf_hash(tx) != leaf:
            return None
    return stored.leaves


def is_pruned(tx: Transaction) -> bool:
    """Tell whether a stored transaction has lost its payload: empty, and not the argument that was signed."""
    return not tx.argument and tx.argument_hash != argument_digest(b"")


def executed_transactions(
    block: ChainBlock, batches: Sequence[StoredBatch], quorum: Quorum
) -> Iterator[tuple[int, int, Transaction]]:
    """Yield (place in `block.executed`, index in its batch, transaction) in outcome order, absent ones left out."""
    for position, (place, stored) in enumerate(zip(block.executed, batches, strict=True)):
        absent = absent_transactions(block.proposal.certificates[place], quorum)
        for index, tx in enumerate(stored.batch.transactions):
            if index not in absent:
                yield position, index, tx


def _check_outcomes(block: ChainBlock, batches: Sequence[StoredBatch], roster: Roster) -> Reason | None:
    """Check that each executed transaction has its outcome, in order, and that both roots cover them."""
    leaves: list[bytes] = []
    outcomes = block.outcomes
    for _, _, tx in executed_transactions(block, batches, roster.quorum):
        tx_id = transaction_id(tx, roster.chain, roster.epoch)
        if len(leaves) >= len(outcomes) or outcomes[len(leaves)].transaction_id != tx_id:
            return Reason.BAD_PROOF
        leaves.append(transaction_leaf(tx_id, tx.signatures))
    header = block.header
    if len(leaves) != len(outcomes) or header.transaction_count != len(outcomes):
        return Reason.BAD_PROOF
    if merkle.root(leaves) != header.transactions_root:
        return Reason.BAD_PROOF
    results = [result_leaf(outcome, index) for index, outcome in enumerate(outcomes)]
    return None if merkle.root(results) == header.results_root else Reason.BAD_PROOF
