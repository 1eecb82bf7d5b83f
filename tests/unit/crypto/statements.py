"""Truly signed statements of every kind, with a content that the test chooses."""

from hashlib import sha256

import msgspec

from bcami.codec import encode
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.model.batch import Endorsement, Refusal
from bcami.model.block import BlockCertificate, CheckpointVote
from bcami.model.consensus import (
    NULL_PROPOSAL,
    Checkpoint,
    Commit,
    NewView,
    PhaseVote,
    Prepare,
    PreparedProof,
    PrePrepare,
    ViewChange,
)
from bcami.model.evidence import Signable, StatementKind, signed_digest, statement_of
from bcami.model.reasons import Reason

NO_SIGNATURE = bytes(64)


def content_hash(content: object) -> bytes:
    return sha256(repr(content).encode()).digest()


def signed(message: Signable, roster: Roster, signer: Signer) -> Signable:
    """Return the message under the signature of whoever signs, over what it says."""
    place, said = statement_of(message, roster.chain)
    return msgspec.structs.replace(message, signature=signer.sign(signed_digest(roster.chain, place, said)))


def statement(
    roster: Roster, signer: Signer, kind: StatementKind, replica: int, view: int, height: int, content: object
) -> Signable:
    """Return a signed message of the kind; messages with other contents contradict each other."""
    epoch, said = roster.epoch, content_hash(content)
    proof = PreparedProof(
        PrePrepare(epoch, 0, 7, said, 0, NO_SIGNATURE, NULL_PROPOSAL),
        (PhaseVote(1, said + said), PhaseVote(2, said * 2)),
    )
    change = ViewChange(
        epoch,
        view,
        BlockCertificate(epoch, 6, said, (CheckpointVote(0, said + said),)),
        (proof,),
        replica,
        NO_SIGNATURE,
    )
    by_kind: dict[StatementKind, Signable] = {
        StatementKind.PRE_PREPARE: PrePrepare(epoch, view, height, said, replica, NO_SIGNATURE, NULL_PROPOSAL),
        StatementKind.PREPARE: Prepare(epoch, view, height, said, replica, NO_SIGNATURE),
        StatementKind.COMMIT: Commit(epoch, view, height, said, replica, NO_SIGNATURE),
        StatementKind.CHECKPOINT: Checkpoint(epoch, height, said, replica, NO_SIGNATURE),
        StatementKind.VIEW_CHANGE: change,
        StatementKind.NEW_VIEW: NewView(epoch, view, (change,), (), replica, NO_SIGNATURE),
        StatementKind.ENDORSEMENT: Endorsement(
            epoch, view, height, said, 3, replica, (Refusal(1, Reason.BAD_SIGNATURE),), NO_SIGNATURE
        ),
    }
    return signed(by_kind[kind], roster, signer)


def contradiction(
    roster: Roster,
    signer: Signer,
    replica: int,
    kind: StatementKind = StatementKind.PREPARE,
    view: int = 2,
    height: int = 9,
    contents: tuple[object, object] = ("one", "other"),
) -> tuple[bytes, bytes]:
    """Return two encoded messages of one replica that contradict each other."""
    first, second = (statement(roster, signer, kind, replica, view, height, content) for content in contents)
    return encode(first), encode(second)
