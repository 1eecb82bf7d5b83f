"""Blocks, block certificates and receipts (design D4, protocol 5.3)."""

from typing import Annotated, Final

import msgspec

from bcami.model.ids import REPLICAS_MAX, U32, U63, Hash, ReplicaId, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64

PROOF_HASHES_MAX: Final = 40


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a strong quorum signs of an executed proposal."""

    chain: Hash
    epoch: U63
    height: U63
    previous: Hash
    """Hash of the header below; of genesis for height 1."""
    proposal_digest: Hash
    transaction_count: U63
    """Executed transactions, rejected ones included, absent ones not."""
    transactions_root: Hash
    results_root: Hash
    state_root: Hash
    """SHA-256 of the LtHash of the world state after this block (design D5)."""
    state_bytes: U63
    """Sum of key and value lengths of the world state after this block."""
    time_ms: U63
    """Block time: max(parent's, proposal's) (protocol 5.1)."""
    members_hash: Hash


class CheckpointVote(msgspec.Struct, frozen=True, array_like=True):
    """One CHECKPOINT inside a block certificate."""

    replica: ReplicaId
    signature: Signature


class BlockCertificate(msgspec.Struct, frozen=True, array_like=True):
    """A strong quorum of checkpoints of one header hash, sorted by replica, each replica once."""

    epoch: U63
    height: U63
    header_hash: Hash
    votes: Annotated[tuple[CheckpointVote, ...], msgspec.Meta(min_length=1, max_length=REPLICAS_MAX)]


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one transaction in a block."""

    transaction_id: Hash
    reason: Reason
    """`valid`, or why it was rejected."""


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """Proves one outcome to anybody who knows genesis."""

    outcome: Outcome
    index: U32
    """Place of the outcome in the block."""
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=PROOF_HASHES_MAX)]
    """RFC 6962 audit path of the result leaf, leaf to root."""
    header: Header
    certificate: BlockCertificate


def header_hash(header: Header) -> bytes:
    return digest(
        b"bcami/header/1",
        header.chain,
        header.epoch,
        u64(header.height),
        header.previous,
        header.proposal_digest,
        u64(header.transaction_count),
        header.transactions_root,
        header.results_root,
        header.state_root,
        u64(header.state_bytes),
        u64(header.time_ms),
        header.members_hash,
    )


def checkpoint_digest(chain: bytes, epoch: int, height: int, hash_of_header: bytes) -> bytes:
    """Return what a CHECKPOINT signs; the same for every replica, the key tells who."""
    return digest(b"bcami/checkpoint/1", chain, epoch, u64(height), hash_of_header)


def result_leaf(outcome: Outcome, index: int) -> bytes:
    """Return the leaf under the results root: transaction id, index, outcome (protocol 5.3)."""
    return outcome.transaction_id + u64(index) + prefixed(outcome.reason.encode())
