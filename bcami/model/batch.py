"""Batches, endorsements and batch certificates (design D2, protocol 4)."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.codec import encode
from bcami.model.block import BlockCertificate
from bcami.model.ids import REPLICAS_MAX, U32, U63, Hash, ReplicaId, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u32, u64
from bcami.model.transaction import Transaction
from bcami.units import MIB

BATCH_TRANSACTIONS_MAX: Final = 2000
BATCH_BYTES_MAX: Final = 1 * MIB


class Batch(msgspec.Struct, frozen=True, array_like=True, tag="batch"):
    """What one collector collected, under its lane number (protocol 4.1, 4.2)."""

    epoch: U63
    collector: ReplicaId
    number: U63
    """1, 2, 3 … in the collector's lane."""
    anchor: BlockCertificate | None
    """Certificate of the block whose state the collector checked against; None stands for genesis."""
    transactions: Annotated[tuple[Transaction, ...], msgspec.Meta(min_length=1, max_length=BATCH_TRANSACTIONS_MAX)]

    @property
    def anchor_height(self) -> int:
        return 0 if self.anchor is None else self.anchor.height


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """One endorser's reasoned no to one transaction of a batch."""

    index: U32
    reason: Reason


class Endorsement(msgspec.Struct, frozen=True, array_like=True, tag="endorsement"):
    """A node's signed word that it keeps a batch, and what it refuses in it (protocol 4.3)."""

    epoch: U63
    collector: ReplicaId
    number: U63
    batch_digest: Hash
    count: U32
    """Transactions in the batch."""
    replica: ReplicaId
    refusals: Annotated[tuple[Refusal, ...], msgspec.Meta(max_length=BATCH_TRANSACTIONS_MAX)]
    """Sorted by index, each index once and below `count`."""
    signature: Signature


class CertificateVote(msgspec.Struct, frozen=True, array_like=True):
    """One endorsement inside a batch certificate."""

    replica: ReplicaId
    refusals: Annotated[tuple[Refusal, ...], msgspec.Meta(max_length=BATCH_TRANSACTIONS_MAX)]
    signature: Signature


class BatchCertificate(msgspec.Struct, frozen=True, array_like=True, tag="batch_certificate"):
    """A strong quorum of endorsements of one batch, votes sorted by replica, each replica once."""

    epoch: U63
    collector: ReplicaId
    number: U63
    batch_digest: Hash
    count: U32
    votes: Annotated[tuple[CertificateVote, ...], msgspec.Meta(min_length=1, max_length=REPLICAS_MAX)]


def leaf_hash(tx: Transaction) -> bytes:
    """Return SHA-256 of the whole encoded transaction, argument included."""
    return sha256(encode(tx)).digest()


def batch_digest(
    chain: bytes, epoch: int, collector: int, number: int, anchor_height: int, leaves: Sequence[bytes]
) -> bytes:
    """Return the digest that endorsements sign. It is built from leaf hashes, which stay when payloads are pruned."""
    return digest(
        b"bcami/batch/1",
        chain,
        epoch,
        u64(collector),
        u64(number),
        u64(anchor_height),
        u64(len(leaves)),
        *leaves,
    )


def endorsement_digest(
    chain: bytes,
    epoch: int,
    collector: int,
    number: int,
    batch: bytes,
    count: int,
    replica: int,
    refusals: Sequence[Refusal],
) -> bytes:
    """Return the digest that an endorser signs; the refusal set is covered (protocol 4.3)."""
    return endorsed_digest(chain, epoch, collector, number, batch, replica, endorsement_rest(count, refusals))


def endorsement_rest(count: int, refusals: Sequence[Refusal]) -> bytes:
    """Return SHA-256 of what an endorsement says beside the batch: evidence needs no refusals then."""
    listed = [u32(item.index) + prefixed(item.reason.encode()) for item in refusals]
    return sha256(b"".join((u64(count), u64(len(listed)), *listed))).digest()


def endorsed_digest(
    chain: bytes, epoch: int, collector: int, number: int, batch: bytes, replica: int, rest: bytes
) -> bytes:
    """Return what an endorsement with that rest signs."""
    return digest(b"bcami/endorsement/2", chain, epoch, u64(collector), u64(number), batch, u64(replica), rest)


def certificate_bytes(certificate: BatchCertificate) -> bytes:
    """Return the canonical bytes of a certificate, for the proposal digest."""
    parts = [
        u64(certificate.epoch),
        u64(certificate.collector),
        u64(certificate.number),
        certificate.batch_digest,
        u64(certificate.count),
        u64(len(certificate.votes)),
    ]
    for vote in certificate.votes:
        parts += [u64(vote.replica), u64(len(vote.refusals))]
        parts += [u32(item.index) + prefixed(item.reason.encode()) for item in vote.refusals]
        parts.append(vote.signature)
    return b"".join(parts)
