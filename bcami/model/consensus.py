"""PBFT messages (design D3) [CL99, CL02]. All carry an epoch and the signature of `replica`."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final

import msgspec

from bcami.model.batch import BatchCertificate, certificate_bytes
from bcami.model.block import BlockCertificate
from bcami.model.ids import REPLICAS_MAX, U63, Hash, ReplicaId, Signature
from bcami.model.signing import digest, prefixed, u64

PROPOSAL_CERTIFICATES_MAX: Final = 64
WINDOW_MAX: Final = 64
"""No window of heights is larger than this, so that a view change has a bounded size."""


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """What a pre-prepare orders: batch certificates and a time. It names no parent (protocol 5.1)."""

    certificates: Annotated[tuple[BatchCertificate, ...], msgspec.Meta(max_length=PROPOSAL_CERTIFICATES_MAX)]
    time_ms: U63


NULL_PROPOSAL: Final = Proposal((), 0)
"""Fills a gap after a view change [CL02 4.4]; executes to an empty block with its parent's time."""


class PrePrepare(msgspec.Struct, frozen=True, array_like=True, tag="pre_prepare"):
    epoch: U63
    view: U63
    height: U63
    digest: Hash
    replica: ReplicaId
    signature: Signature
    proposal: Proposal
    """Bound by `digest`; recomputed at decode."""


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="prepare"):
    epoch: U63
    view: U63
    height: U63
    digest: Hash
    replica: ReplicaId
    signature: Signature


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    epoch: U63
    view: U63
    height: U63
    digest: Hash
    replica: ReplicaId
    signature: Signature


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag="checkpoint"):
    epoch: U63
    height: U63
    header_hash: Hash
    replica: ReplicaId
    signature: Signature


class PhaseVote(msgspec.Struct, frozen=True, array_like=True):
    """A PREPARE inside a prepared proof."""

    replica: ReplicaId
    signature: Signature


class PreparedProof(msgspec.Struct, frozen=True, array_like=True):
    """The P-set entry of one height: its pre-prepare and strong − 1 matching prepares of backups [CL02 4.4]."""

    pre_prepare: PrePrepare
    prepares: Annotated[tuple[PhaseVote, ...], msgspec.Meta(max_length=REPLICAS_MAX)]


class ViewChange(msgspec.Struct, frozen=True, array_like=True, tag="view_change"):
    epoch: U63
    view: U63
    """The view that the sender moves to."""
    stable: BlockCertificate | None
    """Proof of the sender's last stable checkpoint; None stands for genesis."""
    prepared: Annotated[tuple[PreparedProof, ...], msgspec.Meta(max_length=WINDOW_MAX)]
    """Sorted by height, each height once, all above the stable one."""
    replica: ReplicaId
    signature: Signature


class NewView(msgspec.Struct, frozen=True, array_like=True, tag="new_view"):
    epoch: U63
    view: U63
    view_changes: Annotated[tuple[ViewChange, ...], msgspec.Meta(max_length=REPLICAS_MAX)]
    """A strong quorum, sorted by replica, each replica once."""
    pre_prepares: Annotated[tuple[PrePrepare, ...], msgspec.Meta(max_length=WINDOW_MAX)]
    """O: what the new primary proposes again; every backup recomputes the choice."""
    replica: ReplicaId
    signature: Signature


ConsensusMessage = PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView


def proposal_digest(chain: bytes, epoch: int, proposal: Proposal) -> bytes:
    listed = [prefixed(certificate_bytes(item)) for item in proposal.certificates]
    return digest(b"bcami/proposal/1", chain, epoch, u64(proposal.time_ms), u64(len(listed)), *listed)


def phase_digest(phase: bytes, chain: bytes, epoch: int, view: int, height: int, proposal: bytes) -> bytes:
    """Return what PRE-PREPARE, PREPARE and COMMIT sign; `phase` is one of b"pre_prepare", b"prepare", b"commit"."""
    return digest(b"bcami/" + phase + b"/1", chain, epoch, u64(view), u64(height), proposal)


def _stable_bytes(stable: BlockCertificate | None) -> bytes:
    if stable is None:
        return u64(0)
    votes = [u64(vote.replica) + vote.signature for vote in stable.votes]
    return b"".join((u64(stable.height), stable.header_hash, u64(len(votes)), *votes))


def _proof_bytes(proof: PreparedProof) -> bytes:
    first = proof.pre_prepare
    votes = [u64(vote.replica) + vote.signature for vote in proof.prepares]
    head = (u64(first.view), u64(first.height), first.digest, u64(first.replica), first.signature)
    return b"".join((*head, u64(len(votes)), *votes))


def view_change_content(stable: BlockCertificate | None, prepared: Sequence[PreparedProof]) -> bytes:
    """Return SHA-256 of all that a VIEW-CHANGE says beside its view: with it, evidence needs none of the proofs."""
    listed = [prefixed(_proof_bytes(item)) for item in prepared]
    return sha256(b"".join((prefixed(_stable_bytes(stable)), u64(len(listed)), *listed))).digest()


def view_change_digest(
    chain: bytes, epoch: int, view: int, stable: BlockCertificate | None, prepared: Sequence[PreparedProof]
) -> bytes:
    return left_view_digest(chain, epoch, view, view_change_content(stable, prepared))


def left_view_digest(chain: bytes, epoch: int, view: int, content: bytes) -> bytes:
    """Return what a VIEW-CHANGE of that content signs."""
    return digest(b"bcami/view_change/2", chain, epoch, u64(view), content)


def new_view_content(
    chain: bytes, epoch: int, view_changes: Sequence[ViewChange], pre_prepares: Sequence[PrePrepare]
) -> bytes:
    """Return SHA-256 of all that a NEW-VIEW says beside its view."""
    changes = [
        u64(item.replica) + item.signature + view_change_digest(chain, epoch, item.view, item.stable, item.prepared)
        for item in view_changes
    ]
    orders = [u64(item.height) + item.digest + item.signature for item in pre_prepares]
    return sha256(b"".join((u64(len(changes)), *changes, u64(len(orders)), *orders))).digest()


def new_view_digest(
    chain: bytes, epoch: int, view: int, view_changes: Sequence[ViewChange], pre_prepares: Sequence[PrePrepare]
) -> bytes:
    return opened_view_digest(chain, epoch, view, new_view_content(chain, epoch, view_changes, pre_prepares))


def opened_view_digest(chain: bytes, epoch: int, view: int, content: bytes) -> bytes:
    """Return what a NEW-VIEW of that content signs."""
    return digest(b"bcami/new_view/2", chain, epoch, u64(view), content)
