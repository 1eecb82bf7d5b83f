"""What goes between a meter and the head-end in a masked round, what a meter keeps, and who checks the chain.

head-end                                meter
RosterNotice  ─────────────────────▶   once for each roster
RoundCall     ─────────────────────▶
◀───────  Contribution   message 1: masked values, sealed shares of the self mask
RevealCall    ─────────────────────▶   with the receipt of who contributed
◀───────        Reveal   message 2: shares of self masks; before it, when somebody dropped out,
one more with the pairwise seeds of those who did
"""

from typing import Annotated, Final, Protocol

import msgspec

from bcami.codec import Codec
from bcami.model.aggregation import (
    MEMBERS_MAX,
    SLOTS_MAX,
    Bitmap,
    FixRosterArgument,
    RosterMember,
    SettleArgument,
    StartArgument,
    VoidArgument,
)
from bcami.model.api import CertifiedHeader, TransactionProof
from bcami.model.ids import NO_HASH, U32, U63, Hash, PublicKey, Signature
from bcami.model.reasons import Reason
from bcami.units import KIB, MIB

DEGREE_MAX: Final = 512
"""Largest degree of a group of MEMBERS_MAX under any sensible policy."""
_Member = Annotated[int, msgspec.Meta(ge=0, le=MEMBERS_MAX - 1)]
Secret = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Sealed = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class RosterNotice(msgspec.Struct, frozen=True, array_like=True, tag="roster"):
    """A roster, with the receipt that fixes it and the next block, from whose hash the graph is drawn."""

    proof: TransactionProof
    beacon: CertifiedHeader
    members: Annotated[tuple[RosterMember, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class RoundCall(msgspec.Struct, frozen=True, array_like=True, tag="round"):
    """Asks for a contribution."""

    proof: TransactionProof


class Contribution(msgspec.Struct, frozen=True, array_like=True, tag="contribution"):
    """Message 1."""

    round: U63
    member: _Member
    masked: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8 * SLOTS_MAX)]
    """Readings and masks mod 2^64, 8 bytes each, little-endian."""
    blinding: Hash
    """The commitment's blinding and masks, mod the group's order."""
    commitment: PublicKey
    self_commitment: Hash
    shares: Annotated[tuple[Sealed, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    """Of the self-mask seed, one for each neighbour in the order of their numbers."""
    signature: Signature


class RevealCall(msgspec.Struct, frozen=True, array_like=True, tag="reveal_call"):
    """Asks for pairwise seeds of those who are gone, or, when the set is final, for shares of those who are there."""

    proof: TransactionProof
    shares: Annotated[tuple[tuple[_Member, Sealed], ...], msgspec.Meta(max_length=MEMBERS_MAX)]


class Reveal(msgspec.Struct, frozen=True, array_like=True, tag="reveal"):
    """Message 2 (and the one before it when somebody dropped out)."""

    round: U63
    member: _Member
    wave: U32
    secrets: Annotated[tuple[tuple[_Member, Secret], ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    """Pairwise seeds of neighbours who are gone, or shares of the self masks of neighbours who contributed."""
    signature: Signature


class RoundVoid(msgspec.Struct, frozen=True, array_like=True, tag="round_void"):
    """Tells with its receipt that a round ended without a sum: its intervals may be asked for again."""

    proof: TransactionProof


class Declined(msgspec.Struct, frozen=True, array_like=True, tag="declined"):
    """A meter's no."""

    round: U63
    reason: Reason
    earlier: U63 = 0
    """The round of an earlier sum that stands against this one; 0 when it is not about that."""


ToMeter = RosterNotice | RoundCall | RevealCall | RoundVoid
ToHeadEnd = Contribution | Reveal | Declined
TO_METER_CODEC: Final[Codec[ToMeter]] = Codec(ToMeter, 4 * MIB)
TO_HEAD_END_CODEC: Final[Codec[ToHeadEnd]] = Codec(ToHeadEnd, MIB)


# What a meter keeps. None of it is secret: seeds and readings are not in it.


class OpenRound(msgspec.Struct, frozen=True, array_like=True):
    """The round that a meter answered last."""

    start: StartArgument
    contribution: Contribution
    contributors: Bitmap
    """The last set that it saw settled; everybody at first."""
    wave: int
    """Of that set; −1 before the first."""
    is_final: bool
    reveal: Reveal | None
    """Its answer to that set."""


class PastSum(msgspec.Struct, frozen=True, array_like=True):
    """A sum that this meter's reading went into, or may have."""

    round: U63
    first_s: U63
    slots: U32
    members: Hash
    """Digest of the contributors' HIDs; NO_HASH while not known."""
    epsilon_millionths: U63
    is_ring: bool = False
    """A ring tells no member who else was in it."""
    group: Hash = NO_HASH
    """Digest of the HIDs of all members of the roster; NO_HASH for a ring."""


class MeterMemory(msgspec.Struct, frozen=True, array_like=True):
    """All that a meter must not forget about its sums."""

    round_high: U63 = 0
    """Highest round number that it answered: none is answered twice."""
    open: OpenRound | None = None
    past: tuple[PastSum, ...] = ()


MEMORY_CODEC: Final[Codec[MeterMemory]] = Codec(MeterMemory, MIB)


class MemorySet(msgspec.Struct, frozen=True, array_like=True):
    """The contributors of a past sum, for comparison with the next."""

    hids: tuple[Hash, ...]


SET_CODEC: Final[Codec[MemorySet]] = Codec(MemorySet, 512 * KIB)


# Checking the chain.


class Proven(msgspec.Struct, frozen=True):
    """What a receipt proves: the argument of an accepted transaction of the contract, and where it stands."""

    argument: FixRosterArgument | StartArgument | SettleArgument | VoidArgument
    height: int


class ChainReader(Protocol):
    """Believes nothing without a certificate; `bcami.aggregation.proofs.GenesisReader` is the real one."""

    @property
    def chain(self) -> bytes: ...

    @property
    def epoch(self) -> int: ...

    def read(self, proof: TransactionProof) -> Proven | Reason:
        """Return what the proof proves."""

    def block_hash(self, block: CertifiedHeader) -> tuple[int, bytes] | Reason:
        """Return height and hash of a certified block."""
