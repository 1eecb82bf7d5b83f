"""Evidence of equivocation: two signed statements of one replica that no honest replica makes both.

What an honest replica never does, restarts included (`bcami.pbft.replica`, protocol 4.1, 5.2): sign two statements of
one kind for one place with different content. The place of a statement is

    pre_prepare, prepare, commit     view and height
    checkpoint                       height; view is 0
    view_change, new_view            view; height is 0
    endorsement                      collector (as `view`) and number (as `height`)

One height in two views is two places: proposals may change with the view. Endorsements of one batch with different
refusals do not count. An evidence holds what the signatures cover, as hashes, so its size is fixed whatever was said.
"""

from enum import StrEnum
from typing import Annotated, Final, assert_never

import msgspec

from bcami.codec import Codec
from bcami.model.batch import Endorsement, endorsed_digest, endorsement_rest
from bcami.model.block import checkpoint_digest
from bcami.model.consensus import (
    Checkpoint,
    Commit,
    ConsensusMessage,
    NewView,
    Prepare,
    PrePrepare,
    ViewChange,
    left_view_digest,
    new_view_content,
    opened_view_digest,
    phase_digest,
    view_change_content,
)
from bcami.model.ids import NO_HASH, U63, Hash, ReplicaId, Signature
from bcami.model.reasons import Reason
from bcami.model.signing import digest, prefixed, u64
from bcami.model.transaction import Transaction
from bcami.model.wire import VOTE_FRAME_BYTES_MAX
from bcami.units import KIB

EVIDENCE_BYTES_MAX: Final = KIB
RECORDS_PER_REPLICA_MAX: Final = 64
"""Evidence kept on the chain against one replica: more of it proves nothing new."""

Signable = ConsensusMessage | Endorsement


class StatementKind(StrEnum):
    """What a replica signs and must not contradict."""

    PRE_PREPARE = "pre_prepare"
    PREPARE = "prepare"
    COMMIT = "commit"
    CHECKPOINT = "checkpoint"
    VIEW_CHANGE = "view_change"
    NEW_VIEW = "new_view"
    ENDORSEMENT = "endorsement"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a replica may make one statement only."""

    kind: StatementKind
    epoch: U63
    replica: ReplicaId
    """Who signed."""
    view: U63
    height: U63


class SignedContent(msgspec.Struct, frozen=True, array_like=True):
    """What was said there."""

    content: Hash
    """Digest of the proposal, hash of the header, digest of the batch, or of all that a view message holds."""
    rest: Hash
    """Of an endorsement what it says beside the batch (`endorsement_rest`); else zeros."""
    signature: Signature


class Evidence(msgspec.Struct, frozen=True, array_like=True):
    """Two statements for one place, the lower content first."""

    place: Place
    first: SignedContent
    second: SignedContent


class EvidenceRecord(msgspec.Struct, frozen=True, array_like=True):
    """World state: evidence that the governance contract has verified."""

    evidence_id: Hash
    evidence: Evidence
    reporter: ReplicaId
    """The member that brought it."""
    time_ms: U63
    """Time of the block that recorded it."""


class KeptEvidence(msgspec.Struct, frozen=True, array_like=True):
    """What a node keeps on its disk of evidence that it saw."""

    evidence: Evidence
    seen_ms: U63
    transaction: Transaction | None
    """The node's own report, signed; sent again byte by byte. None before the first."""
    outcome: Reason | None
    """`valid`: the chain holds evidence about this place, whoever brought it. Another: why it never will."""


STATEMENT_CODEC: Final[Codec[Signable]] = Codec(Signable, VOTE_FRAME_BYTES_MAX)
"""Whole statements, as nodes send them."""
EVIDENCE_CODEC: Final[Codec[Evidence]] = Codec(Evidence, EVIDENCE_BYTES_MAX)
EVIDENCE_RECORDS_CODEC: Final[Codec[tuple[EvidenceRecord, ...]]] = Codec(
    Annotated[tuple[EvidenceRecord, ...], msgspec.Meta(max_length=RECORDS_PER_REPLICA_MAX)],
    2 * EVIDENCE_BYTES_MAX * RECORDS_PER_REPLICA_MAX,
)
"""What governance.evidence answers about one replica."""
KEPT_EVIDENCE_CODEC: Final[Codec[KeptEvidence]] = Codec(KeptEvidence, 4 * EVIDENCE_BYTES_MAX)


