"""What this replica signs, and whether what others signed is theirs.

Every statement covers chain, epoch, purpose and all its fields (protocol 1.4); the digests are in
`bcami.model.consensus`. Authenticity is by signatures, not MACs, so that votes can be shown to third parties [CL99 4].
"""

from collections.abc import Sequence
from typing import Final, assert_never

from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.model.block import BlockCertificate, checkpoint_digest
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PreparedProof,
    PrePrepare,
    Proposal,
    ViewChange,
    new_view_digest,
    phase_digest,
    proposal_digest,
    view_change_digest,
)
from bcami.model.quorum import Quorum

VERIFIED_MAX: Final = 4096
"""Signatures remembered as good: those of two full windows at n = 31; view-change proofs repeat them many times."""


class Statements:
    """Makes and checks the signed statements of one roster."""

    def __init__(self, roster: Roster, replica: int, signer: Signer) -> None:
        self.roster = roster
        self.replica = replica
        self._signer = signer
        self._verified: dict[tuple[int, bytes, bytes], None] = {}
        self.null_digest = self.digest_of_proposal(Proposal((), 0))

    def __getstate__(self) -> dict[str, object]:
        """A copy finds out again what is signed."""
        return {**self.__dict__, "_verified": {}}

    @property
    def quorum(self) -> Quorum:
        return self.roster.quorum

    @property
    def epoch(self) -> int:
        return self.roster.epoch

    @property
    def window(self) -> int:
        """Heights between the low and the high watermark [CL99 4.2]."""
        return self.roster.genesis.parameters.window

    def primary(self, view: int) -> int:
        return self.quorum.primary(view)

    def is_own(self, view: int) -> bool:
        """Tell whether this replica leads the view."""
        return self.primary(view) == self.replica

    # What is signed.

    def digest_of_proposal(self, proposal: Proposal) -> bytes:
        return proposal_digest(self.roster.chain, self.epoch, proposal)

    def _phase(self, phase: bytes, view: int, height: int, digest: bytes) -> bytes:
        return phase_digest(phase, self.roster.chain, self.epoch, view, height, digest)

    def digest_of(self, message: ConsensusMessage) -> bytes:
        """Return the digest that the sender of a message of this epoch signs."""
        chain, epoch = self.roster.chain, self.epoch
        match message:
            case PrePrepare():
                return self._phase(b"pre_prepare", message.view, message.height, message.digest)
            case Prepare():
                return self._phase(b"prepare", message.view, message.height, message.digest)
            case Commit():
                return self._phase(b"commit", message.view, message.height, message.digest)
            case Checkpoint():
                return checkpoint_digest(chain, epoch, message.height, message.header_hash)
            case ViewChange():
                return view_change_digest(chain, epoch, message.view, message.stable, message.prepared)
            case NewView():
                return new_view_digest(chain, epoch, message.view, message.view_changes, message.pre_prepares)
            case _:
                assert_never(message)

    # Own statements.

    def pre_prepare(self, view: int, height: int, proposal: Proposal) -> PrePrepare:
        digest = self.digest_of_proposal(proposal)
        signature = self._signer.sign(self._phase(b"pre_prepare", view, height, digest))
        return PrePrepare(self.epoch, view, height, digest, self.replica, signature, proposal)

    def prepare(self, view: int, height: int, digest: bytes) -> Prepare:
        signature = self._signer.sign(self._phase(b"prepare", view, height, digest))
        return Prepare(self.epoch, view, height, digest, self.replica, signature)

    def commit(self, view: int, height: int, digest: bytes) -> Commit:
        signature = self._signer.sign(self._phase(b"commit", view, height, digest))
        return Commit(self.epoch, view, height, digest, self.replica, signature)

    def checkpoint(self, height: int, header_hash: bytes) -> Checkpoint:
        signature = self._signer.sign(checkpoint_digest(self.roster.chain, self.epoch, height, header_hash))
        return Checkpoint(self.epoch, height, header_hash, self.replica, signature)

    def view_change(self, view: int, stable: BlockCertificate | None, prepared: Sequence[PreparedProof]) -> ViewChange:
        signature = self._signer.sign(view_change_digest(self.roster.chain, self.epoch, view, stable, prepared))
        return ViewChange(self.epoch, view, stable, tuple(prepared), self.replica, signature)

    def new_view(self, view: int, changes: Sequence[ViewChange], orders: Sequence[PrePrepare]) -> NewView:
        signature = self._signer.sign(new_view_digest(self.roster.chain, self.epoch, view, changes, orders))
        return NewView(self.epoch, view, tuple(changes), tuple(orders), self.replica, signature)

    # Statements of others.

    def is_signed(self, message: ConsensusMessage) -> bool:
        """Tell whether `message.replica` signed the message."""
        return self._is_signature(message.replica, message.signature, self.digest_of(message))

    def is_prepare(self, replica: int, signature: bytes, pre_prepare: PrePrepare) -> bool:
        """Tell whether the replica signed a PREPARE that matches the pre-prepare."""
        digest = self._phase(b"prepare", pre_prepare.view, pre_prepare.height, pre_prepare.digest)
        return self._is_signature(replica, signature, digest)

    def _is_signature(self, replica: int, signature: bytes, digest: bytes) -> bool:
        if not 0 <= replica < self.quorum.n:
            return False
        key = (replica, signature, digest)
        if key in self._verified:
            return True
        if not self.roster.verify_by(replica, signature, digest):
            return False
        if len(self._verified) >= VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[key] = None
        return True