def statement_of(message: Signable, chain: bytes) -> tuple[Place, SignedContent]:
    """Return what a message says, and where; its signature is not looked at."""
    kind, view, height, content, rest = _parts(message, chain)
    return Place(kind, message.epoch, message.replica, view, height), SignedContent(content, rest, message.signature)


def _parts(message: Signable, chain: bytes) -> tuple[StatementKind, int, int, bytes, bytes]:
    kinds = StatementKind
    match message:
        case PrePrepare():
            return kinds.PRE_PREPARE, message.view, message.height, message.digest, NO_HASH
        case Prepare():
            return kinds.PREPARE, message.view, message.height, message.digest, NO_HASH
        case Commit():
            return kinds.COMMIT, message.view, message.height, message.digest, NO_HASH
        case Checkpoint():
            return kinds.CHECKPOINT, 0, message.height, message.header_hash, NO_HASH
        case ViewChange():
            return kinds.VIEW_CHANGE, message.view, 0, view_change_content(message.stable, message.prepared), NO_HASH
        case NewView():
            content = new_view_content(chain, message.epoch, message.view_changes, message.pre_prepares)
            return kinds.NEW_VIEW, message.view, 0, content, NO_HASH
        case Endorsement():
            rest = endorsement_rest(message.count, message.refusals)
            return kinds.ENDORSEMENT, message.collector, message.number, message.batch_digest, rest
        case _:
            assert_never(message)


def is_well_formed(place: Place, said: SignedContent) -> bool:
    """Tell whether every field that the signature does not cover is zero: else one statement had many places."""
    match place.kind:
        case StatementKind.ENDORSEMENT:
            return True
        case StatementKind.CHECKPOINT:
            return place.view == 0 and said.rest == NO_HASH
        case StatementKind.VIEW_CHANGE | StatementKind.NEW_VIEW:
            return place.height == 0 and said.rest == NO_HASH
        case _:
            return said.rest == NO_HASH


def signed_digest(chain: bytes, place: Place, said: SignedContent) -> bytes:
    """Return the digest that the signature of a statement is over: the one that its message signs."""
    epoch, view, height, content = place.epoch, place.view, place.height, said.content
    match place.kind:
        case StatementKind.PRE_PREPARE | StatementKind.PREPARE | StatementKind.COMMIT:
            return phase_digest(place.kind.encode(), chain, epoch, view, height, content)
        case StatementKind.CHECKPOINT:
            return checkpoint_digest(chain, epoch, height, content)
        case StatementKind.VIEW_CHANGE:
            return left_view_digest(chain, epoch, view, content)
        case StatementKind.NEW_VIEW:
            return opened_view_digest(chain, epoch, view, content)
        case StatementKind.ENDORSEMENT:
            return endorsed_digest(chain, epoch, view, height, content, place.replica, said.rest)
        case _:
            assert_never(place.kind)


def place_id(chain: bytes, place: Place) -> bytes:
    """Return the digest that names a place."""
    return digest(b"bcami/evidence_place/1", chain, place.epoch, *_place_parts(place))


def record_key(chain: bytes, place: Place) -> bytes:
    """Return the state key under which the governance contract keeps evidence about a place."""
    return b"governance/records/" + u64(place.replica) + place_id(chain, place)


def count_key(place: Place) -> bytes:
    """Return the state key of the number of records against the replica."""
    return b"governance/counts/" + u64(place.replica)


def evidence_id(chain: bytes, evidence: Evidence) -> bytes:
    """Return the id: of place and contents, so that other signatures of the same statements make no other evidence."""
    contents = (evidence.first.content, evidence.second.content)
    return digest(b"bcami/evidence/1", chain, evidence.place.epoch, *_place_parts(evidence.place), *contents)


def _place_parts(place: Place) -> tuple[bytes, ...]:
    return prefixed(place.kind.encode()), u64(place.replica), u64(place.view), u64(place.height)
